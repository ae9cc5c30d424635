"""DINO written from arXiv 2104.14294 (algorithm 1) with loops, in float64."""

import numpy as np


def softmax(scores):
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def unit(row):
    return row / np.sqrt(row @ row)


def scores(embeddings, prototypes):
    """The last layer: unit embeddings against rows of fixed length 1."""
    return np.array([[unit(z) @ unit(c) for c in np.asarray(prototypes, float)] for z in np.asarray(embeddings, float)])


def loss(student, teacher, center, temperature, teacher_temperature):
    """H(teacher, student) of scores [(B, K)] of all crops and of the large ones: the mean over pairs that differ."""
    total, pairs = 0.0, 0
    for g, targets in enumerate(teacher):
        for v, predictions in enumerate(student):
            if v == g:
                continue
            pairs += 1
            for target, prediction in zip(np.asarray(targets, float), np.asarray(predictions, float), strict=True):
                q = softmax((target - np.asarray(center, float)) / teacher_temperature)
                total -= (q * np.log(softmax(prediction / temperature))).sum() / len(targets)
    return total / pairs


def center(start, batches, momentum):
    """The center after the teacher's scores [(B, K)] of some batches, each of both large views."""
    value = np.asarray(start, float)
    for batch in batches:
        value = momentum * value + (1 - momentum) * np.concatenate([np.asarray(view, float) for view in batch]).mean(0)
    return value


def teacher_temperature(start, end, epochs, epoch):
    """Linear in the first epochs, then constant."""
    return np.concatenate([np.linspace(start, end, epochs), np.full(epoch + 1, end)])[epoch]
