"""LeJEPA, written from arXiv 2511.08544 with loops and complex numbers, in float64.

`exact` is the statistic of Epps and Pulley (Biometrika 70, 1983) with its integral in closed form: between two samples
integrals of cos(t x) exp(-t^2 / 2) and the like, which are Gaussians of x.
"""

import cmath
import itertools
import math

import numpy as np


def epps_pulley(samples):
    """Trapezoidal rule from -5 to 5 with 17 points."""
    points = np.linspace(-5, 5, 17)
    values = []
    for t in points:
        empirical = sum(cmath.exp(1j * t * x) for x in samples) / len(samples)
        values.append(abs(empirical - math.exp(-(t**2) / 2)) ** 2 * math.exp(-(t**2) / 2))
    step = points[1] - points[0]
    return len(samples) * step * sum((a + b) / 2 for a, b in itertools.pairwise(values))


def exact(samples):
    """The same integral over the whole line, exactly."""
    count = len(samples)
    pairs = sum(math.sqrt(2 * math.pi) * math.exp(-((a - b) ** 2) / 2) for a in samples for b in samples)
    singles = sum(math.sqrt(math.pi) * math.exp(-(a**2) / 4) for a in samples)
    return pairs / count - 2 * singles + count * math.sqrt(2 * math.pi / 3)


def sigreg(z, directions):
    """Mean over the columns of `directions` (D, M)."""
    z, directions = np.asarray(z, float), np.asarray(directions, float)
    return sum(epps_pulley([row @ column for row in z]) for column in directions.T) / directions.shape[1]


def lejepa(large, small, directions, weight):
    """The whole loss of lists of views (B, D)."""
    large, small = [np.asarray(z, float) for z in large], [np.asarray(z, float) for z in small]
    views = large + small
    center = sum(large) / len(large)
    agreement = sum(np.mean((z - center) ** 2) for z in views) / len(views)
    return (1 - weight) * agreement + weight * sum(sigreg(z, directions) for z in views) / len(views)
