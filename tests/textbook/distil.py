"""Distillation, written from arXiv 2101.04731 (eq. 3 to 5, less the teacher's entropy) and 2201.05131 (eq. 1) with
loops, in float64."""

import math

import numpy as np


def unit(row):
    """A row divided by its length."""
    return row / math.sqrt(sum(value * value for value in row))


def regression(student, teacher):
    """Mean over rows of the squared distance of unit rows."""
    distances = [sum((unit(z) - unit(t)) ** 2) for z, t in zip(student, teacher, strict=True)]
    return sum(distances) / len(distances)


def probabilities(row, anchors, temperature):
    """Softmax over cosines with the anchors."""
    weights = [math.exp(unit(row) @ unit(anchor) / temperature) for anchor in anchors]
    return [weight / sum(weights) for weight in weights]


def similarity_divergence(student, teacher, queue, student_temperature, teacher_temperature):
    """Mean over rows of sum p log(p / q), over the row's own teacher and the queue."""
    total = 0.0
    for z, t in zip(student, teacher, strict=True):
        anchors = [t, *queue]
        wanted = probabilities(t, anchors, teacher_temperature)
        given = probabilities(z, anchors, student_temperature)
        total += sum(p * math.log(p / q) for p, q in zip(wanted, given, strict=True))
    return total / len(student)


def distil(students, teacher, queue, weights, student_temperature, teacher_temperature):
    """The whole loss of a list of students (B, D) of one teacher. weights: of regression and similarities."""
    students = [np.asarray(z, float) for z in students]
    total = 0.0
    for z in students:
        total += weights[0] * regression(z, teacher)
        total += weights[1] * similarity_divergence(z, teacher, queue, student_temperature, teacher_temperature)
    return total / len(students)
