"""Scalars that tell whether a batch of embeddings has collapsed, without labels."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

MAX_ROWS = 256  # of a batch that are used: the cost grows with their square


@torch.no_grad()
def embedding_spread(z: torch.Tensor) -> torch.Tensor:
    """Mean over dimensions of the standard deviation of unit embeddings, times sqrt(D): 1 spread out, 0 collapsed.

    z: (B, D), any float; normalized here. Returns a float32 scalar.

    >>> embedding_spread(torch.ones(4, 3)).item()  # collapsed
    0.0
    """
    z = normalize(z.float(), dim=1)
    spread: torch.Tensor = z.std(dim=0, unbiased=False).mean() * z.shape[1] ** 0.5
    return spread


@torch.no_grad()
def effective_rank(z: torch.Tensor) -> torch.Tensor:
    """The number of directions that embeddings (B, D) use: the exponential of the entropy of their singular values.

    From 1 (all on one line) to min(B, D) (all directions alike), computed from the first 256 rows, normalized (Roy &
    Vetterli 2007; for self-supervised embeddings: Garrido et al. 2023, arXiv 2210.02885). Returns a float32 scalar,
    NaN if the rows are not finite.

    >>> round(effective_rank(torch.eye(4)).item(), 2)
    4.0
    """
    rows = normalize(z[:MAX_ROWS].double(), dim=1)  # in float32 the square roots would enlarge the rounding errors
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    is_finite = gram.isfinite().all()
    singular = torch.linalg.eigvalsh(torch.where(is_finite, gram, 0.0)).clamp_min(0).sqrt()
    fraction = singular / singular.sum().clamp_min(1e-30)
    rank: torch.Tensor = torch.special.entr(fraction).sum().exp().float()
    return torch.where(is_finite, rank, torch.nan)


@torch.no_grad()
def alignment(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Mean squared distance between the unit embeddings of two views (B, D), row by row: 0 equal, 2 unrelated.

    Wang & Isola 2020 (arXiv 2005.10242), with exponent 2. Rows are normalized here. Returns a float32 scalar.

    >>> alignment(torch.eye(3), torch.eye(3)).item()
    0.0
    """
    return (normalize(first.float(), dim=1) - normalize(second.float(), dim=1)).square().sum(dim=1).mean()


@torch.no_grad()
def uniformity(z: torch.Tensor) -> torch.Tensor:
    """log of the mean over pairs of exp(-2 distance^2) of unit embeddings (B, D), B > 1: 0 collapsed, -4 at best.

    Wang & Isola 2020 (arXiv 2005.10242), with t = 2. Computed from the first 256 rows, normalized here. Returns a
    float32 scalar.

    >>> uniformity(torch.ones(4, 3)).abs().item() < 1e-5  # collapsed
    True
    """
    rows = normalize(z[:MAX_ROWS].float(), dim=1)
    above = torch.triu_indices(len(rows), len(rows), offset=1, device=rows.device)
    distances = (2 - 2 * (rows @ rows.T)[above[0], above[1]]).clamp_min(0)
    result: torch.Tensor = (-2 * distances).exp().mean().log()
    return result
