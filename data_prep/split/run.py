"""Divides a manifest into those of train, validation and test, beside it, at memory that does not grow with its rows.

1. Processes read its lines and say of which group, source and labels each is (scan.py); numbers go to files.
2. Groups that share a source are linked, and those with files that look and sound alike if that is asked for.
3. The rule places each group (rule.py, links.py), the groups of each label are counted.
4. The lines are copied to their part, with its name as `part`. NAME.split.json, which says how, is written last.

Where that file is, the rule is that of the file, and linked groups stay where they were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from avssl.files.checked_json import parse
from avssl.files.disk_errors import clear_errors
from avssl.files.scratch import scratch_folder
from avssl.files.whole import whole_file, write_whole
from avssl.shards.format import dump_json
from data_prep.split.earlier import (
    FORMAT_NAME,
    SCHEMA_VERSION,
    beside,
    earlier_parts,
    earlier_split,
    refuse_another_rule,
    refuse_other_files,
    rows_left_out,
    rule_of,
)
from data_prep.split.links import Links, placed
from data_prep.split.rule import LEFT_OUT, PARTS, SOURCE, TEST, TRAIN, VALIDATION, Hashes, SplitRule, best_seed
from data_prep.split.scan import PairFiles, Scanned, scan

DEFAULT_BY = "label"
ROWS_AT_A_TIME = 1 << 16


@dataclass
class SplitSummary:
    """What a split did. All arrays count TRAIN, VALIDATION, TEST and LEFT_OUT: int64 (4,).

    paths: of the parts that are written. rows: of the manifest; groups: of rows. labels: {name: groups with it}.
    num_without: rows without the label by which groups are made, each a group of its source. num_linked: groups that
    are linked with others; num_moved: of these, those that are not where the rule puts them alone. is_kept: whether an
    earlier split of the manifest was gone on with. fields: the label fields of the rows.
    """

    manifest: Path
    rule: SplitRule
    by: str
    paths: dict[int, Path]
    rows: NDArray[np.int64]
    groups: NDArray[np.int64]
    labels: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    num_without: int = 0
    num_linked: int = 0
    num_moved: int = 0
    manifest_sha256: str = ""
    is_kept: bool = False
    fields: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The content of NAME.split.json."""

        def counts(values: NDArray[np.int64]) -> dict[str, int]:
            return dict(zip(PARTS, values.tolist(), strict=True))

        return {
            "format": FORMAT_NAME,
            "schema_version": SCHEMA_VERSION,
            "manifest": self.manifest.name,
            "manifest_sha256": self.manifest_sha256,
            "rule": asdict(self.rule),
            "by": self.by,
            "rows": counts(self.rows),
            "groups": counts(self.groups),
            "labels": {name: counts(values) for name, values in self.labels.items()},
            "num_rows_without_group": self.num_without,
            "num_linked_groups": self.num_linked,
            "num_moved_groups": self.num_moved,
        }


def split_manifest(
    manifest: Path,
    rule: SplitRule,
    *,
    by: str | None = None,
    choose_seed: bool | None = False,
    num_workers: int = 1,
    near: Any = None,
) -> SplitSummary:
    """Write the parts of a manifest and NAME.split.json beside it; the same for the same content, in any order of rows.

    Args:
        by: the label field whose shares are counted and held; None: "label" if there is one.
        choose_seed: True: the seed that comes closest to the shares in every label; None: rule.seed. Where there is an
            earlier split of the manifest, neither: its seed, unless the seed is stated (False) and another one.
        near: with rule.near_duplicates, what links sources: called with the manifest, it gives pairs of their hashes.

    Raises:
        ValueError, FileNotFoundError: a line that does not fit, an earlier split by another rule, a part that would be
            empty, a label field that no row has.
    """
    if not manifest.is_file():
        raise FileNotFoundError(f"{manifest}: no such manifest; make one with `avssl prep index`")
    earlier = earlier_split(manifest)
    if earlier is not None and choose_seed is not False:
        rule, choose_seed = replace(rule, seed=rule_of(earlier).seed), False
    if earlier is None:
        refuse_other_files(manifest, rule)
    else:
        refuse_another_rule(manifest, rule, rule_of(earlier))
    with (
        clear_errors(manifest, "written"),
        scratch_folder(manifest.parent, f"{manifest.name}.split") as scratch,
        ExitStack() as stack,
    ):
        facts = _Facts(stack, scratch)
        for scanned in scan(manifest, rule.group, by or DEFAULT_BY, num_workers):
            facts.add(scanned, manifest)
        facts.check(manifest, rule, by)
        links, near_sources = Links(), Links()
        if rule.group != SOURCE:
            links.join_sharing(facts.sources.distinct())
        if rule.near_duplicates:
            _join_near(links, near_sources, list(near(manifest)), facts)
        if choose_seed:
            rule = replace(rule, seed=_chosen_seed(rule, facts, links))
        before: dict[int, int] = {}
        rows: set[tuple[int, int]] = set()
        if earlier is not None and (len(links.groups()) or earlier.count("num_moved_groups")):
            before = earlier_parts(manifest, rule, links.groups(), num_workers)
            if rule.group != SOURCE:
                rows = rows_left_out(manifest, rule, facts.sources, links, near_sources, num_workers)
        parts = _Parts(rule, placed(links, rule, before), rows)
        summary = _counted(manifest, rule, facts, parts)
        summary.by, summary.num_linked = by or DEFAULT_BY, len(links.groups())
        summary.fields = sorted(facts.fields)
        summary.is_kept = earlier is not None
        _refuse_empty(summary)
        _write_parts(summary, facts, parts)
        write_whole(beside(manifest, "split.json"), dump_json(summary.to_json()))
    return summary


class _Facts:
    """What was read of the rows, in files: group and source of each; pairs of both, and of groups and labels.

    Label 0 is that of all groups. names: {name: number}.
    """

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._file = stack.enter_context((folder / "rows").open("w+b"))
        self.sources, self.labels = (PairFiles(stack, folder, name) for name in ("sources", "labels"))
        self.names: dict[str, int] = {"": 0}
        self.fields: set[str] = set()
        self.num_rows = self.num_without = 0

    def add(self, scanned: Scanned, manifest: Path) -> None:
        """Add the rows of a range. ValueError if they are the validation or test part of a split."""
        if scanned.other_part:
            raise ValueError(
                f"{manifest}: is, or holds, the {scanned.other_part} part of a split; split the whole manifest, or its "
                "train part"
            )
        self._file.write(np.stack([scanned.groups, scanned.sources], axis=1).tobytes())
        self.sources.add(scanned.sources, scanned.groups)
        numbers = np.array([self.names.setdefault(name, len(self.names)) for name in scanned.label_names], np.uint64)
        self.labels.add(scanned.groups, np.zeros(len(scanned.groups), np.uint64))
        self.labels.add(scanned.groups[scanned.label_rows], numbers[scanned.label_numbers])
        self.fields |= scanned.fields
        self.num_rows += len(scanned.groups)
        self.num_without += scanned.num_without

    def check(self, manifest: Path, rule: SplitRule, by: str | None) -> None:
        """ValueError for a label field that no row has."""
        if by is not None and len(self.names) == 1:
            raise ValueError(f"{manifest}: no row has a label {by!r}; --by takes one of the label fields of the rows")
        if self.num_without == self.num_rows:
            raise ValueError(
                f"{manifest}: no row has a label {rule.group!r}; --group takes source, folder or one of the label "
                "fields of the rows"
            )

    def blocks(self) -> Iterator[tuple[Hashes, Hashes]]:
        """The groups and sources of the rows in order, many at a time: uint64 (n,) each."""
        self._file.seek(0)
        while content := self._file.read(16 * ROWS_AT_A_TIME):
            pairs = np.frombuffer(content, np.uint64).reshape(-1, 2)
            yield pairs[:, 0], pairs[:, 1]


class _Parts:
    """The part of every group: by the rule, but for `exceptions`: {group: part}.

    left_out: (source, group) of rows that are in no part although their group is.
    """

    def __init__(
        self, rule: SplitRule, exceptions: Mapping[int, int], left_out: Collection[tuple[int, int]] = ()
    ) -> None:
        self._rule, self._left_out = rule, left_out
        self._left_out_sources = np.array(sorted({source for source, _ in left_out}), np.uint64)
        self._groups = np.array(sorted(exceptions), np.uint64)
        self._parts = np.array([exceptions[group] for group in self._groups.tolist()], np.int8)
        self.num_moved = int((rule.parts(self._groups) != self._parts).sum())

    def of(self, groups: Hashes) -> NDArray[np.int8]:
        """int8 (n,) of uint64 (n,)."""
        parts = self._rule.parts(groups)
        if len(self._groups):
            places = np.minimum(np.searchsorted(self._groups, groups), len(self._groups) - 1)
            parts = np.where(self._groups[places] == groups, self._parts[places], parts)
        return parts

    def of_rows(self, groups: Hashes, sources: Hashes) -> NDArray[np.int8]:
        """int8 (n,) of the groups and sources of n rows: uint64 (n,) each."""
        parts = self.of(groups)
        for row in np.flatnonzero(np.isin(sources, self._left_out_sources)).tolist():
            if (int(sources[row]), int(groups[row])) in self._left_out:
                parts[row] = LEFT_OUT
        return parts


def _join_near(links: Links, near_sources: Links, pairs: list[tuple[int, int]], facts: _Facts) -> None:
    """Link the groups of sources that are near-duplicates, and these sources."""
    wanted = np.unique(np.array(pairs, np.uint64))
    group_of = {
        int(source): int(group)  # groups that share a source are linked already: any of them stands for all
        for bucket in facts.sources.distinct()
        for source, group in bucket[np.isin(bucket[:, 0], wanted)]
    }
    for first, second in pairs:
        near_sources.join(first, second)
        links.join(group_of[first], group_of[second])


def _chosen_seed(rule: SplitRule, facts: _Facts, links: Links) -> int:
    """The best seed, for groups of which linked ones count as one."""
    pairs = np.concatenate(list(facts.labels.distinct()))
    linked = links.groups()
    firsts = np.array([links.first_of(group) for group in linked.tolist()], np.uint64)
    groups = pairs[:, 0]
    if len(linked):
        places = np.minimum(np.searchsorted(linked, groups), len(linked) - 1)
        groups = np.where(linked[places] == groups, firsts[places], groups)
    return best_seed(rule, groups, pairs[:, 1].astype(np.int64), len(facts.names))


def _counted(manifest: Path, rule: SplitRule, facts: _Facts, parts: _Parts) -> SplitSummary:
    """The numbers of rows and groups in every part, and of groups of every label."""
    counts, rows = np.zeros((len(facts.names), len(PARTS)), np.int64), np.zeros(len(PARTS), np.int64)
    for bucket in facts.labels.distinct():
        np.add.at(counts, (bucket[:, 1].astype(np.int64), parts.of(bucket[:, 0])), 1)
    for groups, sources in facts.blocks():
        rows += np.bincount(parts.of_rows(groups, sources), minlength=len(PARTS))
    kept = [TRAIN, *([VALIDATION] if rule.validation_share else []), *([TEST] if rule.test_share else [])]
    kept += [LEFT_OUT] if rows[LEFT_OUT] else []
    return SplitSummary(
        manifest,
        rule,
        "",
        {part: beside(manifest, f"{PARTS[part]}.jsonl") for part in kept},
        rows,
        counts[0],
        {name: counts[number] for name, number in sorted(facts.names.items()) if number},
        facts.num_without,
        num_moved=parts.num_moved,
    )


def _refuse_empty(summary: SplitSummary) -> None:
    """ValueError if a part that is asked for has no rows."""
    shares = {TRAIN: 1.0, VALIDATION: summary.rule.validation_share, TEST: summary.rule.test_share}
    num_groups, what = int(summary.groups.sum()), summary.rule.groups_name
    wanted = [part for part, share in shares.items() if share]
    advice = (
        "Give --seed auto, which looks for a draw that comes close to the shares, a larger share, or smaller groups "
        "(--group)"
        if num_groups >= len(wanted)
        else f"The {len(wanted)} parts need at least as many: list more files, or give smaller groups (--group)"
    )
    for part in wanted:
        if not summary.groups[part]:
            raise ValueError(
                f"{summary.manifest}: no row would be in {PARTS[part]}, of {num_groups} {what} that are drawn one by "
                f"one; nothing is written. {advice}"
            )


def _write_parts(summary: SplitSummary, facts: _Facts, parts: _Parts) -> None:
    """Copy each line to the file of its part. RuntimeError if the manifest changed since it was read."""
    state, num_rows = hashlib.sha256(), 0
    endings = [f', "part": "{name}"}}\n'.encode() for name in PARTS]
    with ExitStack() as stack:
        files: dict[int, BinaryIO] = {
            part: stack.enter_context(whole_file(path)) for part, path in summary.paths.items()
        }
        manifest = stack.enter_context(summary.manifest.open("rb"))
        for groups, sources in facts.blocks():
            for part, line in zip(parts.of_rows(groups, sources).tolist(), manifest, strict=False):
                state.update(line)
                num_rows += 1
                if b'"part"' in line:  # of an earlier split, most likely
                    record = parse(line, f"{summary.manifest}, line {num_rows}")
                    files[part].write(dump_json(record | {"part": PARTS[part]}))
                else:
                    files[part].write(line.rstrip()[:-1] + endings[part])
        if num_rows != facts.num_rows or manifest.readline():
            raise RuntimeError(f"{summary.manifest}: changed while it was split; run the same command again")
    if LEFT_OUT not in summary.paths:
        beside(summary.manifest, f"{PARTS[LEFT_OUT]}.jsonl").unlink(missing_ok=True)
    summary.manifest_sha256 = state.hexdigest()
