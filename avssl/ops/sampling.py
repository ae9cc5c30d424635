"""Random indices for losses: drawn for the batch of all ranks and sliced, so that they do not depend on world size."""

from __future__ import annotations

import torch

from avssl.distributed import rank, world_size


def generator_for(seed: int, batch: int, device: torch.device) -> torch.Generator:
    """A generator whose stream depends only on the run's seed and the number of the micro-batch."""
    generator = torch.Generator(device=device)
    # Two integers into one seed: distinct for every batch below 2**31 and every 32-bit seed.
    return generator.manual_seed(((seed & 0xFFFF_FFFF) << 31) ^ batch)


def negatives_excluding(
    excluded: torch.Tensor,
    num_negatives: int,
    num_samples: int,
    generator: torch.Generator,
    first_row: int,
    num_rows_total: int,
) -> torch.Tensor:
    """Uniform indices in [0, num_samples), with replacement, that avoid each row's excluded ones.

    Args:
        excluded: int64 (B, E), distinct within a row, for this rank's rows.
        num_negatives: K >= 1.
        num_samples: N; must exceed E.
        generator: in the same state on every rank, see `generator_for`.
        first_row, num_rows_total: position of this rank's rows in the batch of all ranks, and the size of that batch.

    Returns:
        int64 (B, K).

    A draw r from the N - E allowed ranks becomes an index by skipping the excluded values below it: with excluded
    sorted ascending, e_j - j <= r counts exactly those.
    """
    rows, num_excluded = excluded.shape
    allowed = num_samples - num_excluded
    if allowed < 1:
        raise ValueError(
            f"no negatives to draw: {num_samples} samples less {num_excluded} excluded; "
            "use more samples or fewer positives"
        )
    draws = torch.randint(allowed, (num_rows_total, num_negatives), generator=generator, device=excluded.device)
    draws = draws[first_row : first_row + rows]
    if num_excluded == 1:
        return draws + (draws >= excluded)  # the same result without a search
    offsets = torch.arange(num_excluded, device=excluded.device)
    thresholds = (excluded.sort(dim=1).values - offsets).contiguous()
    return draws + torch.searchsorted(thresholds, draws.contiguous(), right=True)


def check_negatives(num_negatives: int, num_samples: int) -> None:
    """Raise ValueError unless num_negatives >= 1 and there is a sample besides the anchor's own."""
    if num_negatives < 1:
        raise ValueError(f"loss.num_negatives is {num_negatives}; each sample is compared with at least 1 other")
    if num_samples < 2:
        raise ValueError(
            f"the data set has {num_samples} samples with an index, and negatives are other samples; read shards of at "
            "least 2, written by `avssl prep write`"
        )


def draw_negatives(
    excluded: torch.Tensor, num_negatives: int, num_samples: int, seed: int, batch: int, *, for_all_ranks: bool = False
) -> torch.Tensor:
    """As `negatives_excluding`, for this rank's rows of micro-batch number `batch`; the same for any world size.

    for_all_ranks: `excluded` (W B, E) holds the gathered rows of all ranks, and so does the result (W B, K).
    """
    generator = generator_for(seed, batch, excluded.device)
    rows = excluded.shape[0]
    if for_all_ranks:
        return negatives_excluding(excluded, num_negatives, num_samples, generator, 0, rows)
    return negatives_excluding(excluded, num_negatives, num_samples, generator, rank() * rows, world_size() * rows)
