"""VICReg's three terms, written from arXiv 2105.04906 with loops, in float64, in the scale of the authors' code."""

import numpy as np


def invariance(z1, z2):
    """Mean over samples and dimensions."""
    return sum((a - b) ** 2 for a, b in zip(np.ravel(z1), np.ravel(z2), strict=True)) / np.size(z1)


def covariance(z, i, j):
    """Unbiased covariance of two dimensions."""
    return sum((row[i] - z[:, i].mean()) * (row[j] - z[:, j].mean()) for row in z) / (len(z) - 1)


def variance(z):
    """The hinge of one view, averaged over dimensions."""
    return sum(max(0.0, 1 - np.sqrt(covariance(z, d, d) + 1e-4)) for d in range(z.shape[1])) / z.shape[1]


def redundancy(z):
    """Squared covariances off the diagonal of one view, over the number of dimensions."""
    width = z.shape[1]
    return sum(covariance(z, i, j) ** 2 for i in range(width) for j in range(width) if i != j) / width


def vicreg(z1, z2, invariance_weight, variance_weight, covariance_weight):
    """The weighted sum; the two views' hinges are averaged, their redundancies added."""
    z1, z2 = np.asarray(z1, float), np.asarray(z2, float)
    return (
        invariance_weight * invariance(z1, z2)
        + variance_weight * (variance(z1) + variance(z2)) / 2
        + covariance_weight * (redundancy(z1) + redundancy(z2))
    )
