"""A loss of your own in the recipe: python -m examples.own_loss data.shards=shards/ run=runs/mine

Alignment and uniformity (Wang & Isola 2020, arXiv 2005.10242), which no file of avssl/losses has.
"""

import sys

import torch
from torch.nn.functional import normalize

from avssl import config
from avssl.distributed import gather_with_grad
from avssl.losses import LossOutput, PairConfig, PairLoss, register
from avssl.models import mlp
from recipes import pretrain


@register("align_uniform")
class AlignUniform(PairLoss):
    Config = PairConfig  # a subclass of it (a dataclass) may add keys
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
        return LossOutput(alignment + uniformity, {"alignment": alignment.detach(), "uniformity": uniformity.detach()})


if __name__ == "__main__":
    sys.exit(pretrain.main(config.load(config.RunConfig, ["loss.name=align_uniform", *sys.argv[1:]])))
