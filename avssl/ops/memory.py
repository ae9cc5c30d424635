"""State that outlives a batch: a memory bank with one row per sample, and a queue of the newest rows."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import normalize


def last_occurrence(index: torch.Tensor) -> torch.Tensor:
    """The position of the last occurrence of each value of index, (B,) -> (B,): makes duplicate writes deterministic.

    Unlike torch.unique, its shapes do not depend on the values, so it does not wait for a GPU.
    """
    order = index.argsort(stable=True)
    return order[torch.searchsorted(index[order], index, right=True) - 1]


class MemoryBank(nn.Module):
    """A slow, unit-norm copy of each sample's embedding: m_i <- normalize(momentum m_i + (1 - momentum) z_i).

    `rows` is a persistent buffer, float32 (N, D). It starts as normalized Gaussian noise from `seed`, the same on every
    rank: the constant of the NCE losses is estimated from these random rows.

    >>> bank = MemoryBank(num_samples=10, dim=4, seed=0)
    >>> bank.update(torch.tensor([2]), torch.tensor([[1.0, 0.0, 0.0, 0.0]]), momentum=0.0)
    >>> bank.gather_rows(torch.tensor([2]))
    tensor([[1., 0., 0., 0.]])
    """

    rows: torch.Tensor

    def __init__(self, num_samples: int, dim: int, seed: int) -> None:
        super().__init__()
        if num_samples < 1:
            raise ValueError(
                f"a memory bank has a row for each sample, and num_samples is {num_samples}; read shards written by "
                "`avssl prep write`, whose samples carry an index"
            )
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
        # All occurrences of an index write the same row.
        embeddings = embeddings[last_occurrence(index)].float()
        mixed = self.rows[index] * momentum + embeddings * (1.0 - momentum)
        self.rows[index] = normalize(mixed, dim=1)


class Queue(nn.Module):
    """The newest `size` rows that were pushed: float32 (size, D), a ring buffer of fixed shape.

    It starts as normalized Gaussian noise from `seed`, the same on every rank. `count` is the number of rows ever
    pushed. Push tensors gathered from all ranks: then every rank holds the same bits.

    >>> queue = Queue(size=3, dim=2, seed=0)
    >>> queue.push(torch.eye(2))
    >>> queue.count.item(), queue.rows.shape
    (2, torch.Size([3, 2]))
    """

    rows: torch.Tensor
    count: torch.Tensor

    def __init__(self, size: int, dim: int, seed: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"a queue holds at least one row, got queue_size {size}")
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("rows", normalize(torch.randn(size, dim, generator=generator), dim=1))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self._was_full = False
        self.register_load_state_dict_post_hook(Queue._forget_was_full)

    def _forget_was_full(self, incompatible_keys: object) -> None:  # noqa: ARG002  (the signature of a hook)
        """The state just loaded may be that of a queue that is not full."""
        self._was_full = False

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.rows.shape[0]

    @property
    def is_full(self) -> bool:
        """True once no row of the initial noise is left. Until then, each call waits for the GPU."""
        if not self._was_full:
            self._was_full = int(self.count) >= self.size
        return self._was_full

    @torch.no_grad()
    def push(self, rows: torch.Tensor) -> None:
        """Replace the oldest rows by these (B, D); if they are more than `size`, only the last ones are kept."""
        self.count += rows.shape[0]
        rows = rows[-self.size :].float()
        positions = (self.count - rows.shape[0] + torch.arange(rows.shape[0], device=rows.device)) % self.size
        self.rows[positions] = rows
