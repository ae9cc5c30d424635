"""A memory bank whose rows are split over the ranks, for data sets whose banks fit on no single device.

Rank r holds rows r S to (r + 1) S - 1, S = ceil(N / W). Initial rows, updates and the rows that a sample is compared
with equal those of `MemoryBank` to the bit. state_dict, which is the same on all ranks, does not hold the rows:
checkpoint/bank_rows.py saves and loads them.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import normalize

from avssl.distributed import broadcast, exchange_sum, gather, gather_uneven, rank, world_size
from avssl.ops.agreement import Comparison, Search, compared_banks
from avssl.ops.memory import MemoryBank, last_occurrence
from avssl.types import Agreement

ROWS_AT_ONCE = 1 << 16  # of the initial noise; a multiple of 16, see `part_of_noise`


def part_of_noise(num_samples: int, dim: int, seed: int, first: int, last: int) -> torch.Tensor:
    """Rows first to last - 1 of torch.randn(num_samples, dim) from `seed`, with only a block of the others in memory.

    PyTorch draws normal numbers sixteen at a time, and draws the last sixteen again if the count is no multiple of 16:
    blocks of 16 n rows give the numbers of one call, provided that the last block is not shorter than the others.
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
    """This rank's rows of a bank, float32 (S, D); rows beyond N are unused. All ranks call its methods together."""

    rows: torch.Tensor

    def __init__(self, num_samples: int, dim: int, seed: int) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.rows_per_rank = -(-num_samples // world_size())
        self.first, self.last = self.range_of(rank())
        rows = torch.zeros(self.rows_per_rank, dim)
        rows[: self.last - self.first] = normalize(part_of_noise(num_samples, dim, seed, self.first, self.last), dim=1)
        self.register_buffer("rows", rows, persistent=False)

    def range_of(self, owner: int) -> tuple[int, int]:
        """The first row of rank `owner`, and the row after its last."""
        first, last = (min(number * self.rows_per_rank, self.num_samples) for number in (owner, owner + 1))
        return first, last

    def gather_rows(self, index: torch.Tensor) -> torch.Tensor:
        """Rows by index: int64 (...) of one shape on all ranks -> float32 (..., D), no gradient."""
        all_index = gather(index.reshape(-1))
        is_local = (all_index >= self.first) & (all_index < self.last)
        local_rows = self.rows.new_zeros(len(all_index), self.rows.shape[1])
        local_rows[is_local] = self.rows[all_index[is_local] - self.first]
        return exchange_sum(local_rows).view(*index.shape, -1)

    @torch.no_grad()
    def update(self, index: torch.Tensor, embeddings: torch.Tensor, momentum: float) -> None:
        """As `MemoryBank.update`, with tensors gathered from all ranks; each rank writes its own rows."""
        keep = last_occurrence(index)
        keep = keep[(index[keep] >= self.first) & (index[keep] < self.last)]
        local = index[keep] - self.first
        self.rows[local] = normalize(self.rows[local] * momentum + embeddings[keep].float() * (1.0 - momentum), dim=1)


AnyBank = MemoryBank | ShardedMemoryBank


def make_bank(num_samples: int, dim: int, seed: int, *, sharded: bool) -> AnyBank:
    """A memory bank (N, D), split over the ranks if `sharded` is set and there is more than one."""
    is_split = sharded and world_size() > 1 and num_samples > 0
    return ShardedMemoryBank(num_samples, dim, seed) if is_split else MemoryBank(num_samples, dim, seed)


@torch.no_grad()
def sharded_positive_set(
    video: ShardedMemoryBank, audio: ShardedMemoryBank, num_positives: int, agreement: Agreement
) -> torch.Tensor:
    """As `most_agreeing` for all rows: int64 (N, k), on every rank.

    Each rank compares its rows with those of one rank after the other, and so holds at most two shards of each bank.
    """
    banks = compared_banks({"video": video, "audio": audio}, agreement)
    queries = {name: bank.rows[: bank.last - bank.first] for name, bank in banks.items()}
    search = Search(video.last - video.first, num_positives, agreement, video.rows.device)
    for owner in range(world_size()):
        first, last = video.range_of(owner)
        columns = {name: broadcast(bank.rows, owner)[: last - first] for name, bank in banks.items()}
        if first < last:
            search.compare(Comparison(queries, columns, video.first, first))
    return gather_uneven(search.sorted_index())
