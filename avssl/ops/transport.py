"""Assignments that use every cluster equally often, by optimal transport: soft for a batch (SwAV), hard for all (SeLa).

Soft ones by Sinkhorn-Knopp (Cuturi 2013, arXiv 1306.0895): Q = exp(scores / epsilon) is scaled, prototypes and samples
in turn, so that every prototype gets the same mass and every sample has mass 1. Samples are scaled last, so rows sum
to 1 exactly and the prototypes' masses approach B / K.
"""

from __future__ import annotations

import math

import torch

BLOCK_ELEMENTS = 2**23  # of a block of rows: 64 MB in float64
KEPT_ELEMENTS = 2**27  # of a plan that is kept between iterations: 1 GB; a larger one is computed anew in each
CHECK_EVERY = 10  # iterations between checks for convergence
TOLERANCE = 0.1  # for the sum over samples of the relative change of their scales
MAX_ITERATIONS = 2000  # the limit that SeLaVi (arXiv 2006.13662) sets


@torch.no_grad()
def self_labels(log_probabilities: torch.Tensor, sharpness: float) -> torch.Tensor:
    """The most probable balanced labeling: argmax of the transport plan with uniform marginals.

    Q_nk = c_n P_nk^sharpness r_k with rows of mass 1/N and columns of mass 1/K is found by scaling columns and rows in
    turn, until sum_n |c_n / c'_n - 1| < 0.1, checked every 10 iterations, or for 2000 iterations (Asano et al. 2020,
    arXiv 1911.05371). It starts from scaled rows; the authors start from equal c, which leads to the same plan.
    Labels are as balanced as the plan's argmax: nearly, and the more so the larger the sharpness.

    Args:
        log_probabilities: (N, K) finite logarithms of P, up to a constant per row; any float.
        sharpness: lambda > 0. A larger one comes closer to the best hard labeling, and takes longer.

    Returns:
        int64 (N,), labels from 0 to K - 1. Sums are float64, in blocks of rows; the input is not copied whole.

    P^sharpness itself would underflow. So the scales are kept as logarithms, and the iterations scale the plan computed
    from them, whose entries are at most 1/N; every 10 iterations the new scales are added to the logarithms
    (absorption, Schmitzer 2019, arXiv 1610.06519). The first iteration is done on logarithms only: after it no column
    of the plan holds less than 1/(N K), so none is lost to underflow.

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
    """P^sharpness, by blocks, with the logarithms log c (N,) of its rows' scales and log r (K,) of its columns'."""

    def __init__(self, log_probabilities: torch.Tensor, sharpness: float) -> None:
        self.log_probabilities, self.sharpness = log_probabilities, sharpness
        self.num_rows, self.num_clusters = log_probabilities.shape
        size = max(1, BLOCK_ELEMENTS // self.num_clusters)
        self.slices = [slice(first, first + size) for first in range(0, self.num_rows, size)]
        # log c starts from scaled rows, so that a constant added to a row does not change when the iterations stop;
        # then one iteration gives log r and log c.
        row_logs = -math.log(self.num_rows) - torch.cat([self.block(rows).logsumexp(dim=1) for rows in self.slices])
        sums = [(self.block(rows) + row_logs[rows, None]).logsumexp(dim=0) for rows in self.slices]
        self.column_logs = -math.log(self.num_clusters) - torch.stack(sums).logsumexp(dim=0)
        sums = [(self.block(rows) + self.column_logs).logsumexp(dim=1) for rows in self.slices]
        self.row_logs = -math.log(self.num_rows) - torch.cat(sums)

    def block(self, rows: slice) -> torch.Tensor:
        """Logarithms of P^sharpness for some rows, float64 (n, K)."""
        return self.log_probabilities[rows].double() * self.sharpness

    def scaled(self, rows: slice) -> torch.Tensor:
        """Some rows of the scaled plan, float64 (n, K)."""
        return (self.block(rows) + self.row_logs[rows, None]).add_(self.column_logs).exp_()

    def scale(self, iterations: int) -> torch.Tensor:
        """Scale columns and rows in turn, add the scales to the logarithms; return the last iteration's change."""
        is_kept = self.num_rows * self.num_clusters <= KEPT_ELEMENTS
        kept = [self.scaled(rows) for rows in self.slices] if is_kept else []
        row_scales, column_sums = torch.ones_like(self.row_logs), torch.zeros_like(self.column_logs)
        for block in kept or map(self.scaled, self.slices):
            column_sums += block.sum(dim=0)
        for _ in range(iterations):
            column_scales, column_sums = 1 / (self.num_clusters * column_sums), torch.zeros_like(column_sums)
            change = torch.zeros_like(column_sums[0])
            for rows, block in zip(self.slices, kept or map(self.scaled, self.slices), strict=True):
                scales = 1 / (self.num_rows * (block @ column_scales))
                change += (row_scales[rows] / scales - 1).abs().sum()
                row_scales[rows] = scales
                column_sums += scales @ block
        self.row_logs, self.column_logs = self.row_logs + row_scales.log(), self.column_logs + column_scales.log()
        return change


# From this epsilon on, codes of cosines do not underflow without logarithms: their logarithms differ by at most
# 2 / epsilon = 40, by twice as much after an iteration, and those of float32 numbers go down to -87.
LEAST_LINEAR_EPSILON = 0.05


@torch.no_grad()
def sinkhorn(scores: torch.Tensor, epsilon: float, iterations: int) -> torch.Tensor:
    """Soft balanced codes of a batch, without gradient.

    Args:
        scores: (B, K) of the samples of all ranks against the prototypes; any float.
        epsilon: > 0; a smaller one gives harder codes.
        iterations: >= 1; each scales the prototypes' marginals and then the samples'.

    Returns:
        (B, K) float32, rows sum to 1; finite for every finite score. The first iteration is done on logarithms. So are
        the others for a small epsilon, where codes that underflow could grow again; for a larger one, scores that
        differ by more than cosines can lose their smallest codes.

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
