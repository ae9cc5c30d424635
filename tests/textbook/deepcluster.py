"""DeepCluster's weights and loss, with loops, in float64."""

import numpy as np


def cross_entropy(logits, label):
    logits = np.asarray(logits, dtype=np.float64)
    return np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label]


def weights(labels):
    """{label: weight of its samples}: each non-empty cluster has the same share of the data set's N."""
    names, sizes = np.unique(labels, return_counts=True)
    return {int(name): len(labels) / len(names) / size for name, size in zip(names, sizes, strict=True)}


def balanced_cross_entropy(logits, labels, weight_of):
    """Mean over the batch of weight times cross-entropy."""
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        total += weight_of[int(label)] * cross_entropy(row, label)
    return total / len(labels)


def classify(features, weight, bias):
    """Logits of the rectified features."""
    return np.maximum(np.asarray(features, dtype=np.float64), 0) @ np.asarray(weight).T + np.asarray(bias)
