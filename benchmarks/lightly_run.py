"""One run of benchmarks/learn_images.py with lightly's heads and losses, in the environment that image_data.py makes.

    python benchmarks/lightly_run.py LOSS OUT.npz key=value ...

Views, order, network, optimizer, schedule and budget are those of the recipe; heads, loss and teacher are lightly's,
put together as its documentation does. Writes the encoder's weights and the seconds of the steps.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lightly.loss import BarlowTwinsLoss, DINOLoss, NegativeCosineSimilarity, NTXentLoss, SwaVLoss, VICRegLoss
from lightly.loss.lejepa_loss import LeJEPALoss
from lightly.models.modules import heads
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule

from avssl import config
from avssl.models import create_encoder
from avssl.optim.build import build_optimizer, set_schedules
from benchmarks.learning import loader_for

Views = dict[str, torch.Tensor]


class Method(nn.Module):
    """The encoder, heads and loss of one of lightly's methods."""

    def __init__(self, cfg: config.RunConfig) -> None:
        super().__init__()
        self.options = cfg.loss
        self.encoder = create_encoder(**cfg.encoders["image"])
        self.dim = int(self.encoder.dim)

    def value(self, views: Views) -> torch.Tensor:
        """The loss of a batch."""
        raise NotImplementedError

    def before(self, step: int, total: int) -> None:
        """What the method does before the forward pass of a step."""


class SimCLR(Method):
    def __init__(self, cfg: config.RunConfig) -> None:
        super().__init__(cfg)
        hidden = self.options.projector_hidden_dims[0]
        self.head = heads.SimCLRProjectionHead(self.dim, hidden, self.options.embedding_dim)
        self.criterion = NTXentLoss(temperature=self.options.temperature)

    def value(self, views: Views) -> torch.Tensor:
        return self.criterion(self.head(self.encoder(views["first"])), self.head(self.encoder(views["second"])))


class WithTeacher(Method):
    """MoCo, BYOL and DINO: they have a slow copy of encoder and head."""

    head: nn.Module

    def make_teacher(self) -> None:
        self.slow_encoder, self.slow_head = copy.deepcopy(self.encoder), copy.deepcopy(self.head)
        deactivate_requires_grad(self.slow_encoder)
        deactivate_requires_grad(self.slow_head)

    def follow(self, momentum: float) -> None:
        update_momentum(self.encoder, self.slow_encoder, momentum)
        update_momentum(self.head, self.slow_head, momentum)

    @torch.no_grad()
    def teach(self, view: torch.Tensor) -> torch.Tensor:
        return self.slow_head(self.slow_encoder(view))


class MoCo(WithTeacher):
    def __init__(self, cfg: config.RunConfig) -> None:
        super().__init__(cfg)
        hidden = self.options.projector_hidden_dims[0]
        self.head = heads.MoCoProjectionHead(self.dim, hidden, self.options.embedding_dim)
        self.make_teacher()
        size = (self.options.queue_size, self.options.embedding_dim)
        self.criterion = NTXentLoss(temperature=self.options.temperature, memory_bank_size=size)

    def before(self, step: int, total: int) -> None:
        self.follow(self.options.teacher_momentum)

    def value(self, views: Views) -> torch.Tensor:
        return self.criterion(self.head(self.encoder(views["first"])), self.teach(views["second"]))


class BYOL(WithTeacher):
    def __init__(self, cfg: config.RunConfig) -> None:
        super().__init__(cfg)
        hidden, dim = self.options.projector_hidden_dims[0], self.options.embedding_dim
        self.head = heads.BYOLProjectionHead(self.dim, hidden, dim)
        self.predictor = heads.BYOLPredictionHead(dim, self.options.predictor_hidden_dims[0], dim)
        self.make_teacher()
        self.criterion = NegativeCosineSimilarity()

    def before(self, step: int, total: int) -> None:
        self.follow(cosine_schedule(step, total, self.options.teacher_momentum, 1.0))

    def value(self, views: Views) -> torch.Tensor:
        first, second = (self.predictor(self.head(self.encoder(views[name]))) for name in ("first", "second"))
        targets = [self.teach(views[name]) for name in ("second", "first")]
        return (self.criterion(first, targets[0]) + self.criterion(second, targets[1])) / 2


class DINO(WithTeacher):
    def __init__(self, cfg: config.RunConfig) -> None:
        super().__init__(cfg)
        options = self.options
        sizes = (options.projector_hidden_dims[0], options.embedding_dim, options.num_prototypes)
        self.head, self.slow_head = (
            heads.DINOProjectionHead(self.dim, *sizes, batch_norm=options.projector_batch_norm) for _ in range(2)
        )
        self.slow_head.load_state_dict(self.head.state_dict())  # its weight norm cannot be copied
        self.slow_encoder = copy.deepcopy(self.encoder)
        deactivate_requires_grad(self.slow_encoder)
        deactivate_requires_grad(self.slow_head)
        self.criterion = DINOLoss(
            options.num_prototypes, teacher_temp=options.teacher_temperature, student_temp=options.temperature,
            center_momentum=options.center_momentum,
        )  # fmt: skip

    def before(self, step: int, total: int) -> None:
        self.follow(cosine_schedule(step, total, self.options.teacher_momentum, 1.0))

    def value(self, views: Views) -> torch.Tensor:
        taught = [self.teach(views[name]) for name in ("first", "second")]
        return self.criterion(taught, [self.head(self.encoder(view)) for view in views.values()])


class SimSiam(Method):
    def __init__(self, cfg: config.RunConfig) -> None:
        super().__init__(cfg)
        hidden, dim = self.options.projector_hidden_dims[0], self.options.embedding_dim
        self.head = heads.SimSiamProjectionHead(self.dim, hidden, dim)
        self.predictor = heads.SimSiamPredictionHead(dim, self.options.predictor_hidden_dims[0], dim)
        self.criterion = NegativeCosineSimilarity()

    def value(self, views: Views) -> torch.Tensor:
        z1, z2 = (self.head(self.encoder(views[name])) for name in ("first", "second"))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        return (self.criterion(p1, z2.detach()) + self.criterion(p2, z1.detach())) / 2


class BarlowTwins(Method):
    def __init__(self, cfg: config.RunConfig) -> None:
        super().__init__(cfg)
        hidden, dim = self.options.projector_hidden_dims[0], self.options.embedding_dim
        self.head = heads.BarlowTwinsProjectionHead(self.dim, hidden, dim)
        self.criterion = BarlowTwinsLoss(lambda_param=self.options.redundancy_weight)

    def value(self, views: Views) -> torch.Tensor:
        return self.criterion(self.head(self.encoder(views["first"])), self.head(self.encoder(views["second"])))


class VICReg(BarlowTwins):
    def __init__(self, cfg: config.RunConfig) -> None:
        Method.__init__(self, cfg)
        hidden, dim = self.options.projector_hidden_dims[0], self.options.embedding_dim
        self.head = heads.VICRegProjectionHead(self.dim, hidden, dim)
        self.criterion = VICRegLoss()


class SwAV(Method):
    def __init__(self, cfg: config.RunConfig) -> None:
        super().__init__(cfg)
        hidden, dim = self.options.projector_hidden_dims[0], self.options.embedding_dim
        self.head = heads.SwaVProjectionHead(self.dim, hidden, dim)
        self.prototypes = heads.SwaVPrototypes(
            dim, self.options.num_prototypes, n_steps_frozen_prototypes=self.options.freeze_steps
        )
        self.criterion = SwaVLoss(sinkhorn_epsilon=self.options.epsilon, temperature=self.options.temperature)
        self.step = 0

    def before(self, step: int, total: int) -> None:
        self.prototypes.normalize()
        self.step = step

    def value(self, views: Views) -> torch.Tensor:
        scores = {}
        for name, view in views.items():
            z = nn.functional.normalize(self.head(self.encoder(view)), dim=1)
            scores[name] = self.prototypes(z, self.step)
        high = [scores.pop("first"), scores.pop("second")]
        return self.criterion(high, list(scores.values()))


class LeJEPA(Method):
    def __init__(self, cfg: config.RunConfig) -> None:
        super().__init__(cfg)
        dims, out = (self.dim, *self.options.projector_hidden_dims), self.options.embedding_dim
        hidden = [(before, after, nn.BatchNorm1d(after), nn.ReLU()) for before, after in pairwise(dims)]
        self.head = heads.ProjectionHead([*hidden, (dims[-1], out, None, None)])
        weight, count = self.options.sigreg_weight, self.options.num_directions
        self.criterion = LeJEPALoss(lambda_param=weight, sigreg_num_vectors=count)

    def value(self, views: Views) -> torch.Tensor:
        z = {name: self.head(self.encoder(view)) for name, view in views.items()}
        large = torch.stack([z.pop("first"), z.pop("second")])
        return self.criterion(local_proj=torch.stack(list(z.values())), global_proj=large)


METHODS: dict[str, Callable[[config.RunConfig], Method]] = {
    "simclr": SimCLR, "moco": MoCo, "byol": BYOL, "simsiam": SimSiam, "barlow_twins": BarlowTwins, "vicreg": VICReg,
    "swav": SwAV, "lejepa": LeJEPA, "dino": DINO,
}  # fmt: skip


def main(name: str, out: Path, changes: list[str]) -> None:
    torch.set_num_threads(1)
    cfg = config.parse(config.RunConfig, changes)
    torch.manual_seed(cfg.seed)
    loader = loader_for(cfg, Path(cfg.data.shards))
    method = METHODS[name](cfg)
    groups = [{"params": [weight for weight in method.parameters() if weight.requires_grad]}]
    if name == "simsiam":  # as lightly's documentation and the paper: the predictor's learning rate stays
        predictor = list(method.predictor.parameters())
        ids = {id(weight) for weight in predictor}
        rest = [weight for weight in method.parameters() if id(weight) not in ids]
        groups = [{"params": rest}, {"params": predictor, "constant_lr": True}]
    optimizer = build_optimizer(cfg.optim, groups)
    total, step, seconds = cfg.epochs * loader.steps_per_epoch, 0, 0.0
    method.train()
    began = time.perf_counter()
    for epoch in range(cfg.epochs):
        for batch in loader.epoch(epoch):
            method.before(step, total)
            set_schedules(optimizer, cfg.optim, step, total)
            loss = method.value(batch.views)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    seconds = time.perf_counter() - began
    out.parent.mkdir(parents=True, exist_ok=True)
    state = {key: value.numpy() for key, value in method.encoder.state_dict().items()}
    np.savez(out, seconds=seconds, **state)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
