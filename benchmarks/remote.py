"""Measure `prepare` from a server with connections that break, beside `prepare` from local files.

python benchmarks/remote.py PHOTOS --json OUT        # PHOTOS/CLASS/*.jpg

The photographs are put into tar shards. The server is a process of its own on this machine, and
breaks the connection of every 20th request. Each conversion is a new process with one worker, so
that the server has a core. Local and remote ones alternate, after one round that warms up. All
files that they write must be the same.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import subprocess
import sys
import tarfile
import tempfile
import time
from argparse import Namespace
from multiprocessing.connection import Connection
from pathlib import Path

from support.arguments import Parser, above_zero, result_file
from support.conditions import command, environment
from support.file_server import serving
from support.image_folder import files_of
from support.rounds import spread
from support.script import run_script, say

_SHARDS = 8
_BREAKS_EVERY = 20  # requests: 5%


def main() -> None:
    options = _parse()
    if options.source:
        print(json.dumps(_convert(options.source, Path(options.out))))
        return
    path = result_file(options.json)
    with tempfile.TemporaryDirectory() as folder:
        images = _write_shards(options.photos, Path(folder, "shards"), options.copies)
        ours, theirs = multiprocessing.Pipe()
        server = multiprocessing.Process(target=_serve, args=(folder, theirs))
        server.start()
        rounds = _rounds(options.rounds, f"{ours.recv()}/shards/", Path(folder))
        ours.send(None)
        requests, broken = ours.recv()
        server.join()
    result = {
        "claim": "`prepare` from a server with broken connections, beside local files",
        "command": command(),
        "environment": environment(1),
        "images": images,
        "rounds": options.rounds,
        "requests": requests,
        "broken": broken,
        "images_per_s": {
            name: spread([images / seconds[name] for seconds in rounds]) for name in rounds[0]
        },
        "ratio": spread([seconds["local"] / seconds["remote"] for seconds in rounds]),
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    say(f"remote is {result['ratio']['median']:.2f} times as fast as local")


def _parse() -> Namespace:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", nargs="?", help="PHOTOS/CLASS/*.jpg")
    parser.add_argument("--copies", type=int, default=4, help="of each photograph")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--source", help="convert this in this process, to --out")
    parser.add_argument("--out")
    parser.add_argument("--json", metavar="OUT")
    options = parser.parse_args()
    above_zero(options, "copies", "rounds")
    if not options.source and not (options.photos and options.json):
        parser.error("pass PHOTOS and --json OUT")
    return options


def _write_shards(photos: str, folder: Path, copies: int) -> int:
    """Write the photographs to tar files, and return their number."""
    folder.mkdir()
    files, labels = files_of(photos)
    members = list(zip(files, labels, strict=True)) * copies
    for shard in range(_SHARDS):
        with tarfile.open(folder / f"photos-{shard:04}.tar", "w") as tar:
            for number in range(shard, len(members), _SHARDS):
                file, label = members[number]
                _add(tar, f"{number:06}.jpg", Path(file).read_bytes())
                _add(tar, f"{number:06}.cls", str(label).encode())
    return len(members)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _serve(folder: str, connection: Connection) -> None:
    with serving(Path(folder)) as server:
        server.breaks_every = _BREAKS_EVERY
        connection.send(server.url)
        connection.recv()
        connection.send((len(server.paths), server.broken))


def _rounds(rounds: int, url: str, folder: Path) -> list[dict[str, float]]:
    """Return the seconds of each conversion."""
    sources = {"local": str(folder / "shards"), "remote": url}
    found = []
    for number in range(rounds + 1):
        seconds, files = {}, []
        for name in sorted(sources, reverse=number % 2 == 1):
            out = folder / f"{name}.beton"
            called = [sys.executable, __file__, "--source", sources[name], "--out", str(out)]
            done = subprocess.run(called, check=True, stdout=subprocess.PIPE, text=True)
            seconds[name] = float(json.loads(done.stdout))
            files.append(out.read_bytes())
            out.unlink()
        if files[0] != files[1]:
            raise SystemExit("error: the files differ")
        say(", ".join(f"{name} {value:.2f} s" for name, value in sorted(seconds.items())))
        if number:
            found.append(seconds)
    return found


def _convert(source: str, out: Path) -> float:
    from fastselfie.data.conversion.prepare import Options, prepare

    began = time.perf_counter()
    prepare(source, out, Options(workers=1))
    return time.perf_counter() - began


if __name__ == "__main__":
    run_script(main)
