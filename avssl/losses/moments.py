"""Other moments of a clip as negatives across modalities: so that video and audio are matched in time, too.

Clips of other samples differ in content, and to tell them apart a network needs no sense of time. The audio of the same
sample at another moment differs in nothing else: its n other moments are negatives of the frames (Korbar, Tran,
Torresani 2018, arXiv 1807.00230, train on such pairs, with a margin loss). They pass through the audio network
together with the pair's own audio, so that no batch norm can tell them by their statistics. Only audio is cut
elsewhere, for its networks are the cheaper ones; audio anchors have no such negatives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn.functional import cross_entropy, normalize

from avssl.types import View

MOMENTS = "other_moments"  # the output with their embeddings, (B, n, D)


def moment_views(num_negatives: int, modalities: Sequence[str], augment: str = "train") -> tuple[View, ...]:
    """The audio views of other moments. ValueError for a negative number, and unless modalities are video and audio."""
    if num_negatives < 0 or (num_negatives and tuple(modalities) != ("video", "audio")):
        raise ValueError(
            f"loss.num_negatives_same_clip is {num_negatives} with loss.modalities [{', '.join(modalities)}]; it is a "
            "number of moments, 0 or more, and above 0 only for [video, audio]"
        )
    return tuple(
        View(f"other_{number}", "audio", augment, clip=number, other_moment=True)
        for number in range(1, num_negatives + 1)
    )


def with_moments(views: Mapping[str, torch.Tensor], audio: str) -> torch.Tensor:
    """The view `audio` (B, ...) and those of its other moments as one batch (B (1 + n), ...), sample by sample."""
    others = sorted((name for name in views if name.startswith("other_")), key=lambda name: int(name.split("_")[1]))
    return torch.stack([views[audio], *(views[name] for name in others)], dim=1).flatten(0, 1)


def split_moments(rows: torch.Tensor, num_negatives: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (B (1 + n), D) of `with_moments` -> those of the pairs (B, D), of the other moments (B, n, D)."""
    pairs, others = rows.unflatten(0, (-1, 1 + num_negatives)).split([1, num_negatives], dim=1)
    return pairs.squeeze(1), others


def moment_scores(anchors: torch.Tensor, others: torch.Tensor, temperature: torch.Tensor | float) -> torch.Tensor:
    """Cosines of anchors (B, D) with their own other moments (B, n, D), divided by the temperature: float32 (B, n)."""
    anchors, others = normalize(anchors.float(), dim=1), normalize(others.float(), dim=2)
    return (others @ anchors[:, :, None]).squeeze(2) / temperature


def moment_cross_entropy(
    video: torch.Tensor, audio: torch.Tensor, others: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Cross-entropy of each video's own moment among the n + 1 moments of its clip's audio: the mean over the B videos.

    Args:
        video, audio: (B, D) embeddings of the pairs; need not be normalized; any float. others: (B, n, D).
        temperature: > 0.

    Returns a float32 scalar.

    >>> z = torch.eye(4)
    >>> moment_cross_entropy(z, z, z.flip(0)[:, None], temperature=0.1).item() < 1e-3
    True
    """
    scores = moment_scores(video, torch.cat([audio[:, None], others], dim=1), temperature)
    return cross_entropy(scores, torch.zeros(len(scores), dtype=torch.int64, device=scores.device))
