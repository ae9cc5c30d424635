"""Is a batch of embeddings alive? Scalars that tell a representation from a collapsed one, without labels."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

MAX_ROWS = 256  # of a batch that are looked at: the cost grows with their square


@torch.no_grad()
def embedding_spread(z: torch.Tensor) -> torch.Tensor:
    """Mean standard deviation over the batch of unit-norm embeddings (B, D), times sqrt(D): 1 spread, 0 collapsed.

    z (B, D), any float, need not be of unit norm. Returns a float32 scalar.

    >>> embedding_spread(torch.ones(4, 3)).item()  # collapsed
    0.0
    """
    z = normalize(z.float(), dim=1)
    spread: torch.Tensor = z.std(dim=0, unbiased=False).mean() * z.shape[1] ** 0.5
    return spread


@torch.no_grad()
def effective_rank(z: torch.Tensor) -> torch.Tensor:
    """In how many directions embeddings (B, D) lie: the exponential of the entropy of their singular values.

    From 1 (all on one line) to min(B, D) (all directions alike), of rows made unit (Roy & Vetterli 2007; as a measure
    of self-supervised embeddings: Garrido et al. 2023, arXiv 2210.02885). Of the first 256 rows; not a number if
    they are not finite. Returns a float32 scalar.

    >>> round(effective_rank(torch.eye(4)).item(), 2)
    4.0
    """
    rows = normalize(z[:MAX_ROWS].double(), dim=1)  # the square roots would make float32's noise large
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    is_finite = gram.isfinite().all()
    singular = torch.linalg.eigvalsh(torch.where(is_finite, gram, 0.0)).clamp_min(0).sqrt()
    share = singular / singular.sum().clamp_min(1e-30)
    rank: torch.Tensor = torch.special.entr(share).sum().exp().float()
    return torch.where(is_finite, rank, torch.nan)


@torch.no_grad()
def alignment(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of the unit embeddings of two views (B, D) of the same samples: 0 equal, 2 unrelated.

    Wang & Isola 2020 (arXiv 2005.10242), with exponent 2. Returns a float32 scalar.

    >>> alignment(torch.eye(3), torch.eye(3)).item()
    0.0
    """
    return (normalize(first.float(), dim=1) - normalize(second.float(), dim=1)).square().sum(dim=1).mean()


@torch.no_grad()
def uniformity(z: torch.Tensor) -> torch.Tensor:
    """log of the mean over pairs of exp(-2 distance^2) of unit embeddings (B, D), B > 1: 0 collapsed, -4 at best.

    Wang & Isola 2020 (arXiv 2005.10242), with t = 2. Of the first 256 rows. Returns a float32 scalar.

    >>> uniformity(torch.ones(4, 3)).abs().item() < 1e-5  # collapsed
    True
    """
    rows = normalize(z[:MAX_ROWS].float(), dim=1)
    above = torch.triu_indices(len(rows), len(rows), offset=1, device=rows.device)
    distances = (2 - 2 * (rows @ rows.T)[above[0], above[1]]).clamp_min(0)
    result: torch.Tensor = (-2 * distances).exp().mean().log()
    return result
