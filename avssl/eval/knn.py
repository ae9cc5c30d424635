"""Weighted k-nearest-neighbor classification on frozen features.

Wu, Xiong, Yu, Lin: "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, section 3.4:
a test row's k closest training rows i vote for their class with weight exp(s_i / T), s_i the cosine and T = 0.07.
The paper uses k = 200 on ImageNet; small data sets need a smaller k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from avssl.ops.nearest import class_numbers, nearest


@dataclass(frozen=True)
class KNNResult:
    """scores: float64 (M, C), each row sums to 1; predicted: int64 (M,); accuracy in [0, 1].

    per_class: {class number: accuracy on the test rows of that class}, without classes that have no test row.
    num_neighbors: the k that was used (at most the number of training rows).

    >>> knn([[1.0, 0.0], [0.0, 1.0]], [0, 1], [[0.9, 0.1]], [1], num_neighbors=1).predicted
    array([0])
    """

    scores: NDArray[np.float64]
    predicted: NDArray[np.int64]
    accuracy: float
    per_class: dict[int, float]
    num_neighbors: int


def weighted_knn(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    *,
    num_neighbors: int = 20,
    temperature: float = 0.07,
    num_classes: int | None = None,
    chunk_size: int | None = None,
) -> NDArray[np.float64]:
    """Class scores of the test rows.

    Args:
        train_features: (N, D) array or tensor, N >= 1; rows need not be unit.
        train_labels: (N,) integers in [0, num_classes).
        test_features: (M, D).
        num_neighbors: k; all N training rows vote if N < k. Of equally close rows the lower ones are taken.
        temperature: T > 0, the smaller the more the closest rows count.
        num_classes: C; None = largest training label + 1.
        chunk_size: test rows at a time; changes memory, not results.

    Returns:
        float64 (M, C): the share of each class in the sum of weights. Dividing by the sum leaves the order of the
        classes as it is and keeps small temperatures from overflowing.
    """
    if temperature <= 0 or num_neighbors < 1:
        raise ValueError(f"temperature {temperature} must be > 0 and num_neighbors {num_neighbors} >= 1")
    labels = class_numbers(train_labels, len(train_features), "train_labels").cpu()
    if len(labels) == 0:
        raise ValueError("there are no training rows; kNN needs at least one")
    classes = int(labels.max()) + 1 if num_classes is None else num_classes
    if int(labels.max()) >= classes:
        raise ValueError(f"train_labels hold class {int(labels.max())}, allowed are 0 to {classes - 1}")
    rows, cosines = nearest(test_features, train_features, num_neighbors, chunk_size=chunk_size)
    weights = torch.softmax(torch.from_numpy(cosines) / temperature, dim=1)
    scores = torch.zeros((len(rows), classes), dtype=torch.float64)
    scores.scatter_add_(1, labels[torch.from_numpy(rows)], weights)
    return scores.numpy()


def knn(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    *,
    num_neighbors: int = 20,
    temperature: float = 0.07,
    chunk_size: int | None = None,
) -> KNNResult:
    """Scores, predictions and accuracy; arguments as weighted_knn, test_labels (M,) integers, M >= 1.

    The predicted class has the highest score, and the lowest number among equal scores. Test rows of classes without
    a training row count as wrong.

    >>> knn([[1.0, 0.0], [0.0, 1.0]], [0, 1], [[0.9, 0.1]], [0], num_neighbors=1).accuracy
    1.0
    """
    truth = class_numbers(test_labels, len(test_features), "test_labels").cpu().numpy()
    if len(truth) == 0:
        raise ValueError("there are no test rows; accuracy needs at least one")
    scores = weighted_knn(
        train_features,
        train_labels,
        test_features,
        num_neighbors=num_neighbors,
        temperature=temperature,
        chunk_size=chunk_size,
    )
    predicted = scores.argmax(axis=1)
    right = predicted == truth
    per_class = {int(number): float(right[truth == number].mean()) for number in np.unique(truth)}
    return KNNResult(scores, predicted, float(right.mean()), per_class, min(num_neighbors, len(train_features)))


def knn_chance(train_labels: Any, test_labels: Any) -> float:
    """The accuracy of always predicting the most frequent training class: chance for features without information."""
    train = class_numbers(train_labels, len(train_labels), "train_labels")
    test = class_numbers(test_labels, len(test_labels), "test_labels")
    if len(train) == 0 or len(test) == 0:
        raise ValueError(f"chance needs labels; got {len(train)} training and {len(test)} test labels")
    return float((test == int(torch.bincount(train).argmax())).double().mean())
