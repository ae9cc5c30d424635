"""DeepCluster-v2's loss, with loops, in float64."""

import numpy as np

from tests.textbook.deepcluster import cross_entropy
from tests.textbook.kmeans import unit


def loss(embeddings, prototypes, labels, temperature):
    """Mean over views, heads and rows: of each view embeddings (B, D), prototypes (H, K, D) and labels (B, H)."""
    values = []
    for z, heads, targets in zip(embeddings, prototypes, labels, strict=True):
        for row, target in zip(unit(z), targets, strict=True):
            for head, label in zip(np.asarray(heads, dtype=np.float64), target, strict=True):
                values.append(cross_entropy(head @ row / temperature, label))
    return sum(values) / len(values)
