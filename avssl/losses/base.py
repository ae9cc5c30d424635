"""The contract of a loss.

A Loss is one learning objective, whole: the views it compares, the heads it adds to the encoders, the state it
keeps, its maths, and the moments at which it changes itself. Its name is its file's name, its YAML's `loss.name` and
its test's id. The loop (recipes/pretrain.py) never asks which loss it runs:

    loss.on_epoch_start(context)                        look at the whole data set; rewrite labels, reset a head
    outputs = model(batch.views)                        forward: everything that needs gradients, under DDP and autocast
    result = loss.loss(outputs, batch.index, progress)  outside both, float32; reads state, writes none
    backward; loss.before_step(progress); optimizer step
    loss.update(outputs, batch.index)                   write banks and queues, once per micro-batch
    loss.after_step(progress)                           teachers, prototypes, once per optimizer step

Legend used by every loss: h encoder feature, z unit-norm embedding, p prediction, q code or assignment; shapes B batch,
W ranks, D width, K negatives or prototypes, N samples, T frames, M bins.

State rules. Everything that outlives a step is a persistent buffer with its final shape from __init__. State is the
same bits on all ranks: it starts from a seeded generator and every write is a function of gathered tensors (rows of
sharded banks, ops/sharded_memory.py, are each rank's own and in no state_dict). `loss` writes no
state except a constant that is measured once, at progress.batch == 0. Random draws are made for the global batch from
(seed, progress.batch) and sliced by rank. No all_reduce inside a loss: write it on the gathered batch, or as a mean
over the local rows where rows do not meet.

Modalities. Encoders, projectors, predictors, teachers, banks and queues are keyed by modality. A pair of equal
modalities shares them, a pair of different ones has one each; what is compared is the only thing that knows of pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import nn

from avssl.distributed import gather_uneven
from avssl.models.heads import on_each
from avssl.ops.diagnostics import alignment, effective_rank, embedding_spread, uniformity
from avssl.ops.teacher import follow
from avssl.types import LossConfig, LossOutput, Modality, Progress, View

__all__ = [
    "PAIRS", "VIEW_NAMES", "EpochContext", "Loss", "LossConfig", "Outputs", "PairConfig", "PairLoss",
]  # fmt: skip

Outputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class EpochContext:
    """What a loss may use before an epoch.

    embed_all(view_names) yields (index (B,), outputs) for every sample once over all ranks, without gradient, in eval
    mode, from deterministic views; of all views, or of those named. A stop can end it: write after the last pass alone.
    reset_optimizer_state(parameters) forgets the optimizer's moments of parameters that the loss has just rewritten.

    >>> context = EpochContext(0, lambda views: [(torch.tensor([1, 0]), {"first": torch.tensor([[1.0], [0.0]])})])
    >>> context.collect("first", num_samples=2)
    tensor([[0.],
            [1.]])
    """

    epoch: int
    embed_all: Callable[..., Iterator[tuple[torch.Tensor, Outputs]]]
    reset_optimizer_state: Callable[[Sequence[nn.Parameter]], None] = lambda parameters: None  # noqa: ARG005

    def collect(self, output: str, num_samples: int, view_names: Sequence[str] = ()) -> torch.Tensor:
        """One output of the whole data set, by sample: (N, ...) in float32, the same on every rank.

        Raises RuntimeError if a sample did not come.
        """
        pieces = [(index, outputs[output].float()) for index, outputs in self.embed_all(view_names)]
        index = gather_uneven(torch.cat([piece for piece, _ in pieces]))
        rows = gather_uneven(torch.cat([piece for _, piece in pieces]))
        result = rows.new_full((num_samples, *rows.shape[1:]), torch.nan)
        result[index] = rows
        if len(torch.unique(index)) != num_samples:
            raise RuntimeError(f"a pass over the data set gave {len(torch.unique(index))} of {num_samples} samples")
        return result


class Loss(nn.Module):
    """Base class; see the module's text. Subclasses set Config and write views, __init__, forward and loss.

    >>> class Reconstruction(Loss):
    ...     @classmethod
    ...     def views(cls, config):
    ...         return (View("first", "image"),)
    >>> Reconstruction.modalities(LossConfig())
    ['image']
    """

    Config: ClassVar[type[LossConfig]] = LossConfig
    # What `python -m avssl.losses` and the README say of it.
    family: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    state: ClassVar[str] = "none"
    pairs: ClassVar[tuple[tuple[Modality, ...], ...]] = ()  # combinations of modalities that it runs on
    min_global_batch_size: ClassVar[int] = 1
    has_one_space: ClassVar[bool] = True  # across modalities: embeddings of one are comparable with those of the other
    # Pairs of outputs that the loss brings together, row by row: their alignment is logged.
    compared: ClassVar[tuple[tuple[str, str], ...]] = (("first", "second"), ("video", "audio"))

    def __init__(self, config: LossConfig, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__()
        wanted = self.modalities(config)
        if sorted(encoders) != wanted:
            raise ValueError(f"loss {config.name} needs encoders for {', '.join(wanted)}; given: {', '.join(encoders)}")
        self.config = config
        self.encoders = nn.ModuleDict(encoders)
        # {modality: head}: exported with the encoders, used for embeddings
        self.projectors: nn.ModuleDict = nn.ModuleDict()
        self.predictors: nn.ModuleDict = nn.ModuleDict()  # {modality that predicts: head on top of its projector}
        self.teachers: nn.ModuleDict = nn.ModuleDict()  # {modality: slow copy of `student`}, where there are any
        self.num_samples = num_samples

    @classmethod
    def views(cls, config: LossConfig) -> tuple[View, ...]:
        """The views that the loader must make; their modalities say which encoders are built."""
        raise NotImplementedError(f"{cls.__name__}.views")

    @classmethod
    def modalities(cls, config: LossConfig) -> list[str]:
        """Modalities of the views, sorted: an encoder is built for each."""
        return sorted({view.modality for view in cls.views(config)})

    def check_batch_size(self, global_batch_size: int) -> None:
        """ValueError for a global batch that this loss cannot work with; called before the first batch is read."""
        least = self.min_global_batch_size
        if global_batch_size < least:
            raise ValueError(
                f"data.global_batch_size is {global_batch_size}; loss {self.config.name} compares the samples of a "
                f"batch with each other and needs at least {least}"
            )

    def student(self, modality: str) -> nn.Sequential:
        """What a teacher follows: encoder and projector of a modality, sharing their parameters."""
        return nn.Sequential(self.encoders[modality], self.projectors[modality])

    def embedding(self, modality: str, features: torch.Tensor) -> torch.Tensor:
        """What samples are compared by after training: encoder features (B, F) -> unit rows (B, D), float32."""
        head = self.projectors[modality] if modality in self.projectors else nn.Identity()
        return nn.functional.normalize(head(features).float(), dim=1)

    def after_inherit(self, loaded: Collection[str]) -> None:
        """After a run took over state of another one, by name. Teachers that did not come start as their students."""
        if not any(name.startswith("teachers.") for name in loaded):
            for modality, teacher in self.teachers.items():
                follow(teacher, self.student(modality), 0.0)

    def loss(self, outputs: Outputs, index: torch.Tensor, progress: Progress) -> LossOutput:
        """The objective of one micro-batch of this rank."""
        raise NotImplementedError(f"{type(self).__name__}.loss")

    def on_epoch_start(self, context: EpochContext) -> None:
        """Before an epoch's first batch, on every rank."""

    def before_step(self, progress: Progress) -> None:
        """Gradients are final, the optimizer has not stepped."""

    def update(self, outputs: Outputs, index: torch.Tensor) -> None:
        """After each micro-batch's backward."""

    def after_step(self, progress: Progress) -> None:
        """After each optimizer step; progress.step counts it already."""

    def param_groups(self) -> list[dict[str, object]]:
        """Groups for the optimizer; all trainable parameters by default.

        A group may say lr_scale (a factor on the learning rate), constant_lr (True: no schedule) and options of the
        optimizer such as momentum.
        """
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def diagnostics(self, outputs: Outputs) -> Outputs:
        """Scalars that say whether the embeddings of this batch are alive; logged with the loss (ops/diagnostics.py).

        Spread, effective rank and uniformity of every (B, D) output, and the alignment of those in `compared`.
        """
        found: Outputs = {}
        for name, z in outputs.items():
            if z.ndim == 2 and z.shape[0] > 1:
                found[f"{name}_embedding_spread"] = embedding_spread(z)
                found[f"{name}_effective_rank"] = effective_rank(z)
                found[f"{name}_uniformity"] = uniformity(z)
        for first, second in self.compared:
            if first in outputs and second in outputs:
                found[f"{first}_{second}_alignment"] = alignment(outputs[first], outputs[second])
        return found


PAIRS: tuple[tuple[Modality, ...], ...] = (
    ("image", "image"),
    ("video", "video"),
    ("audio", "audio"),
    ("video", "audio"),
)
VIEW_NAMES = ("first", "second")  # a loss that names single modalities in its `pairs` has the first alone


@dataclass
class PairConfig(LossConfig):
    """Base of the losses that compare two views of a sample.

    >>> PairConfig(name="simclr", modalities=("video", "audio")).augments
    ()
    """

    modalities: tuple[str, ...] = ("image", "image")  # or video video, audio audio, video audio
    augments: tuple[str, ...] = ()  # a set for each of the two views; empty: the paper's for images, else the run's own


class PairLoss(Loss):
    """Base of the losses that compare two views, "first" and "second", of one or of two modalities.

    Two views of one video or one audio track are cut from different seconds of it; a video and an audio view are the
    same moment.

    >>> [view.augment for view in PairLoss.views(PairConfig(name="mine", augments=("simclr", "moco_v2")))]
    ['simclr', 'moco_v2']
    """

    augments: ClassVar[tuple[str, str]] = ("train", "train")  # the paper's sets of `views.augments`, for images
    pairs: ClassVar[tuple[tuple[Modality, ...], ...]] = PAIRS

    @classmethod
    def views(cls, config: LossConfig) -> tuple[View, ...]:
        """The two views."""
        config = cast("PairConfig", config)
        modalities = cls.checked_modalities(config)
        described = zip(VIEW_NAMES, modalities, cls.checked_augments(config), strict=False)
        is_cross_modal = len(set(modalities)) == 2
        return tuple(
            View(name, modality, augment, clip=0 if is_cross_modal else number)
            for number, (name, modality, augment) in enumerate(described)
        )

    @classmethod
    def checked_modalities(cls, config: PairConfig) -> tuple[Modality, ...]:
        """config.modalities; ValueError for a combination that this loss does not run on."""
        given = tuple(config.modalities)
        if given not in cls.pairs:
            allowed = "; ".join(f"[{', '.join(pair)}]" for pair in cls.pairs)
            raise ValueError(f"loss.modalities is [{', '.join(given)}]; loss {config.name} runs on {allowed}")
        return cast("tuple[Modality, ...]", given)

    @classmethod
    def checked_augments(cls, config: PairConfig) -> tuple[str, ...]:
        """One set per view: config.augments, or the paper's for images and the run's own for video and audio."""
        if not config.augments:
            pairs = zip(config.modalities, cls.augments, strict=False)
            return tuple(name if modality == "image" else "train" for modality, name in pairs)
        if len(config.augments) != len(config.modalities):
            raise ValueError(f"loss.augments is {list(config.augments)}; give one set for each view")
        return tuple(config.augments)

    @property
    def modality_of(self) -> dict[str, str]:
        """{"first": modality, "second": modality}."""
        return dict(zip(VIEW_NAMES, cast("PairConfig", self.config).modalities, strict=False))

    @property
    def is_cross_modal(self) -> bool:
        """True when the two views are of different modalities."""
        return len(set(self.modality_of.values())) == 2

    def project(self, name: str, view: torch.Tensor) -> torch.Tensor:
        """Projector of encoder of one view: (B, ...) -> (B, D)."""
        modality = self.modality_of[name]
        return cast("torch.Tensor", self.projectors[modality](self.encoders[modality](view)))

    def project_together(self, views: Mapping[str, torch.Tensor]) -> Outputs:
        """As `project` for every view, views of one modality and shape in one pass: batch norm sees them together."""
        groups: dict[tuple[str, torch.Size], list[str]] = {}
        for name, view in views.items():
            groups.setdefault((self.modality_of[name], view.shape), []).append(name)
        result: Outputs = {}
        for names in groups.values():
            stacked = self.project(names[0], torch.cat([views[name] for name in names]))
            result.update(zip(names, stacked.chunk(len(names)), strict=True))
        return result

    def on_each_view(self, heads: nn.ModuleDict | dict[str, nn.Module], rows: Outputs) -> Outputs:
        """{view: head of its modality on its rows (B, F)}, each view a batch of its own for batch norm."""
        result: Outputs = {}
        for modality, head in heads.items():
            names = [name for name in rows if self.modality_of[name] == modality]
            result.update(zip(names, on_each(head, [rows[name] for name in names]), strict=True))
        return result

    def project_each(self, views: Mapping[str, torch.Tensor]) -> Outputs:
        """As `project` for every view, each a batch of its own for batch norm."""
        features = {name: self.encoders[self.modality_of[name]](view) for name, view in views.items()}
        return self.on_each_view(self.projectors, features)

    @torch.no_grad()
    def teach_each(self, views: Mapping[str, torch.Tensor]) -> Outputs:
        """As `project_each` with the teachers."""
        teachers: dict[str, Any] = dict(self.teachers.items())
        features = {name: teachers[self.modality_of[name]][0](view) for name, view in views.items()}
        return self.on_each_view({modality: teacher[1] for modality, teacher in teachers.items()}, features)

    def embedding(self, modality: str, features: torch.Tensor) -> torch.Tensor:
        """As in the base class; across modalities with predictors, projection and prediction side by side.

        Such a loss never makes the projections z of two modalities alike, only the prediction p of one and the z of
        the other. With (p, z) / sqrt 2 for one modality and (z, p) / sqrt 2 for the other, the cosine of two rows is
        the mean of both directions' similarities, (p_1 z_2 + z_1 p_2) / 2.
        """
        if not (self.is_cross_modal and modality in self.predictors):
            return super().embedding(modality, features)
        projection = self.projectors[modality](features)
        halves = [self.predictors[modality](projection), projection]
        if modality != self.modality_of[VIEW_NAMES[0]]:
            halves.reverse()
        return torch.cat([nn.functional.normalize(half.float(), dim=1) for half in halves], dim=1) / 2**0.5

    def feature_dim(self, modality: str) -> int:
        """Width of a modality's encoder."""
        return int(cast("Any", self.encoders[modality]).dim)
