"""SeLa in float64: the transport problem by plain scaling of P^lambda, the loss with loops, the schedule by hand."""

import math

import numpy as np

from tests.textbook.deepcluster import cross_entropy


def plan(probabilities, sharpness, iterations=20_000):
    """Q (N, K) with rows of 1/N and columns of 1/K, far beyond any tolerance."""
    kernel = np.asarray(probabilities, dtype=np.float64) ** sharpness
    num_rows, num_columns = kernel.shape
    rows = np.full(num_rows, 1 / num_rows)
    for _ in range(iterations):
        columns = 1 / num_columns / (kernel.T @ rows)
        rows = 1 / num_rows / (kernel @ columns)
    return rows[:, None] * kernel * columns


def labels(probabilities, sharpness):
    """Argmax of the plan at the published stop: sum |c / c' - 1| < 0.1, looked at every 10 iterations."""
    kernel = np.asarray(probabilities, dtype=np.float64) ** sharpness
    num_rows, num_columns = kernel.shape
    rows = 1 / num_rows / kernel.sum(axis=1)
    for iteration in range(1, 2001):
        columns = 1 / num_columns / (kernel.T @ rows)
        new_rows = 1 / num_rows / (kernel @ columns)
        change = sum(abs(before / after - 1) for before, after in zip(rows, new_rows, strict=True))
        rows = new_rows
        if iteration % 10 == 0 and change < 0.1:
            break
    return np.array([np.argmax(row) for row in kernel * columns])


def loss(logits, labels):
    """Mean over views [(B, H, K)], rows and heads of the cross-entropy with labels (B, H)."""
    values = [
        cross_entropy(head, label)
        for view in logits
        for row, targets in zip(view, labels, strict=True)
        for head, label in zip(row, targets, strict=True)
    ]
    return sum(values) / len(values)


def relabeling_epochs(num_relabelings, epochs):
    """First epoch that begins at or after each moment."""
    found = set()
    for position in range(num_relabelings):
        moment = epochs * (position / (num_relabelings - 1)) ** 2
        found.add(math.ceil(round(moment, 9)))
    return sorted(epoch for epoch in found if epoch < epochs)
