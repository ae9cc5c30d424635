"""Noise-contrastive estimation with a constant partition function (NPID, PIRL, AVID).

Scores s = <u, m> / T. The noise is uniform over the N samples and the model is exp(s) / Z, so with
E = Z / N, the mean of exp(s), the number of samples drops out:

    h(s) = exp(s) / (exp(s) + K E)        probability that a score belongs to the data, not to the noise
    L    = -mean_p log h(s+_p) - sum_k log(1 - h(s-_k))

The sum over the K negatives is not a mean: a mean would make their term K times too weak.
Source: Wu et al. 2018 (arXiv 1805.01978), eq. 4 to 8; Morgado et al. 2020 (arXiv 2004.12943), eq. 1.
"""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from avssl.distributed import all_mean
from avssl.ops.memory import MemoryBank


def nce_terms(
    positive_scores: torch.Tensor, negative_scores: torch.Tensor, partition: torch.Tensor | float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two terms of the loss for each anchor.

    Args:
        positive_scores: (B, P), already divided by the temperature; any float dtype.
        negative_scores: (B, K), likewise.
        partition: E, the mean exponentiated score of a random pair; scalar > 0.

    Returns:
        positive (B,): mean over the P positives of -log h; negative (B,): sum over the K negatives of -log(1 - h).
        Both float32, by softplus, hence finite for any finite score.
    """
    num_negatives = negative_scores.shape[-1]
    constant = torch.as_tensor(partition, dtype=torch.float32, device=positive_scores.device)
    log_noise = torch.log(constant * num_negatives)
    positive = softplus(log_noise - positive_scores.float()).mean(dim=-1)
    negative = softplus(negative_scores.float() - log_noise).sum(dim=-1)
    return positive, negative


def nce(positive_scores: torch.Tensor, negative_scores: torch.Tensor, partition: torch.Tensor | float) -> torch.Tensor:
    """Mean NCE loss of a batch: scalar float32. See `nce_terms` for the arguments."""
    positive, negative = nce_terms(positive_scores, negative_scores, partition)
    return (positive + negative).mean()


def unmeasured_partition() -> torch.Tensor:
    """The start value of a loss's buffer for E: below zero until `latch_partition` has measured it."""
    return torch.tensor(-1.0)


@torch.no_grad()
def latch_partition(partition: torch.Tensor, negative_scores: torch.Tensor) -> None:
    """Measure E once, from the first negatives (B, K) ever scored on all ranks; a value that is there stays."""
    estimate = all_mean(negative_scores.detach().float().exp().mean())
    partition.copy_(torch.where(partition > 0, partition, estimate))


def bank_nce(
    anchors: torch.Tensor,
    bank: MemoryBank,
    positives: torch.Tensor,
    negatives: torch.Tensor,
    temperature: float,
    partition: torch.Tensor,
    *,
    measure: bool,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """NCE of anchors against rows of a memory bank.

    Args:
        anchors: (B, D) unit embeddings with gradient; any float dtype.
        bank: rows by sample; they carry no gradient.
        positives, negatives: int64 (B, P) and (B, K), rows of the bank.
        temperature: > 0.
        partition: the loss's buffer for E, (); written when `measure` and it holds no value yet.
        measure: True in a run's first micro-batch.

    Returns the mean over the B anchors, scalar float32, and detached scalars for the log: "" the loss itself,
    "_positive_score" and "_negative_score" the mean cosines.
    """

    def scores(index: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bd,bkd->bk", anchors.float(), bank.gather_rows(index)) / temperature

    positive_scores, negative_scores = scores(positives), scores(negatives)
    if measure:
        latch_partition(partition, negative_scores)
    total = nce(positive_scores, negative_scores, partition)
    terms = {
        "": total.detach(),
        "_positive_score": positive_scores.detach().mean() * temperature,
        "_negative_score": negative_scores.detach().mean() * temperature,
    }
    return total, terms
