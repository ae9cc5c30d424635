"""State that outlives a batch: a memory bank with one row per sample."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import normalize


def last_occurrence(index: torch.Tensor) -> torch.Tensor:
    """Positions (U,) of the last occurrence of each distinct value of index (B,): makes duplicate writes defined."""
    unique, inverse = torch.unique(index, return_inverse=True)
    positions = torch.arange(index.shape[0], device=index.device)
    last = torch.full((unique.shape[0],), -1, dtype=torch.int64, device=index.device)
    return last.scatter_reduce(0, inverse, positions, reduce="amax")


class MemoryBank(nn.Module):
    """A slow, unit-norm copy of each sample's embedding: m_i <- normalise(momentum m_i + (1 - momentum) z_i).

    `rows` is float32 (N, D), a persistent buffer from birth. It starts as normalised Gaussian noise from `seed`, the
    same on every rank: the constant of the NCE losses is estimated from these random rows.
    Callers use `gather_rows` and `update` only, so that a bank sharded over devices can take this one's place.
    """

    rows: torch.Tensor

    def __init__(self, num_samples: int, dim: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("rows", normalize(torch.randn(num_samples, dim, generator=generator), dim=1))

    @property
    def num_samples(self) -> int:
        """Number of rows N."""
        return self.rows.shape[0]

    def gather_rows(self, index: torch.Tensor) -> torch.Tensor:
        """Rows by index: int64 (...) -> float32 (..., D), no gradient."""
        return self.rows[index]

    @torch.no_grad()
    def update(self, index: torch.Tensor, embeddings: torch.Tensor, momentum: float) -> None:
        """Move the rows of index (B,) towards unit embeddings (B, D); of equal indices the last one counts.

        Call it with tensors gathered from all ranks: then every rank writes the same bits.
        """
        keep = last_occurrence(index)
        index, embeddings = index[keep], embeddings[keep].float()
        mixed = self.rows[index] * momentum + embeddings * (1.0 - momentum)
        self.rows[index] = normalize(mixed, dim=1)
