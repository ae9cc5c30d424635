"""The cross-entropies between the moments of a clip's video and those of its audio, with loops, in float64."""

import numpy as np

from tests.textbook.simclr import unit


def moment_cross_entropy(video, audio, temperature):
    """Moments of B clips, (B, m, D) each: the mean over clips, moments and both directions."""
    values = []
    for v, a in zip(video, audio, strict=True):
        for anchors, candidates in ((unit(v), unit(a)), (unit(a), unit(v))):
            for number, anchor in enumerate(anchors):
                weights = [np.exp(anchor @ row / temperature) for row in candidates]
                values.append(-np.log(weights[number] / sum(weights)))
    return sum(values) / len(values)
