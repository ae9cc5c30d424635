"""NPID from arXiv 1805.01978 with loops, in float64: noise-contrastive estimation against a memory bank."""

import numpy as np


def unit(x):
    return np.asarray(x, dtype=np.float64) / np.linalg.norm(x, axis=-1, keepdims=True)


def partition(embeddings, bank, negatives, temperature):
    """Mean of exp(score) over the negatives: eq. 8 divided by the number of samples."""
    scores = [z @ bank[k] / temperature for z, row in zip(unit(embeddings), negatives, strict=True) for k in row]
    return np.mean(np.exp(scores))


def nce(embeddings, bank, index, negatives, temperature, mean_exponential):
    """Eq. 4 to 7 with Z = N E and uniform noise 1 / N: the mean over the batch."""
    num_samples = len(bank)
    total = 0.0
    for z, i, row in zip(unit(embeddings), index, negatives, strict=True):
        noise = len(row) / num_samples

        def posterior(j, z=z, noise=noise):
            model = np.exp(z @ bank[j] / temperature) / (num_samples * mean_exponential)
            return model / (model + noise)

        total -= np.log(posterior(i)) + sum(np.log(1 - posterior(k)) for k in row)
    return total / len(embeddings)


def moved_bank(bank, index, embeddings, momentum):
    """Rows move towards their embeddings and are made unit again; of equal indices the last one counts."""
    result = np.array(bank, dtype=np.float64)
    for i, z in zip(index, unit(embeddings), strict=True):
        result[i] = unit(momentum * bank[i] + (1 - momentum) * z)
    return result
