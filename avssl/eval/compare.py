"""Two results on the same rows: paired differences with bootstrap confidence intervals, and exact McNemar tests.

avssl/eval/intervals.py has the bootstrap. McNemar's test (1947) takes the rows on which exactly one of two classifiers
is right and asks whether each is right equally often (two-sided exact binomial test).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from avssl.eval.intervals import bootstrap, ends, row_counts, source_counts, units_text, values_of
from avssl.eval.outcome import Repeat
from avssl.eval.results import read_evaluation, read_rows
from avssl.files.plain_text import plain

ADDED_TO_PROTOCOL = ("targets",)  # keys that results of earlier versions lack


@dataclass(frozen=True)
class Difference:
    """One metric of two results, and the ends of the confidence interval of second - first.

    mcnemar: (rows that only the first has right, rows that only the second has right, p-value), for metrics that are a
    share of right rows, where no two rows are of one source. num_rows, num_sources: the numbers of samples and of their
    source files, None where these are not known.
    """

    first: float
    second: float
    low: float
    high: float
    mcnemar: tuple[int, int, float] | None = None
    num_rows: int = 0
    num_sources: int | None = None

    @property
    def difference(self) -> float:
        """second - first: above 0 where the second result has the higher value."""
        return self.second - self.first


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """(rows that only the first has right, that only the second has right, two-sided exact p-value) of bool (n,)."""
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    total, fewer = only_first + only_second, min(only_first, only_second)
    steps = np.arange(fewer)
    # C(total, fewer - 1) / C(total, fewer), and so on: the tail over its largest term, which is exact in whole numbers
    terms = np.cumprod((fewer - steps) / (total - fewer + 1 + steps))
    return only_first, only_second, min(1.0, 2 * comb(total, fewer) / 2**total * float(1 + terms.sum()))


def paired_differences(
    first: Sequence[Repeat], second: Sequence[Repeat], *, num_draws: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Difference]:
    """{metric: Difference} of two results with the same repeats and rows."""
    if num_draws < 2 or not 0 < confidence < 1:
        raise ValueError(f"draws is {num_draws}, at least 2; confidence is {confidence}, between 0 and 1")
    names = _shared_metrics(first, second)
    known = [
        pair[0] if pair[0].sources is not None else replace(pair[0], sources=pair[1].sources)
        for pair in zip(first, second, strict=True)
    ]
    counts, sources, values = (
        row_counts(first),
        source_counts(known),
        [values_of(repeats) for repeats in (first, second)],
    )
    drawn = bootstrap([first, second], num_draws=num_draws, seed=seed)
    return {
        name: Difference(
            values[0][name], values[1][name], *ends(drawn[1][name] - drawn[0][name], confidence),
            _mcnemar(first, second, name) if sources.get(name, counts[name]) == counts[name] else None,
            counts[name], sources.get(name),
        )
        for name in names
    }  # fmt: skip


def _shared_metrics(first: Sequence[Repeat], second: Sequence[Repeat]) -> list[str]:
    """The metrics that both results have in the same repeats; a repeat may lack some of them."""
    names = dict.fromkeys(name for repeat in first for name in repeat.metrics)
    pairs = list(zip(first, second, strict=True))
    return [
        name for name in names if all((name in repeat.metrics) == (name in paired.metrics) for repeat, paired in pairs)
    ]


def _mcnemar(first: Sequence[Repeat], second: Sequence[Repeat], name: str) -> tuple[int, int, float] | None:
    """McNemar's test of a share of right rows, where every row comes once over all repeats (folds, not seeds)."""
    rows, other_rows = _right_rows(first, name), _right_rows(second, name)
    if rows is None or other_rows is None:
        return None
    (keys, right), (other_keys, other_right) = rows, other_rows
    if keys != other_keys or len(set(keys)) != len(keys):
        return None
    return mcnemar(right, other_right)


def _right_rows(repeats: Sequence[Repeat], name: str) -> tuple[list[str], np.ndarray] | None:
    """(keys, bool (n,): whether each is right) of the rows of a metric that is a share of right rows, else None."""
    keys: list[str] = []
    right = []
    for repeat in repeats:
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


def is_comparable(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two results have the same task, protocol and repeats."""
    return not _differing(first, second)


def refuse_unless_comparable(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> None:
    """Raise ValueError that lists every difference of two results in task, protocol and repeats, if there are any."""
    differing = _differing(first, second)
    if differing:
        raise ValueError(
            f"{names[0]} and {names[1]} cannot be compared, for they were not measured alike:\n" + "\n".join(differing)
        )


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    lines = []
    settings, other_settings = (
        {"task": result.get("task"), **result.get("protocol", {})} for result in (first, second)
    )
    # A key that results of earlier versions lack says nothing about them.
    added = {key for key in ADDED_TO_PROTOCOL if key not in settings or key not in other_settings}
    for key in sorted({*settings, *other_settings} - added):
        if settings.get(key) != other_settings.get(key):
            lines.append(f"  {key}: {settings.get(key)!r} and {other_settings.get(key)!r}")
    repeats = [
        [repeat["name"] for repeat in result.get("repeats", {}).get("trained", [])] for result in (first, second)
    ]
    if repeats[0] != repeats[1]:
        lines.append(f"  repeats: {repeats[0]} and {repeats[1]}")
    return lines


def compare(
    first: str | Path,
    second: str | Path,
    *,
    weights: tuple[str, str] = ("trained", "trained"),
    num_draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """{metric: Difference} of two result files; ValueError lists how they differ in task, protocol or samples."""
    results = [read_evaluation(path) for path in (first, second)]
    refuse_unless_comparable(results[0], results[1], (str(first), str(second)))
    rows = [read_rows(*stored) for stored in zip((first, second), results, weights, strict=True)]
    return paired_differences(rows[0], rows[1], num_draws=num_draws, confidence=confidence, seed=seed)


def comparison_table(differences: Mapping[str, Difference], confidence: float) -> str:
    """A table with one line per metric."""
    width = max(len(plain(name)) for name in differences)
    lines = [f"{'':{width}}  samples     first    second  difference  {f'{confidence:.0%} interval':>20}  McNemar"]
    for name, metric in differences.items():
        interval = f"[{metric.low:+.4f}, {metric.high:+.4f}]"
        values = f"{metric.first:8.4f}  {metric.second:8.4f}  {metric.difference:+10.4f}"
        line = f"{plain(name):{width}}  {metric.num_rows:7d}  {values}  {interval:>20}"
        if metric.mcnemar is not None:
            line += f"  {metric.mcnemar[0]} : {metric.mcnemar[1]}, p = {metric.mcnemar[2]:.2g}"
        lines.append(line)
    counts = {name: metric.num_rows for name, metric in differences.items()}
    sources = {name: metric.num_sources for name, metric in differences.items() if metric.num_sources is not None}
    if text := units_text(counts, sources):
        is_left_out = any(sources.get(name, count) < count for name, count in counts.items())
        lines.append(text + ("; McNemar's test, which needs independent rows, is left out" if is_left_out else ""))
    return "\n".join(lines)
