"""NCE against a bank whose rows are split over the ranks: anchors are sent between ranks, rows are not.

With a partition constant NCE is a sum over rows, so each rank can add up the contributions of its own rows to the loss
and to the gradient of every anchor of the batch:

    all ranks get all anchors (W B, D); each sums over its own rows; each gets back the W sums (B, D + 3) of its anchors

The negatives are those of replicated banks, drawn once for the whole batch and known on all ranks, so the value is that
of replicated banks up to the order of a sum. The bytes per rank and direction do not depend on K: 4 W B D sent and
received for the anchors, 4 W B (D + 3) for the sums.
"""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from avssl.distributed import all_sum, exchange_sum, gather
from avssl.ops.bank_scores import known_gradient, scan
from avssl.ops.sharded_memory import ShardedMemoryBank

POSITIVE, NEGATIVE = 1, 2


def own_columns(
    bank: ShardedMemoryBank, positives: torch.Tensor, negatives: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows on this rank that each anchor is compared with: (index, kind), both (W B, C).

    C is the largest number of them for an anchor. index counts from this rank's first row; kind is POSITIVE, NEGATIVE,
    or 0 where an anchor has fewer than C.
    """
    index = torch.cat([positives, negatives], dim=1)
    kind = torch.full_like(index, NEGATIVE, dtype=torch.int8)
    kind[:, : positives.shape[1]] = POSITIVE
    is_local = (index >= bank.first) & (index < bank.last)
    kind = kind * is_local
    columns = max(1, int(is_local.sum(dim=1).max()))
    order = (~is_local).to(torch.int8).sort(dim=1, stable=True).indices[:, :columns]
    kind = kind.gather(1, order)
    return torch.where(kind > 0, index.gather(1, order) - bank.first, 0), kind


def sharded_nce(
    anchors: torch.Tensor,
    bank: ShardedMemoryBank,
    positives: torch.Tensor,
    negatives: torch.Tensor,
    temperature: float,
    partition: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `rows_nce` for this rank's anchors (B, D), with the positives (W B, P) and negatives (W B, K) of all ranks."""
    num_positives, num_negatives = positives.shape[1], negatives.shape[1]
    log_noise = torch.log(partition * num_negatives)
    index, kind = own_columns(bank, positives, negatives)

    def weigh(products: torch.Tensor, block: slice) -> tuple[torch.Tensor, torch.Tensor]:
        scores = products / temperature
        above = scores - log_noise
        is_positive, is_negative = kind[block] == POSITIVE, kind[block] == NEGATIVE
        losses = is_positive * softplus(-above) / num_positives + is_negative * softplus(above)
        slopes = is_negative * torch.sigmoid(above) - is_positive * torch.sigmoid(-above) / num_positives
        sums = [losses.sum(1), (is_positive * scores).sum(1), (is_negative * scores).sum(1)]
        return slopes, torch.stack(sums, dim=1)

    def evaluate(anchors: torch.Tensor, wants_gradient: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        kept, gradients = scan(gather(anchors), bank.rows, (index,), weigh, wants_sum=wants_gradient)
        sums = exchange_sum(torch.cat([gradients, kept], dim=1))
        dim = gradients.shape[1]
        value, positive, negative = sums[:, dim:].mean(dim=0)
        means = torch.stack([positive / num_positives, negative / num_negatives])
        return value, sums[:, :dim] / (temperature * len(anchors)), means

    return known_gradient(anchors, evaluate)


@torch.no_grad()
def sharded_mean_exponential(
    anchors: torch.Tensor, bank: ShardedMemoryBank, negatives: torch.Tensor, temperature: float
) -> torch.Tensor:
    """As `mean_exponential`, over the batch of all ranks: negatives (W B, K)."""
    index, kind = own_columns(bank, negatives[:, :0], negatives)

    def weigh(products: torch.Tensor, block: slice) -> tuple[torch.Tensor, torch.Tensor]:
        exponentials = (kind[block] == NEGATIVE) * (products / temperature).exp()
        return products, exponentials.sum(dim=1, keepdim=True)

    sums, _ = scan(gather(anchors), bank.rows, (index,), weigh, wants_sum=False)
    return all_sum(sums.sum()) / negatives.numel()
