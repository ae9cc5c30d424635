"""BYOL's regression and its teacher's momentum, written from arXiv 2006.07733 with loops, in float64."""

import numpy as np


def regression(predictions, targets):
    """Eq. 2: the squared distance of unit vectors, averaged over the batch."""
    total = 0.0
    for prediction, target in zip(np.asarray(predictions, float), np.asarray(targets, float), strict=True):
        difference = prediction / np.sqrt(prediction @ prediction) - target / np.sqrt(target @ target)
        total += difference @ difference
    return total / len(predictions)


def byol(first_prediction, second_prediction, first_target, second_target):
    """Both directions added: each view predicts the target of the other one."""
    return regression(first_prediction, second_target) + regression(second_prediction, first_target)


def momentum(base, step, total_steps):
    """Section 3.3: tau_k of step k = 0 ... K - 1."""
    return 1 - (1 - base) * (np.cos(np.pi * step / total_steps) + 1) / 2


def teacher(start, students, base, total_steps):
    """The teacher after it has followed the student's values after each step."""
    value = np.asarray(start, float)
    for step, student in enumerate(students):
        keep = momentum(base, step, total_steps)
        value = keep * value + (1 - keep) * np.asarray(student, float)
    return value
