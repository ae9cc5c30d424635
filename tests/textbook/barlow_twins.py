"""Barlow Twins' loss, written from arXiv 2103.03230 with loops, in float64."""

import numpy as np


def correlation(a, b):
    """Pearson's correlation of two columns; 0 where one of them is constant."""
    if a.min() == a.max() or b.min() == b.max():
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return (a * b).mean() / (np.sqrt((a**2).mean()) * np.sqrt((b**2).mean()))


def barlow_twins(z1, z2, redundancy_weight):
    """Eq. 1 and 2."""
    z1, z2 = np.asarray(z1, float), np.asarray(z2, float)
    total = 0.0
    for i in range(z1.shape[1]):
        for j in range(z2.shape[1]):
            entry = correlation(z1[:, i], z2[:, j])
            total += (1 - entry) ** 2 if i == j else redundancy_weight * entry**2
    return total
