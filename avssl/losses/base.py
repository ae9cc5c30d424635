"""The contract of a loss.

A Loss is one learning objective, whole: the views it compares, the heads it adds to the encoders, the state it
keeps, its maths, and the moments at which it changes itself. Its name is its file's name, its YAML's `loss.name` and
its test's id. The loop (recipes/pretrain.py) never asks which loss it runs:

    outputs = model(batch.views)                        forward: everything that needs gradients, under DDP and autocast
    result = loss.loss(outputs, batch.index, progress)  outside both, float32; reads state, writes none
    backward; loss.before_step(progress); optimizer step
    loss.update(outputs, batch.index)                   write banks and queues, once per micro-batch
    loss.after_step(progress)                           teachers, prototypes, once per optimiser step

Legend used by every loss: h encoder feature, z unit-norm embedding, p prediction, q code or assignment; shapes B batch,
W ranks, D width, K negatives or prototypes, N samples, T frames, M bins.

State rules. Everything that outlives a step is a persistent buffer with its final shape from __init__. State is the
same bits on all ranks: it starts from a seeded generator and every write is a function of gathered tensors. `loss`
writes no state except a constant that is measured once, at progress.batch == 0. Random draws are made for the global
batch from (seed, progress.batch) and sliced by rank. No all_reduce inside a loss: write it on the gathered batch, or as
a mean over the local rows where rows do not meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from avssl.types import LossOutput, Progress, View


@dataclass
class LossConfig:
    """Base of every loss's configuration."""

    name: str = ""  # a file of avssl/losses
    seed: int = 0  # of the loss's own state and draws


@dataclass(frozen=True)
class EpochContext:
    """What a loss may use before an epoch: the epoch's number and a pass over the whole data set.

    embed_all() yields (index (B,), outputs) for every sample once over all ranks, without gradient, eval mode.
    """

    epoch: int
    embed_all: Callable[[], Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]]


class Loss(nn.Module):
    """Base class; see the module's text. Subclasses set Config and write views, __init__, forward and loss."""

    Config: ClassVar[type[LossConfig]] = LossConfig

    def __init__(self, config: LossConfig, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleDict(encoders)
        self.projectors: nn.ModuleDict = (
            nn.ModuleDict()
        )  # {modality: head}; exported with the encoders, used for embeddings
        self.num_samples = num_samples

    @classmethod
    def views(cls, config: LossConfig) -> tuple[View, ...]:
        """The views that the loader must make; their modalities say which encoders are built."""
        raise NotImplementedError(f"{cls.__name__}.views")

    @classmethod
    def modalities(cls, config: LossConfig) -> list[str]:
        """Modalities of the views, sorted: an encoder is built for each."""
        return sorted({view.modality for view in cls.views(config)})

    def loss(self, outputs: dict[str, torch.Tensor], index: torch.Tensor, progress: Progress) -> LossOutput:
        """The objective of one micro-batch of this rank."""
        raise NotImplementedError(f"{type(self).__name__}.loss")

    def on_epoch_start(self, context: EpochContext) -> None:
        """Before an epoch's first batch, on every rank."""

    def before_step(self, progress: Progress) -> None:
        """Gradients are final, the optimiser has not stepped."""

    def update(self, outputs: dict[str, torch.Tensor], index: torch.Tensor) -> None:
        """After each micro-batch's backward."""

    def after_step(self, progress: Progress) -> None:
        """After each optimiser step."""

    def param_groups(self) -> list[dict[str, object]]:
        """Groups for the optimiser; all trainable parameters by default."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def health(self, outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Scalars that say whether the embeddings of this batch are alive; logged with the loss."""
        return {
            f"{name}_embedding_spread": embedding_spread(z)
            for name, z in outputs.items()
            if z.ndim == 2 and z.shape[0] > 1
        }


@torch.no_grad()
def embedding_spread(z: torch.Tensor) -> torch.Tensor:
    """Mean standard deviation over the batch of unit-norm embeddings (B, D), times sqrt(D): 1 spread, 0 collapsed."""
    z = nn.functional.normalize(z.float(), dim=1)
    spread: torch.Tensor = z.std(dim=0, unbiased=False).mean() * z.shape[1] ** 0.5
    return spread
