"""SimSiam's loss, written from arXiv 2011.10566 with loops, in float64."""

import numpy as np


def negative_cosine(predictions, targets):
    """Eq. 1, averaged over the batch."""
    total = 0.0
    for p, z in zip(np.asarray(predictions, float), np.asarray(targets, float), strict=True):
        total -= (p / np.sqrt((p**2).sum()) * (z / np.sqrt((z**2).sum()))).sum()
    return total / len(predictions)


def simsiam(first_prediction, second_prediction, first, second):
    """Eq. 4: half of each direction."""
    return 0.5 * negative_cosine(first_prediction, second) + 0.5 * negative_cosine(second_prediction, first)
