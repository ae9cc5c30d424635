"""Assignments that use every cluster equally often, by optimal transport: soft ones of a batch (SwAV), hard ones
(SeLa).

Soft ones by Sinkhorn-Knopp (Cuturi 2013, arXiv 1306.0895): Q = exp(scores / epsilon) is scaled so that every prototype
gets the same mass and every sample has mass 1: the prototypes' marginals, then the samples', in turn. The samples' come
last, so rows sum to 1 exactly and prototypes' masses approach B / K.
"""

from __future__ import annotations

import math

import torch

BLOCK_ELEMENTS = 2**23  # of a block of rows: 64 MB in float64
KEPT_ELEMENTS = 2**27  # of a whole plan that is kept between iterations: 1 GB; a larger one is made anew in each
CHECK_EVERY = 10  # iterations between looks at how much the scaling still moves
TOLERANCE = 0.1  # of the sum over samples of their scaling's relative change
MAX_ITERATIONS = 2000  # the limit that SeLaVi (arXiv 2006.13662) sets


@torch.no_grad()
def self_labels(log_probabilities: torch.Tensor, sharpness: float) -> torch.Tensor:
    """The most probable balanced labeling: argmax of the transport plan with uniform marginals.

    Q_nk = c_n P_nk^sharpness r_k with rows of mass 1/N and columns of mass 1/K is found by scaling columns and rows in
    turn, until sum_n |c_n / c'_n - 1| < 0.1, looked at every 10 iterations, or for 2000 iterations (Asano et al. 2020,
    arXiv 1911.05371). It starts from scaled rows; the authors start from equal c, and the plan is the same in the end.
    Labels are balanced as far as the plan's argmax is: nearly, and more so the sharper.

    Args:
        log_probabilities: (N, K) finite logarithms of P, up to a constant a row; any float.
        sharpness: lambda > 0. The larger, the closer to the best hard labeling, and the slower.

    Returns:
        int64 (N,), labels from 0 to K - 1. Sums are float64, in blocks of rows; the input is not copied whole.

    P^sharpness itself would underflow. So the scales are kept as logarithms and what is scaled is the plan that they
    make, whose entries are at most 1/N; every 10 iterations the scales found since go into the logarithms (Schmitzer
    2019, arXiv 1610.06519, absorption). The first iteration is on logarithms alone: after a whole one no column of the
    plan holds less than 1/(N K), so none is lost to underflow.

    >>> self_labels(torch.tensor([[0.0, -5.0], [0.0, -1.0]]), sharpness=25.0)  # one sample for each of two clusters
    tensor([0, 1])
    """
    if sharpness <= 0:
        raise ValueError(f"self_labels: sharpness is {sharpness}; it must be above 0 (25 in the paper)")
    plan = _Plan(log_probabilities, sharpness)
    iteration = 1
    while iteration < MAX_ITERATIONS:
        count = min(CHECK_EVERY - iteration % CHECK_EVERY, MAX_ITERATIONS - iteration)
        change = plan.scale(count)
        iteration += count
        if iteration % CHECK_EVERY == 0 and change < TOLERANCE:
            break
    return torch.cat([(plan.block(rows) + plan.column_logs).argmax(dim=1) for rows in plan.slices])


class _Plan:
    """P^sharpness, never whole, and the logarithms log c (N,) of its rows' and log r (K,) of its columns' scales."""

    def __init__(self, log_probabilities: torch.Tensor, sharpness: float) -> None:
        self.log_probabilities, self.sharpness = log_probabilities, sharpness
        self.num_rows, self.num_clusters = log_probabilities.shape
        size = max(1, BLOCK_ELEMENTS // self.num_clusters)
        self.slices = [slice(first, first + size) for first in range(0, self.num_rows, size)]
        # log c from scaled rows, so that a constant of a row has no influence on where the iterations stop; then log r
        # and log c by one iteration.
        row_logs = -math.log(self.num_rows) - torch.cat([self.block(rows).logsumexp(dim=1) for rows in self.slices])
        sums = [(self.block(rows) + row_logs[rows, None]).logsumexp(dim=0) for rows in self.slices]
        self.column_logs = -math.log(self.num_clusters) - torch.stack(sums).logsumexp(dim=0)
        sums = [(self.block(rows) + self.column_logs).logsumexp(dim=1) for rows in self.slices]
        self.row_logs = -math.log(self.num_rows) - torch.cat(sums)

    def block(self, rows: slice) -> torch.Tensor:
        """Logarithms of P^sharpness of some rows, float64."""
        return self.log_probabilities[rows].double() * self.sharpness

    def part(self, rows: slice) -> torch.Tensor:
        """Those rows of the scaled plan."""
        return (self.block(rows) + self.row_logs[rows, None]).add_(self.column_logs).exp_()

    def scale(self, iterations: int) -> torch.Tensor:
        """Scale columns and rows in turn, and take the scales into the logarithms; the last iteration's change."""
        is_kept = self.num_rows * self.num_clusters <= KEPT_ELEMENTS
        kept = [self.part(rows) for rows in self.slices] if is_kept else []
        row_scales, column_sums = torch.ones_like(self.row_logs), torch.zeros_like(self.column_logs)
        for part in kept or map(self.part, self.slices):
            column_sums += part.sum(dim=0)
        for _ in range(iterations):
            column_scales, column_sums = 1 / (self.num_clusters * column_sums), torch.zeros_like(column_sums)
            change = torch.zeros_like(column_sums[0])
            for rows, part in zip(self.slices, kept or map(self.part, self.slices), strict=True):
                scales = 1 / (self.num_rows * (part @ column_scales))
                change += (row_scales[rows] / scales - 1).abs().sum()
                row_scales[rows] = scales
                column_sums += scales @ part
        self.row_logs, self.column_logs = self.row_logs + row_scales.log(), self.column_logs + column_scales.log()
        return change


# From here on codes of cosines keep all that counts without logarithms: in these they differ by 2 / epsilon = 40, by
# twice as much after an iteration, and float32 goes down to -87.
LEAST_LINEAR_EPSILON = 0.05


@torch.no_grad()
def sinkhorn(scores: torch.Tensor, epsilon: float, iterations: int) -> torch.Tensor:
    """Soft codes of a batch, without gradient.

    Args:
        scores: (B, K) of the samples of all ranks against the prototypes; any float.
        epsilon: > 0; smaller gives harder codes.
        iterations: >= 1; each scales the prototypes' marginals and then the samples'.

    Returns:
        (B, K) float32, rows sum to 1; finite for every finite score. The first iteration is on logarithms. So are the
        others for a small epsilon, where codes that underflow could grow again; else scores further apart than cosines
        lose the smallest ones.

    >>> sinkhorn(torch.tensor([[1.0, 0.0], [0.9, 0.0]]), epsilon=0.05, iterations=3).sum(dim=1)
    tensor([1., 1.])
    """
    if epsilon <= 0 or iterations < 1:
        raise ValueError(f"sinkhorn: epsilon is {epsilon} and iterations {iterations}; they must be > 0 and >= 1")
    # The constants 1/K and 1/B of the marginals cancel: each scaling is undone up to a factor by the next one.
    log_codes = (scores.float() / epsilon).log_softmax(dim=0)
    if epsilon < LEAST_LINEAR_EPSILON:
        for _ in range(iterations - 1):
            log_codes = log_codes.log_softmax(dim=1).log_softmax(dim=0)
        return log_codes.softmax(dim=1)
    codes = log_codes.softmax(dim=1)
    for _ in range(iterations - 1):
        codes /= codes.sum(dim=0)
        codes /= codes.sum(dim=1, keepdim=True)
    return codes
