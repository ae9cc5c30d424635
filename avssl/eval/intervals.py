"""Confidence intervals of metrics and of their differences: one bootstrap over the test rows, in pairs.

The rows are resampled with replacement, the same draw for all results and for all their metrics (percentile bootstrap,
Efron and Tibshirani 1993); in every draw each metric is computed anew, so that medians, mAP and AUC have intervals,
too. With several folds each one is resampled and the metric is their mean. With several seeds on the same rows, a draw
takes the same rows in all of them.

Rows of one source file (segments, scenes) are right or wrong together, so they are no independent evidence: where the
sources are known, sources are drawn, each with all of its rows (a cluster bootstrap; Davison and Hinkley 1997, 3.8).

Purity, NMI and the adjusted Rand index (metrics.OF_PAIRS) would rise with every row that comes twice, since a copy is
always in the cluster and class of its original. They are computed on half of the sources, drawn without replacement.
Such values vary around their mean as those of all rows do around theirs (Politis, Romano and Wolf 1999), so the
deviations from the mean of the draws are put around the value.

An interval says how much a metric varies with the test samples; how much it varies
with training is seen from runs with several seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.eval.metrics import OF_PAIRS
from avssl.eval.outcome import Outcome, Repeat
from avssl.files.plain_text import plain

CONFIDENCE = 0.95
NUM_DRAWS = 1000
DIFFERENCE = "trained - untrained"
Ends = tuple[float, float]
Draws = dict[str, NDArray[np.float64]]  # {metric: (num_draws,)}


def values_of(
    repeats: Sequence[Repeat], weights: Sequence[tuple[NDArray[Any] | None, NDArray[Any] | None]] | None = None
) -> dict[str, float]:
    """{metric: mean over the repeats that have it}; weights: as of `Repeat.values`, of each repeat."""
    results = [
        repeat.values(*rows) for repeat, rows in zip(repeats, weights or [(None, None)] * len(repeats), strict=True)
    ]
    names = dict.fromkeys(name for values in results for name in values)
    return {name: float(np.mean([values[name] for values in results if name in values])) for name in names}


def bootstrap(results: Sequence[Sequence[Repeat]], *, num_draws: int | None = None, seed: int = 0) -> list[Draws]:
    """The metrics of each result on the same resampled sources (rows, where these are not known), NUM_DRAWS times.

    ValueError unless all have the same repeats and rows.
    """
    for repeats in results[1:]:
        for first, other in zip(results[0], repeats, strict=True):
            if first.keys != other.keys:
                raise ValueError(
                    f"repeat {first.name!r}: the rows differ; results can only be compared on the same samples"
                )
    of_pairs = [
        {name for repeat in repeats for name, metric in repeat.metrics.items() if metric.kind in OF_PAIRS}
        for repeats in results
    ]
    generator, halver = np.random.default_rng(seed), np.random.default_rng((seed, 1)) if any(of_pairs) else None
    drawn: list[list[dict[str, float]]] = [[] for _ in results]
    numbers = [(tuple(paired[0].keys), _source_numbers(paired)) for paired in zip(*results, strict=True)]
    for _ in range(num_draws or NUM_DRAWS):
        by_rows: dict[tuple[str, ...], tuple[NDArray[Any], NDArray[Any] | None]] = {}
        weights = []
        for rows, source_of_row in numbers:
            if rows not in by_rows:
                count = int(source_of_row.max()) + 1
                counts = np.bincount(generator.integers(0, count, count), minlength=count)
                halves = None if halver is None else _half(count, halver)[source_of_row]
                by_rows[rows] = counts[source_of_row], halves
            weights.append(by_rows[rows])
        for values, repeats in zip(drawn, results, strict=True):
            values.append(values_of(repeats, weights))
    draws = [{name: np.array([values[name] for values in table]) for name in table[0]} for table in drawn]
    for metrics, repeats, names in zip(draws, results, of_pairs, strict=True):
        point = values_of(repeats) if names else {}
        for name in names:
            metrics[name] += point[name] - metrics[name].mean()
    return draws


def _source_numbers(paired: Sequence[Repeat]) -> NDArray[np.int64]:
    """int64 (n,): the number of the source of each row, by the first of the repeats that knows it; else of the row.

    Of a single source rows are drawn: an interval without width would be sure of what one file cannot tell.
    """
    known = [repeat.sources for repeat in paired if repeat.sources is not None]
    rows = np.arange(len(paired[0].keys))
    if not known:
        return rows
    distinct, numbers = np.unique(known[0], return_inverse=True)
    return rows if len(distinct) in (1, len(rows)) else numbers.astype(np.int64)


def _half(count: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """bool (count,): half of them is True, or of an odd count the smaller part, and of 1 that one."""
    return generator.permutation(count) < max(1, count // 2)


def ends(draws: NDArray[np.float64], confidence: float = CONFIDENCE) -> Ends:
    """The percentile interval of the draws that have a value (a draw without a row that the metric needs has NaN)."""
    finite = draws[~np.isnan(draws)]
    if not len(finite):
        return float("nan"), float("nan")
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(finite, [tail, 100 - tail])
    return float(low), float(high)


def row_counts(repeats: Sequence[Repeat]) -> dict[str, int]:
    """{metric: number of samples}; a sample that is in several repeats (seeds) counts once."""
    keys: dict[str, set[str]] = {}
    for repeat in repeats:
        for name in repeat.metrics:
            keys.setdefault(name, set()).update(repeat.keys[row] for row in _rows_of(repeat, name))
    return {name: len(samples) for name, samples in keys.items()}


def source_counts(repeats: Sequence[Repeat]) -> dict[str, int]:
    """{metric: number of source files of its samples}, of the metrics whose sources are known."""
    sources: dict[str, set[int]] = {}
    unknown: set[str] = set()
    for repeat in repeats:
        if repeat.sources is None:
            unknown.update(repeat.metrics)
            continue
        for name in repeat.metrics:
            sources.setdefault(name, set()).update(repeat.sources[_rows_of(repeat, name)].tolist())
    return {name: len(found) for name, found in sources.items() if name not in unknown}


def units_text(num_rows: Mapping[str, int], num_sources: Mapping[str, int]) -> str:
    """A sentence on what the intervals are over, where that is not one sample a source; "" otherwise."""
    if unknown := [name for name in num_rows if name not in num_sources]:
        of = "" if len(unknown) == len(num_rows) else f" of {', '.join(map(plain, unknown))}"
        return f"intervals{of} are over clips, whose source files are not known: too narrow if several share a source"
    shared = {name: count for name, count in num_sources.items() if count < num_rows[name]}
    if not shared:
        return ""
    if 1 in shared.values():
        of = ", ".join(plain(name) for name, count in shared.items() if count == 1)
        return f"intervals of {of} are over the clips of one source file: they say nothing about other files"
    name = max(shared, key=lambda name: num_rows[name])
    counts = f"{shared[name]} sources of {num_rows[name]} clips"
    return f"intervals are over sources, each drawn with all of its clips ({counts})"


def _rows_of(repeat: Repeat, name: str) -> NDArray[np.int64]:
    """The numbers of the rows that count in a metric."""
    metric = repeat.metrics[name]
    if not metric.kind.endswith("_where"):
        return np.arange(len(repeat.keys))
    return np.flatnonzero(repeat.columns[metric.columns[1]])


def intervals_of(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """The intervals as they are stored in a result: {"confidence", "draws", "num_rows": {metric: samples},
    "num_sources": {metric: source files, where they are known}, "values": {weights: {metric: [low, high]}},
    "trained - untrained": {metric: [low, high]}}; the last is {} without untrained weights.
    """
    draws = dict(zip(outcomes, bootstrap([outcome.repeats for outcome in outcomes.values()]), strict=True))
    first, second = draws.get("trained", {}), draws.get("untrained", {})
    return {
        "confidence": CONFIDENCE,
        "draws": NUM_DRAWS,
        "num_rows": row_counts(outcomes["trained"].repeats),
        "num_sources": source_counts(outcomes["trained"].repeats),
        "values": {weights: {name: list(ends(drawn[name])) for name in drawn} for weights, drawn in draws.items()},
        DIFFERENCE: {name: list(ends(first[name] - second[name])) for name in first if name in second},
    }


def leaders(results: Sequence[Sequence[Repeat]], lower_is_better: Callable[[str], bool]) -> dict[str, int]:
    """{metric: number of the result that is better than each other one, by more than the interval of the difference}.

    Only metrics that all results have. A metric without such a result is left out.
    """
    if len(results) < 2:
        return {}
    values, draws = [values_of(repeats) for repeats in results], bootstrap(results)
    best_by_metric = {}
    for name in values[0]:
        if not all(name in metrics for metrics in values):
            continue
        sign = -1 if lower_is_better(name) else 1
        best = max(range(len(results)), key=lambda number: sign * values[number][name])
        others = [number for number in range(len(results)) if number != best]
        if all(ends(sign * (draws[best][name] - draws[number][name]))[0] > 0 for number in others):
            best_by_metric[name] = best
    return best_by_metric
