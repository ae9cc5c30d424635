"""Several shard folders read as one, with one index per sample over all of them; weights say how often each is drawn.

    data.shards=[a/, b/]                                          as if one folder held the samples of both
    data.shards=[{path: a/, weight: 1}, {path: b/, weight: 3}]    three of four samples of an epoch come from b
    data.shards=[{path: a/, keys: kept.jsonl}]                    those samples of a that `avssl prep select` has kept

The samples of the first folder have the indices 0..N-1, those of the next go on from N, in the order of the list. What
weights do to the order of an epoch stands in data/order.py. Two folders may have equal keys: a key is a name within its
folder. The same folder twice is refused, because it would have two indices for every sample; a weight does what is
meant. Samples of equal media in two folders are allowed, and warned of when a run begins (eval/overlap.py).
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate

from avssl.shards.cache import DEFAULT_CACHE_BYTES
from avssl.shards.folders import shard_folders
from avssl.shards.format import SampleInfo, ShardIndex, ShardRecord, SideCar
from avssl.shards.shard_set import Sample, ShardSet
from avssl.shards.subset import selected
from avssl.types import MediaError

CHECKED_SAMPLES = 64  # of each folder, in its first shard


def open_shards(
    shards: object, cache_dir: str | os.PathLike[str] = "", cache_bytes: int = DEFAULT_CACHE_BYTES
) -> ShardSet:
    """The samples of `data.shards`: a ShardSet of one folder, or a ShardMixture of several.

    Raises as `shard_folders`, ShardSet and ShardMixture.
    cache_dir, cache_bytes: as of ShardSet, for all folders together.
    """
    folders = shard_folders(shards)
    wholes = [ShardSet(folder.path, cache_dir, cache_bytes) for folder in folders]
    parts = [selected(whole, folder.keys) for whole, folder in zip(wholes, folders, strict=True)]
    if len(parts) == 1:
        return parts[0]
    weights = [folder.weight for folder in folders if folder.weight is not None]
    return ShardMixture(parts, weights or None)


class ShardMixture(ShardSet):
    """Several shard folders as one ShardSet, renumbered in the order of the list.

    ValueError if two of them hold the same shards.

    Attributes:
        parts: the folders. weights: a number above 0 for each, or None: then they are read as one concatenated folder.
    """

    def __init__(self, parts: Sequence[ShardSet], weights: Sequence[float] | None = None) -> None:
        self._parts, self.weights = list(parts), None if weights is None else [float(weight) for weight in weights]
        self.location = " + ".join(part.location for part in parts)
        first: dict[str, str] = {}
        for part in parts:
            if not part.num_samples:
                raise ValueError(f"data.shards has {part.location}, which holds no samples; take it from the list")
            if part.fingerprint in first:
                raise ValueError(
                    f"data.shards has {first[part.fingerprint]} and {part.location}, which hold the same shards: every "
                    "sample would have two indices. Name the folder once; a weight makes it come more often"
                )
            first[part.fingerprint] = part.location
        self._first_indices = [0, *accumulate(part.num_samples for part in parts)]

    @property
    def parts(self) -> list[ShardSet]:
        """The folders, in the order of the list."""
        return self._parts

    @property
    def num_samples(self) -> int:
        """The number of samples of all folders."""
        return self._first_indices[-1]

    @property
    def shard_sizes(self) -> list[int]:
        """The number of samples of each shard, folder by folder."""
        return [size for part in self._parts for size in part.shard_sizes]

    @cached_property
    def index(self) -> ShardIndex:  # type: ignore[override]
        """The shards and counts of all folders together; names of shards may repeat, and options are left out."""
        parts = [(part.index, first) for part, first in zip(self._parts, self._first_indices, strict=False)]
        labels: dict[str, set[str]] = {}
        for index, _ in parts:
            for field, names in index.label_names.items():
                labels.setdefault(field, set()).update(names)
        skipped = sum((Counter(index.skipped_by_reason) for index, _ in parts), Counter[str]())
        return ShardIndex(
            [replace(item, first_index=first + item.first_index) for index, first in parts for item in index.shards],
            self.num_samples,
            sum(index.num_listed for index, _ in parts),
            sum(index.num_skipped for index, _ in parts),
            dict(skipped),
            {field: sorted(names) for field, names in sorted(labels.items())},
            {},
            "",
            has_captions=any(index.has_captions for index, _ in parts),
        )

    @cached_property
    def keys(self) -> list[str]:
        """The key of every sample; those of two folders may be equal."""
        return [key for part in self._parts for key in part.keys]

    @property
    def is_remote(self) -> bool:
        """Whether any of the folders lies on a server."""
        return any(part.is_remote for part in self._parts)

    def side_cars(self) -> list[SideCar]:
        """The side-car of every shard, folder by folder."""
        return [side_car for part in self._parts for side_car in part.side_cars()]

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of the fingerprints of the folders in their order, on which the indices depend."""
        return hashlib.sha256("\n".join(["mixture", *(part.fingerprint for part in self._parts)]).encode()).hexdigest()

    def read(self, position: int) -> Sample:
        """As ShardSet.read, with the number over all folders as its index."""
        part, row = self._part_of(position)
        sample = part.read(row)
        return replace(sample, info=replace(sample.info, index=position))

    def read_info(self, position: int) -> SampleInfo:
        """As ShardSet.read_info, with the number over all folders as its index."""
        part, row = self._part_of(position)
        return replace(part.read_info(row), index=position)

    def shard_of(self, position: int) -> ShardRecord:
        """As ShardSet.shard_of, of the folder that the sample lies in."""
        part, row = self._part_of(position)
        return part.shard_of(row)

    def close(self) -> None:
        """Close the files of all folders."""
        for part in self._parts:
            part.close()

    def _part_of(self, position: int) -> tuple[ShardSet, int]:
        if not 0 <= position < self.num_samples:
            raise IndexError(f"{self.location}: there is no sample {position}; there are 0..{self.num_samples - 1}")
        number = bisect_right(self._first_indices, position) - 1
        return self._parts[number], position - self._first_indices[number]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)


def _info_of(part: ShardSet, row: int) -> SampleInfo | None:
    """The json of a sample; None if it is damaged: the loader counts it, and ends the run if there are too many."""
    try:
        return part.read_info(row)
    except MediaError as error:
        if error.reason != "bad_sample":
            raise
        return None


def check_modalities(shards: ShardSet, modalities: Sequence[str], chosen: Sequence[str] = ()) -> None:
    """Raise ValueError for a folder whose first samples all lack one of the modalities.

    chosen: loss.modalities, of a loss that has the key; the error says which value fits. As many samples are read as
    it takes to see each modality once.
    """
    for part in shards.parts:
        count = part.shard_sizes[0]
        rows = sorted({row * (count - 1) // max(1, min(count, CHECKED_SAMPLES) - 1) for row in range(CHECKED_SAMPLES)})
        held: set[str] = set()
        for row in rows:
            info = _info_of(part, row) if row < count and not held.issuperset(modalities) else None
            if info is not None:
                has = {"image": info.has_image, "video": info.has_video, "audio": info.has_audio}
                held |= {name for name, is_there in has.items() if is_there}
        missing = [name for name in modalities if name not in held]
        if missing and held:  # without any, the loader says what is wrong with the samples
            kept = [name for name in ("video", "audio", "image") if name in held]
            several = "; every folder of a list must have all of them" if len(shards.parts) > 1 else ""
            raise ValueError(
                f"data.shards: the loss reads {' and '.join(modalities)}, and {part.location} has no "
                f"{' and no '.join(missing)} (its samples have {' and '.join(kept)}){several}{_fitting(chosen, kept)}"
            )


def _fitting(chosen: Sequence[str], held: Sequence[str]) -> str:
    """The values of loss.modalities that read only what is there: as many views as before, all of one modality."""
    if len(set(chosen)) != 1:  # of two, what fits depends on the loss
        return ". loss.modalities says what it reads" if chosen else ""
    return ". Add " + " or ".join(f"loss.modalities=[{','.join([name] * len(chosen))}]" for name in held)


def refuse_test_part(shards: ShardSet, *, allowed: bool) -> None:
    """Raise ValueError if a folder to be trained on holds the test part of a split, unless that is allowed."""
    for part in shards.parts:
        if "test" in part.index.split_parts and not allowed:
            parts = " and ".join(part.index.split_parts)
            raise ValueError(
                f"data.shards: {part.location} holds the part {parts} of a split (`avssl prep split`); a run that was "
                "trained on it says nothing about other data. Take the shards of the train part, or add "
                "data.allow_test_part=true"
            )
