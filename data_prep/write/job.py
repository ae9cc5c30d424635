"""The job of a write: a manifest's rows, how files become samples, where these go, and the share that is done here.

Rows are shuffled when they are read, and no order is held in memory: position p of the shuffled order holds row pi(p),
where pi is a permutation of 0..N-1: a Feistel network of six rounds on the smallest even number of bits that holds N,
applied again while the result is N or more (cycle walking; fewer than four times on average). Source: Black & Rogaway
2002, "Ciphers with arbitrary finite domains"; the mixing function is that of splitmix64 (Steele, Lea & Flood 2014).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.shards.manifest import Entry
from data_prep.write.folder import OutputFolder
from data_prep.write.parts import PartSummary, PartTask, load_samples
from data_prep.write.reading import FileOptions
from data_prep.write.rows import ManifestRows

NUM_ROUNDS = 6
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_STEP = 0x9E3779B97F4A7C15


def shuffled_rows(begin: int, end: int, num_rows: int, seed: int) -> NDArray[np.int64]:
    """The rows at positions [begin, end) of the shuffled order: int64 (end - begin,), each in [0, num_rows).

    Over all positions every row occurs exactly once. ValueError for positions outside the order.
    """
    if not 0 <= begin <= end <= num_rows:
        raise ValueError(
            f"positions {begin} to {end} of an order of {num_rows} rows; allowed: 0 <= begin <= end <= rows"
        )
    half_bits = max(1, ((num_rows - 1).bit_length() + 1) // 2)
    keys = _round_keys(seed)
    rows = _feistel(np.arange(begin, end, dtype=np.uint64), half_bits, keys)
    while (outside := rows >= num_rows).any():
        rows[outside] = _feistel(rows[outside], half_bits, keys)
    return rows.astype(np.int64)


def _round_keys(seed: int) -> NDArray[np.uint64]:
    states = [(seed * NUM_ROUNDS + number + 1) * _STEP % 2**64 for number in range(NUM_ROUNDS)]
    return _mixed(np.array(states, dtype=np.uint64))


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finalizer: each bit of the input changes half of the bits of the output."""
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


@dataclass(frozen=True)
class Share:
    """The work of one of `count` processes that do a write together, `--part number/count` with number from 0.

    A *part* is the unit of work (parts.py): the files of samples_per_shard rows, later one shard. A *share* is the
    parts and shards that one process makes: those whose number is `number` modulo `count`. 0/1 is all of them.
    """

    number: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise ValueError(f"--part is {self.number}/{self.count}; it must be i/n with 0 <= i < n, e.g. 0/8 to 7/8")

    @classmethod
    def parse(cls, text: str) -> Share:
        """The share of the option's text "i/n"; ValueError for any other text."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal()):
            raise ValueError(f"--part is {text!r}; it must be i/n with 0 <= i < n, e.g. 0/8 to 7/8")
        return cls(int(number), int(count))

    def holds(self, number: int) -> bool:
        """Whether the part or shard with this number belongs to the share."""
        return number % self.count == self.number


@dataclass(frozen=True)
class Job:
    """Everything that stays the same during a write. skips: {key: error} of files that must not be read again."""

    folder: OutputFolder
    rows: ManifestRows
    file_options: FileOptions
    num_workers: int = 1
    share: Share = Share()
    executor: str = "local"
    skips: Mapping[str, dict[str, str]] = field(default_factory=dict)

    @property
    def num_parts(self) -> int:
        """How many parts, and so shards, the manifest makes; the last one may have fewer samples."""
        return -(-len(self.rows) // self.file_options.options.samples_per_shard)

    @property
    def recorded_options(self) -> dict[str, Any]:
        """What index.json records: the options that apply to these media, and the version of the encoding library."""
        return self.file_options.options.to_json(images=self.rows.are_images)

    def num_rows(self, number: int) -> int:
        """How many rows of the manifest a part takes."""
        size = self.file_options.options.samples_per_shard
        return min(size, len(self.rows) - number * size)

    def entries(self, number: int) -> tuple[Entry, ...]:
        """The rows of a part: a run of the shuffled manifest."""
        begin = number * self.file_options.options.samples_per_shard
        span = begin, begin + self.num_rows(number)
        entries = self.rows.read(shuffled_rows(*span, len(self.rows), self.file_options.options.seed))
        return tuple(replace(row, error=self.skips[row.key]) if row.key in self.skips else row for row in entries)

    def part_task(self, number: int, attempt: int) -> PartTask:
        """The task of a part: the files to read now, and the samples to keep from an earlier attempt."""
        entries, summary = self.entries(number), PartSummary.load(self.folder, number)
        if summary is None:
            return PartTask(number, entries, attempt)
        kept = frozenset(sample.info.key for sample in load_samples(self.folder, number, summary.attempt))
        return PartTask(number, entries, attempt, kept, summary.attempt)


def identity(job: Job) -> dict[str, Any]:
    """What decides the bytes. A write continues only a folder that was begun with the same identity."""
    return {"manifest_sha256": job.rows.sha256, "options": job.recorded_options}


def refuse_unless_same(begun: dict[str, Any], job: Job) -> None:
    """ValueError that names what differs. begun: the `identity` of the write that began the folder."""
    recorded, own = dict(begun["options"]), job.recorded_options
    if recorded.get("video") == "encode":  # earlier versions could also copy streams; what they encoded is the same
        del recorded["video"]
        recorded.pop("copy_keyframe_interval", None)
    is_same_manifest = begun["manifest_sha256"] == job.rows.sha256
    if is_same_manifest and recorded == own:
        return
    differing = [
        f"{name}: {recorded.get(name)!r} there, {own.get(name)!r} now"
        for name in dict.fromkeys([*own, *recorded])
        if recorded.get(name) != own.get(name)
    ]
    if not is_same_manifest:
        differing.append("another manifest")
    raise ValueError(
        f"{job.folder.location}: already holds shards of other options ({'; '.join(differing)}); choose another --out, "
        "or delete the folder"
    )
