"""Finds near-duplicate images: a hash of 64 bits per image, and groups of hashes that differ in few bits. NumPy alone.

The hash is of the family called pHash: signs of the lowest frequencies of a small gray image. It stays the same at
another size, compression, brightness or contrast; not for crops, rotations or mirror images.

Groups are found without comparing all pairs. Cut the 64 bits into m = d // 2 + 1 chunks: hashes that differ in at most
d < 2 m bits differ in at most one bit of at least one chunk, otherwise there would be 2 m differences. So only hashes
with a chunk that is equal, or equal after one flipped bit, are compared; sorting and binary search find them. Equal
hashes are joined first. With d = 6 about one pair in a thousand is compared (a million hashes take half a minute), with
d = 4 one in thirty thousand.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]

SMALL_PX = 32
NUM_BITS = 64
FLAT_LEVELS = 1.5  # of 255: below this standard deviation of a small image, its frequencies are noise
NO_HASH = 0  # never the hash of an image: half of the bits of a hash are set
MAX_DISTANCE = 15
PAIRS_AT_ONCE = PLACES_AT_ONCE = 1 << 20

# The 64 lowest frequencies (rows, columns) but the mean.
FREQUENCIES = sorted(itertools.product(range(11), repeat=2), key=lambda pair: (sum(pair), pair))[1 : NUM_BITS + 1]
_COSINES = np.cos(np.pi / SMALL_PX * np.outer(np.arange(11), np.arange(SMALL_PX) + 0.5))
_ONES = np.array([bin(value).count("1") for value in range(1 << 16)], dtype=np.uint8)


@lru_cache(maxsize=64)
def area_weights(size: int) -> NDArray[np.float32]:
    """float32 (SMALL_PX, size): row k takes the mean over the k-th of SMALL_PX equal parts of `size` pixels."""
    edges = np.linspace(0, size, SMALL_PX + 1)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.asarray(np.maximum(overlap, 0) * SMALL_PX / size, dtype=np.float32)


def small_image(luma: NDArray[np.generic]) -> NDArray[np.float32]:
    """A gray image (height, width) scaled by area to float32 (SMALL_PX, SMALL_PX)."""
    height, width = luma.shape
    return np.asarray(area_weights(height) @ luma.astype(np.float32) @ area_weights(width).T)


def perceptual_hash(small: NDArray[np.float32]) -> int:
    """64 bits of a `small_image` with levels 0..255; NO_HASH if it is flat.

    A bit is set where one of the 64 lowest frequencies of the image's DCT-II, without the mean, is above their median.
    """
    if small.std() < FLAT_LEVELS:
        return NO_HASH
    rows, columns = np.array(FREQUENCIES).T
    values = (_COSINES @ small @ _COSINES.T)[rows, columns]
    return int.from_bytes(np.packbits(values > np.median(values)).tobytes(), "big")


def distances(first: Hashes, second: Hashes) -> NDArray[np.int64]:
    """Number of bits in which two arrays of hashes (n,) differ: int64 (n,)."""
    return np.asarray(_ONES[(first ^ second)[:, None].view(np.uint16)].sum(axis=1, dtype=np.int64))


def equal_groups(hashes: Hashes) -> list[Indices]:
    """Groups of at least two indices whose hash (n,) is the same and not NO_HASH, the largest first."""
    order = np.argsort(hashes, kind="stable")
    order = order[hashes[order] != NO_HASH]
    starts = np.flatnonzero(np.diff(hashes[order])) + 1
    return _largest_first([group for group in np.split(order, starts) if len(group) > 1])


def near_groups(hashes: Hashes, max_distance: int) -> list[Indices]:
    """Groups of at least two indices that are linked by pairs within a distance in bits, the largest first.

    hashes: (n, F), of F images per sample. The hashes of a pair must be near for the first image, and for each other
    image that both samples have. A sample without a hash of its first image is in no group. Some samples of a group may
    be further apart, because groups are chains of pairs.

    Raises ValueError if max_distance is not in 0..MAX_DISTANCE.
    """
    if not 0 <= max_distance <= MAX_DISTANCE:
        raise ValueError(f"max_distance is {max_distance} bits; allowed are 0..{MAX_DISTANCE}")
    present = np.flatnonzero(hashes[:, 0] != NO_HASH)
    if len(present) == 0:
        return []
    rows, row_of = np.unique(hashes[present], axis=0, return_inverse=True)
    parent = np.arange(len(rows))
    for first, second in near_pairs(rows, max_distance):
        _link(parent, first, second)
    group_of = parent[row_of.reshape(-1)]
    order = np.argsort(group_of, kind="stable")
    starts = np.flatnonzero(np.diff(group_of[order])) + 1
    return _largest_first([present[group] for group in np.split(order, starts) if len(group) > 1])


def near_pairs(rows: Hashes, max_distance: int) -> Iterator[tuple[Indices, Indices]]:
    """Pairs of rows (n, F) that are near as in `near_groups`, many at a time; some come more than once.

    Each row must have a hash of its first image. Rows that are equal make a pair for each two of them.
    """
    for first, second in candidates(rows[:, 0], max_distance):
        near = are_near(rows, first, second, max_distance)
        yield first[near], second[near]


def are_near(rows: Hashes, first: Indices, second: Indices, max_distance: int) -> NDArray[np.bool_]:
    """Whether pairs of rows (n, F) are near as in `near_groups`. first, second: (pairs,), their positions."""
    near = np.ones(len(first), dtype=bool)
    for column in rows.T:
        left, right = column[first], column[second]
        near &= (left == NO_HASH) | (right == NO_HASH) | (distances(left, right) <= max_distance)
    return near


def _largest_first(groups: list[Indices]) -> list[Indices]:
    return sorted(groups, key=lambda group: (-len(group), int(group[0])))


def candidates(hashes: Hashes, max_distance: int) -> Iterator[tuple[Indices, Indices]]:
    """Pairs of positions, many at a time: every pair within max_distance and others; some occur more than once."""
    for low, high in _chunk_edges(max_distance):
        chunks = _chunks(hashes, low, high)
        order = np.argsort(chunks, kind="stable")
        chunks = chunks[order]
        for first_place in range(0, len(chunks), PLACES_AT_ONCE):
            places = np.arange(first_place, min(first_place + PLACES_AT_ONCE, len(chunks)))
            equal = _expand(places, places + 1, np.searchsorted(chunks, chunks[places], "right"))
            yield from ((order[first], order[second]) for first, second in equal)
            for bit in range(high - low if max_distance else 0):
                flip = np.uint64(1 << bit)
                without = places[chunks[places] & flip == 0]  # of each pair, the position whose chunk lacks the bit
                partner = chunks[without] | flip
                begin, end = np.searchsorted(chunks, partner, "left"), np.searchsorted(chunks, partner, "right")
                yield from ((order[first], order[second]) for first, second in _expand(without, begin, end))


class ChunkIndex:
    """Finds hashes that may be within max_distance of others, and whose values lie in a range: those with an equal
    chunk, up to a bit.

    hashes, values: (n,). max_distance: at least 2, for chunks of at most 32 bits.
    """

    def __init__(self, hashes: Hashes, values: NDArray[np.float64], max_distance: int) -> None:
        self._edges = _chunk_edges(max_distance)
        self._values, ranks = np.unique(values, return_inverse=True)
        self._tables = []
        for low, high in self._edges:
            keys = _keys(_chunks(hashes, low, high), ranks)
            order = np.argsort(keys).astype(np.int32)
            self._tables.append((order, keys[order]))

    def candidates_of(
        self, hashes: Hashes, least: NDArray[np.float64], most: NDArray[np.float64]
    ) -> tuple[Indices, Iterator[tuple[Indices, Indices]]]:
        """(counts, pairs of the number of a hash and a position in the index, many at a time), of the first hashes.

        least, most: of the values, for each hash. counts: (k,), of the candidates of the first k hashes, which are
        PAIRS_AT_ONCE at most but for k = 1. Every pair within max_distance is among the pairs, and others; some occur
        more than once.
        """
        ranks = np.searchsorted(self._values, least), np.searchsorted(self._values, most, "right")
        counts, parts = np.zeros(len(hashes), np.int64), []
        for (low, high), (order, keys) in zip(self._edges, self._tables, strict=True):
            chunks = _chunks(hashes, low, high)
            number = np.argsort(chunks)  # close to each other they are found sooner
            flips = [0, *(1 << bit for bit in range(high - low))]
            wanted = chunks[number] ^ np.array(flips, np.uint64)[:, None]
            begin, end = (np.searchsorted(keys, _keys(wanted, rank[number])) for rank in ranks)
            counts[number] += (end - begin).sum(axis=0)
            some = np.nonzero(end > begin)
            parts.append((order, number[some[1]], begin[some], end[some]))
        counts = counts[: max(1, int(np.searchsorted(np.cumsum(counts), PAIRS_AT_ONCE, "right")))]
        return counts, _pairs_of(parts, len(counts))


def _pairs_of(
    parts: list[tuple[NDArray[np.int32], Indices, Indices, Indices]], count: int
) -> Iterator[tuple[Indices, Indices]]:
    """The pairs of the first hashes in ranges (order, number of the hash, begin, end) of each chunk."""
    for order, number, begin, end in parts:
        taken = number < count
        for first, place in _expand(number[taken], begin[taken], end[taken]):
            yield first, order[place].astype(np.int64)


def _keys(chunks: Hashes, ranks: Indices) -> Hashes:
    return chunks << np.uint64(32) | ranks.astype(np.uint64)


def _chunk_edges(max_distance: int) -> list[tuple[int, int]]:
    num_chunks = max_distance // 2 + 1
    return list(itertools.pairwise(NUM_BITS * number // num_chunks for number in range(num_chunks + 1)))


def _chunks(hashes: Hashes, low: int, high: int) -> Hashes:
    return (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)


def _expand(positions: Indices, begin: Indices, end: Indices) -> Iterator[tuple[Indices, Indices]]:
    """Pairs (positions[k], each of begin[k]..end[k] - 1), about PAIRS_AT_ONCE at a time."""
    counts = end - begin
    upto = np.cumsum(counts)
    start = 0
    while start < len(positions):
        before = int(upto[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(upto, before + PAIRS_AT_ONCE, "right")))
        part = counts[start:stop]
        if total := int(part.sum()):
            within = np.arange(total) - np.repeat(np.cumsum(part) - part, part)
            yield np.repeat(positions[start:stop], part), np.repeat(begin[start:stop], part) + within
        start = stop


def _link(parent: Indices, first: Indices, second: Indices) -> None:
    """Join the groups of each pair, in place. parent: the smallest position in the group of each position."""
    while True:
        left, right = parent[first], parent[second]
        apart = left != right
        if not apart.any():
            return
        np.minimum.at(parent, np.maximum(left, right)[apart], np.minimum(left, right)[apart])
        while (parent[parent] != parent).any():
            parent[:] = parent[parent]
