"""Two results on the same rows: paired differences with bootstrap confidence intervals, and exact McNemar tests.

The bootstrap stands in avssl/eval/intervals.py. McNemar 1947: of the rows on which exactly one of two classifiers is
right, is it the one or the other (two-sided exact binomial test).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from avssl.eval.intervals import bootstrap, ends, row_counts, values_of
from avssl.eval.outcome import Repeat
from avssl.eval.results import read_evaluation, read_rows
from avssl.files.plain_text import plain


@dataclass(frozen=True)
class Difference:
    """second - first of one metric, with the ends of its confidence interval; mcnemar: (only first right, only second
    right, p-value), for shares of right rows of a single repeat; num_rows: over how many samples.
    """

    first: float
    second: float
    low: float
    high: float
    mcnemar: tuple[int, int, float] | None = None
    num_rows: int = 0

    @property
    def difference(self) -> float:
        """second - first."""
        return self.second - self.first


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """(rows that only the first has right, only the second, two-sided exact p-value) of bool (n,) arrays."""
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    total, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(comb(total, count) for count in range(fewer + 1))
    return only_first, only_second, min(1.0, 2 * tail / 2**total)  # whole numbers: exact for any number of rows


def paired_differences(
    first: Sequence[Repeat], second: Sequence[Repeat], *, num_draws: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Difference]:
    """{metric: Difference} of two results with the same repeats and rows."""
    if num_draws < 2 or not 0 < confidence < 1:
        raise ValueError(f"draws is {num_draws}, at least 2; confidence is {confidence}, between 0 and 1")
    names = _shared_metrics(first, second)
    counts, values = row_counts(first), [values_of(side) for side in (first, second)]
    drawn = bootstrap([first, second], num_draws=num_draws, seed=seed)
    return {
        name: Difference(
            values[0][name], values[1][name], *ends(drawn[1][name] - drawn[0][name], confidence),
            _mcnemar(first, second, name), counts[name],
        )
        for name in names
    }  # fmt: skip


def _shared_metrics(first: Sequence[Repeat], second: Sequence[Repeat]) -> list[str]:
    """Metrics that both sides have, in the same repeats: not every repeat need have every metric."""
    found = dict.fromkeys(name for repeat in first for name in repeat.metrics)
    pairs = list(zip(first, second, strict=True))
    return [name for name in found if all((name in one.metrics) == (name in other.metrics) for one, other in pairs)]


def _mcnemar(first: Sequence[Repeat], second: Sequence[Repeat], name: str) -> tuple[int, int, float] | None:
    """Of metrics that are the share of right rows, where every row comes once over all repeats (folds, not seeds)."""
    sides = [_right_rows(side, name) for side in (first, second)]
    if sides[0] is None or sides[1] is None:
        return None
    (keys, one), (other_keys, other) = sides[0], sides[1]
    if keys != other_keys or len(set(keys)) != len(keys):
        return None
    return mcnemar(one, other)


def _right_rows(side: Sequence[Repeat], name: str) -> tuple[list[str], np.ndarray] | None:
    """(keys, bool (n,)) of the rows that a share of right rows is over; None of other kinds of metrics."""
    keys: list[str] = []
    right = []
    for repeat in side:
        if name not in repeat.metrics:
            continue
        metric = repeat.metrics[name]
        values = repeat.columns[metric.columns[0]]
        if metric.kind not in ("mean", "mean_where") or values.dtype != np.bool_:
            return None
        chosen = repeat.columns[metric.columns[1]] if metric.kind == "mean_where" else np.ones(len(values), np.bool_)
        keys += [repeat.keys[row] for row in np.flatnonzero(chosen)]
        right.append(values[chosen])
    return keys, np.concatenate(right)


def same_measure(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Were two results measured alike: the same task, protocol and repeats?"""
    return not _differing(first, second)


def refuse_unless_comparable(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> None:
    """ValueError that lists every part of task and protocol in which two results differ."""
    differing = _differing(first, second)
    if differing:
        raise ValueError(
            f"{names[0]} and {names[1]} cannot be compared, for they were not measured alike:\n" + "\n".join(differing)
        )


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    found = []
    one, other = ({"task": side.get("task"), **side.get("protocol", {})} for side in (first, second))
    for part in sorted({*one, *other}):
        if one.get(part) != other.get(part):
            found.append(f"  {part}: {one.get(part)!r} and {other.get(part)!r}")
    repeats = [[repeat["name"] for repeat in side.get("repeats", {}).get("trained", [])] for side in (first, second)]
    if repeats[0] != repeats[1]:
        found.append(f"  repeats: {repeats[0]} and {repeats[1]}")
    return found


def compare(
    first: str | Path,
    second: str | Path,
    *,
    weights: tuple[str, str] = ("trained", "trained"),
    num_draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """Differences of two result files. ValueError if they differ in task, protocol or samples, saying how."""
    sides = [read_evaluation(path) for path in (first, second)]
    refuse_unless_comparable(sides[0], sides[1], (str(first), str(second)))
    rows = [read_rows(path, side, own) for path, side, own in zip((first, second), sides, weights, strict=True)]
    return paired_differences(rows[0], rows[1], num_draws=num_draws, confidence=confidence, seed=seed)


def comparison_table(differences: Mapping[str, Difference], confidence: float) -> str:
    """One line a metric."""
    width = max(len(plain(name)) for name in differences)
    lines = [f"{'':{width}}  samples     first    second  difference  {f'{confidence:.0%} interval':>20}  McNemar"]
    for name, one in differences.items():
        interval = f"[{one.low:+.4f}, {one.high:+.4f}]"
        line = (
            f"{plain(name):{width}}  {one.num_rows:7d}  {one.first:8.4f}  {one.second:8.4f}  {one.difference:+10.4f}  "
            f"{interval:>20}"
        )
        if one.mcnemar is not None:
            line += f"  {one.mcnemar[0]} : {one.mcnemar[1]}, p = {one.mcnemar[2]:.2g}"
        lines.append(line)
    return "\n".join(lines)
