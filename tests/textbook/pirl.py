"""PIRL from arXiv 1912.01991 with loops, in float64; its noise-contrastive estimation is NPID's."""

import numpy as np

from tests.textbook.npid import nce, partition


def puzzle_head(features, patch_weight, patch_bias, weight, bias):
    """g: features (B, 9, D) through one linear layer for every patch, side by side, and another linear layer."""
    rows = []
    for patches in np.asarray(features, dtype=np.float64):
        joined = np.concatenate([patch_weight @ patch + patch_bias for patch in patches])
        rows.append(weight @ joined + bias)
    return np.array(rows)


def pirl(whole, puzzle, bank, index, whole_negatives, puzzle_negatives, temperature, puzzle_weight, constant=None):
    """Weighted sum of the two terms; the constant is the puzzle's mean exponential, unless it is given."""
    if constant is None:
        constant = partition(puzzle, bank, puzzle_negatives, temperature)
    of_puzzle = nce(puzzle, bank, index, puzzle_negatives, temperature, constant)
    of_whole = nce(whole, bank, index, whole_negatives, temperature, constant)
    return puzzle_weight * of_puzzle + (1 - puzzle_weight) * of_whole
