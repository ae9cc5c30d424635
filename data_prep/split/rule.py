"""The rule by which a group of rows belongs to train, validation or test: a function of its name and the seed alone.

A group is what must not be divided: a source file, a folder, or all rows of one value of a label field. The 64 bits of
its hash are mixed with the seed and compared with the shares, so files that are added, taken away or listed in another
order change nothing for the others. No rule that looks at one name at a time can fill quotas: the shares of a label are
those of drawing each of its groups by itself, and `best_seed` chooses the draw that comes closest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from avssl.files.checked_json import Fields
from avssl.files.plain_text import plain
from avssl.shards.keys import source_of
from avssl.shards.places import within_of

Hashes = NDArray[np.uint64]
TRAIN, VALIDATION, TEST, LEFT_OUT = range(4)
PARTS = ("train", "validation", "test", "left_out")
SOURCE, FOLDER = "source", "folder"  # groups; any other name is a label field
MOST_SEEDS, LEAST_SEEDS, DRAWS = 1000, 16, 20_000_000  # seeds that are tried: so many that DRAWS groups are drawn
MOST = 2**64 - 2048  # the largest draw that is a float64
_STEP, _MIX = 0x9E3779B97F4A7C15, (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


@dataclass(frozen=True)
class SplitRule:
    """The shares of the groups that become test and validation, what a group is, and the seed.

    test_share, validation_share: from 0 to 1, together above 0 and below 1. group: "source", "folder" or a label field.
    seed: a number from 0. near_duplicates: whether files that look and sound alike are kept on one side.
    """

    test_share: float = 0.0
    validation_share: float = 0.0
    group: str = SOURCE
    seed: int = 0
    near_duplicates: bool = False

    def __post_init__(self) -> None:
        for name in ("test_share", "validation_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be from 0 to below 1")
        if not 0 < self.test_share + self.validation_share < 1:
            raise ValueError(
                f"--test-share is {self.test_share} and --validation-share {self.validation_share}; together they must "
                "be above 0 and below 1, for the rest is train"
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed is {self.seed}; it must be from 0 to {2**32 - 1}")

    @property
    def groups_name(self) -> str:
        """What the groups are, in words, for messages."""
        return {SOURCE: "sources", FOLDER: "folders"}.get(self.group, f"values of {plain(self.group)}")

    def parts(self, groups: Hashes) -> NDArray[np.int8]:
        """TRAIN, VALIDATION or TEST of each group: int8 (n,) for uint64 (n,).

        The draws below test_share are test, those above 1 - validation_share validation: a larger share keeps the
        test or validation groups that there are.
        """
        draws = mixed(groups + np.uint64((self.seed + 1) * _STEP % 2**64))
        parts = np.full(len(groups), TRAIN, np.int8)
        if self.validation_share:
            parts[draws > np.uint64((1 - self.validation_share) * MOST)] = VALIDATION
        parts[draws < np.uint64(self.test_share * MOST)] = TEST
        return parts

    def part_of(self, group: int) -> int:
        """As `parts`, of one group."""
        return int(self.parts(np.array([group], np.uint64))[0])


def mixed(x: Hashes) -> Hashes:
    """splitmix64's finalizer (Steele, Lea & Flood 2014): each bit of the input changes half of those of the output."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * _MIX[0]
        x = (x ^ (x >> np.uint64(27))) * _MIX[1]
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Row:
    """What a split reads of a line of a manifest. path: as it stands there, with the place within it.

    part: of an earlier split, or "".
    """

    path: str
    labels: dict[str, list[str]]
    content: str
    num_bytes: int
    item: int | None
    part: str
    has_error: bool

    @classmethod
    def of(cls, fields: Fields) -> Row:
        """The checked fields of a line. Other fields are those of `write`, which checks them."""
        item = fields.record.get("item")
        if item is not None:
            fields.count("item")
        within = within_of(fields)
        return cls(
            path=fields.text("path") if within is None else f"{fields.text('path')}/{within}",
            labels=fields.labels("labels"),
            content=fields.text("content", ""),
            num_bytes=fields.count("bytes", 0),
            item=item,
            part=fields.text("part", ""),
            has_error=fields.record.get("error") is not None,
        )

    def source(self) -> int:
        """The hash of the source file, that of `avssl.shards.sample_digests`, by which evaluation knows it again."""
        return int(source_of(self.content, self.path, self.num_bytes, self.item), 16)

    def group(self, group: str, source: int, where: str) -> int | None:
        """The hash of the group. None if its rows have no such label. ValueError for several names of the label.

        source: the hash of the source, which is the group if sources are.
        """
        if group == SOURCE:
            return source
        if group == FOLDER:
            return _hash(f"folder {self.path.rpartition('/')[0]}")
        names = self.labels.get(group) or []
        if len(names) > 1:
            raise ValueError(
                f"{where}: has {len(names)} names of {group!r}: {', '.join(names[:5])}; --group takes a label field of "
                "which each row has one name"
            )
        return _hash(f"label {names[0]}") if names else None


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def best_seed(rule: SplitRule, groups: Hashes, labels: NDArray[np.int64], num_labels: int) -> int:
    """The seed that comes closest to the shares in every label: the least chi-square of test and validation.

    groups, labels: (n,), pairs of a group and a label from 0 to num_labels - 1 that one of its rows has, each once.
    """
    distinct, number = np.unique(groups, return_inverse=True)
    sizes = np.bincount(labels, minlength=num_labels)
    wanted = [(part, share * sizes) for part, share in _shares(rule) if share]
    num_seeds = int(np.clip(DRAWS // max(1, len(groups)), LEAST_SEEDS, MOST_SEEDS))

    def distance(seed: int) -> float:
        parts = replace(rule, seed=seed).parts(distinct)[number.reshape(-1)]
        counts = ((np.bincount(labels[parts == part], minlength=num_labels), share) for part, share in wanted)
        return float(sum(((count - share) ** 2 / np.maximum(share, 1e-9)).sum() for count, share in counts))

    return min(range(num_seeds), key=distance)


def _shares(rule: SplitRule) -> Sequence[tuple[int, float]]:
    return (TEST, rule.test_share), (VALIDATION, rule.validation_share)
