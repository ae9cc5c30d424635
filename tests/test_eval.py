"""kNN, retrieval and positive sets against scikit-learn and plain NumPy, also with ties, chunks and collapse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from avssl.eval.knn import knn, knn_chance, weighted_knn
from avssl.eval.retrieval import chance_levels, class_precision, recall, retrieval, retrieval_ranks
from avssl.eval.tasks.standard import positive_precision
from avssl.ops.nearest import label_numbers, nearest


def clusters(num_rows: int, dim: int = 16, num_classes: int = 5, seed: int = 0) -> tuple[NDArray, NDArray]:
    """Noisy points around one direction per class, float32, of any length."""
    centers = np.random.default_rng(99).normal(size=(num_classes, dim))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_rows)
    points = centers[labels] + 1.2 * rng.normal(size=(num_rows, dim))
    return (points * rng.uniform(0.1, 10, (num_rows, 1))).astype(np.float32), labels


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("num_neighbors", [1, 20])
def test_weighted_knn_equals_scikit_learn(num_neighbors: int, temperature: float) -> None:
    (train, labels), (test, truth) = clusters(200), clusters(90, seed=1)
    oracle = KNeighborsClassifier(
        num_neighbors,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / temperature),
    ).fit(train.astype(np.float64), labels)
    result = knn(train, labels, test, truth, num_neighbors=num_neighbors, temperature=temperature)
    np.testing.assert_allclose(result.scores, oracle.predict_proba(test.astype(np.float64)), atol=1e-6)
    assert result.accuracy == pytest.approx(oracle.score(test.astype(np.float64), truth))
    for number, accuracy in result.per_class.items():
        assert accuracy == pytest.approx((oracle.predict(test)[truth == number] == number).mean())


def test_knn_with_fewer_training_rows_than_neighbors_uses_all() -> None:
    train, labels = clusters(6)
    test, truth = clusters(10, seed=1)
    result = knn(train, labels, test, truth, num_neighbors=20)
    assert result.num_neighbors == 6
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (test, train)]
    weights = np.exp(unit[0] @ unit[1].T / 0.07)
    votes = weights @ np.eye(int(labels.max()) + 1)[labels]
    np.testing.assert_allclose(result.scores, votes / votes.sum(1, keepdims=True), rtol=1e-4)


def test_a_tiny_temperature_does_not_overflow() -> None:
    train, labels = clusters(50)
    scores = weighted_knn(train, labels, train, num_neighbors=5, temperature=1e-4)
    assert np.isfinite(scores).all()
    assert (scores.argmax(1) == labels).all(), "with T -> 0 only the row itself counts"


def test_of_equally_close_rows_the_lower_ones_vote() -> None:
    train = np.ones((40, 3), np.float32)
    rows, cosines = nearest(np.ones((2, 3)), train, 7)
    assert rows.tolist() == [list(range(7))] * 2
    np.testing.assert_allclose(cosines, 1.0, atol=1e-9)
    mixed = np.array([[1, 0], [0, 1], [1, 0], [1, 1], [1, 0]], np.float32)
    assert nearest(np.array([[1.0, 0.0]]), mixed, 4)[0].tolist() == [[0, 2, 4, 3]]
    scores = weighted_knn(np.ones((4, 2)), [1, 0, 2, 2], np.ones((1, 2)), num_neighbors=2)
    assert scores.tolist() == [[0.5, 0.5, 0.0]]


@pytest.mark.parametrize("chunk_size", [1, 7, 64, None])
def test_results_do_not_depend_on_the_chunk(chunk_size: int | None) -> None:
    rng = np.random.default_rng(3)
    video, audio = rng.normal(size=(2, 90, 33)).astype(np.float32)
    audio[40:60] = audio[40]
    labels = rng.integers(0, 4, 90)
    whole = nearest(video, audio, 25, chunk_size=90)
    parts = nearest(video, audio, 25, chunk_size=chunk_size)
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert retrieval(video, audio, labels=labels, chunk_size=chunk_size) == retrieval(
        video, audio, labels=labels, chunk_size=90
    )


def test_knn_refuses_what_it_cannot_use() -> None:
    train, labels = clusters(9)
    with pytest.raises(ValueError, match="1 rows that are not finite, the first is row 2"):
        weighted_knn(np.where(np.arange(9)[:, None] == 2, np.nan, train), labels, train)
    with pytest.raises(ValueError, match="no training rows"):
        weighted_knn(train[:0], labels[:0], train)
    with pytest.raises(ValueError, match="allowed are 0 to 1"):
        weighted_knn(train, [2] * 9, train, num_classes=2)
    with pytest.raises(ValueError, match="expected integers"):
        weighted_knn(train, labels / 2, train)
    with pytest.raises(ValueError, match="one per row"):
        weighted_knn(train, labels[:4], train)
    with pytest.raises(ValueError, match="temperature"):
        weighted_knn(train, labels, train, temperature=0)
    with pytest.raises(ValueError, match="have dim 16 and the gallery 3"):
        nearest(train, train[:, :3], 2)


def test_a_test_class_without_training_rows_counts_as_wrong() -> None:
    result = knn(np.eye(2), [0, 1], np.eye(2), [0, 5])
    assert (result.accuracy, result.per_class) == (0.5, {0: 1.0, 5: 0.0})


def test_knn_chance_is_the_share_of_the_most_frequent_training_class() -> None:
    assert knn_chance([0, 1, 1, 2], [1, 1, 0, 0, 2]) == pytest.approx(0.4)


def test_ranks_and_recall_equal_a_plain_sort() -> None:
    rng = np.random.default_rng(5)
    video = rng.normal(size=(70, 8))
    audio = video + 1.5 * rng.normal(size=(70, 8))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (video, audio)]
    order = np.argsort(-(unit[0] @ unit[1].T), axis=1)
    expected = np.argmax(order == np.arange(70)[:, None], axis=1) + 1
    assert retrieval_ranks(torch.from_numpy(video), audio).tolist() == expected.tolist()
    metrics = retrieval(video, audio)
    for k in (1, 5, 10):
        assert metrics[f"video_to_audio_recall_at_{k}"] == pytest.approx((expected <= k).mean())
    assert metrics["video_to_audio_median_rank"] == np.median(expected)
    backward = np.argmax(np.argsort(-(unit[1] @ unit[0].T), axis=1) == np.arange(70)[:, None], axis=1) + 1
    assert metrics["audio_to_video_recall_at_5"] == pytest.approx((backward <= 5).mean())


def test_a_constant_embedding_scores_nothing() -> None:
    rng = np.random.default_rng(0)
    constant = np.tile(rng.normal(size=(1, 37)).astype(np.float32), (50, 1))
    labels = np.arange(50) % 5
    metrics = retrieval(constant, constant, labels=labels)
    assert metrics["video_to_audio_recall_at_10"] == 0
    assert metrics["audio_to_video_median_rank"] == 50
    assert metrics["video_to_audio_class_precision"] == pytest.approx(0.2)
    assert (retrieval_ranks(constant, rng.normal(size=(50, 37))) >= 1).all()


def test_copies_of_the_target_are_ranked_before_it() -> None:
    gallery = np.array([[1.0, 0], [1, 0], [0, 1]])
    assert retrieval_ranks(gallery, gallery).tolist() == [2, 2, 1]


def test_class_precision_equals_a_loop_over_the_closest_rows() -> None:
    rng = np.random.default_rng(7)
    video, audio = rng.normal(size=(2, 60, 6))
    labels = rng.integers(0, 3, 60)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (video, audio)]
    cosine = unit[0] @ unit[1].T
    assert class_precision(video, audio, labels) == pytest.approx((labels[cosine.argmax(1)] == labels).mean())
    np.fill_diagonal(cosine, -2)
    without = class_precision(video, audio, labels, exclude_pair=True)
    assert without == pytest.approx((labels[cosine.argmax(1)] == labels).mean())


def test_random_embeddings_score_chance() -> None:
    rng = np.random.default_rng(11)
    labels = rng.choice(4, 40, p=[0.4, 0.3, 0.2, 0.1])
    for exclude_pair in (False, True):
        runs = [retrieval(*rng.normal(size=(2, 40, 12)), labels=labels, exclude_pair=exclude_pair) for _ in range(200)]
        chance = chance_levels(40, labels=labels, exclude_pair=exclude_pair)
        assert chance.keys() == runs[0].keys()
        for name, level in chance.items():
            values = np.array([run[name] for run in runs])
            assert abs(values.mean() - level) < 5 * values.std() / np.sqrt(len(runs)) + 1e-9, name


def test_chance_never_exceeds_one_and_needs_rows() -> None:
    assert chance_levels(3)["audio_to_video_recall_at_10"] == 1.0
    with pytest.raises(ValueError, match="at least one row"):
        chance_levels(0)
    with pytest.raises(ValueError, match="both must be equal"):
        retrieval_ranks(np.eye(3), np.eye(3)[:2])
    with pytest.raises(ValueError, match="k >= 1"):
        recall(np.array([1]), [0])


def test_positive_precision_counts_by_hand() -> None:
    shares, chance = positive_precision([[1, 2], [0, 3], [3, 0], [2, 1]], [0, 0, 1, 1])
    assert shares.tolist() == [0.5] * 4
    assert chance == pytest.approx(1 / 3)


def test_positive_precision_of_random_sets_is_its_chance() -> None:
    rng = np.random.default_rng(2)
    labels = rng.choice(3, 400, p=[0.6, 0.3, 0.1])
    sets = np.stack([rng.choice(np.delete(np.arange(400), row), 20, replace=False) for row in range(400)])
    shares, chance = positive_precision(torch.from_numpy(sets), torch.from_numpy(labels))
    assert shares.mean() == pytest.approx(chance, abs=0.02)
    assert shares[labels == 2].mean() == pytest.approx((labels == 2).sum() / 399, abs=0.03)


def test_positive_sets_that_inflate_the_score_are_refused() -> None:
    with pytest.raises(ValueError, match="1 anchors are among their own positives, the first is 1"):
        positive_precision([[1], [1]], [0, 0])
    with pytest.raises(ValueError, match=r"allowed is \[0, 1\]"):
        positive_precision([[1], [2]], [0, 0])


def test_names_become_numbers() -> None:
    numbers, classes = label_numbers(["dog", "cat", "dog"])
    assert (numbers.tolist(), classes) == ([1, 0, 1], ["cat", "dog"])
    assert label_numbers(["dog"], ["dog", "cat"])[0].tolist() == [0]
    with pytest.raises(ValueError, match="1 of 2 rows have no label"):
        label_numbers(["a", None])
    with pytest.raises(ValueError, match="not among the 1 classes"):
        label_numbers(["b"], ["a"])
