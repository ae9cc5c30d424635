"""An earlier split of a manifest: its rule, and where it put what is linked, so that nothing moves that was placed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from avssl.files.checked_json import Fields
from data_prep.split.links import Links
from data_prep.split.rule import LEFT_OUT, PARTS, TEST, TRAIN, VALIDATION, Hashes, SplitRule
from data_prep.split.scan import PairFiles, Scanned, scan

FORMAT_NAME, SCHEMA_VERSION = "avssl-split", 1


def beside(manifest: Path, name: str) -> Path:
    """The file of a split that is called `name`: corpus.jsonl has corpus.test.jsonl and corpus.split.json."""
    return manifest.with_name(f"{manifest.name.removesuffix('.jsonl')}.{name}")


def earlier_split(manifest: Path) -> Fields | None:
    """The record of an earlier split; None if there is none. ValueError for one that cannot be read."""
    path = beside(manifest, "split.json")
    if not path.is_file():
        return None
    fields = Fields.read(path)
    if fields.record.get("format") != FORMAT_NAME or fields.record.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{path}: is no record of a split that this program reads; remove it to split anew")
    return fields


def rule_of(earlier: Fields) -> SplitRule:
    """The rule of a record."""
    rule = earlier.section("rule")
    return SplitRule(
        rule.number("test_share"),
        rule.number("validation_share"),
        rule.text("group"),
        rule.count("seed"),
        rule.flag("near_duplicates"),
    )


def refuse_other_files(manifest: Path, rule: SplitRule) -> None:
    """ValueError if a file lies where a part goes and is none, like the manifest of a test set that was published."""
    shares = {TRAIN: 1.0, VALIDATION: rule.validation_share, TEST: rule.test_share, LEFT_OUT: 1.0}
    for part in (part for part, share in shares.items() if share):
        path = beside(manifest, f"{PARTS[part]}.jsonl")
        if path.is_file() and not _is_part(path):
            raise ValueError(
                f"{path}: is there already and is no part of a split; give {manifest.name} another name, or move that "
                "file away"
            )


def _is_part(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            return Fields.parse(file.readline(), str(path)).record.get("part") in PARTS
        except ValueError:
            return False


def refuse_another_rule(manifest: Path, rule: SplitRule, recorded: SplitRule) -> None:
    """ValueError that names what differs."""
    differing = [
        f"{name.replace('_', ' ')}: {value!r} there, {getattr(rule, name)!r} now"
        for name, value in asdict(recorded).items()
        if value != getattr(rule, name)
    ]
    if differing:
        raise ValueError(
            f"{beside(manifest, 'split.json')}: the manifest was split by another rule ({'; '.join(differing)}); what "
            "was test would be train. Remove that file to split anew, or give the manifest another name"
        )


def _earlier_rows(manifest: Path, rule: SplitRule, num_workers: int) -> Iterator[tuple[int, Scanned]]:
    """(part, rows) of the parts of the earlier split, but for what it left out."""
    for part, share in ((TRAIN, 1.0), (VALIDATION, rule.validation_share), (TEST, rule.test_share)):
        if share:
            path = beside(manifest, f"{PARTS[part]}.jsonl")
            yield from ((part, scanned) for scanned in scan(path, rule.group, "", num_workers))


def earlier_parts(manifest: Path, rule: SplitRule, linked: Hashes, num_workers: int) -> dict[int, int]:
    """{group: its part in the earlier split} of the linked groups, and of those that the rule alone puts elsewhere."""
    earlier: dict[int, int] = {}
    for part, scanned in _earlier_rows(manifest, rule, num_workers):
        groups = np.unique(scanned.groups)
        chosen = groups[np.isin(groups, linked) | (rule.parts(groups) != part)]
        earlier |= dict.fromkeys(chosen.tolist(), part)
    return earlier


def rows_left_out(
    manifest: Path, rule: SplitRule, sources: PairFiles, of_groups: Links, near: Links, num_workers: int
) -> set[tuple[int, int]]:
    """Pairs (source, group) whose rows have no place: the group stays in its part, a copy of the source in another.

    That is so for files that were added to a folder of train, if they are, or are like, files of a folder of test.

    Args:
        sources: pairs of sources and groups. of_groups, near: links of groups, and of sources that are near-duplicates.
    """
    linked, several, members = of_groups.groups(), near.groups(), defaultdict(list)
    for bucket in sources.distinct():
        repeated = bucket[1:, 0][bucket[1:, 0] == bucket[:-1, 0]]
        shared = np.isin(bucket[:, 0], repeated) | np.isin(bucket[:, 0], several)
        for source, group in bucket[shared & np.isin(bucket[:, 1], linked)].tolist():
            members[near.first_of(source)].append((source, group))
    wanted = np.array(sorted({source for pairs in members.values() for source, _ in pairs}), np.uint64)
    before: dict[tuple[int, int], int] = {}
    where: dict[int, int] = {}
    for part, scanned in _earlier_rows(manifest, rule, num_workers):
        where |= dict.fromkeys(scanned.groups[np.isin(scanned.groups, linked)].tolist(), part)
        chosen = np.isin(scanned.sources, wanted)
        rows = zip(scanned.sources[chosen].tolist(), scanned.groups[chosen].tolist(), strict=True)
        before |= dict.fromkeys(rows, part)
    left_out = set()
    for pairs in members.values():
        sides = {where[group] for _, group in pairs if group in where}
        if len(sides) > 1:
            left_out |= {pair for pair in pairs if pair not in before}
    return left_out
