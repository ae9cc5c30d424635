"""NT-Xent and the two-way cross-entropy, written from the papers with loops, in float64."""

import numpy as np


def unit(x):
    x = np.asarray(x, dtype=np.float64)
    return x / np.sqrt((x**2).sum(axis=1, keepdims=True))


def nt_xent(z1, z2, temperature):
    """Eq. 1 of arXiv 2002.05709: 2 B anchors, each with 2 B - 1 candidates."""
    z = np.concatenate([unit(z1), unit(z2)])
    count = len(z)
    total = 0.0
    for i in range(count):
        partner = (i + count // 2) % count
        candidates = [np.exp(z[i] @ z[j] / temperature) for j in range(count) if j != i]
        total -= np.log(np.exp(z[i] @ z[partner] / temperature) / sum(candidates))
    return total / count


def two_way_cross_entropy(z1, z2, temperature):
    """Each row of one side among all rows of the other, both ways."""
    a, b = unit(z1), unit(z2)
    total = 0.0
    for i in range(len(a)):
        total -= np.log(np.exp(a[i] @ b[i] / temperature) / sum(np.exp(a[i] @ row / temperature) for row in b))
        total -= np.log(np.exp(b[i] @ a[i] / temperature) / sum(np.exp(b[i] @ row / temperature) for row in a))
    return total / (2 * len(a))
