"""One seeded shuffle of any number of rows, computed where it is asked for: nothing is held in memory.

Position p of the shuffled order holds row pi(p), where pi is a permutation of 0..N-1: a Feistel network of six rounds
on the smallest even number of bits that holds N, followed again while the result is N or more (cycle walking; fewer
than four rounds of it on average). Source: Black & Rogaway 2002, "Ciphers with arbitrary finite domains"; the mixing
function is that of splitmix64 (Steele, Lea & Flood 2014).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NUM_ROUNDS = 6
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_STEP = 0x9E3779B97F4A7C15


def shuffled_rows(begin: int, end: int, num_rows: int, seed: int) -> NDArray[np.int64]:
    """The rows at positions [begin, end) of the shuffled order: int64 (end - begin,), each in [0, num_rows).

    Over all positions every row comes exactly once. ValueError for positions outside the order.
    """
    if not 0 <= begin <= end <= num_rows:
        raise ValueError(
            f"positions {begin} to {end} of an order of {num_rows} rows; allowed: 0 <= begin <= end <= rows"
        )
    half_bits = max(1, ((num_rows - 1).bit_length() + 1) // 2)
    keys = _round_keys(seed)
    found = _feistel(np.arange(begin, end, dtype=np.uint64), half_bits, keys)
    while (outside := found >= num_rows).any():
        found[outside] = _feistel(found[outside], half_bits, keys)
    return found.astype(np.int64)


def _round_keys(seed: int) -> NDArray[np.uint64]:
    states = [(seed * NUM_ROUNDS + number + 1) * _STEP % 2**64 for number in range(NUM_ROUNDS)]
    return _mixed(np.array(states, dtype=np.uint64))


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser: every bit of the input changes half of those of the output."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * _MIX[0]
        x = (x ^ (x >> np.uint64(27))) * _MIX[1]
    return x ^ (x >> np.uint64(31))


def _feistel(x: NDArray[np.uint64], half_bits: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64(2**half_bits - 1)
    left, right = x >> shift, x & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << shift) | right
