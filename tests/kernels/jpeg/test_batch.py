"""The batch engine: same bytes for any number of threads, failures by sample, a clean end."""

from __future__ import annotations

import mmap
import os
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from helpers.jpegs import SUBSAMPLINGS, make_jpeg, texture

from fastselfie.kernels import jpeg

SIZE = (40, 48)


@pytest.fixture(scope="module")
def files():
    kinds = sorted(SUBSAMPLINGS)
    plain = [make_jpeg(kinds[i % 6], 60 + i, 50 + 2 * i, i) for i in range(48)]
    return [jpeg.transcode(data) if i % 7 else data for i, data in enumerate(plain)]


@pytest.fixture(scope="module")
def boxes(files):
    return np.array([(i % 7, i % 5, 40 + i % 11, 30 + i) for i in range(len(files))], np.int32)


@pytest.fixture(scope="module")
def flips(files):
    return (np.arange(len(files)) % 2).astype(np.uint8)


@pytest.fixture(scope="module")
def expected(files, boxes, flips):
    items = zip(files, boxes.tolist(), flips, strict=True)
    return np.stack(
        [jpeg.decode_resized(data, tuple(box), SIZE, bool(flip)) for data, box, flip in items]
    )


def empty(count):
    return np.full((count, *SIZE, 3), 77, np.uint8)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("help_", [False, True])
def test_same_bytes_for_any_number_of_threads(threads, help_, files, boxes, flips, expected):
    with jpeg.BatchDecoder(threads) as decoder:
        outs = [empty(len(files)) for _ in range(5)]
        tickets = [decoder.submit(files, boxes, flips, out=out) for out in outs]
        for ticket, out in zip(reversed(tickets), reversed(outs), strict=True):
            assert decoder.wait(ticket, help=help_) == []
            assert np.array_equal(out, expected)


def test_items_of_one_mapped_file(tmp_path, files, boxes, flips, expected):
    sizes = np.array([len(data) for data in files], np.uint64)
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.uint64)
    path = tmp_path / "images"
    path.write_bytes(b"".join(files))
    with path.open("rb") as file, jpeg.BatchDecoder(2) as decoder:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        out = empty(len(files))
        ticket = decoder.submit(mapped, boxes, flips, out=out, offsets=offsets, sizes=sizes)
        assert decoder.wait(ticket) == []
        assert np.array_equal(out, expected)
        # Pointers that lead out of the file are faults of their samples.
        offsets[3], sizes[5] = 2**63, 2**64 - 1
        ticket = decoder.submit(mapped, boxes, flips, out=out, offsets=offsets, sizes=sizes)
        failures = decoder.wait(ticket)
        assert [index for index, _ in failures] == [3, 5]
        assert all("outside of the file" in why for _, why in failures)
        mapped.close()  # nothing holds it any more


def test_a_buffer_in_flight_is_held(files, boxes):
    data = bytearray(files[0])
    sizes = np.full(400, len(data), np.uint64)
    with jpeg.BatchDecoder(1) as decoder:
        ticket = decoder.submit(
            data,
            np.tile(boxes[:1], (400, 1)),
            out=empty(400),
            offsets=np.zeros(400, np.uint64),
            sizes=sizes,
        )
        with pytest.raises(BufferError):
            data.clear()
        assert decoder.wait(ticket) == []
        data.clear()


def test_a_bad_sample_spoils_only_itself(files, boxes, flips, expected):
    broken = list(files)
    broken[4], broken[9], broken[20] = b"", files[9][: len(files[9]) // 2], b"not a jpeg"
    bad_boxes = boxes.copy()
    bad_boxes[30] = (0, 0, 10_000, 10)
    with jpeg.BatchDecoder(3) as decoder:
        out = empty(len(files))
        failures = decoder.wait(decoder.submit(broken, bad_boxes, flips, out=out))
    assert [index for index, _ in failures] == [4, 9, 20, 30]
    assert all(message for _, message in failures)
    good = np.ones(len(files), bool)
    good[[4, 9, 20, 30]] = False
    assert np.array_equal(out[good], expected[good])
    assert not out[~good].any()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [(jpeg.KIND_RAW_ZERO_PADDED, "constant"), (jpeg.KIND_RAW_REFLECTED, "reflect")],
)
def test_raw_items(kind, mode):
    images = [texture(32, 32, seed) for seed in range(8)]
    boxes = np.array([(i - 4, 3 - i, 32, 32) for i in range(8)], np.int32)
    shapes, kinds = np.full((8, 2), 32, np.int32), np.full(8, kind, np.uint8)
    out = np.empty((8, 32, 32, 3), np.uint8)
    with jpeg.BatchDecoder(2) as decoder:
        data = [bytes(image) for image in images]
        assert decoder.wait(decoder.submit(data, boxes, out=out, kinds=kinds, shapes=shapes)) == []
        for image, (left, top, _, _), got in zip(images, boxes, out, strict=True):
            padded = np.pad(image, ((8, 8), (8, 8), (0, 0)), mode=mode)
            assert np.array_equal(got, padded[8 + top : 40 + top, 8 + left : 40 + left])
        short = decoder.submit([b"12"] * 8, boxes, out=out, kinds=kinds, shapes=shapes)
        assert len(decoder.wait(short)) == 8
        assert not out.any()


def test_closing_in_the_middle(files, boxes):
    for _ in range(20):
        decoder = jpeg.BatchDecoder(2)
        tickets = [decoder.submit(files, boxes, out=empty(len(files))) for _ in range(6)]
        decoder.close()
        decoder.close()
        failures = [decoder.wait(ticket) for ticket in tickets]
        assert all("closed" in message for batch in failures for _, message in batch)
        with pytest.raises(jpeg.JpegError, match="closed"):
            decoder.submit(files, boxes, out=empty(len(files)))


def test_closing_from_several_threads_while_others_help(files, boxes):
    """Once close() returns, in any thread, nobody writes to a batch any more."""
    for _ in range(20):
        decoder = jpeg.BatchDecoder(1)
        outs = [empty(len(files)) for _ in range(6)]
        tickets = [decoder.submit(files, boxes, out=out) for out in outs]
        closed = []

        def close(decoder=decoder, outs=outs, closed=closed):
            decoder.close()
            closed.append([out.copy() for out in outs])

        workers = [threading.Thread(target=decoder.wait, args=(t, True)) for t in tickets]
        workers += [threading.Thread(target=close) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        for before in closed:
            assert all(np.array_equal(a, b) for a, b in zip(before, outs, strict=True))


def test_a_forgotten_decoder_ends(files, boxes):
    decoder = jpeg.BatchDecoder(2)
    decoder.submit(files, boxes, out=empty(len(files)))
    threads = len(os.listdir("/proc/self/task"))
    del decoder
    assert len(os.listdir("/proc/self/task")) == threads - 2


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_is_told(files, boxes):
    decoder = jpeg.BatchDecoder(2)
    ticket = decoder.submit(files, boxes, out=empty(len(files)))
    child = os.fork()
    if child == 0:
        told = 0
        for call in (
            lambda: decoder.submit(files, boxes, out=empty(len(files))),
            lambda: decoder.wait(ticket),
        ):
            try:
                call()
            except jpeg.JpegError as error:
                told += "fork" in str(error)
        decoder.close()
        del decoder, call
        os._exit(0 if told == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert decoder.wait(ticket) == []


def test_more_threads_than_the_system_gives_is_an_error():
    """In a process of its own, whose address space has no room for 1,024 stacks."""
    child = os.fork()
    if child == 0:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
        try:
            jpeg.BatchDecoder(1024)
        except jpeg.JpegError as error:
            os._exit(0 if "threads" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def decoder():
    with closing(jpeg.BatchDecoder(1)) as decoder:
        yield decoder


def wrong_outs(count):
    read_only = empty(count)
    read_only.flags.writeable = False
    return {
        "three axes": np.empty((count, 8, 8), np.uint8),
        "floats": np.empty((count, 8, 8, 3), np.float32),
        "strided": np.empty((count, 8, 16, 3), np.uint8)[:, :, ::2],
        "too few": empty(count - 1),
        "read-only": read_only,
    }


@pytest.mark.parametrize("out", wrong_outs(48).values(), ids=wrong_outs(48))
def test_an_output_that_does_not_fit_is_refused(decoder, files, boxes, out):
    with pytest.raises(ValueError, match=r"out|boxes"):
        decoder.submit(files, boxes, out=out)


def test_other_mistakes_of_the_caller(decoder, files, boxes):
    count = len(files)
    with pytest.raises(KeyError):
        decoder.wait(12345)
    with pytest.raises(ValueError, match="kinds"):
        decoder.submit(files, boxes, out=empty(count), kinds=np.full(count, 9, np.uint8))
    with pytest.raises(ValueError, match="together"):
        decoder.submit(b"".join(files), boxes, out=empty(count), sizes=np.zeros(count, np.uint64))
    with pytest.raises(ValueError, match="length"):
        decoder.submit(files[:-1], boxes, out=empty(count))
    with pytest.raises(ValueError, match="threads"):
        jpeg.BatchDecoder(0)


@pytest.mark.parametrize("niceness", [0, 7])
def test_its_threads_yield_as_asked(niceness, files, boxes):
    def nices():
        tasks = set(os.listdir("/proc/self/task"))
        return {t: os.getpriority(os.PRIO_PROCESS, int(t)) for t in tasks}

    before = nices()
    with jpeg.BatchDecoder(2, niceness) as decoder:
        decoder.wait(decoder.submit(files, boxes, out=empty(len(files))))
        wanted = [max(os.getpriority(os.PRIO_PROCESS, 0), niceness)] * 2
        deadline = time.monotonic() + 30  # one may have done it all before the other began
        added: list[int] = []
        while added != wanted and time.monotonic() < deadline:
            added = [nice for task, nice in nices().items() if task not in before]
    assert added == wanted
