"""Hard labels that use every cluster equally often, by optimal transport (SeLa)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

BLOCK_ELEMENTS = 2**23  # of a block of rows: 64 MB in float64
CHECK_EVERY = 10  # iterations between looks at how much the scaling still moves
TOLERANCE = 0.1  # of the sum over samples of their scaling's relative change
MAX_ITERATIONS = 2000  # the limit that SeLaVi (arXiv 2006.13662) sets


@torch.no_grad()
def self_labels(log_probabilities: torch.Tensor, sharpness: float) -> torch.Tensor:
    """The most probable balanced labelling: argmax of the transport plan with uniform marginals.

    Q_nk = c_n P_nk^sharpness r_k with rows of mass 1/N and columns of mass 1/K is found by scaling columns and rows in
    turn, until sum_n |c_n / c'_n - 1| < 0.1, looked at every 10 iterations, or for 2000 iterations (Asano et al. 2020,
    arXiv 1911.05371). It starts from scaled rows; the authors start from equal c, and the plan is the same in the end.
    Labels are balanced as far as the plan's argmax is: nearly, and more so the sharper.

    Args:
        log_probabilities: (N, K) finite logarithms of P, up to a constant a row; any float.
        sharpness: lambda > 0. The larger, the closer to the best hard labelling, and the slower.

    Returns:
        int64 (N,), labels from 0 to K - 1. Sums are float64 on logarithms, in blocks of rows: P^sharpness would
        underflow. The input is not copied whole.
    """
    if sharpness <= 0:
        raise ValueError(f"self_labels: sharpness is {sharpness}; it must be above 0 (25 in the paper)")
    num_rows, num_clusters = log_probabilities.shape
    row_mass = -torch.log(torch.tensor(float(num_rows), dtype=torch.float64, device=log_probabilities.device))
    column_mass = -torch.log(torch.tensor(float(num_clusters), dtype=torch.float64, device=log_probabilities.device))

    def blocks() -> Iterator[tuple[slice, torch.Tensor]]:
        size = max(1, BLOCK_ELEMENTS // num_clusters)
        for first in range(0, num_rows, size):
            rows = slice(first, first + size)
            yield rows, log_probabilities[rows].double() * sharpness

    # log c, from scaled rows: so a constant of a row has no influence on where the iterations stop.
    rows_scale = torch.cat([row_mass - block.logsumexp(dim=1) for _, block in blocks()])
    columns_scale = torch.zeros_like(column_mass)  # log r
    for iteration in range(1, MAX_ITERATIONS + 1):
        sums = [(block + rows_scale[rows, None]).logsumexp(dim=0) for rows, block in blocks()]
        columns_scale = column_mass - torch.stack(sums).logsumexp(dim=0)
        scaled = torch.cat([row_mass - (block + columns_scale).logsumexp(dim=1) for _, block in blocks()])
        change = (rows_scale - scaled).expm1().abs().sum()
        rows_scale = scaled
        if iteration % CHECK_EVERY == 0 and change < TOLERANCE:
            break
    return torch.cat([(block + columns_scale).argmax(dim=1) for _, block in blocks()])
