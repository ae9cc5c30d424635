"""Clusters as labels: their number, their cross-entropy, how evenly they are used, and how much they change."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import cross_entropy

from avssl.types import TooFewSamplesError

SAMPLES_PER_CLUSTER = 10  # at least so many in a fitted number of clusters


def check_num_clusters(option: str, num_clusters: int, num_samples: int) -> None:
    """Raise ValueError unless loss.`option` is from 2 to the number of samples."""
    if not 1 < num_clusters <= num_samples:
        raise (TooFewSamplesError if num_clusters > 1 else ValueError)(
            f"loss.{option} is {num_clusters} with {num_samples} samples: more clusters than samples cannot all be "
            f"used, and a single cluster teaches nothing; choose 2 to {num_samples}, or use more data"
        )


def fitted_num_clusters(option: str, num_clusters: int, num_samples: int) -> dict[str, int]:
    """{option: number} with SAMPLES_PER_CLUSTER samples a cluster, if there are fewer with `num_clusters`; else {}."""
    most = max(2, num_samples // SAMPLES_PER_CLUSTER)
    return {option: most} if num_clusters > most else {}


def cross_entropy_of_heads(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over heads and batch of the cross-entropy of logits (B, H, K) with labels int64 (B, H): float32 scalar."""
    return cross_entropy(logits.float().flatten(0, 1), labels.flatten())


@torch.no_grad()
def usage_entropy(usage: torch.Tensor) -> torch.Tensor:
    """Entropy of the use of K clusters, divided by log K: 1 if all are used alike, 0 if only one is (collapse).

    usage: (..., K) non-negative counts or probabilities of any scale, not all 0; K > 1. Returns float32 (...).
    """
    fraction = usage.double() / usage.double().sum(dim=-1, keepdim=True)
    entropy: torch.Tensor = torch.special.entr(fraction).sum(dim=-1)
    return (entropy / math.log(usage.shape[-1])).float()


@torch.no_grad()
def normalized_mutual_information(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """I(a; b) / sqrt(H(a) H(b)) of two labelings of the same samples: 1 if equal up to the names, 0 if unrelated.

    first, second: int64 (N,), labels >= 0. Returns a float32 scalar; 0 where a labeling has a single label.
    Caron et al. 2018 (arXiv 1807.05520) plot it between the assignments of consecutive epochs.

    >>> normalized_mutual_information(torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0])).item()
    1.0
    """
    num_samples = first.shape[0]

    def entropy(labels: torch.Tensor) -> torch.Tensor:
        fraction = torch.unique(labels, dim=-1, return_counts=True)[1].double() / num_samples
        result: torch.Tensor = torch.special.entr(fraction).sum()
        return result

    entropies = entropy(first), entropy(second)
    shared = entropies[0] + entropies[1] - entropy(torch.stack([first, second]))
    scale = (entropies[0] * entropies[1]).sqrt()
    return torch.where(scale > 0, shared.clamp_min(0) / scale.clamp_min(1e-300), torch.zeros_like(scale)).float()


def describe_labels(before: torch.Tensor, after: torch.Tensor, num_clusters: int) -> torch.Tensor:
    """How much of the old labels int64 (N, L) the new ones keep, and how evenly these use the clusters: float32 (2,).

    The first is the normalized mutual information of a column before and after, the second the usage entropy of the
    column after; both are means over the L columns.
    """
    information = [normalized_mutual_information(*pair) for pair in zip(before.T, after.T, strict=True)]
    entropies = [usage_entropy(torch.bincount(labels, minlength=num_clusters)) for labels in after.T]
    return torch.stack([torch.stack(information).mean(), torch.stack(entropies).mean()])
