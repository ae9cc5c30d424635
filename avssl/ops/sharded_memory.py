"""A memory bank whose rows are split over the ranks, for data sets whose banks no single device holds.

Rank r holds rows r S to (r + 1) S - 1, S = ceil(N / W). Everything else is as in `MemoryBank`, to the bit: the start,
the update, the rows that a sample is compared with. Its rows are no entry of state_dict, which is the same on all
ranks: checkpoint/bank_rows.py saves and loads them.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import normalize

from avssl.distributed import broadcast, exchange_sum, gather, gather_uneven, rank, world_size
from avssl.ops.agreement import Agreement, Search, Visit, sides_of
from avssl.ops.memory import MemoryBank, last_occurrence

ROWS_AT_ONCE = 1 << 16  # of the start; a multiple of 16 rows, see `own_part_of_noise`


def own_part_of_noise(num_samples: int, dim: int, seed: int, first: int, last: int) -> torch.Tensor:
    """Rows first to last - 1 of torch.randn(num_samples, dim) from `seed`, never more than a block of the others.

    PyTorch draws normal numbers sixteen at a time, and the last sixteen again where their number is no multiple: blocks
    of 16 n rows give the numbers of one call, if the last block is not a short one.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = [torch.empty(0, dim)]
    start = 0
    while start < num_samples:
        stop = start + ROWS_AT_ONCE if num_samples - start >= 2 * ROWS_AT_ONCE else num_samples
        block = torch.randn(stop - start, dim, generator=generator)
        kept.append(block[max(first - start, 0) : max(last - start, 0)].clone())
        start = stop
    return torch.cat(kept)


class ShardedMemoryBank(nn.Module):
    """This rank's rows of a bank: float32 (S, D), those beyond N unused. All ranks call its methods together."""

    rows: torch.Tensor

    def __init__(self, num_samples: int, dim: int, seed: int) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.rows_a_rank = -(-num_samples // world_size())
        self.first, self.last = self.range_of(rank())
        rows = torch.zeros(self.rows_a_rank, dim)
        rows[: self.last - self.first] = normalize(
            own_part_of_noise(num_samples, dim, seed, self.first, self.last), dim=1
        )
        self.register_buffer("rows", rows, persistent=False)

    def range_of(self, owner: int) -> tuple[int, int]:
        """First row of a rank, and the one after its last."""
        first, last = (min(number * self.rows_a_rank, self.num_samples) for number in (owner, owner + 1))
        return first, last

    def gather_rows(self, index: torch.Tensor) -> torch.Tensor:
        """Rows by index: int64 (...) of one shape on all ranks -> float32 (..., D), no gradient."""
        wanted = gather(index.reshape(-1))
        is_own = (wanted >= self.first) & (wanted < self.last)
        found = self.rows.new_zeros(len(wanted), self.rows.shape[1])
        found[is_own] = self.rows[wanted[is_own] - self.first]
        return exchange_sum(found).view(*index.shape, -1)

    @torch.no_grad()
    def update(self, index: torch.Tensor, embeddings: torch.Tensor, momentum: float) -> None:
        """As `MemoryBank.update`, with tensors gathered from all ranks; each rank writes what it holds."""
        keep = last_occurrence(index)
        keep = keep[(index[keep] >= self.first) & (index[keep] < self.last)]
        own = index[keep] - self.first
        self.rows[own] = normalize(self.rows[own] * momentum + embeddings[keep].float() * (1.0 - momentum), dim=1)


AnyBank = MemoryBank | ShardedMemoryBank


def make_bank(num_samples: int, dim: int, seed: int, *, sharded: bool) -> AnyBank:
    """A bank; one process holds all of it either way."""
    is_split = sharded and world_size() > 1 and num_samples > 0
    return ShardedMemoryBank(num_samples, dim, seed) if is_split else MemoryBank(num_samples, dim, seed)


@torch.no_grad()
def sharded_positive_set(
    video: ShardedMemoryBank, audio: ShardedMemoryBank, num_positives: int, agreement: Agreement
) -> torch.Tensor:
    """As `most_agreeing` for all rows: int64 (N, k), on every rank.

    Each rank's rows meet those of one rank after the other, so no rank holds more than two shards of each bank.
    """
    banks = sides_of({"video": video, "audio": audio}, agreement)
    own = {name: bank.rows[: bank.last - bank.first] for name, bank in banks.items()}
    search = Search(video.last - video.first, num_positives, agreement, video.rows.device)
    for owner in range(world_size()):
        first, last = video.range_of(owner)
        columns = {name: broadcast(bank.rows, owner)[: last - first] for name, bank in banks.items()}
        if first < last:
            search.visit(Visit(own, columns, video.first, first))
    return gather_uneven(search.found())
