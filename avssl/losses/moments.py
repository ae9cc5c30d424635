"""Other moments of a clip as negatives across modalities: so that video and audio are matched in time, too.

Clips of other samples differ in content, and to tell them apart a network needs no sense of time. Other moments of the
same sample differ in nothing else: each clip comes with n other pairs of frames and their audio, and the moments of one
clip are each other's negatives, in both directions (Korbar, Tran, Torresani 2018, arXiv 1807.00230, train on such
pairs, with a margin loss). All moments of a modality pass through its network together, so that no batch norm can tell
them by their statistics. Frames at one moment and audio at several were not enough in short trainings
(docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch.nn.functional import cross_entropy, normalize

from avssl.types import View


def moment_views(pair: Sequence[View], num_negatives: int) -> tuple[View, ...]:
    """n views of other moments for each view of a pair. ValueError for n < 0, or n > 0 without video and audio."""
    modalities = tuple(view.modality for view in pair)
    if num_negatives < 0 or (num_negatives and modalities != ("video", "audio")):
        raise ValueError(
            f"loss.num_negatives_same_clip is {num_negatives} with loss.modalities [{', '.join(modalities)}]; it is a "
            "number of moments, 0 or more, and above 0 only for [video, audio]"
        )
    return tuple(
        replace(view, name=f"{view.name}_other_{number}", clip=number, other_moment=True)
        for number in range(1, num_negatives + 1)
        for view in pair
    )


def moments_name(name: str) -> str:
    """The output (B, n, D) with the embeddings of other moments of a view."""
    return f"{name}_moments"


def with_moments(views: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """A view (B, ...) and those of its other moments as one batch (B (1 + n), ...), sample by sample."""
    others = [key for key in views if key.startswith(f"{name}_other_")]
    others.sort(key=lambda key: int(key.rpartition("_")[2]))
    return torch.stack([views[name], *(views[key] for key in others)], dim=1).flatten(0, 1)


def split_moments(rows: torch.Tensor, num_negatives: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (B (1 + n), D) of `with_moments` -> those of the view itself (B, D), of the other moments (B, n, D)."""
    own, others = rows.unflatten(0, (-1, 1 + num_negatives)).split([1, num_negatives], dim=1)
    return own.squeeze(1), others


def all_moments(outputs: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """Embeddings of a view and of its other moments, (B, 1 + n, D)."""
    return torch.cat([outputs[name][:, None], outputs[moments_name(name)]], dim=1)


def moment_scores(anchors: torch.Tensor, others: torch.Tensor, temperature: torch.Tensor | float) -> torch.Tensor:
    """Cosines of anchors (B, D) with their own other moments (B, n, D), divided by the temperature: float32 (B, n)."""
    anchors, others = normalize(anchors.float(), dim=1), normalize(others.float(), dim=2)
    return (others @ anchors[:, :, None]).squeeze(2) / temperature


def moment_cross_entropy(video: torch.Tensor, audio: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross-entropy of each moment's video among the m moments of its clip's audio, and of its audio among the videos.

    Args:
        video, audio: (B, m, D) embeddings of the moments of B clips; need not be normalized; any float.
        temperature: > 0.

    Returns the mean over clips, moments and both directions, a float32 scalar.

    >>> z = torch.eye(4).expand(2, 4, 4)
    >>> moment_cross_entropy(z, z, temperature=0.1).item() < 1e-3 < moment_cross_entropy(z, z.flip(1), 0.1).item()
    True
    """
    video, audio = normalize(video.float(), dim=2), normalize(audio.float(), dim=2)
    scores = video @ audio.mT / temperature
    partner = torch.arange(scores.shape[1], device=scores.device).repeat(len(scores))
    return (cross_entropy(scores.flatten(0, 1), partner) + cross_entropy(scores.mT.flatten(0, 1), partner)) / 2
