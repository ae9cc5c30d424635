"""CLIP's contrast with a frozen text encoder: samples are drawn to the text of their captions.

Radford et al. 2021 (arXiv 2103.00020) train an image encoder and a text encoder together; here the text encoder is a
public one whose weights stay (a locked tower, as Zhai et al. 2022, arXiv 2111.07991, lock theirs), so that its rows are
computed once. For a modality with unit embeddings z, unit rows t of the captions and a learned scale s = 1 / T:

    L(z, t) = 1/2 mean_i ( -log exp(s z_i t_i) / sum_{j in C_i} exp(s z_i t_j)
                           -log exp(s t_i z_i) / sum_{j in C_i} exp(s t_i z_j) )

C_i holds i and the samples whose captions are other texts than that of i: where two samples of a batch have one
caption, neither is a negative of the other, because nothing in the text says which is which. The batch is that of all
ranks. Samples without a caption take no part in it (`without_caption`, which refuses them by default).

With two modalities the loss is L(video, text) + L(audio, text) + across_weight L(video, audio), the last as in SimCLR
across modalities (simclr.py), over all samples: video, audio and text then share one space, and a sample's own sound is
told from those with the same caption. As published, s is learned through its logarithm, begins with 1 / 0.07, is at
most 100, and does not decay. The text of one head serves all modalities: for a model with one head per modality, that
of the first of `modalities` that it has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from avssl.distributed import gather, gather_with_grad
from avssl.losses.base import Outputs, PairLoss
from avssl.losses.configs import CLIPFrozenTextConfig
from avssl.losses.registry import register
from avssl.losses.simclr import two_way_cross_entropy
from avssl.models.heads import mlp
from avssl.types import CaptionRows, LossConfig, LossOutput, Modality, Progress

MAX_SCALE = 100.0


def caption_contrast(
    z: torch.Tensor, text: torch.Tensor, captions: torch.Tensor, scale: torch.Tensor | float
) -> torch.Tensor:
    """The two-way cross-entropy of samples against their captions; equal captions are no negatives of each other.

    Args:
        z: (B, D) embeddings of samples, any float; need not be normalized. text: (B, D) of their captions, likewise.
        captions: int64 (B,), equal where two samples have the same caption; -1 for a sample without one, which takes no
            part, whatever its text is.
        scale: of the cosines, > 0.

    Returns a float32 scalar: the mean over the samples with captions and both directions; 0 if there are none.

    >>> z = torch.eye(3)
    >>> caption_contrast(z, z, torch.arange(3), scale=20.0).item() < 1e-3
    True
    >>> caption_contrast(z[:2], z[1:], torch.tensor([5, 5]), scale=20.0).item()  # one caption: nothing to tell apart
    0.0
    """
    scores = scale * (normalize(z.float(), dim=1) @ normalize(text.float(), dim=1).T)
    target = torch.arange(len(scores), device=scores.device)
    takes_part = captions >= 0
    others = (captions[:, None] != captions[None, :]) & takes_part[:, None] & takes_part[None, :]
    scores = scores.masked_fill(~others.fill_diagonal_(True), -torch.inf)
    both = cross_entropy(scores, target, reduction="none") + cross_entropy(scores.T, target, reduction="none")
    return (both * takes_part).sum() / (2 * takes_part.sum().clamp(min=1))


@register("clip_frozen_text")
class CLIPFrozenText(PairLoss):
    """Contrast with frozen text embeddings, and across modalities. State: rows of the captions, in no checkpoint.

    >>> encoders = {"image": create_encoder("resnet10", width=8)}
    >>> config = CLIPFrozenText.Config(modalities=("image",), text_encoder={"name": "hf/ORG/NAME", "dim": 16})
    >>> loss = CLIPFrozenText(config, encoders, num_samples=8)
    >>> loss.take_captions(CaptionRows(torch.eye(16)[:5], torch.tensor([0, 1, 2, 3, 4, 0, 1, -1])))
    >>> outputs = loss({"first": torch.rand(4, 3, 32, 32)})
    >>> loss.loss(outputs, torch.arange(4), Progress()).total.item() < torch.inf
    True
    """

    Config: ClassVar[type[LossConfig]] = CLIPFrozenTextConfig
    family: ClassVar[str] = "contrastive, with text"
    paper: ClassVar[str] = "Radford et al. 2021, arXiv 2103.00020; frozen tower: Zhai et al. 2022, arXiv 2111.07991"
    state: ClassVar[str] = "rows of the captions, kept in a file of their own"
    pairs: ClassVar[tuple[tuple[Modality, ...], ...]] = (("image",), ("video",), ("audio",), ("video", "audio"))
    augments: ClassVar[tuple[str, str]] = ("deepcluster", "deepcluster")  # of images: crop and flip
    min_global_batch_size: ClassVar[int] = 2
    text_rows: torch.Tensor
    caption_numbers: torch.Tensor

    def __init__(self, config: CLIPFrozenTextConfig, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__(config, encoders, num_samples)
        self.config: CLIPFrozenTextConfig = config
        dim = int(config.text_encoder.get("dim", 0))
        if dim < 1:
            raise ValueError(
                "loss.text_encoder has no dim; a run finds it out: add loss.text_encoder.name=hf/ORG/NAME, or "
                "hf/FOLDER, of a public model that reads text"
            )
        if not config.temperature >= 1 / MAX_SCALE:
            raise ValueError(f"loss.temperature is {config.temperature}; it must be at least {1 / MAX_SCALE}")
        if config.across_weight < 0:
            raise ValueError(f"loss.across_weight is {config.across_weight}; it must be at least 0")
        for modality in encoders:
            self.projectors[modality] = mlp((self.feature_dim(modality), *config.projector_hidden_dims, dim))
        log_scale = torch.tensor(-math.log(config.temperature))
        self.log_scale = nn.Parameter(log_scale, requires_grad=config.learn_temperature)

    def forward(self, views: dict[str, torch.Tensor]) -> Outputs:
        """Unit embeddings {view: (B, D)}, and the logarithm of the scale, (), which gets its gradient here."""
        embedded = {name: normalize(self.project(name, view).float(), dim=1) for name, view in views.items()}
        return embedded | {"log_scale": self.log_scale.clone()}

    def take_captions(self, captions: CaptionRows) -> None:
        """Keep the rows beside the weights, on their device: 4 D bytes for each distinct caption."""
        dim, expected = captions.rows.shape[1], int(self.config.text_encoder["dim"])
        if dim != expected:
            raise ValueError(f"the rows of the captions have {dim} dims; loss.text_encoder says {expected}")
        self.register_buffer("text_rows", captions.rows, persistent=False)
        self.register_buffer("caption_numbers", captions.numbers, persistent=False)

    def loss(self, outputs: Outputs, index: torch.Tensor, progress: Progress) -> LossOutput:  # noqa: ARG002
        """The loss of the batch of all ranks, computed on every rank; terms by what is compared."""
        if not hasattr(self, "text_rows"):
            raise RuntimeError("the loss has no captions yet; give them with take_captions")
        z = {modality: gather_with_grad(outputs[name]) for name, modality in self.modality_of.items()}
        scale = outputs["log_scale"].exp()
        captions = self.caption_numbers[gather(index)]
        text = self.text_rows[captions.clamp(min=0)]
        parts = {f"{modality}_text": caption_contrast(z[modality], text, captions, scale) for modality in z}
        total = torch.stack(list(parts.values())).sum()
        if len(z) == 2 and self.config.across_weight:
            parts["video_audio"] = two_way_cross_entropy(z["video"], z["audio"], 1 / scale)
            total = total + self.config.across_weight * parts["video_audio"]
        terms = {name: part.detach() for name, part in parts.items()}
        share = (captions >= 0).float().mean()
        return LossOutput(total, terms | {"temperature": 1 / scale.detach(), "captioned_share": share})

    def after_step(self, progress: Progress) -> None:  # noqa: ARG002
        """Keep the scale at most 100, as published."""
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(MAX_SCALE))

    def param_groups(self) -> list[dict[str, object]]:
        """The scale does not decay."""
        others = [one for one in self.parameters() if one.requires_grad and one is not self.log_scale]
        scale = [{"params": [self.log_scale], "weight_decay": 0.0}] if self.log_scale.requires_grad else []
        return [{"params": others}, *scale]
