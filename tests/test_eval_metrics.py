"""Metrics with row weights against scikit-learn on repeated rows, and repeats that compute them again."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from avssl.eval import metrics as measures
from avssl.eval.outcome import Metric, Repeat, classified, merged

ORACLES = {
    "normalized_mutual_information": metrics.normalized_mutual_info_score,
    "adjusted_rand_index": metrics.adjusted_rand_score,
}


def rows(seed: int = 0, num_rows: int = 60, num_classes: int = 7, *, ties: bool = False):
    """(scores, single targets, multi-label targets, weights) of made-up rows."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, num_classes, num_rows)
    scores = rng.normal(size=(num_rows, num_classes)) + np.eye(num_classes)[targets]
    if ties:
        scores = np.round(scores)
    weights = rng.multinomial(num_rows, np.full(num_rows, 1 / num_rows))
    return scores, targets, rng.random((num_rows, num_classes)) < 0.3, weights


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_average_precision_and_auc_equal_scikit_learn_plain_and_repeated(seed: int, ties: bool) -> None:
    scores, _, targets, weights = rows(seed, ties=ties)
    for counts in (np.ones(len(scores), np.int64), weights):
        repeated = np.repeat(np.arange(len(scores)), counts)
        for ours, theirs in (
            (measures.mean_average_precision, metrics.average_precision_score),
            (measures.roc_auc, metrics.roc_auc_score),
        ):
            expected = theirs(targets[repeated], scores[repeated], average="macro")
            assert ours(scores, targets, counts) == pytest.approx(expected, abs=1e-12)


def test_d_prime_is_the_quantile_of_the_mean_auc() -> None:
    from scipy.stats import norm

    scores, _, targets, weights = rows()
    area = measures.roc_auc(scores, targets, weights)
    assert measures.d_prime(scores, targets, weights) == pytest.approx(np.sqrt(2) * norm.ppf(area))
    perfect = measures.d_prime(np.array([0.0, 1.0]), np.array([False, True]), np.ones(2))
    assert np.isfinite(perfect)
    assert perfect > 9


def test_classes_of_no_row_or_of_all_rows_are_left_out() -> None:
    scores, _, targets, _ = rows()
    targets[:, 0], targets[:, 1] = False, True
    expected = metrics.average_precision_score(targets[:, 2:], scores[:, 2:], average="macro")
    assert measures.mean_average_precision(scores, targets, np.ones(len(scores))) == pytest.approx(expected)
    assert np.isnan(measures.roc_auc(scores[:, :1], targets[:, :1], np.ones(len(scores))))


def test_weighted_means_medians_and_clusterings_equal_those_of_repeated_rows() -> None:
    scores, targets, _, weights = rows()
    clusters = scores[:, :3].argmax(axis=1)
    repeated = np.repeat(np.arange(len(scores)), weights)
    right = scores.argmax(axis=1) == targets
    assert measures.mean(right, weights) == pytest.approx(right[repeated].mean())
    assert measures.median(scores[:, 0], weights) == np.median(scores[repeated, 0])
    chosen = targets < 3
    assert measures.median_where(scores[:, 0], chosen, weights) == np.median(scores[repeated[chosen[repeated]], 0])
    assert np.isnan(measures.median_where(scores[:, 0], np.zeros_like(chosen), weights))
    expected = metrics.balanced_accuracy_score(targets[repeated], scores.argmax(axis=1)[repeated])
    assert measures.class_mean(right, targets, weights) == pytest.approx(expected)
    table = metrics.cluster.contingency_matrix(targets[repeated], clusters[repeated])
    assert measures.purity(clusters, targets, weights) == pytest.approx(table.max(axis=0).sum() / table.sum())
    for name, oracle in ORACLES.items():
        found = measures.KINDS[name](clusters, targets, weights)
        assert found == pytest.approx(oracle(targets[repeated], clusters[repeated]))


@pytest.mark.parametrize(
    ("clusters", "targets"),
    [([0], [0]), ([0, 0, 0], [0, 0, 0]), ([0, 1, 2], [2, 0, 1]), ([0, 0, 1], [0, 1, 2]), ([0, 0, 1], [1, 1, 0]),
     ([0, 0, 0], [0, 1, 1])],
)  # fmt: skip
def test_clusterings_that_say_nothing_or_all_score_as_in_scikit_learn(clusters: list[int], targets: list[int]) -> None:
    columns = np.array(clusters), np.array(targets), np.ones(len(targets))
    for name, oracle in ORACLES.items():
        assert measures.KINDS[name](*columns) == pytest.approx(oracle(targets, clusters)), name


def test_pairs_are_told_apart_as_scikit_learn_says_and_by_the_best_threshold() -> None:
    scores, _, _, weights = rows(ties=True)
    aligned, shifted = scores[:, 0] + 1, scores[:, 1]
    repeated = np.repeat(np.arange(len(scores)), weights)
    both = np.concatenate([aligned[repeated], shifted[repeated]])
    expected = metrics.roc_auc_score(np.repeat([1, 0], len(repeated)), both)
    assert measures.pair_auc(aligned, shifted, weights) == pytest.approx(expected)
    found = measures.best_threshold(aligned, shifted)

    def accuracy(threshold: float) -> float:
        return float(((aligned >= threshold).mean() + (shifted < threshold).mean()) / 2)

    assert accuracy(found) == max(accuracy(float(threshold)) for threshold in [*aligned, *shifted])


def test_the_metrics_of_a_classifier_are_those_of_scikit_learn() -> None:
    scores, targets, _, _ = rows(num_rows=200)
    found = classified(
        [str(number) for number in range(200)], scores, targets, list("abcdefg"), train_targets=np.array([2, 2, 0])
    )
    values = found.values()
    assert values["top1_accuracy"] == pytest.approx(metrics.accuracy_score(targets, scores.argmax(axis=1)))
    assert values["top5_accuracy"] == pytest.approx(metrics.top_k_accuracy_score(targets, scores, k=5))
    assert values["class_mean_accuracy"] == pytest.approx(
        metrics.balanced_accuracy_score(targets, scores.argmax(axis=1))
    )
    assert found.metrics["top1_accuracy"].chance == pytest.approx((targets == 2).mean())
    constant = classified(list("abcdefgh"), np.zeros((8, 8)), np.arange(8), list("abcdefgh")).values()
    assert (constant["top1_accuracy"], constant["top5_accuracy"]) == (1 / 8, 0.0), "ties are no luck"


def test_a_repeat_refuses_rows_that_come_twice_and_metrics_of_nothing() -> None:
    with pytest.raises(ValueError, match="each once"):
        Repeat("", ["a", "a"], {}, {})
    with pytest.raises(ValueError, match="has 1 rows"):
        Repeat("", ["a", "b"], {"x": np.ones(1)}, {})
    with pytest.raises(ValueError, match="columns missing"):
        Repeat("", ["a"], {}, {"m": Metric("mean", ("x",))})
    with pytest.raises(ValueError, match="must be finite"):
        classified(["a"], np.full((1, 2), np.nan), np.zeros(1, np.int64), ["x", "y"])
    first, second = (classified([key], np.eye(1, 2), np.zeros(1, np.int64), ["x", "y"]) for key in "ab")
    with pytest.raises(ValueError, match="different rows"):
        merged([first, second])
