"""Search within a modality, shifted clips and special cases of classifiers against loops, formulas and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from avssl.eval.classifiers import knn_scores, logistic_scores, svm_scores
from avssl.eval.features import pooled
from avssl.eval.knn import weighted_knn
from avssl.eval.retrieval import chance_of_same_label, same_label_search
from avssl.eval.tasks.synchronization import shifted_starts
from avssl.types import Span


def made(num_rows: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.choice(5, num_rows, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    return generator.normal(size=(num_rows, 6)) + 0.8 * np.eye(6)[labels], labels


@pytest.mark.parametrize("own", [True, False])
def test_average_precision_equals_scikit_learn_query_by_query(own: bool) -> None:
    gallery, labels = made()
    queries, asked = (gallery, labels) if own else made(20, 1)
    found = same_label_search(queries, asked, gallery, labels, exclude_own=own)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, gallery)]
    for row, cosines in enumerate(unit[0] @ unit[1].T):
        kept = np.arange(len(gallery)) != (row if own else -1)
        right, close = labels[kept] == asked[row], cosines[kept]
        if not right.any():
            assert (found.average_precision[row], found.first_rank[row]) == (0, 0)
            continue
        assert found.average_precision[row] == pytest.approx(average_precision_score(right, close))
        assert found.first_rank[row] == (close >= close[right].max()).sum()


def test_ties_are_ranked_before_the_right_row() -> None:
    """All rows equal: m wrong ones first, then R right ones, so the precision is the mean of j / (m + j)."""
    labels = np.array([0] * 4 + [1] * 6)
    found = same_label_search(np.ones((10, 3)), labels, np.ones((10, 3)), labels, exclude_own=True)
    for row, label in enumerate(labels):
        right = (3, 5)[label]
        wrong = 9 - right
        expected = np.mean([j / (wrong + j) for j in range(1, right + 1)])
        assert found.average_precision[row] == pytest.approx(expected)
        assert found.first_rank[row] == wrong + 1


@pytest.mark.slow
@pytest.mark.parametrize("own", [True, False])
def test_chance_is_the_mean_over_random_features(own: bool) -> None:
    _, labels = made(40)
    asked = labels if own else made(15, 1)[1]
    levels = chance_of_same_label(asked, labels, (1, 5), exclude_own=own)
    generator = np.random.default_rng(2)
    seen = []
    for _ in range(200):
        gallery = generator.normal(size=(40, 30))
        queries = gallery if own else generator.normal(size=(15, 30))
        found = same_label_search(queries, asked, gallery, labels, exclude_own=own)
        match = found.first_rank > 0
        first = found.first_rank[match]
        seen.append([found.average_precision[match].mean(), (first <= 1).mean(), (first <= 5).mean()])
    values = np.array(seen)
    for column, name in enumerate(("mean_average_precision", "recall_at_1", "recall_at_5")):
        error = 5 * values[:, column].std() / np.sqrt(len(values))
        assert abs(values[:, column].mean() - levels[name]) < error, name


@pytest.mark.parametrize("backward", [False, True])
def test_shifted_clips_lie_in_their_streams_and_directions_alternate(backward: bool) -> None:
    video, audio = Span(0.0, 10.0), Span(0.3, 9.5)
    starts = shifted_starts(video, audio, 0.5, 2.0, 2.0, 4, first_backward=backward)
    assert [shift > 0 for _, shift in starts] == ([False, True] * 2 if backward else [True, False] * 2)
    for start, shift in starts:
        assert audio.start_seconds <= start <= audio.end_seconds - 2.0
        assert audio.start_seconds <= start + shift <= audio.end_seconds - 2.0
        assert video.start_seconds <= start + 0.75 <= video.end_seconds - 0.5
    assert shifted_starts(video, Span(0.0, 3.9), 0.5, 2.0, 2.0, 4, first_backward=backward) == []
    late = shifted_starts(Span(7.5, 8.5), audio, 0.5, 2.0, 2.0, 2, first_backward=backward)
    assert [shift for _, shift in late] == [-2.0, -2.0], "where one direction alone fits it is taken"


@pytest.mark.parametrize(("channels", "side"), [(64, 12), (128, 8), (256, 6), (512, 4), (1024, 3), (2048, 2)])
def test_layers_are_pooled_to_the_published_sizes(channels: int, side: int) -> None:
    maps = torch.randn(1, channels, 14, 14)
    assert pooled(maps, "audio").shape == (1, channels * side * side)
    torch.testing.assert_close(
        pooled(maps[:, :, None], "video"), torch.nn.functional.adaptive_max_pool2d(maps, side).flatten(1)
    )
    torch.testing.assert_close(pooled(maps, "image"), torch.nn.functional.adaptive_avg_pool2d(maps, side).flatten(1))


def test_kNN_with_several_labels_reduces_to_one_label() -> None:
    (train, labels), (test, _) = made(), made(20, 1)
    single = weighted_knn(train, labels, test, num_neighbors=7, num_classes=5)
    multi = knn_scores(train[:, None], np.eye(5, dtype=bool)[labels], test[:, None], 5, num_neighbors=7)
    np.testing.assert_allclose(multi, single, atol=1e-9)


def test_a_class_without_training_samples_scores_lowest() -> None:
    train, labels = made()
    labels = np.where(labels == 4, 3, labels)
    for scores in (
        logistic_scores(train[:, None], labels, train[:, None], 5),
        svm_scores(train[:, None], labels, train[:, None], 5, max_iterations=10_000, cost=0.01),
    ):
        assert scores.shape == (60, 5)
        assert (scores[:, 4] <= scores.min(axis=1)).all()


def test_the_cost_is_chosen_on_training_samples_alone() -> None:
    (train, labels), (test, _) = made(200), made(20, 1)
    report: dict[str, list[float]] = {}
    chosen = logistic_scores(train[:, None], labels, test[:, None], 5, costs=(1e-6, 1.0), report=report)
    assert report["cost"] == [1.0], "with next to no weight nothing is learned"
    np.testing.assert_allclose(chosen, logistic_scores(train[:, None], labels, test[:, None], 5, costs=(1.0,)))
    with pytest.raises(ValueError, match="give one cost"):
        logistic_scores(train[:5, None], np.arange(5), test[:, None], 5, costs=(1.0, 2.0))


def test_several_labels_are_one_regression_per_class() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    (train, labels), (test, _) = made(200), made(30, 1)
    targets = np.eye(5, dtype=bool)[labels] | (np.random.default_rng(3).random((200, 5)) < 0.2)
    scores = logistic_scores(train[:, None], targets, test[:, None], 5)
    scale = StandardScaler().fit(train)
    for number in range(5):
        oracle = LogisticRegression(max_iter=1000).fit(scale.transform(train), targets[:, number])
        expected = oracle.predict_proba(scale.transform(test))[:, 1]
        np.testing.assert_allclose(scores[:, number], expected, atol=2e-3)
