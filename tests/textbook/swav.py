"""SwAV written from the paper with loops, in float64: Sinkhorn-Knopp on probabilities, swapped prediction."""

import numpy as np


def sinkhorn(scores, epsilon, iterations):
    """Codes (B, K): alternate scaling of the columns to B / K each and of the rows to 1 each."""
    codes = np.exp(np.asarray(scores, dtype=np.float64) / epsilon)
    rows, columns = codes.shape
    codes /= codes.sum()
    for _ in range(iterations):
        for k in range(columns):
            codes[:, k] /= codes[:, k].sum() * columns
        for b in range(rows):
            codes[b] /= codes[b].sum() * rows
    return codes * rows


def softmax(scores):
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def swapped_prediction(scores, codes, temperature):
    """Mean over codes of the mean over the other views of the mean cross-entropy."""
    total = 0.0
    for view, code in enumerate(codes):
        inner = 0.0
        for other, score in enumerate(scores):
            if other == view:
                continue
            for row, q in zip(np.asarray(score, dtype=np.float64), code, strict=True):
                inner -= (q * np.log(softmax(row / temperature))).sum() / len(score)
        total += inner / (len(scores) - 1)
    return total / len(codes)


def unit(x):
    x = np.asarray(x, dtype=np.float64)
    return x / np.sqrt((x**2).sum(axis=-1, keepdims=True))


def loss(embeddings, prototypes, epsilon, iterations, temperature, queues=(None, None), codes=None):
    """The whole loss of embeddings [(B, D)] of all views, the first two with codes; queues (Q, D) enter the codes.

    Codes that are given are taken: a gradient does not pass through them.
    """
    scores = [unit(z) @ np.asarray(prototypes, dtype=np.float64).T for z in embeddings]
    if codes is None:
        codes = own_codes(embeddings, prototypes, epsilon, iterations, queues)
    return swapped_prediction(scores, codes, temperature)


def own_codes(embeddings, prototypes, epsilon, iterations, queues=(None, None)):
    """Codes of the two large views."""
    result = []
    for z, queue in zip(embeddings[:2], queues, strict=True):
        rows = unit(z) if queue is None else np.concatenate([unit(z), np.asarray(queue, dtype=np.float64)])
        result.append(sinkhorn(rows @ np.asarray(prototypes, dtype=np.float64).T, epsilon, iterations)[: len(z)])
    return result
