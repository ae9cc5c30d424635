"""Scores of anchors against rows of a bank, and weighted sums of such rows, without a copy of all these rows.

B anchors with K rows each read B K D numbers from all over a bank that fits no cache: at B = 64, K = 1024,
D = 128 these are 34 MB. Copied out as (B, K, D), they would be written once, read again by the products of forward and
backward, and stay in memory between the two. Here the bank's rows are read in place, for a block of anchors at a time:
first for the scores, then for the weighted sum while the rows are still in the cache.

On a CPU a block is the product of a CSR pattern with the bank (scores) and an embedding bag (sum): two kernels that
read rows by index. Elsewhere a block is gathered and multiplied.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

# Bytes of rows in one block. On a CPU, per thread: few enough to be in the cache still at the second reading, and
# enough that threads seldom wait for each other. Elsewhere: enough to fill the device, and few beside a step's
# activations.
CPU_BLOCK_BYTES_PER_THREAD = 6 * 2**20
DEVICE_BLOCK_BYTES = 512 * 2**20

# Scores (b, K) of a block of anchors and their positions -> weights (b, K) of the rows, and numbers (b, S) to keep.
Weigh = Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]]
# Anchors (B, D) and whether they need a gradient -> a scalar, its gradient (B, D), and numbers for the log.
Evaluate = Callable[[torch.Tensor, bool], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def plain_scores(anchors: torch.Tensor, rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """<u_b, m_index[b, k]>: (B, D), (N, D), int64 (B, K) -> (B, K). The reference: autograd keeps the gathered rows."""
    return torch.einsum("bd,bkd->bk", anchors, rows[index])


@torch.no_grad()
def scan(
    anchors: torch.Tensor, rows: torch.Tensor, indices: Sequence[torch.Tensor], weigh: Weigh, *, wants_sum: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `weigh` keeps of each anchor's scores (B, S), and the sum of the anchor's rows with its weights (B, D).

    anchors (B, D) and rows (N, D) have one floating dtype. indices are int64 (B, P), (B, K), ..., which stand side by
    side in the scores (B, P + K + ...); B >= 1 and at least one column. `weigh` gets the scores <u_b, m_index[b, k]>
    of each block once. Without `wants_sum` the sum is (B, 0). Raises IndexError for an index that is no row.
    """
    num_indices = sum(index.shape[1] for index in indices)
    is_cpu = rows.device.type == "cpu"
    block_bytes = CPU_BLOCK_BYTES_PER_THREAD * torch.get_num_threads() if is_cpu else DEVICE_BLOCK_BYTES
    block_size = max(1, block_bytes // (num_indices * rows.shape[1] * rows.element_size()))
    # A CSR pattern has at most as many entries as the matrix: for few samples with many negatives, rows are gathered.
    compute = _cpu_block if is_cpu and num_indices <= rows.shape[0] and reads_any_rows() else _gathered_block
    anchors = anchors.contiguous()
    results = []
    for first in range(0, len(anchors), block_size):
        block = slice(first, min(first + block_size, len(anchors)))
        index = torch.cat([columns[block] for columns in indices], dim=1)
        results.append(compute(anchors[block], rows, index, weigh, block, wants_sum))
    kept, sums = (torch.cat(columns) for columns in zip(*results, strict=True))
    return kept, sums


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchors: torch.Tensor, evaluate: Evaluate) -> tuple[torch.Tensor, torch.Tensor]:
        value, gradient, logged = evaluate(anchors, ctx.needs_input_grad[0])
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(logged)
        return value, logged

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, value_gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return value_gradient * gradient, None


def known_gradient(anchors: torch.Tensor, evaluate: Evaluate) -> tuple[torch.Tensor, torch.Tensor]:
    """The scalar of `evaluate`, differentiable by the anchors, and its numbers for the log, without gradient.

    Rows carry no gradient, so dL/du_b = sum_k (dL/ds_bk) m_k / T, and dL/ds is known as soon as s is: value and
    gradient come from one reading of the rows, and backward keeps (B, D) and not the (B, K, D) rows.
    """
    if not torch.is_grad_enabled():
        anchors = anchors.detach()  # otherwise `evaluate` would compute a gradient that is never used
    return cast("tuple[torch.Tensor, torch.Tensor]", _KnownGradient.apply(anchors, evaluate))


def _cpu_block(
    anchors: torch.Tensor, rows: torch.Tensor, index: torch.Tensor, weigh: Weigh, block: slice, wants_sum: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    weights, kept = weigh(_csr_scores(anchors, rows, index), block)
    if not wants_sum:
        return kept, anchors[:, :0]
    flat, starts = index.reshape(-1), torch.arange(0, index.numel(), index.shape[1])
    return kept, embedding_bag(flat, rows, starts, mode="sum", per_sample_weights=weights.reshape(-1))


def _gathered_block(
    anchors: torch.Tensor, rows: torch.Tensor, index: torch.Tensor, weigh: Weigh, block: slice, wants_sum: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    gathered = rows[index]
    weights, kept = weigh(torch.bmm(gathered, anchors[:, :, None])[:, :, 0], block)
    return kept, torch.bmm(weights[:, None], gathered)[:, 0] if wants_sum else anchors[:, :0]


def _csr_scores(anchors: torch.Tensor, rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The scores of `scan` for K <= N. Raises IndexError, because the kernel itself does not check its index."""
    least, largest = (int(value) for value in index.aminmax())
    if least < 0 or largest >= rows.shape[0]:
        raise IndexError(f"index from {least} to {largest}: the bank's rows are 0 to {rows.shape[0] - 1}")
    flat, ends = index.reshape(-1), torch.arange(0, index.numel() + 1, index.shape[1])
    shape = (len(anchors), rows.shape[0])
    pattern = torch.sparse_csr_tensor(ends, flat, rows.new_zeros(len(flat)), shape, check_invariants=False)
    torch.sparse.sampled_addmm(pattern, anchors, rows.T, beta=0.0, out=pattern)
    return pattern.values().view(index.shape)


@cache
def reads_any_rows() -> bool:
    """Whether the CSR kernel takes columns in any order and repeated, as negatives are; tried once per process.

    It does in every PyTorch that was tried (it computes each entry by itself), but the CSR format allows neither, so
    this tries it. PyTorch's warning at the first CSR tensor that their API may change is silenced here.
    """
    rows = (torch.arange(4 * 19.0) % 7).view(4, 19)  # small whole numbers: exact in any order
    index = torch.tensor([[3, 0, 3], [2, 1, 1]])
    kept: list[torch.Tensor] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def weigh(scores: torch.Tensor, block: slice) -> tuple[torch.Tensor, torch.Tensor]:
            kept.append(scores.clone())
            return index[block].float(), scores

        _, sums = _cpu_block(rows[1:3], rows, index, weigh, slice(0, 2), True)
    wrong = [] if torch.equal(kept[0], plain_scores(rows[1:3], rows, index)) else ["scores"]
    if not torch.equal(sums, torch.einsum("bk,bkd->bd", index.float(), rows[index])):
        wrong.append("sums")
    if wrong:
        warnings.warn(
            f"rows of banks are gathered: {wrong} of PyTorch's CSR and bag kernels are wrong here", stacklevel=2
        )
    return not wrong
