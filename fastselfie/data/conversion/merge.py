"""`fastselfie join`: the parts that `prepare --shard K/N` made on N machines, as one file."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastselfie.data.beton.reader import IMAGE_MODES, BetonError, BetonReader
from fastselfie.data.beton.writer import BetonWriter
from fastselfie.data.conversion.prepare import check_out
from fastselfie.data.conversion.skip_list import SkipList, skip_list_of, skipped_lines
from fastselfie.errors import UserError

_MODES = {number: name for name, number in IMAGE_MODES.items()}


class _Part(NamedTuple):
    """shard: K of 1..N. begin: where its images start in the whole source."""

    reader: BetonReader
    shard: int
    begin: int


def merge_shards(paths: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write the images of all parts to `out`, byte for byte what one `prepare` would have made.

    Killed at any moment, the same call goes on. Returns figures for a summary.

    Raises:
        UserError: parts are missing, doubled, or of another source or other options; `out` exists.
        BetonError: a part is damaged.
    """
    check_out(out)
    parts = _in_order(paths)
    first = parts[0].reader
    note = {key: value for key, value in first.info.items() if key != "shard"}
    note["skipped"] = sum(part.reader.info["skipped"] for part in parts)
    total = sum(len(part.reader) for part in parts)
    fingerprint = hashlib.sha256(json.dumps([p.reader.info for p in parts]).encode()).hexdigest()
    out.parent.mkdir(parents=True, exist_ok=True)
    with BetonWriter(
        out, total + note["skipped"], first.page_size, fingerprint=fingerprint
    ) as writer:
        _append(writer, parts)
        skipped = SkipList(out, 0)
        for part in parts:
            for index, name, reason in skipped_lines(skip_list_of(part.reader.path)):
                skipped.add(part.begin + index, name, reason)
        writer.finish(note, allow_fewer=True)
    return {"file": str(out), "images": total, "skipped": note["skipped"],
            "bytes": out.stat().st_size}  # fmt: skip


def _append(writer: BetonWriter, parts: Sequence[_Part]) -> None:
    done = writer.next_source
    for number, (reader, k) in enumerate(_images(parts)):
        if number < done:
            continue
        data, mode = reader.image(k).tobytes(), _MODES[int(reader.mode[k])]
        if reader.crc32 is None or zlib.crc32(data) != reader.crc32[k]:
            # The writer would sum the damaged bytes, and nobody could tell any more.
            raise BetonError(f"{reader.path}: sample {k} is damaged: copy or prepare it again")
        shape = int(reader.width[k]), int(reader.height[k])
        writer.append(data, mode, *shape, int(reader.label[k]))


def _images(parts: Sequence[_Part]) -> Iterator[tuple[BetonReader, int]]:
    for part in parts:
        for k in range(len(part.reader)):
            yield part.reader, k


def _in_order(paths: Sequence[Path]) -> list[_Part]:
    """The parts by their number, all of one whole."""
    found: dict[int, BetonReader] = {}
    for path in paths:
        reader = BetonReader(path)
        shard = reader.info.get("shard")
        if shard is None:
            raise UserError(f"{path}: is no part: make parts with prepare --shard K/N")
        if shard[0] in found:
            raise UserError(f"{path}: is part {shard[0]} again, as {found[shard[0]].path} is")
        found[shard[0]] = reader
        before = next(iter(found.values()))
        _require_same(before, reader)
    count = next(iter(found.values())).info["shard"][1]
    missing = [str(k) for k in range(1, count + 1) if k not in found]
    if missing:
        raise UserError(f"part {', '.join(missing)} of {count} is missing: give all parts")
    parts, begin = [], 0
    for shard in range(1, count + 1):
        reader = found[shard]
        parts.append(_Part(reader, shard, begin))
        begin += len(reader) + reader.info["skipped"]
    return parts


def _require_same(first: BetonReader, other: BetonReader) -> None:
    for key in ("source", "options", "classes"):
        if first.info.get(key) != other.info.get(key):
            raise UserError(f"{other.path}: has another {key} than {first.path}: join what one set "
                            "and one set of options made")  # fmt: skip
    if first.info["shard"][1] != other.info["shard"][1] or first.page_size != other.page_size:
        raise UserError(
            f"{other.path}: is of another number of parts, or page size, than {first.path}"
        )
