"""AVID in NumPy, float64, with its gradient written out by hand."""

import numpy as np

DIRECTIONS = {
    "cross": [("video", "audio"), ("audio", "video")],
    "self": [("video", "video"), ("audio", "audio")],
    "joint": [("video", "audio"), ("audio", "video"), ("video", "video"), ("audio", "audio")],
}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def unit_gradient(x, gradient):
    """Gradient with respect to x of a function of unit(x) whose gradient there is `gradient`."""
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    u = x / norm
    return (gradient - u * (u * gradient).sum(-1, keepdims=True)) / norm


def nce(anchors, positives, negatives, temperature, partition):
    """Value and gradient for anchors (B, D), positives (B, P, D), negatives (B, K, D)."""
    num_rows, num_positives, num_negatives = len(anchors), positives.shape[1], negatives.shape[1]
    value, gradient = 0.0, np.zeros_like(anchors)
    for b in range(num_rows):
        for p in range(num_positives):
            e = np.exp(anchors[b] @ positives[b, p] / temperature)
            h = e / (e + num_negatives * partition)
            value -= np.log(h) / num_positives
            gradient[b] -= (1 - h) * positives[b, p] / temperature / num_positives
        for k in range(num_negatives):
            e = np.exp(anchors[b] @ negatives[b, k] / temperature)
            h = e / (e + num_negatives * partition)
            value -= np.log(1 - h)
            gradient[b] += h * negatives[b, k] / temperature
    return value / num_rows, gradient / num_rows


def partition_constant(anchors, negatives, temperature):
    return np.exp(np.einsum("bd,bkd->bk", anchors, negatives) / temperature).mean()


def avid(raw, banks, index, negatives, temperature, variant):
    """Loss, gradients with respect to the raw embeddings, and the partition constant of the first direction."""
    z = {name: unit(x.astype(np.float64)) for name, x in raw.items()}
    gradients = {name: np.zeros_like(x) for name, x in z.items()}
    directions = DIRECTIONS[variant]
    first_anchor, first_memory = directions[0]
    partition = partition_constant(z[first_anchor], banks[first_memory][negatives], temperature)
    total = 0.0
    for anchor, memory in directions:
        bank = banks[memory].astype(np.float64)
        value, gradient = nce(z[anchor], bank[index[:, None]], bank[negatives], temperature, partition)
        total += value / len(directions)
        gradients[anchor] += gradient / len(directions)
    return total, {name: unit_gradient(raw[name].astype(np.float64), g) for name, g in gradients.items()}, partition


def updated_bank(bank, index, embeddings, momentum):
    """Of equal indices the last row counts."""
    result = bank.astype(np.float64).copy()
    for i, z in zip(index, unit(embeddings.astype(np.float64)), strict=True):
        result[i] = unit(momentum * bank[i] + (1 - momentum) * z)
    return result
