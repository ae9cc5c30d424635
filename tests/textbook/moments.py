"""The cross-entropy of a video's own moment among all moments of its clip's audio, with loops, in float64."""

import numpy as np

from tests.textbook.simclr import unit


def moment_cross_entropy(video, audio, moments, temperature):
    """Row i of `video` (B, D) with row i of `audio` (B, D) and the rows of moments[i] (n, D): the mean over rows."""
    total = 0.0
    for v, a, others in zip(unit(video), unit(audio), moments, strict=True):
        own = np.exp(v @ a / temperature)
        total -= np.log(own / (own + sum(np.exp(v @ row / temperature) for row in unit(others))))
    return total / len(video)
