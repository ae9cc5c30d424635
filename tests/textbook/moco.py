"""MoCo from arXiv 1911.05722 with loops, in float64: its cross-entropy, its queue, its teacher, grouped batch norm."""

import numpy as np


def unit(x):
    x = np.asarray(x, dtype=np.float64)
    return x / np.sqrt((x**2).sum(axis=-1, keepdims=True))


def info_nce(queries, keys, queue, temperature, moments=None):
    """Eq. 1, averaged over the queries; query i also has the negatives `moments[i]`."""
    total = 0.0
    for i, (q, k) in enumerate(zip(unit(queries), unit(keys), strict=True)):
        own = np.exp(q @ k / temperature)
        negatives = [*unit(queue), *(() if moments is None else unit(moments[i]))]
        others = sum(np.exp(q @ row / temperature) for row in negatives)
        total -= np.log(own / (own + others))
    return total / len(queries)


def pushed(queue, place, keys):
    """The queue after keys were written one by one from `place` on, round and round; and the next place."""
    queue = np.array(queue, dtype=np.float64)
    for key in unit(keys):
        queue[place] = key
        place = (place + 1) % len(queue)
    return queue, place


def teacher(start, students, momentum):
    """Eq. 2 applied with the student's values after each step."""
    value = np.asarray(start, dtype=np.float64)
    for student in students:
        value = momentum * value + (1 - momentum) * np.asarray(student, dtype=np.float64)
    return value


def batch_norm(rows, eps=1e-5):
    """Every column to mean 0 and variance 1 over the rows."""
    rows = np.asarray(rows, dtype=np.float64)
    return (rows - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + eps)
