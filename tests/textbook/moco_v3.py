"""MoCo v3 from algorithm 1 of arXiv 2104.02057 with loops, in float64."""

import numpy as np


def unit(x):
    x = np.asarray(x, dtype=np.float64)
    return x / np.sqrt((x**2).sum(axis=1, keepdims=True))


def contrast(queries, keys, temperature, first_row=0):
    """Cross-entropy of the own key among all keys, times 2 T."""
    k = unit(keys)
    total = 0.0
    for i, q in enumerate(unit(queries)):
        candidates = [np.exp(q @ row / temperature) for row in k]
        total -= np.log(candidates[first_row + i] / sum(candidates))
    return 2 * temperature * total / len(queries)


def symmetric(first, second, first_keys, second_keys, temperature):
    """Each view's predictions among the other view's keys, added."""
    return contrast(first, second_keys, temperature) + contrast(second, first_keys, temperature)


def teacher(start, students, base, total_steps):
    """The teacher that the keys of each step see: it moves before step t, with the momentum of t, towards the student
    as step t - 1 left it; the first step finds teacher and student equal."""
    value = np.asarray(start, dtype=np.float64)
    for step, student in enumerate(students, start=1):
        keep = 1 - 0.5 * (1 + np.cos(np.pi * step / total_steps)) * (1 - base)
        value = keep * value + (1 - keep) * np.asarray(student, dtype=np.float64)
    return value
