"""Pairs of 64-bit numbers on disk, grouped by the first at memory that does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NUM_BUCKETS = 64  # files that are sorted one by one, each 1/64 of all pairs


class PairFiles:
    """Pairs (first, second) of uint64, distributed to files by the upper bits of the first, which is a hash.

    folder: an existing one for the files, which the caller removes.
    """

    def __init__(self, stack: ExitStack, folder: Path, name: str) -> None:
        paths = (folder / f"{name}.{number:02d}" for number in range(NUM_BUCKETS))
        self._files = [stack.enter_context(path.open("w+b")) for path in paths]

    def add(self, first: NDArray[np.uint64], second: NDArray[np.uint64]) -> None:
        """Add pairs: uint64 (n,) each."""
        bucket = (first >> np.uint64(58)).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        pairs = np.stack([first, second], axis=1)[order]
        cuts = np.searchsorted(bucket[order], np.arange(1, NUM_BUCKETS))
        for file, part in zip(self._files, np.split(pairs, cuts), strict=True):
            file.write(part.tobytes())

    def distinct(self) -> Iterator[NDArray[np.uint64]]:
        """The pairs, each once and in order, many at a time: uint64 (n, 2); all pairs of a first come together."""
        for file in self._files:
            file.seek(0)
            pairs = np.frombuffer(file.read(), np.uint64).reshape(-1, 2)
            pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
            is_new = np.ones(len(pairs), np.bool_)
            is_new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
            yield pairs[is_new]
