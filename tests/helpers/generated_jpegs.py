"""Baseline JPEGs of random coefficients, written by this module alone.

No encoder has a part in them, and numpy keeps the stream of RandomState, so that they are the same
bytes everywhere: tests/golden/jpeg_pixels.json has hashes of what the decoder makes of them.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from helpers.jpegs import SUBSAMPLINGS, bit_size, pack_bits, segment, value_bits

KINDS = (*sorted(SUBSAMPLINGS), "rgb")

# T.81, tables K.3 to K.6: the number of codes of each length, and the symbols in their order.
_STANDARD_DC = (
    "00010501010101010100000000000000",
    "00030101010101010101010000000000",
)
_STANDARD_AC = (
    (
        "0002010303020403050504040000017d",
        "01020300041105122131410613516107227114328191a1082342b1c11552d1f02433627282090a161718191a"
        "25262728292a3435363738393a434445464748494a535455565758595a636465666768696a73747576777879"
        "7a838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9"
        "cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa",
    ),
    (
        "00020102040403040705040400010277",
        "0001020311040521310612415107617113223281081442"
        "91a1b1c109233352f0156272d10a162434e125f11718191a262728292a35363738393a434445464748494a53"
        "5455565758595a636465666768696a737475767778797a82838485868788898a92939495969798999aa2a3a4"
        "a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae2e3e4e5e6e7e8e9eaf2f3"
        "f4f5f6f7f8f9fa",
    ),
)


class Huffman(NamedTuple):
    """A table as a DHT segment has it."""

    counts: bytes  # codes of 1 to 16 bits
    symbols: bytes

    def codes(self) -> dict[int, str]:
        """The bits of each symbol."""
        code, found, symbols = 0, {}, iter(self.symbols)
        for length, count in enumerate(self.counts, 1):
            for _ in range(count):
                found[next(symbols)] = f"{code:0{length}b}"
                code += 1
            code <<= 1
        return found


def standard_table(is_ac: bool, chroma: bool) -> Huffman:
    """The table that T.81 suggests."""
    if is_ac:
        return Huffman(*map(bytes.fromhex, _STANDARD_AC[chroma]))
    return Huffman(bytes.fromhex(_STANDARD_DC[chroma]), bytes(range(12)))


def optimal_table(symbols: Counter[int]) -> Huffman:
    """Huffman's codes for these symbols and their numbers, none of them longer than 16 bits."""
    weights = dict(symbols)
    while True:
        # -1 gets a longest code, which is dropped: no code may consist of ones alone.
        lengths = dict.fromkeys([*weights, -1], 0)
        heap = [(n, symbol, [symbol]) for symbol, n in weights.items()] + [(0, -1, [-1])]
        heapq.heapify(heap)
        while len(heap) > 1:
            n1, first, under1 = heapq.heappop(heap)
            n2, _, under2 = heapq.heappop(heap)
            for symbol in under1 + under2:
                lengths[symbol] += 1
            heapq.heappush(heap, (n1 + n2, first, under1 + under2))
        if max(lengths.values()) <= 16:
            break
        weights = {symbol: n // 2 + 1 for symbol, n in weights.items()}
    lengths[-1] = max(lengths.values()) + 1  # behind all others
    order = sorted(lengths, key=lambda symbol: (lengths[symbol], symbol))[:-1]
    counts = Counter(lengths[symbol] for symbol in order)
    return Huffman(bytes(counts[length] for length in range(1, 17)), bytes(order))


class Group(NamedTuple):
    """JPEGs of one size, one sampling and one set of tables."""

    kind: str
    width: int
    height: int
    files: list[bytes]


def _pool(rng: np.random.RandomState, step: np.ndarray, blocks: int) -> list[list[int]]:
    """Quantised blocks in zigzag order, from flat to noise.

    The sums of all columns of the dequantised values are below 5,900. That is more than any picture
    has, and less than what overflows 16 bits between the passes of an inverse DCT.
    """
    values = np.zeros((blocks, 64), int)
    values[:, 0] = rng.randint(-1024, 1024, blocks)
    amplitude = 1 << rng.randint(1, 10, (blocks, 1))
    wanted = rng.randint(0, 256, (blocks, 63)) < (1 << rng.randint(2, 9, (blocks, 1)))
    values[:, 1:] = (rng.randint(-1024, 1025, (blocks, 63)) * amplitude >> 11) * wanted
    large = rng.randint(0, 2, blocks).nonzero()[0]
    values[large, rng.randint(1, 64, len(large))] = rng.randint(-1023, 1024, len(large))
    return (np.sign(values) * (np.abs(values) // step)).tolist()


def _ac_symbols(block: list[int]) -> list[tuple[int, int]]:
    """(symbol, value) of a block behind its DC coefficient."""
    found, zeros = [], 0
    for value in block[1:]:
        if value:
            found += [(0xF0, 0)] * (zeros // 16)
            found.append((zeros % 16 << 4 | bit_size(value), value))
        zeros = 0 if value else zeros + 1
    return found + [(0, 0)] * (zeros > 0)


class _Scan(NamedTuple):
    """Which block of the pool stands where, and by which table it is coded."""

    blocks: np.ndarray  # (images, MCUs, blocks of an MCU)
    components: list[int]  # of each block of an MCU
    interval: int  # MCUs

    def differences(self, dc: list[int]) -> np.ndarray:
        """Of each DC coefficient to the one before."""
        values = np.array(dc)[self.blocks]
        before = np.zeros_like(values)
        for component in set(self.components):
            at = [i for i, c in enumerate(self.components) if c == component]
            before[:, :, at[1:]] = values[:, :, at[:-1]]
            before[:, 1:, at[0]] = values[:, :-1, at[-1]]
            before[:, :: self.interval, at[0]] = 0
        return values - before


def _tables(scan: _Scan, pool: list[list[int]], optimal: bool) -> list[tuple[Huffman, Huffman]]:
    """DC and AC of luma, and of chroma."""
    if not optimal:
        return [(standard_table(False, chroma), standard_table(True, chroma)) for chroma in (0, 1)]
    symbols = [[s for s, _ in _ac_symbols(block)] for block in pool]
    differences, tables = scan.differences([block[0] for block in pool]), []
    for chroma in (0, 1):
        at = [i for i, c in enumerate(scan.components) if (c > 0) == chroma]
        dc = Counter(map(bit_size, differences[:, :, at].ravel().tolist())) or Counter([0])
        ac = Counter({0: 1})
        for block, n in Counter(scan.blocks[:, :, at].ravel().tolist()).items():
            ac.update({s: k * n for s, k in Counter(symbols[block]).items()})
        tables.append((optimal_table(dc), optimal_table(ac)))
    return tables


def _scans(
    scan: _Scan, pool: list[list[int]], tables: list[tuple[Huffman, Huffman]]
) -> Iterator[bytes]:
    """The entropy-coded bytes of each image, with its markers."""
    differences = scan.differences([block[0] for block in pool])
    dc_codes, ac_bits = [], []
    for dc, ac in tables:
        dc_codes.append(dc.codes())
        codes = ac.codes()
        # All blocks are coded with both tables; one that only luma uses may lack a code of chroma.
        ac_bits.append(
            ["".join(codes.get(s, "") + value_bits(v) for s, v in _ac_symbols(b)) for b in pool]
        )
    dc_bits = [
        {d: codes.get(bit_size(d), "") + value_bits(d) for d in np.unique(differences).tolist()}
        for codes in dc_codes
    ]
    chroma = [int(c > 0) for c in scan.components]
    for blocks, image in zip(scan.blocks.tolist(), differences.tolist(), strict=True):
        mcus = [
            "".join([dc_bits[c][d] + ac_bits[c][b] for c, b, d in zip(chroma, *mcu, strict=True)])
            for mcu in zip(blocks, image, strict=True)
        ]
        starts = range(0, len(mcus), scan.interval)
        intervals = [pack_bits("".join(mcus[i : i + scan.interval])) for i in starts]
        marked = [bytes([0xFF, 0xD0 + i % 8]) + data for i, data in enumerate(intervals[1:])]
        yield intervals[0] + b"".join(marked)


def generate(seed: int, images: int) -> Group:
    """A group of images. The seeds from 0 on go through the kinds and the tables in turn."""
    rng = np.random.RandomState(seed)
    kind = KINDS[seed % len(KINDS)]
    h, v = SUBSAMPLINGS.get(kind, (1, 1))
    width, height = (int(rng.randint(1, 1 + rng.choice([20, 70]))) for _ in range(2))
    components = [0] if kind == "gray" else [0] * (h * v) + [1, 2]
    mcus = -(-width // (8 * h)) * -(-height // (8 * v))
    interval = int(rng.randint(1, mcus + 1)) if rng.randint(2) else 0

    wide = rng.randint(4) == 0  # steps of 16 bits
    step = rng.randint(1, 1 + rng.choice([300, 2000] if wide else [1, 16, 255]), 64)
    pool = _pool(rng, step, 300)
    scan = _Scan(
        rng.randint(0, len(pool), (images, mcus, len(components))), components, interval or mcus
    )
    tables = _tables(scan, pool, optimal=bool(rng.randint(2)))

    ids = list(b"RGB") if kind == "rgb" else [1, 2, 3]
    ids = ids[: max(components) + 1]
    factors = [h << 4 | v] + [0x11] * (len(ids) - 1)
    frame = b"".join(bytes([i, f, 0]) for i, f in zip(ids, factors, strict=True))
    sizes = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    steps = step.astype(">u2" if wide else "u1").tobytes()
    head = [b"\xff\xd8", segment(0xDB, bytes([wide << 4]) + steps)]
    head.append(segment(0xC1 if wide else 0xC0, b"\x08" + sizes + bytes([len(ids)]) + frame))
    for i, pair in enumerate(tables):
        head += [segment(0xC4, bytes([c << 4 | i]) + b"".join(t)) for c, t in enumerate(pair)]
    if interval:
        head.append(segment(0xDD, interval.to_bytes(2, "big")))
    used = b"".join(bytes([i, 0x11 * (n > 0)]) for n, i in enumerate(ids))
    head.append(segment(0xDA, bytes([len(ids)]) + used + bytes([0, 63, 0])))
    files = [b"".join(head) + data + b"\xff\xd9" for data in _scans(scan, pool, tables)]
    return Group(kind, width, height, files)
