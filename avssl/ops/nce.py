"""Noise-contrastive estimation with a constant partition function (NPID, PIRL, AVID).

Scores are s = <u, m> / T. The noise is uniform over the N samples and the model is exp(s) / Z, so with
E = Z / N, the mean of exp(s), the number of samples cancels:

    h(s) = exp(s) / (exp(s) + K E)        probability that a score belongs to the data, not to the noise
    L    = -mean_p log h(s+_p) - sum_k log(1 - h(s-_k))

The negatives' term is a sum and not a mean, which would make it K times too weak.
Source: Wu et al. 2018 (arXiv 1805.01978), eq. 4 to 8; Morgado et al. 2020 (arXiv 2004.12943), eq. 1.
"""

from __future__ import annotations

from typing import cast

import torch
from torch.nn.functional import softplus

from avssl.distributed import all_mean
from avssl.ops.bank_scores import known_gradient, plain_scores, scan
from avssl.ops.sharded_memory import AnyBank, ShardedMemoryBank
from avssl.ops.sharded_nce import sharded_mean_exponential, sharded_nce


def nce_terms(
    positive_scores: torch.Tensor, negative_scores: torch.Tensor, partition: torch.Tensor | float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two terms of the loss of each anchor.

    Args:
        positive_scores: (B, P), already divided by the temperature; any float dtype.
        negative_scores: (B, K), likewise.
        partition: E, the mean exponentiated score of a random pair; scalar > 0.

    Returns:
        positive (B,): mean over the P positives of -log h; negative (B,): sum over the K negatives of -log(1 - h).
        Both float32 (float64 for scores in float64), by softplus, hence finite for any finite score.
    """
    num_negatives = negative_scores.shape[-1]
    dtype = torch.promote_types(negative_scores.dtype, torch.float32)
    constant = torch.as_tensor(partition, dtype=dtype, device=positive_scores.device)
    log_noise = torch.log(constant * num_negatives)
    positive = softplus(log_noise - positive_scores.to(dtype)).mean(dim=-1)
    negative = softplus(negative_scores.to(dtype) - log_noise).sum(dim=-1)
    return positive, negative


def nce(positive_scores: torch.Tensor, negative_scores: torch.Tensor, partition: torch.Tensor | float) -> torch.Tensor:
    """Mean NCE loss of a batch, a scalar. See `nce_terms` for the arguments.

    >>> positive, negatives = torch.tensor([5.0]), torch.tensor([[-5.0, -5.0]])
    >>> nce(positive, negatives, partition=1.0).item() < nce(-positive, -negatives, partition=1.0).item()
    True
    """
    positive, negative = nce_terms(positive_scores, negative_scores, partition)
    return (positive + negative).mean()


def initial_partition() -> torch.Tensor:
    """The start value of a loss's buffer for E: below 0, until `latch_partition` writes the estimate."""
    return torch.tensor(-1.0)


@torch.no_grad()
def latch_partition(partition: torch.Tensor, estimate: torch.Tensor) -> None:
    """Write the mean over ranks of `estimate` into E, unless E already holds a value."""
    partition.copy_(torch.where(partition > 0, partition, all_mean(estimate.to(partition.dtype))))


def mean_exponential(
    anchors: torch.Tensor, rows: torch.Tensor, negatives: torch.Tensor, temperature: float
) -> torch.Tensor:
    """E estimated from these negatives int64 (B, K): the mean of exp(score), a scalar."""

    def weigh(products: torch.Tensor, block: slice) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG001
        return products, (products / temperature).exp().mean(dim=1, keepdim=True)

    return scan(anchors, rows, (negatives,), weigh, wants_sum=False)[0].mean()


def nce_sums(scores: torch.Tensor, num_positives: int, partition: torch.Tensor) -> torch.Tensor:
    """Loss, sum of the P positive scores and sum of the K negative ones of scores (B, P + K): (B, 3)."""
    positive, negative = scores[:, :num_positives], scores[:, num_positives:]
    loss = sum(nce_terms(positive, negative, partition))
    return torch.stack([cast("torch.Tensor", loss), positive.sum(dim=1), negative.sum(dim=1)], dim=1)


def nce_slopes(scores: torch.Tensor, num_positives: int, partition: torch.Tensor) -> torch.Tensor:
    """dL/ds (B, P + K) of the anchors' losses: sigmoid(s - log K E), and -sigmoid(log K E - s) / P for positives."""
    log_noise = torch.log(partition.to(scores.dtype) * (scores.shape[1] - num_positives))
    above = scores - log_noise
    slopes = torch.sigmoid(above)
    slopes[:, :num_positives] = -torch.sigmoid(-above[:, :num_positives]) / num_positives
    return slopes


def rows_nce(
    anchors: torch.Tensor,
    rows: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor,
    temperature: float,
    partition: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean NCE of anchors (B, D) against rows (N, D) by index: positives (B, P) and negatives (B, K), int64.

    Returns the loss, a scalar with a gradient for the anchors, and the mean scores of positives and negatives (2,),
    without gradient. torch.compile gets the plain form, whose gather and product it fuses into one loop.
    """
    if torch.compiler.is_compiling():
        return plain_rows_nce(anchors, rows, positives, negatives, temperature, partition)
    num_positives, num_negatives = positives.shape[1], negatives.shape[1]

    def weigh(products: torch.Tensor, block: slice) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG001
        scores = products / temperature
        return nce_slopes(scores, num_positives, partition), nce_sums(scores, num_positives, partition)

    def evaluate(anchors: torch.Tensor, wants_gradient: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        kept, gradients = scan(anchors, rows, (positives, negatives), weigh, wants_sum=wants_gradient)
        value, *sums = kept.mean(dim=0)
        means = torch.stack([sums[0] / num_positives, sums[1] / num_negatives])
        return value, gradients / (temperature * len(anchors)), means

    return known_gradient(anchors, evaluate)


def plain_rows_nce(
    anchors: torch.Tensor,
    rows: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor,
    temperature: float,
    partition: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `rows_nce`, written plainly, with (B, P + K, D) of memory: the reference."""
    positive = plain_scores(anchors, rows, positives) / temperature
    negative = plain_scores(anchors, rows, negatives) / temperature
    return nce(positive, negative, partition), torch.stack([positive.mean(), negative.mean()]).detach()


def bank_nce(
    anchors: torch.Tensor,
    bank: AnyBank,
    positives: torch.Tensor,
    negatives: torch.Tensor,
    temperature: float,
    partition: torch.Tensor,
    *,
    measure: bool,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """NCE of anchors against rows of a memory bank; each row is read once per step and none is kept.

    Args:
        anchors: (B, D) unit embeddings with gradient; any float dtype.
        bank: a row per sample; rows carry no gradient.
        positives, negatives: int64 (B, P) and (B, K), rows of the bank; for a sharded bank those of all ranks' anchors,
            (W B, P) and (W B, K), the same on all ranks.
        temperature: > 0.
        partition: the loss's buffer for E, (); written if `measure` is set and it holds no value yet.
        measure: True in a run's first micro-batch.

    Returns the mean over the B anchors, a float32 scalar, and detached scalars for the log: "" the loss itself,
    "_positive_score" and "_negative_score" the mean cosines.
    """
    anchors = anchors.to(bank.rows.dtype)
    if isinstance(bank, ShardedMemoryBank):
        if measure:
            latch_partition(partition, sharded_mean_exponential(anchors.detach(), bank, negatives, temperature))
        total, means = sharded_nce(anchors, bank, positives, negatives, temperature, partition)
    else:
        if measure:
            latch_partition(partition, mean_exponential(anchors.detach(), bank.rows, negatives, temperature))
        total, means = rows_nce(anchors, bank.rows, positives, negatives, temperature, partition)
    positive_score, negative_score = means * temperature
    terms = {"": total.detach(), "_positive_score": positive_score, "_negative_score": negative_score}
    return total, terms
