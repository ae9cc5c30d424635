"""PIRL from arXiv 1912.01991 with loops, in float64; its noise-contrastive estimation is NPID's."""

import numpy as np

from tests.textbook.npid import nce, partition


def jigsaw_head(features, patch_weight, patch_bias, weight, bias):
    """g: features (B, 9, D) through one linear layer for every patch, side by side, and another linear layer."""
    rows = []
    for patches in np.asarray(features, dtype=np.float64):
        joined = np.concatenate([patch_weight @ patch + patch_bias for patch in patches])
        rows.append(weight @ joined + bias)
    return np.array(rows)


def pirl(whole, jigsaw, bank, index, whole_negatives, jigsaw_negatives, temperature, jigsaw_weight, constant=None):
    """Weighted sum of the two terms; the constant is the jigsaw's mean exponential, unless it is given."""
    if constant is None:
        constant = partition(jigsaw, bank, jigsaw_negatives, temperature)
    of_jigsaw = nce(jigsaw, bank, index, jigsaw_negatives, temperature, constant)
    of_whole = nce(whole, bank, index, whole_negatives, temperature, constant)
    return jigsaw_weight * of_jigsaw + (1 - jigsaw_weight) * of_whole
