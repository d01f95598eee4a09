"""Merges the shards that `prepare --shard K/N` wrote on N machines: `fastselfie join`."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from fastselfie.data.beton.reader import IMAGE_MODES, BetonError, BetonReader
from fastselfie.data.beton.writer import BetonWriter
from fastselfie.data.conversion.prepare import check_out
from fastselfie.data.conversion.skip_list import SkipList, skip_list_of, skipped_lines
from fastselfie.errors import UserError

_MODES = {number: name for name, number in IMAGE_MODES.items()}


def merge_shards(paths: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write the images of all shards to `out`, with the same bytes as a single `prepare`.

    If the process is killed at any moment, the same call resumes.

    Args:
        paths: All shards, in any order.
        out: The file to write.

    Returns:
        Numbers for a summary: file, images, skipped, bytes.

    Raises:
        UserError: Shards are missing, repeated, or of different sources or options, or `out`
            exists.
        BetonError: A shard is damaged.
    """
    check_out(out)
    shards = _in_order(paths)
    note = {key: value for key, value in shards[0].info.items() if key != "shard"}
    note["skipped"] = sum(shard.info["skipped"] for shard in shards)
    total = sum(map(len, shards))
    fingerprint = hashlib.sha256(json.dumps([s.info for s in shards]).encode()).hexdigest()
    out.parent.mkdir(parents=True, exist_ok=True)
    size = shards[0].page_size
    with BetonWriter(out, total + note["skipped"], size, fingerprint=fingerprint) as writer:
        images = ((shard, k) for shard in shards for k in range(len(shard)))
        for reader, k in islice(images, writer.next_source, None):
            data, mode = reader.image(k).tobytes(), _MODES[int(reader.mode[k])]
            if reader.crc32 is None or zlib.crc32(data) != reader.crc32[k]:
                # The writer would store a valid checksum of the damaged bytes.
                raise BetonError(f"{reader.path}: sample {k} is damaged: copy or prepare it again")
            shape = int(reader.width[k]), int(reader.height[k])
            writer.append(data, mode, *shape, int(reader.label[k]))
        skipped, begin = SkipList(out, 0), 0  # begin: where a shard begins in the whole source
        for shard in shards:
            for index, name, reason in skipped_lines(skip_list_of(shard.path)):
                skipped.add(begin + index, name, reason)
            begin += len(shard) + shard.info["skipped"]
        writer.finish(note, allow_fewer=True)
    return {"file": str(out), "images": total, "skipped": note["skipped"],
            "bytes": out.stat().st_size}  # fmt: skip


def _in_order(paths: Sequence[Path]) -> list[BetonReader]:
    """Open the shards, check that they belong together and are complete, and sort them."""
    found: dict[int, BetonReader] = {}
    for path in paths:
        reader = BetonReader(path)
        shard = reader.info.get("shard")
        if shard is None:
            raise UserError(f"{path}: is not a shard: write shards with prepare --shard K/N")
        if shard[0] in found:
            raise UserError(
                f"{path}: is shard {shard[0]}, as is {found[shard[0]].path}: pass each shard once"
            )
        found[shard[0]] = reader
        _require_same(next(iter(found.values())), reader)
    count = next(iter(found.values())).info["shard"][1]
    missing = [str(k) for k in range(1, count + 1) if k not in found]
    if missing:
        raise UserError(f"shard {', '.join(missing)} of {count} is missing: pass all shards")
    return [found[number] for number in range(1, count + 1)]


def _require_same(first: BetonReader, other: BetonReader) -> None:
    way_out = "pass shards of one dataset, written with the same options"
    for key in ("source", "options", "classes"):
        if first.info.get(key) != other.info.get(key):
            raise UserError(f"{other.path}: has another {key} than {first.path}: {way_out}")
    if first.info["shard"][1] != other.info["shard"][1] or first.page_size != other.page_size:
        raise UserError(
            f"{other.path}: has another number of shards, or page size, than "
            f"{first.path}: {way_out}"
        )
