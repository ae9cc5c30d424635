"""A training loop on 32 made-up samples in memory, for what must hold of every loss: no files, no workers, no recipe.

`Run` mirrors recipes/pretrain.py step by step. One process or several give the same numbers: the data of a batch are
made for all ranks and sliced, and batch norm is replaced by one that normalizes over all ranks.
"""

import copy
from contextlib import nullcontext
from functools import cache

import torch
from torch import nn

from avssl import distributed, losses
from avssl.losses.base import EpochContext
from avssl.optim.build import build_optimizer, forget, set_schedules
from avssl.optim.config import OptimConfig
from avssl.types import CaptionRows, Progress

NUM_SAMPLES, BATCH_SIZE = 32, 8
STEPS_PER_EPOCH = NUM_SAMPLES // BATCH_SIZE
SHAPES = {"image": (3, 8, 8), "video": (3, 2, 8, 8), "audio": (1, 9, 9)}
# What makes each loss small enough; every other option keeps its default.
TINY_LOSSES: dict[str, dict[str, object]] = {
    "avid": {"num_negatives": 16, "projector_hidden_dims": [16]},
    "avid_cma": {
        "num_negatives": 16,
        "num_negatives_within": 8,
        "num_positives": 3,
        "projector_hidden_dims": [16],
    },
    "npid": {"num_negatives": 16, "embedding_dim": 8},
    "pirl": {"num_negatives": 16, "embedding_dim": 8},
    "simclr": {"projector_hidden_dims": [16], "embedding_dim": 8},
    "moco": {"queue_size": 8, "embedding_dim": 8, "teacher_momentum": 0.9, "shuffle_groups": 0},
    "moco_v3": {"projector_hidden_dims": [16], "predictor_hidden_dims": [16], "embedding_dim": 8},
    "swav": {
        "num_prototypes": 12,
        "projector_hidden_dims": [16],
        "embedding_dim": 8,
        "num_small_crops": 2,
        "freeze_steps": 2,
        "queue_size": 16,
        "queue_from_epoch": 1,
    },
    "deepcluster": {"num_clusters": 6, "pca_dim": 4, "projector_dims": [16]},
    "xdc": {"num_clusters": 6, "pca_dim": 4},
    "deepcluster_v2": {
        "num_prototypes": 6,
        "num_heads": 2,
        "projector_hidden_dims": [16],
        "embedding_dim": 8,
        "num_small_crops": 2,
    },
    "sela": {"num_heads": 2, "num_clusters": 6, "num_relabelings": 4, "relabel_epochs": 4},
    "byol": {"projector_hidden_dims": [16], "predictor_hidden_dims": [16], "embedding_dim": 8, "teacher_momentum": 0.9},
    "dino": {
        "num_prototypes": 12,
        "projector_hidden_dims": [16],
        "embedding_dim": 8,
        "num_small_crops": 2,
        "teacher_momentum": 0.9,
        "teacher_temperature_start": 0.02,
        "teacher_temperature_epochs": 2,
    },
    "simsiam": {"projector_hidden_dims": [16], "predictor_hidden_dims": [8], "embedding_dim": 16},
    "barlow_twins": {"projector_hidden_dims": [16], "embedding_dim": 8},
    "distil": {"projector_hidden_dims": [16], "queue_size": 8, "teacher.dim": 32},
    "lejepa": {"projector_hidden_dims": [16], "embedding_dim": 8, "num_small_crops": 2, "num_directions": 16},
    "vicreg": {"projector_hidden_dims": [16], "embedding_dim": 8},
    "clip_frozen_text": {"text_encoder": {"name": "hf/made", "dim": 8}},
}


def cases():
    """(loss name, modalities) of every registered loss on everything that it says it runs on."""
    return [(name, pair) for name in losses.names() for pair in losses.get(name).pairs]


# Options that make ranks share state in another way; compared with one process like the losses themselves.
SHARING_OPTIONS = [
    ("avid", {"variant": "joint", "shard_banks": True}),
    ("avid", {"variant": "self"}),
    ("avid", {"num_negatives_same_clip": 2}),
    ("simclr", {"num_negatives_same_clip": 2}),
    ("avid_cma", {"shard_banks": True}),
    ("npid", {"shard_banks": True}),
    ("pirl", {"shard_banks": True}),
    ("moco", {"shuffle_groups": 6}),
    ("moco", {"num_negatives_same_clip": 2}),
    ("sela", {"swap_labels": True}),
    ("swav", {"projector_final_batch_norm": True, "queue_size": 0}),
    ("clip_frozen_text", {"learn_temperature": False, "across_weight": 0.0}),
]


def loss_options(name, pair):
    """Options of the tiny loss."""
    options = dict(TINY_LOSSES.get(name, {}))
    if hasattr(losses.get(name).Config, "modalities"):
        options["modalities"] = list(pair)
    return options


def build_config(name, pair, **options):
    """The config through the same parser that reads YAML, so that types are checked."""
    given = loss_options(name, pair) | options
    changes = [f"loss.{key}={value}".replace("'", "") for key, value in given.items()]
    return copy.deepcopy(parsed_loss(f"loss.name={name}", *changes))


@cache
def parsed_loss(*changes):
    """The loss section of a configuration; parsing all of it takes a tenth of a second."""
    from avssl import config

    return config.parse(config.RunConfig, list(changes)).loss


class TinyEncoder(nn.Module):
    """One convolution with batch norm, pooled: accepts pictures, clips and spectrograms of any size."""

    def __init__(self, modality, dim=12):
        super().__init__()
        self.modality, self.dim = modality, dim
        convolution = nn.Conv3d if modality == "video" else nn.Conv2d
        self.convolution = convolution(SHAPES[modality][0], dim, 3, padding=1)
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, x):
        pooled = torch.tanh(self.convolution(x)).flatten(2)
        return self.norm(torch.cat([pooled.mean(dim=2), pooled.std(dim=2)], dim=1)[:, : self.dim])


class GatheredBatchNorm(nn.Module):
    """Batch norm over the rows of all ranks, for two-process tests on CPU, where PyTorch's own has no counterpart."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.register_buffer("mean", torch.zeros(norm.num_features))
        self.register_buffer("variance", torch.ones(norm.num_features))

    def forward(self, x):
        if self.training:
            everything = distributed.gather_with_grad(x)
            mean, variance = everything.mean(dim=0), everything.var(dim=0, unbiased=False)
            with torch.no_grad():
                self.mean.lerp_(mean, 0.1)
                self.variance.lerp_(variance, 0.1)
        else:
            mean, variance = self.mean, self.variance
        normalized = (x - mean) * (variance + self.eps).rsqrt()
        return normalized if self.weight is None else normalized * self.weight + self.bias


def gather_batch_norms(module):
    """Replace every BatchNorm1d below `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d):
            setattr(module, name, GatheredBatchNorm(child))
        else:
            gather_batch_norms(child)
    return module


def made_captions(num_samples, seed):
    """A text of 8 dims for each of the eight kinds of samples; every seventh sample has none."""
    generator = torch.Generator().manual_seed(2 + seed)
    rows = nn.functional.normalize(torch.randn(8, 8, generator=generator), dim=1)
    numbers = torch.arange(num_samples) % 8
    numbers[6::7] = -1
    return CaptionRows(rows, numbers)


class Run:
    """A loss in training on made-up data. Everything is a function of the arguments and of the steps made."""

    def __init__(self, name, pair, *, optimizer="sgd", lr=0.02, total_steps=12, gathered_norms=False,
                 num_samples=NUM_SAMPLES, batch_size=BATCH_SIZE, accumulation=1, seed=0, **options):  # fmt: skip
        torch.manual_seed(seed)
        self.num_samples, self.batch_size, self.accumulation = num_samples, batch_size, accumulation
        self.values = []  # of every micro-batch, this rank's
        self.config = build_config(name, pair, **options)
        cls = losses.get(name)
        encoders = {modality: TinyEncoder(modality) for modality in cls.modalities(self.config)}
        self.loss = cls(self.config, encoders, num_samples)
        self.loss.check_batch_size(batch_size)
        self.loss.take_captions(made_captions(num_samples, seed))
        if gathered_norms:
            gather_batch_norms(self.loss)
        self.views = cls.views(self.config)
        self.optim = OptimConfig(name=optimizer, lr=lr, weight_decay=0.0)
        self.optimizer = build_optimizer(self.optim, self.loss.param_groups())
        self.progress = Progress(total_steps=total_steps)
        self.model = self.loss
        if distributed.is_active():
            self.model = nn.parallel.DistributedDataParallel(self.loss, broadcast_buffers=False)
        generator = torch.Generator().manual_seed(1 + seed)
        # Eight kinds of samples, each a little different, and the same kind in every modality.
        kinds = {m: torch.randn(8, *SHAPES[m], generator=generator) for m in SHAPES}
        # What a frozen network makes of a sample: a row that is nearly the same for all samples of a kind.
        self.teacher_dim = self.config.teacher.dim if hasattr(self.config, "teacher") else 0
        rows = torch.randn(8, self.teacher_dim, generator=torch.Generator().manual_seed(2 + seed))
        self.teacher_rows = rows[torch.arange(num_samples) % 8] + 0.1 * torch.arange(num_samples)[:, None] / num_samples
        self.samples = {
            m: kinds[m][torch.arange(num_samples) % 8] + 0.5 * torch.randn(num_samples, *SHAPES[m], generator=generator)
            for m in SHAPES
        }

    def order(self, epoch):
        """Sample indices (micro-batches of an epoch, global batch); samples that fill no batch are left out."""
        generator = torch.Generator().manual_seed(100 + epoch)
        order = torch.randperm(self.num_samples, generator=generator)
        return order[: self.num_samples // self.batch_size * self.batch_size].view(-1, self.batch_size)

    def make_views(self, index, names, noise_seed=None):
        """Views of these samples; noise_seed None gives the deterministic ones."""
        result = {}
        for number, view in enumerate(self.views):
            if names and view.name not in names:
                continue
            x = self.samples[view.modality][index]
            if noise_seed is not None:
                generator = torch.Generator().manual_seed(1000 * noise_seed + number)
                x = x + 0.3 * torch.randn(x.shape, generator=generator)
            if "jigsaw" in view.augment:
                tiles = [part for row in x.tensor_split(3, dim=-2) for part in row.tensor_split(3, dim=-1)]
                side = min(tile.shape[-1] for tile in tiles)
                x = torch.stack([tile[..., :side, :side] for tile in tiles], dim=1)
            elif view.name.startswith("small"):
                x = x[..., 1:-1, 1:-1]
            result[view.name] = x
        return result | ({"teacher": self.teacher_rows[index]} if self.teacher_dim else {})

    @torch.no_grad()
    def embed_all(self, names=()):
        """As Loader.embed_all."""
        self.model.eval()
        for index in torch.arange(self.num_samples)[distributed.rank() :: distributed.world_size()].split(5):
            yield index, self.loss(self.make_views(index, names))
        self.model.train()

    def step(self):
        """One optimizer step; returns the last micro-batch's LossOutput and outputs. Gradients stay until the next."""
        self.optimizer.zero_grad()
        for number in range(self.accumulation):
            result, outputs = self.micro_batch(is_last=number + 1 == self.accumulation)
        return result, outputs

    def micro_batch(self, *, is_last):
        """Forward and backward of one global micro-batch; with the optimizer's step after the last of them."""
        progress, loss = self.progress, self.loss
        if progress.batch_in_epoch == 0:
            loss.on_epoch_start(EpochContext(progress.epoch, self.embed_all, forget(self.optimizer)))
        everyone = self.order(progress.epoch)[progress.batch_in_epoch]
        size = self.batch_size // distributed.world_size()
        mine = slice(distributed.rank() * size, (distributed.rank() + 1) * size)
        views = {name: x[mine] for name, x in self.make_views(everyone, (), progress.batch).items()}
        index = everyone[mine]
        is_alone = self.model is self.loss
        with nullcontext() if is_last or is_alone else self.model.no_sync():
            outputs = self.model(views)
            result = loss.loss(outputs, index, progress)
            (result.total / self.accumulation).backward()
        self.values.append(result.total.detach())
        if is_last:
            loss.before_step(progress)
            set_schedules(self.optimizer, self.optim, progress.step, progress.total_steps)
            self.optimizer.step()
        loss.update(outputs, index)
        if is_last:
            progress.step += 1
            loss.after_step(progress)
        progress.batch += 1
        progress.batch_in_epoch += 1
        if progress.batch_in_epoch == self.num_samples // self.batch_size:
            progress.epoch, progress.batch_in_epoch = progress.epoch + 1, 0
        return result, outputs

    def state(self):
        """Everything that a checkpoint holds."""
        return {
            "loss": {name: tensor.clone() for name, tensor in self.loss.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "progress": self.progress.state_dict(),
        }

    def restore(self, state):
        """Take over what `state` gave."""
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress.load_state_dict(state["progress"])
