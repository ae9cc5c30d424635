"""Metrics as functions of arrays with one entry per row and of the rows' weights.

A weight is how often a row counts: 1 for the value itself, the counts of a bootstrap for a resampled set. Every
function equals scikit-learn's on rows that are repeated that often (tests/test_eval_metrics.py).
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def mean(values: Array, weights: Array) -> float:
    """Mean of (n,) values with weights (n,)."""
    return float(np.average(values.astype(np.float64), weights=weights))


def class_mean(values: Array, targets: Array, weights: Array) -> float:
    """Mean over classes of the mean of (n,) values in each class that has rows; targets: int (n,)."""
    total = np.bincount(targets, weights=weights)
    hits = np.bincount(targets, weights=weights * values)
    return float((hits[total > 0] / total[total > 0]).mean())


def mean_where(values: Array, chosen: Array, weights: Array) -> float:
    """Mean of (n,) values over the rows that are chosen, bool (n,); NaN if they have no weight."""
    kept = weights * chosen
    return float((values * kept).sum() / kept.sum()) if kept.sum() > 0 else float("nan")


def median(values: Array, weights: Array) -> float:
    """Median of (n,) values repeated as often as their whole-numbered weights."""
    return float(np.median(np.repeat(values, weights.astype(np.int64))))


def median_where(values: Array, chosen: Array, weights: Array) -> float:
    """Median of (n,) values over the rows that are chosen, bool (n,); NaN if they have no weight."""
    kept = (weights * chosen).astype(np.int64)
    return median(values, kept) if kept.any() else float("nan")


class _Ranking:
    """Rows by falling score, class by class: sorted once, for any number of weightings."""

    def __init__(self, scores: Array, targets: Array) -> None:
        if scores.ndim == 1:
            scores, targets = scores[:, None], targets[:, None]
        self.classes: list[tuple[Array, Array, Array]] = []  # (order, last row of each distinct score, sorted targets)
        for column, target in zip(scores.T, targets.T.astype(np.bool_), strict=True):
            order = np.argsort(-column, kind="stable")
            ends = np.append(np.flatnonzero(np.diff(column[order])), len(order) - 1)
            self.classes.append((order, ends, target[order]))

    def mean(self, weights: Array, of_class: Callable[[Array, Array], float]) -> float:
        """Mean over the classes that have rows of weight both in and outside them; NaN if there is none.

        of_class gets the summed weights of true and of false rows at or above each distinct score, best first.
        """
        weights = weights.astype(np.float64)
        values = []
        for order, ends, target in self.classes:
            sorted_weights = weights[order]
            true, false = np.cumsum(sorted_weights * target)[ends], np.cumsum(sorted_weights * ~target)[ends]
            if true[-1] > 0 and false[-1] > 0:
                values.append(of_class(true, false))
        return float(np.mean(values)) if values else float("nan")


def _average_precision(true: Array, false: Array) -> float:
    seen = true + false
    precision = np.divide(true, seen, out=np.zeros_like(true), where=seen > 0)
    return float((np.diff(true, prepend=0.0) * precision).sum() / true[-1])


def _roc_auc(true: Array, false: Array) -> float:
    hit_rate, false_rate = np.append(0.0, true / true[-1]), np.append(0.0, false / false[-1])
    return float((np.diff(false_rate) * (hit_rate[1:] + hit_rate[:-1])).sum() / 2)


def mean_average_precision(scores: Array, targets: Array, weights: Array) -> float:
    """Mean over classes of average precision (area under the steps of precision over recall, equal scores together).

    scores float (n, C) or (n,), targets bool of the same shape. Classes of no row, or of all rows, are left out.
    """
    return _Ranking(scores, targets).mean(weights, _average_precision)


def roc_auc(scores: Array, targets: Array, weights: Array) -> float:
    """Mean over classes of the area under the receiver operating characteristic; shapes as above."""
    return _Ranking(scores, targets).mean(weights, _roc_auc)


def d_prime(scores: Array, targets: Array, weights: Array) -> float:
    """sqrt(2) times the standard normal quantile of the mean AUC over classes (Hershey et al. 2017, arXiv 1609.09430).

    The AUC is cut at 1 - 1e-12, which gives 9.95: an AUC of 1 would give infinity, which JSON does not have.
    """
    return _d_prime(roc_auc(scores, targets, weights))


def _d_prime(area: float) -> float:
    if np.isnan(area):
        return area
    return float(np.sqrt(2) * NormalDist().inv_cdf(min(max(area, 1e-12), 1 - 1e-12)))


def pair_auc(aligned: Array, shifted: Array, weights: Array) -> float:
    """Area under the curve of telling (n,) aligned from (n,) shifted scores, each pair with its weight."""
    targets = np.repeat([True, False], len(aligned))
    return roc_auc(np.concatenate([aligned, shifted]), targets, np.concatenate([weights, weights]))


def best_threshold(aligned: Array, shifted: Array) -> float:
    """The score t for which the most of (n,) aligned scores are at least t and of (n,) shifted ones below it.

    The highest of equally good ones.
    """
    scores = np.unique(np.concatenate([aligned, shifted]))[::-1]
    right = [(aligned >= score).sum() + (shifted < score).sum() for score in scores]
    return float(scores[int(np.argmax(right))])


def _contingency(clusters: Array, targets: Array, weights: Array) -> Array:
    """float64 (clusters, classes): the summed weights of the rows of each cluster and class."""
    table = np.zeros((clusters.max() + 1, targets.max() + 1))
    np.add.at(table, (clusters, targets), weights)
    return table


def purity(clusters: Array, targets: Array, weights: Array) -> float:
    """The share of rows that have the most frequent class of their cluster; clusters, targets: int (n,)."""
    table = _contingency(clusters, targets, weights)
    return float(table.max(axis=1).sum() / table.sum())


def normalized_mutual_information(clusters: Array, targets: Array, weights: Array) -> float:
    """Mutual information of clusters and classes over the mean of their entropies; 1 if both have one value only."""
    shares = _contingency(clusters, targets, weights) / weights.sum()
    of_cluster, of_class = shares.sum(axis=1), shares.sum(axis=0)
    entropies = [-float((p[p > 0] * np.log(p[p > 0])).sum()) for p in (of_cluster, of_class)]
    if not any(entropies):
        return 1.0
    some = shares > 0
    information = shares[some] * np.log(shares[some] / np.outer(of_cluster, of_class)[some])
    return float(information.sum() / np.mean(entropies))


def adjusted_rand_index(clusters: Array, targets: Array, weights: Array) -> float:
    """The share of pairs of rows on which clusters and classes agree, scaled with chance at 0 (Hubert & Arabie 1985).

    weights: how often each row counts; 1 if no row or every row is alone in its cluster and class, as in scikit-learn.
    """

    def pairs(counts: Array) -> float:
        return float((counts * (counts - 1) / 2).sum())

    table = _contingency(clusters, targets, weights)
    together, in_cluster, in_class = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    if together == in_cluster == in_class:
        return 1.0
    by_chance = in_cluster * in_class / pairs(table.sum(keepdims=True))
    return (together - by_chance) / ((in_cluster + in_class) / 2 - by_chance)


KINDS: dict[str, Callable[..., float]] = {
    "mean": mean,
    "mean_where": mean_where,
    "class_mean": class_mean,
    "median": median,
    "median_where": median_where,
    "mean_average_precision": mean_average_precision,
    "roc_auc": roc_auc,
    "d_prime": d_prime,
    "pair_auc": pair_auc,
    "purity": purity,
    "normalized_mutual_information": normalized_mutual_information,
    "adjusted_rand_index": adjusted_rand_index,
}


# Two rows of one cluster agree or not; a copy of a row always agrees with it, so that these rise with every copy.
OF_PAIRS = frozenset(("purity", "normalized_mutual_information", "adjusted_rand_index"))


def prepared(kind: str, *columns: Array) -> Callable[[Array], float]:
    """KINDS[kind] of these columns as a function of the weights; the rows are sorted once."""
    if kind not in ("mean_average_precision", "roc_auc", "d_prime"):
        return lambda weights: KINDS[kind](*columns, weights)
    ranking, of_class = _Ranking(*columns), _average_precision if kind == "mean_average_precision" else _roc_auc
    if kind == "d_prime":
        return lambda weights: _d_prime(ranking.mean(weights, of_class))
    return lambda weights: ranking.mean(weights, of_class)
