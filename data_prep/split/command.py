"""The command `split`: divides a manifest into train, validation and test; `index --test-share` ends with it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from avssl.files.plain_text import emit, plain, say
from avssl.processes.limits import Limits, default_num_workers
from data_prep.split.earlier import beside
from data_prep.split.rule import LEFT_OUT, PARTS, SOURCE, TEST, TRAIN, VALIDATION, SplitRule
from data_prep.split.run import SplitSummary, split_manifest

NUM_NAMES = 5  # labels that are named
AUTO = "auto"
FINGERPRINT_LIMITS = Limits(seconds=120.0)
RULE_OPTIONS = {"by": "--by", "group": "--group", "seed": "--seed", "near_duplicates": "--near-duplicates"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `avssl prep split`."""
    parser.add_argument("manifest", type=Path, help="of `avssl prep index`, e.g. corpus.jsonl; the parts lie beside it")
    add_rule_arguments(parser)
    parser.add_argument("--num-workers", type=int, default=default_num_workers(), help="processes (default: all cores)")


def add_rule_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The options that say how a manifest is divided."""
    parser.add_argument(
        "--test-share", type=float, default=0.0, help="share of the groups that become test, e.g. .1 (default: 0)"
    )
    parser.add_argument(
        "--validation-share", type=float, default=0.0, help="share of the groups that become validation (default: 0)"
    )
    parser.add_argument(
        "--by",
        metavar="FIELD",
        help="the label field whose shares are reported, and that --seed auto balances (default: label)",
    )
    parser.add_argument(
        "--group",
        default=None,
        help="what is never divided: source (a file, with all that is cut from it), folder, or a label field, e.g."
        " speaker (default: source)",
    )
    parser.add_argument(
        "--seed",
        default=None,
        help="a number from 0; auto: the one of up to 1000 that comes closest to the shares in every label, which the"
        " next split of this manifest uses again (default: that of an earlier split, or 0)",
    )
    parser.add_argument(
        "--near-duplicates",
        action="store_true",
        help="keep files on one side that look and sound alike: encoded anew, scaled, cropped by a few pixels, cut by a"
        " few seconds. Decodes the first half minute of every file once",
    )


def rule_of(arguments: argparse.Namespace) -> SplitRule:
    """The rule of the options. ValueError for a value that is not allowed."""
    seed = arguments.seed
    if seed not in (None, AUTO) and not str(seed).isdecimal():
        raise ValueError(f"--seed is {seed!r}; it must be a number from 0, or auto")
    number = 0 if seed in (None, AUTO) else int(seed)
    return SplitRule(
        arguments.test_share, arguments.validation_share, arguments.group or SOURCE, number, arguments.near_duplicates
    )


def split(manifest: Path, arguments: argparse.Namespace) -> SplitSummary:
    """Split a manifest as the options say."""
    near = None
    if arguments.near_duplicates:
        from data_prep.split.near import near_sources

        store = beside(manifest, "fingerprints")
        near = partial(
            near_sources, store=store, num_workers=arguments.num_workers, limits=FINGERPRINT_LIMITS, tell=say
        )
    return split_manifest(
        manifest,
        rule_of(arguments),
        by=arguments.by,
        choose_seed={None: None, AUTO: True}.get(arguments.seed, False),
        num_workers=arguments.num_workers,
        near=near,
    )


def run(arguments: argparse.Namespace) -> int:
    """Split, and say what lies where."""
    summary = split(arguments.manifest, arguments)
    for line in describe(summary):
        say(line)
    emit("result", manifest=arguments.manifest, **facts(summary))
    return 0


def facts(summary: SplitSummary) -> dict[str, Any]:
    """The summary as plain values."""
    parts = {
        PARTS[part]: {"manifest": path, "num_rows": int(summary.rows[part]), "num_groups": int(summary.groups[part])}
        for part, path in summary.paths.items()
    }
    numbers = {"num_left_out": int(summary.rows[LEFT_OUT]), "seed": summary.rule.seed}
    return {"parts": parts, "num_linked": int(summary.num_linked), "num_moved": int(summary.num_moved), **numbers}


def describe(summary: SplitSummary) -> Iterator[str]:
    """The summary as lines of text."""
    num_groups, num_rows = int(summary.groups.sum()), int(summary.rows.sum())
    what = summary.rule.groups_name
    for part, path in summary.paths.items():
        groups, rows = int(summary.groups[part]), int(summary.rows[part])
        shares = f"{groups / num_groups:.1%} of them, {rows / num_rows:.1%} of the rows"
        yield f"{path}: {rows} rows of {groups} {what} ({shares})"
    if summary.num_without:
        name = plain(summary.rule.group)
        yield f"  {summary.num_without} rows have no {name}; each is grouped with what is cut from its file"
    for part, share in ((TEST, summary.rule.test_share), (VALIDATION, summary.rule.validation_share)):
        if share and summary.labels:
            yield from _label_lines(summary, part, share)
    if summary.fields and summary.by not in summary.fields:
        fields = ", ".join(map(plain, summary.fields[:NUM_NAMES]))
        yield f"  no row has a label field {plain(summary.by)}, so no shares of labels; --by takes one of {fields}"
    if summary.num_linked:
        why = "share a file" + (", or look and sound alike" if summary.rule.near_duplicates else "")
        yield f"  {summary.num_linked} {what} are linked, for they {why}; {summary.num_moved} moved to the others' part"
    if summary.rows[LEFT_OUT]:
        where = "they are like files of two parts in which an earlier split has placed them"
        yield f"  {int(summary.rows[LEFT_OUT])} rows are left out: {where}"
    kept = ", as before; without that file the manifest is split anew" if summary.is_kept else ""
    yield f"  how: {beside(summary.manifest, 'split.json')}; seed {summary.rule.seed}{kept}"


def _label_lines(summary: SplitSummary, part: int, share: float) -> Iterator[str]:
    """The least and the largest share of a part among the labels, and which labels it lacks, or train."""
    names, what, by = [plain(name) for name in summary.labels], summary.rule.groups_name, plain(summary.by)
    counts: Any = np.stack(list(summary.labels.values()))
    shares = counts[:, part] / counts.sum(axis=1)
    least, most = int(shares.argmin()), int(shares.argmax())
    reached = f"{shares[least]:.1%} ({names[least]}) to {shares[most]:.1%} ({names[most]})"
    reached = reached if shares[least] < shares[most] else f"{shares[most]:.1%}"
    yield f"  {PARTS[part]}: of each of {len(names)} names of {by} {reached} of its {what}; asked for: {share:.1%}"
    for other in (part, TRAIN):
        lacking = [f"{names[row]} ({counts[row].sum()})" for row in np.flatnonzero(counts[:, other] == 0)]
        if lacking:
            rest = f" and {len(lacking) - NUM_NAMES} more" if len(lacking) > NUM_NAMES else ""
            hint = "" if summary.rule.seed or summary.is_kept else "; --seed auto looks for a draw that comes closer"
            yield f"  not in {PARTS[other]}, with the number of {what}: {', '.join(lacking[:NUM_NAMES])}{rest}{hint}"
