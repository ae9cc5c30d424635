"""What a write is: a manifest's rows, how its files become samples, where they go, and which share of it is ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from data_prep.manifest import Entry
from data_prep.write.folder import OutputFolder
from data_prep.write.parts import PartSummary, PartTask, load_samples
from data_prep.write.reading import Work
from data_prep.write.rows import Rows
from data_prep.write.shuffle import shuffled_rows


@dataclass(frozen=True)
class Share:
    """Part `number` (from 0) of `count` that run beside each other; one of one is everything."""

    number: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise ValueError(f"--part is {self.number}/{self.count}; it must be i/n with 0 <= i < n, e.g. 0/8 to 7/8")

    @classmethod
    def parse(cls, text: str) -> Share:
        """From "i/n"."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal()):
            raise ValueError(f"--part is {text!r}; it must be i/n with 0 <= i < n, e.g. 0/8 to 7/8")
        return cls(int(number), int(count))

    def holds(self, number: int) -> bool:
        """Is the part or shard with this number in the share?"""
        return number % self.count == self.number


@dataclass(frozen=True)
class Job:
    """Everything that stays the same during a write. skips: {key: why} of files that are not to be read again."""

    folder: OutputFolder
    rows: Rows
    work: Work
    num_workers: int = 1
    share: Share = Share()
    executor: str = "local"
    skips: Mapping[str, dict[str, str]] = field(default_factory=dict)

    @property
    def num_parts(self) -> int:
        return -(-len(self.rows) // self.work.options.samples_per_shard)

    @property
    def recorded_options(self) -> dict[str, Any]:
        return self.work.options.to_json(images=self.rows.are_images)

    def num_rows(self, number: int) -> int:
        """How many rows of the manifest a part takes."""
        size = self.work.options.samples_per_shard
        return min(size, len(self.rows) - number * size)

    def entries(self, number: int) -> tuple[Entry, ...]:
        """The rows of a part: a run of the shuffled manifest."""
        begin = number * self.work.options.samples_per_shard
        span = begin, begin + self.num_rows(number)
        entries = self.rows.read(shuffled_rows(*span, len(self.rows), self.work.options.seed))
        return tuple(replace(one, error=self.skips[one.key]) if one.key in self.skips else one for one in entries)

    def part_task(self, number: int, attempt: int) -> PartTask:
        """What is to be read for a part now, and what an earlier attempt leaves to it."""
        entries, summary = self.entries(number), PartSummary.load(self.folder, number)
        if summary is None:
            return PartTask(number, entries, attempt)
        kept = frozenset(one.info.key for one in load_samples(self.folder, number, summary.attempt))
        return PartTask(number, entries, attempt, kept, summary.attempt)


def identity(job: Job) -> dict[str, Any]:
    """What decides the bytes: only a write with the same goes on with what another has begun."""
    return {"manifest_sha256": job.rows.sha256, "options": job.recorded_options}


def refuse_unless_same(found: dict[str, Any], job: Job) -> None:
    """ValueError that names what differs."""
    wanted = identity(job)
    if found == wanted:
        return
    differing = [
        f"{name}: {found['options'].get(name)!r} there, {value!r} now"
        for name, value in wanted["options"].items()
        if found["options"].get(name) != value
    ]
    if found["manifest_sha256"] != wanted["manifest_sha256"]:
        differing.append("another manifest")
    raise ValueError(
        f"{job.folder.location}: already holds shards of other options ({'; '.join(differing)}); choose another --out, "
        "or delete the folder"
    )
