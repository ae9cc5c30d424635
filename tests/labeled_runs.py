"""What tests of training on labels share: an embedder without a run, encoders of a few weights, batches in memory."""

import torch
from torch import nn

from avssl import config, losses
from avssl.embedding.embedder import Embedder
from avssl.eval.finetune.training import Stage
from avssl.models import create_encoder
from avssl.optim.config import OptimConfig
from avssl.transforms.view_maker import ViewMaker
from avssl.types import Batch
from tests.conftest import TINY

PLAIN = OptimConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.0)


def tiny_embedder(*changes):
    """An untrained AVID run of tests/conftest.py's sizes, in memory."""
    return embedder_of("loss.name=avid", *TINY, *changes)


def image_embedder():
    return embedder_of("loss.name=simclr", "encoders.image={name: resnet10, width: 4}", "views.image.size_px=32")


def embedder_of(*changes):
    cfg = config.parse(config.RunConfig, list(changes))
    loss_class = losses.get(cfg.loss.name)
    modalities = loss_class.modalities(cfg.loss)
    torch.manual_seed(cfg.seed)
    loss = loss_class(cfg.loss, {one: create_encoder(**cfg.encoders[one]) for one in modalities}, 18)
    views = ViewMaker(cfg.views, modalities)
    if "audio" in modalities:  # as if measured
        views.normalize_audio.mean.fill_(-40.0)
        views.normalize_audio.std.fill_(20.0)
    return Embedder(cfg, loss, views, "cpu", "made")


class NormEncoder(nn.Module):
    """A layer and a batch norm on vectors (B, 6)."""

    modality = "video"

    def __init__(self, dim=5, norm=True):
        super().__init__()
        self.dim = dim
        self.layer = nn.Linear(6, dim)
        self.norm = nn.BatchNorm1d(dim) if norm else nn.Identity()

    def forward(self, x):
        return torch.tanh(self.norm(self.layer(x)))


class MemoryLoader:
    """Batches of stored vectors (N, 6), another order in every pass; raises before step `stop_at`, as a kill would."""

    def __init__(self, vectors, batch_size, stop_at=None):
        self.vectors, self.batch_size, self.stop_at = vectors, batch_size, stop_at
        self.steps_per_epoch = len(vectors) // batch_size

    def epoch(self, epoch, first_batch=0):
        order = torch.randperm(len(self.vectors), generator=torch.Generator().manual_seed(epoch))
        for number in range(first_batch, self.steps_per_epoch):
            if self.stop_at == epoch * self.steps_per_epoch + number:
                raise KeyboardInterrupt
            index = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield Batch({"video": self.vectors[index]}, index)


def stage(num_steps, encoders, batch_norm="train", optim=PLAIN, **more):
    return Stage(num_steps, optim, encoders, batch_norm, **more)


def vectors(count=24, seed=0):
    """float32 (count, 6) whose class is the sign of a mixture, and class numbers int64 (count,) in 0..2."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator) * 3 + 1
    return x, torch.arange(count) % 3


def state_of(module: nn.Module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal_states(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
