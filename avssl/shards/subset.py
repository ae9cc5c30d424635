"""Some samples of a shard folder, read as if they were a folder of their own: folds, splits, few labels."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avssl.files.checked_json import Fields
from avssl.files.plain_text import brief
from avssl.shards.format import SampleInfo, ShardRecord
from avssl.shards.shard_set import Sample, ShardSet


class ShardSubset(ShardSet):
    """The samples of `whole` at these positions, renumbered 0..n-1 in the order of the shards.

    It is read like any other ShardSet. ValueError without a position, and for one that comes twice or does not exist.

    Attributes:
        whole: the shard folder. positions: int64 (n,), those of the chosen samples in it, ascending.
    """

    def __init__(self, whole: ShardSet, positions: Sequence[int] | NDArray[np.int64]) -> None:
        chosen = np.sort(np.asarray(positions, dtype=np.int64))
        if len(chosen) == 0 or len(np.unique(chosen)) != len(chosen):
            raise ValueError(f"a subset of {whole.location} needs positions, each once; got {len(chosen)}")
        if chosen[0] < 0 or chosen[-1] >= whole.num_samples:
            raise ValueError(
                f"{whole.location} has samples 0..{whole.num_samples - 1}; a subset asks for {chosen[0]}..{chosen[-1]}"
            )
        self.whole, self.positions = whole, chosen
        self.location, self.folder, self.index = whole.location, whole.folder, whole.index
        self._files, self._remote = OrderedDict(), whole._remote

    @property
    def num_samples(self) -> int:
        """The number n of chosen samples."""
        return len(self.positions)

    @property
    def shard_sizes(self) -> list[int]:
        """The number of chosen samples of each shard that has any; with them the order of reading stays local."""
        ends = np.cumsum(self.whole.shard_sizes)
        counts = np.bincount(np.searchsorted(ends, self.positions, side="right"), minlength=len(ends))
        return [int(count) for count in counts if count]

    @property
    def keys(self) -> list[str]:
        """The keys of the chosen samples."""
        keys = self.whole.keys
        return [keys[position] for position in self.positions]

    @property
    def fingerprint(self) -> str:
        """Hex sha256 of the fingerprint of the whole and the chosen positions."""
        return hashlib.sha256(self.whole.fingerprint.encode() + self.positions.astype("<i8").tobytes()).hexdigest()

    def read(self, position: int) -> Sample:
        """As ShardSet.read, with the number within the subset as its index."""
        sample = self.whole.read(self._original(position))
        return replace(sample, info=replace(sample.info, index=position))

    def read_info(self, position: int) -> SampleInfo:
        """As ShardSet.read_info, with the number within the subset as its index."""
        return replace(self.whole.read_info(self._original(position)), index=position)

    def shard_of(self, position: int) -> ShardRecord:
        """As ShardSet.shard_of."""
        return self.whole.shard_of(self._original(position))

    def close(self) -> None:
        """Close the files of the whole."""
        self.whole.close()

    def _original(self, position: int) -> int:
        if not 0 <= position < self.num_samples:
            raise IndexError(f"subset of {self.location}: there is no sample {position} of 0..{self.num_samples - 1}")
        return int(self.positions[position])


def selected(shards: ShardSet, keys: str) -> ShardSet:
    """The samples that a file of `avssl prep select` lists, {"index", "key"} a line; all of them if `keys` is "".

    FileNotFoundError; ValueError names the line that does not fit, or that is of another shard folder.
    """
    if not keys:
        return shards
    path = Path(keys)
    if not path.is_file():
        raise FileNotFoundError(
            f"data.shards: {keys}: no such file; make it with `avssl prep select {shards.location}`"
        )
    positions = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            fields = Fields.parse(line, f"{keys}, line {number}")
            if "index" not in fields.record and "path" in fields.record:
                raise ValueError(
                    f"data.shards: {keys} lists files, not samples of {shards.location}; write it to shards with "
                    "`avssl prep write`, or select from the shard folder"
                )
            position, key = fields.count("index"), fields.text("key")
            if position >= shards.num_samples or shards.keys[position] != key:
                raise ValueError(
                    f"{keys}, line {number}: {shards.location} has no sample {position} with the key {brief(key)}; it "
                    "is a selection from other shards: select again"
                )
            positions.append(position)
    if not positions:
        raise ValueError(f"data.shards: {keys} lists no samples; select more")
    return ShardSubset(shards, positions)
