"""Writing a .beton file: killed at any moment, and gone on with."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.beton_files import METADATA, Sample, make_samples

from fastselfie.data.beton.reader import BetonError, BetonReader
from fastselfie.data.beton.writer import BetonWriter

pytestmark = pytest.mark.slow

CHILD = """
import pickle, sys, time
from fastselfie.data.beton import writer as beton_writer
beton_writer.CHECKPOINT_BYTES = 1 << 16
with open({samples!r}, "rb") as file:
    samples = pickle.load(file)
with beton_writer.BetonWriter({path!r}, 400, 1 << 14, fingerprint="x") as writer:
    print("start", writer.count, flush=True)
    for sample in samples[writer.next_source:]:
        writer.append(*sample)
        time.sleep(0.0005)
    writer.finish(dict(classes=["a", "b"]))
print("done", flush=True)
"""


def test_killed_and_run_again_gives_the_same_bytes(tmp_path: Path) -> None:
    samples = make_samples(400, seed=3)
    kept = tmp_path / "samples.pickle"
    kept.write_bytes(pickle.dumps(samples))
    whole = tmp_path / "whole.beton"
    with BetonWriter(whole, 400, 1 << 14, fingerprint="x") as writer:
        for sample in samples:
            writer.append(*sample)
        writer.finish({"classes": ["a", "b"]})
    path = tmp_path / "killed.beton"
    rng = np.random.default_rng(5)
    starts = []
    for _ in range(40):
        command = [sys.executable, "-c", CHILD.format(samples=str(kept), path=str(path))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            starts.append(int(child.stdout.readline().split()[1]))
            time.sleep(rng.uniform(0.02, 0.12))
            child.send_signal(signal.SIGKILL)
        if path.exists():
            break
        assert not path.exists()
        assert (tmp_path / "killed.beton.partial").exists()
    assert path.read_bytes() == whole.read_bytes()
    assert len(starts) > 2
    assert starts == sorted(starts)
    assert starts[-1] > 0
    left = {p.name for p in tmp_path.iterdir()}
    assert left <= {kept.name, "whole.beton", "killed.beton", "killed.beton.journal"}


def snapshots(path: Path, samples: list[Sample]) -> tuple[bytes, bytes, bytes]:
    """(partial, journal) after all appends without finish, and the finished file."""
    writer = BetonWriter(path, len(samples), 4096 * 4)
    for sample in samples:
        writer.append(*sample)
    writer.close()
    partial, journal = (Path(f"{path}{s}").read_bytes() for s in (".partial", ".journal"))
    writer = BetonWriter(path, len(samples), 4096 * 4)
    assert writer.count == len(samples)
    writer.finish({"classes": ["a", "b"]})
    return partial, journal, path.read_bytes()


def test_resume_from_any_torn_state(tmp_path: Path) -> None:
    """Partial file and journal cut or damaged anywhere, in any combination."""
    samples = make_samples(30, seed=9)
    partial, journal, whole = snapshots(tmp_path / "a.beton", samples)
    rng = np.random.default_rng(2)
    path = tmp_path / "b.beton"
    counts = set()
    for trial in range(300):
        data, notes = bytearray(partial), bytearray(journal)
        kind = trial % 5
        if kind in (0, 2):
            del data[rng.integers(len(data) + 1) :]
        if kind in (1, 2):
            del notes[rng.integers(len(notes) + 1) :]
        if kind == 3:  # killed in `finish`: tables stand behind the data and over the front
            data = bytearray(whole[: rng.integers(len(partial), len(whole))])
        if kind == 4:  # a power cut: bytes that never reached the disk
            data[rng.integers(METADATA, len(data)) :][:100] = b""
            at = int(rng.integers(len(data)))
            data[at : at + 50] = bytes(len(data[at : at + 50]))
            at = int(rng.integers(56, len(notes)))
            notes[at] ^= 1
        Path(f"{path}.partial").write_bytes(data)
        Path(f"{path}.journal").write_bytes(notes)
        with BetonWriter(path, 30, 4096 * 4) as writer:
            counts.add(writer.count)
            for sample in samples[writer.next_source :]:
                writer.append(*sample)
            writer.finish({"classes": ["a", "b"]})
        assert path.read_bytes() == whole, (trial, kind)
        path.unlink()
    assert len(counts) > 20


def test_resume_refuses_other_options(tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    writer = BetonWriter(path, 5, 4096, fingerprint="quality=90")
    writer.append(b"x", "jpg", 1, 1, 0)
    writer.close()
    for count, page, print_ in [(6, 4096, "quality=90"), (5, 8192, "quality=90"), (5, 4096, "")]:
        with pytest.raises(BetonError, match=r"partial.*other options"):
            BetonWriter(path, count, page, fingerprint=print_)
    assert BetonWriter(path, 5, 4096, fingerprint="quality=90").count == 1


def test_skipped_sources_resume_at_the_right_one(tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    for _ in range(2):
        with BetonWriter(path, 10, 4096) as writer:
            for source in range(writer.next_source, 10):
                if source % 3:
                    writer.append(bytes([source]), "jpg", 1, 1, source, source=source)
                if source == 5 and writer.count == 4:
                    break
            else:
                writer.finish(allow_fewer=True)
    reader = BetonReader(path)
    assert reader.label.tolist() == [1, 2, 4, 5, 7, 8]
