"""A loss of your own, alignment and uniformity (Wang & Isola 2020, arXiv 2005.10242), which avssl does not have:

avssl pretrain --plugin own_loss.py loss.name=align_uniform loss.uniformity_weight=0.5 data.shards=shards/ run=runs/mine
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from avssl.distributed import gather_with_grad
from avssl.losses import LossOutput, PairConfig, PairLoss, register
from avssl.models import mlp


@dataclass
class AlignUniformConfig(PairConfig):
    uniformity_weight: float = 1.0  # keys of loss.* besides those of PairConfig


@register("align_uniform")
class AlignUniform(PairLoss):
    Config = AlignUniformConfig
    augments = ("simclr", "simclr")  # of `views.augments`, for images

    def __init__(self, config, encoders, num_samples):
        super().__init__(config, encoders, num_samples)
        for modality in encoders:
            self.projectors[modality] = mlp((self.feature_dim(modality), 64))

    def forward(self, views):
        return self.project_together(views)  # {"first": (B, 64), "second": (B, 64)}

    def loss(self, outputs, index, progress):
        first, second = (normalize(gather_with_grad(outputs[name]).float(), dim=1) for name in ("first", "second"))
        alignment = (first - second).square().sum(dim=1).mean()
        uniformity = sum(torch.pdist(z).square().mul(-2).exp().mean().log() / 2 for z in (first, second))
        terms = {"alignment": alignment.detach(), "uniformity": uniformity.detach()}
        return LossOutput(alignment + self.config.uniformity_weight * uniformity, terms)
