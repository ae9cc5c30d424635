"""k-means by brute force in float64: every distance of every row to every centroid, one at a time."""

import numpy as np


def unit(x):
    x = np.asarray(x, dtype=np.float64)
    return x / np.sqrt((x**2).sum(axis=1, keepdims=True))


def assign(x, centroids):
    return np.array([np.argmin([((row - centroid) ** 2).sum() for centroid in centroids]) for row in x])


def spherical_kmeans(x, centroids, iterations):
    """Centroids and labels from the given unit centroids; an empty cluster keeps its centroid."""
    x, centroids = unit(x), np.array(centroids, dtype=np.float64)
    for _ in range(iterations):
        labels = np.array([np.argmax([row @ centroid for centroid in centroids]) for row in x])
        for k in range(len(centroids)):
            if (labels == k).any():
                mean = x[labels == k].mean(axis=0)
                centroids[k] = mean / np.sqrt((mean**2).sum())
    return centroids, np.array([np.argmax([row @ centroid for centroid in centroids]) for row in x])


def kmeans(x, centroids, iterations):
    """Centroids and labels from the given centroids, where no cluster becomes empty."""
    x, centroids = np.asarray(x, dtype=np.float64), np.array(centroids, dtype=np.float64)
    for _ in range(iterations):
        labels = assign(x, centroids)
        for k in range(len(centroids)):
            assert (labels == k).any(), "this data is to leave no cluster empty"
            centroids[k] = x[labels == k].mean(axis=0)
    return centroids, assign(x, centroids)
