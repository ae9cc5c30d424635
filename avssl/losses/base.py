"""The contract of a loss.

A Loss is one complete learning objective: the views it compares, the heads it adds to the encoders, the state it
keeps, its formula, and the times at which it updates its state. Its name is its file's name, its YAML's `loss.name` and
its test's id. The loop (recipes/pretrain.py) is the same for all losses:

    loss.on_epoch_start(context)                        read the whole data set; rewrite labels, reset a head
    outputs = model(batch.views)                        forward: everything that needs gradients, under DDP and autocast
    result = loss.loss(outputs, batch.index, progress)  outside both, float32; reads state, writes none
    backward; loss.before_step(progress); optimizer step
    loss.update(outputs, batch.index)                   write banks and queues, once per micro-batch
    loss.after_step(progress)                           teachers, prototypes, once per optimizer step

Symbols used by every loss: h encoder feature, z unit-norm embedding, p prediction, q code or assignment; shapes B
batch, W ranks, D dim, K negatives or prototypes, N samples, T frames, M bins.

State. Everything that outlives a step is a persistent buffer with its final shape from __init__. State is the same to
the bit on all ranks: it starts from a seeded generator, and every write is a function of gathered tensors (rows of
sharded banks, ops/sharded_memory.py, differ between ranks and are in no state_dict). `loss` writes no state except a
constant that is measured once, at progress.batch == 0. Random draws are made for the global batch from
(seed, progress.batch) and sliced by rank. A loss calls no all_reduce: it is computed on the gathered batch, or, if the
terms of a batch's rows are independent, as a mean over the local rows.

Modalities. Encoders, projectors, predictors, teachers, banks and queues are keyed by modality. Two views of one
modality share them, views of different modalities have one each; only the comparison depends on the pair.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import nn

from avssl.distributed import gather_uneven
from avssl.losses.configs import PairConfig
from avssl.models.heads import on_each
from avssl.ops.diagnostics import alignment, effective_rank, embedding_spread, uniformity
from avssl.ops.teacher import follow
from avssl.types import CaptionRows, LossConfig, LossOutput, Modality, Progress, View

__all__ = [
    "PAIRS", "VIEW_NAMES", "EpochContext", "Loss", "LossConfig", "Outputs", "PairConfig", "PairLoss",
]  # fmt: skip

Outputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class EpochContext:
    """What a loss may use before an epoch.

    embed_all(view_names) yields (index (B,), outputs) for every sample once over all ranks, without gradient, in eval
    mode, from deterministic views: all of them, or those named. The run may be stopped during a pass, so write state
    only after the last one. reset_optimizer_state(parameters) drops moments and gradients of parameters that the loss
    has just rewritten.

    >>> context = EpochContext(0, lambda views: [(torch.tensor([1, 0]), {"first": torch.tensor([[1.0], [0.0]])})])
    >>> context.collect("first", num_samples=2)
    tensor([[0.],
            [1.]])
    """

    epoch: int
    embed_all: Callable[..., Iterator[tuple[torch.Tensor, Outputs]]]
    reset_optimizer_state: Callable[[Sequence[nn.Parameter]], None] = lambda parameters: None  # noqa: ARG005

    def collect(self, output: str, num_samples: int, view_names: Sequence[str] = ()) -> torch.Tensor:
        """One output for the whole data set, a row per sample: float32 (N, ...), the same on every rank.

        Raises RuntimeError if a sample is missing, and FloatingPointError if a number is not finite.
        """
        batches = [(index, outputs[output].float()) for index, outputs in self.embed_all(view_names)]
        index = gather_uneven(torch.cat([batch_index for batch_index, _ in batches]))
        rows = gather_uneven(torch.cat([batch_rows for _, batch_rows in batches]))
        result = rows.new_full((num_samples, *rows.shape[1:]), torch.nan)
        result[index] = rows
        if len(torch.unique(index)) != num_samples:
            raise RuntimeError(f"a pass over the data set gave {len(torch.unique(index))} of {num_samples} samples")
        if broken := int((~result.reshape(num_samples, -1).isfinite()).any(dim=1).sum()):
            raise FloatingPointError(
                f"before epoch {self.epoch} the network's outputs of {broken} of {num_samples} samples are not finite: "
                "the training has diverged; go on from an earlier checkpoint with a lower optim.lr, or set "
                "optim.clip_norm"
            )
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
    # For the table of `python -m avssl.losses` and the README.
    family: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    state: ClassVar[str] = "none"
    pairs: ClassVar[tuple[tuple[Modality, ...], ...]] = ()  # combinations of modalities that it runs on
    min_global_batch_size: ClassVar[int] = 1
    has_one_space: ClassVar[bool] = True  # across modalities: embeddings of one are comparable with those of the other
    # Pairs of outputs that the loss pulls together, row by row: their alignment is logged.
    compared: ClassVar[tuple[tuple[str, str], ...]] = (("first", "second"), ("video", "audio"))

    def __init__(self, config: LossConfig, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__()
        modalities = self.modalities(config)
        if sorted(encoders) != modalities:
            raise ValueError(
                f"loss {config.name} needs encoders for {', '.join(modalities)}; given: {', '.join(encoders)}"
            )
        self.config = config
        self.encoders = nn.ModuleDict(encoders)
        # {modality: head}; exported with the encoders, used for embeddings
        self.projectors: nn.ModuleDict = nn.ModuleDict()
        self.predictors: nn.ModuleDict = nn.ModuleDict()  # {modality that predicts: head on top of its projector}
        self.teachers: nn.ModuleDict = nn.ModuleDict()  # {modality: slow copy of `student`}
        self.num_samples = num_samples

    @classmethod
    def views(cls, config: LossConfig) -> tuple[View, ...]:
        """The views that the loader makes; an encoder is built for each of their modalities."""
        raise NotImplementedError(f"{cls.__name__}.views")

    @classmethod
    def modalities(cls, config: LossConfig) -> list[str]:
        """The distinct modalities of the views, sorted."""
        return sorted({view.modality for view in cls.views(config)})

    @classmethod
    def fitted(cls, config: LossConfig, num_samples: int, global_batch_size: int) -> dict[str, int]:  # noqa: ARG003
        """{option of `config`: its value for so few samples}, of those options whose values suit only larger corpora.

        `data.global_batch_size=auto` sets them.
        """
        return {}

    def check_batch_size(self, global_batch_size: int) -> None:
        """Raise ValueError for a global batch size that does not suit this loss; called before the first batch."""
        least = self.min_global_batch_size
        if global_batch_size < least:
            raise ValueError(
                f"data.global_batch_size is {global_batch_size}; loss {self.config.name} compares the samples of a "
                f"batch with each other and needs at least {least}"
            )

    def student(self, modality: str) -> nn.Sequential:
        """The network that a teacher follows: encoder and projector of a modality, with the same parameters."""
        return nn.Sequential(self.encoders[modality], self.projectors[modality])

    def feature_dim(self, modality: str) -> int:
        """Dim of the features of a modality's encoder."""
        return int(cast("Any", self.encoders[modality]).dim)

    def embedding(self, modality: str, features: torch.Tensor) -> torch.Tensor:
        """The embedding by which samples are compared after training: features (B, F) -> float32 unit rows (B, D)."""
        head = self.projectors[modality] if modality in self.projectors else nn.Identity()
        return nn.functional.normalize(head(features).float(), dim=1)

    def after_inherit(self, loaded: Collection[str]) -> None:
        """Called when a run has loaded these entries of another run's state: other teachers copy their students."""
        if not any(name.startswith("teachers.") for name in loaded):
            self.move_teachers(0.0)

    def move_teachers(self, momentum: float) -> None:
        """teacher <- momentum teacher + (1 - momentum) student, for each modality."""
        for modality, teacher in self.teachers.items():
            follow(teacher, self.student(modality), momentum)

    def take_captions(self, captions: CaptionRows) -> None:
        """Called once, before the first batch, if the configuration is a CaptionConfig: rows are data, not state."""

    def loss(self, outputs: Outputs, index: torch.Tensor, progress: Progress) -> LossOutput:
        """The objective for one micro-batch of this rank: outputs of forward, sample indices int64 (B,)."""
        raise NotImplementedError(f"{type(self).__name__}.loss")

    def on_epoch_start(self, context: EpochContext) -> None:
        """Called before an epoch's first batch, on every rank."""

    def before_step(self, progress: Progress) -> None:
        """Called with the final gradients, before the optimizer's step."""

    def update(self, outputs: Outputs, index: torch.Tensor) -> None:
        """Called after each micro-batch's backward."""

    def after_step(self, progress: Progress) -> None:
        """Called after each optimizer step, which progress.step already counts."""

    def param_groups(self) -> list[dict[str, object]]:
        """Parameter groups for the optimizer; by default one of all trainable parameters.

        A group may have lr_scale (a factor on the learning rate), constant_lr (True: no schedule) and options of the
        optimizer such as momentum.
        """
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def diagnostics(self, outputs: Outputs) -> Outputs:
        """Scalars that tell whether the embeddings of this batch have collapsed; logged with the loss.

        Spread, effective rank and uniformity (ops/diagnostics.py) of every (B, D) output, and the alignment of the
        pairs in `compared`.
        """
        scalars: Outputs = {}
        for name, z in outputs.items():
            if z.ndim == 2 and z.shape[0] > 1:
                scalars[f"{name}_embedding_spread"] = embedding_spread(z)
                scalars[f"{name}_effective_rank"] = effective_rank(z)
                scalars[f"{name}_uniformity"] = uniformity(z)
        for first, second in self.compared:
            if first in outputs and second in outputs:
                scalars[f"{first}_{second}_alignment"] = alignment(outputs[first], outputs[second])
        return scalars


PAIRS: tuple[tuple[Modality, ...], ...] = (
    ("image", "image"),
    ("video", "video"),
    ("audio", "audio"),
    ("video", "audio"),
)
VIEW_NAMES = ("first", "second")  # a loss on a single modality has only the first


class PairLoss(Loss):
    """Base of the losses that compare two views, "first" and "second", of one or of two modalities.

    Two views of one video or one audio stream are cut from different seconds of it; a video and an audio view from the
    same seconds.

    >>> [view.augment for view in PairLoss.views(PairConfig(name="mine", augments=("simclr", "moco_v2")))]
    ['simclr', 'moco_v2']
    """

    augments: ClassVar[tuple[str, str]] = ("train", "train")  # the paper's sets of `views.augments`, for images
    pairs: ClassVar[tuple[tuple[Modality, ...], ...]] = PAIRS

    @classmethod
    def views(cls, config: LossConfig) -> tuple[View, ...]:
        """The views "first" and "second", in the order of config.modalities."""
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
        """config.modalities. Raises ValueError for a combination that this loss does not run on."""
        modalities = tuple(config.modalities)
        if modalities not in cls.pairs:
            allowed = "; ".join(f"[{', '.join(pair)}]" for pair in cls.pairs)
            raise ValueError(f"loss.modalities is [{', '.join(modalities)}]; loss {config.name} runs on {allowed}")
        return cast("tuple[Modality, ...]", modalities)

    @classmethod
    def checked_augments(cls, config: PairConfig) -> tuple[str, ...]:
        """A set per view: config.augments, or the paper's for images and the run's own for video and audio."""
        if not config.augments:
            pairs = zip(config.modalities, cls.augments, strict=False)
            return tuple(name if modality == "image" else "train" for modality, name in pairs)
        if len(config.augments) != len(config.modalities):
            raise ValueError(f"loss.augments is {list(config.augments)}; give one set for each view")
        return tuple(config.augments)

    @property
    def modality_of(self) -> dict[str, str]:
        """The modality of each view: {"first": modality, "second": modality}."""
        return dict(zip(VIEW_NAMES, cast("PairConfig", self.config).modalities, strict=False))

    @property
    def is_cross_modal(self) -> bool:
        """Whether the two views are of different modalities."""
        return len(set(self.modality_of.values())) == 2

    def project(self, name: str, view: torch.Tensor) -> torch.Tensor:
        """Encoder and projector applied to one view: (B, ...) -> (B, D)."""
        modality = self.modality_of[name]
        return cast("torch.Tensor", self.projectors[modality](self.encoders[modality](view)))

    def project_together(self, views: Mapping[str, torch.Tensor]) -> Outputs:
        """`project` of every view; views of one modality and shape pass together, as one batch for batch norm."""
        groups: dict[tuple[str, torch.Size], list[str]] = {}
        for name, view in views.items():
            groups.setdefault((self.modality_of[name], view.shape), []).append(name)
        result: Outputs = {}
        for names in groups.values():
            stacked = self.project(names[0], torch.cat([views[name] for name in names]))
            result.update(zip(names, stacked.chunk(len(names)), strict=True))
        return result

    def on_each_view(self, heads: nn.ModuleDict | dict[str, nn.Module], rows: Outputs) -> Outputs:
        """{view: head of its modality applied to its rows (B, F)}; each view is a batch of its own for batch norm."""
        result: Outputs = {}
        for modality, head in heads.items():
            names = [name for name in rows if self.modality_of[name] == modality]
            result.update(zip(names, on_each(head, [rows[name] for name in names]), strict=True))
        return result

    def project_each(self, views: Mapping[str, torch.Tensor]) -> Outputs:
        """`project` of every view, each a batch of its own for batch norm."""
        features = {name: self.encoders[self.modality_of[name]](view) for name, view in views.items()}
        return self.on_each_view(self.projectors, features)

    @torch.no_grad()
    def teach_each(self, views: Mapping[str, torch.Tensor]) -> Outputs:
        """As `project_each`, with the teachers in place of encoders and projectors."""
        teachers: dict[str, Any] = dict(self.teachers.items())
        features = {name: teachers[self.modality_of[name]][0](view) for name, view in views.items()}
        return self.on_each_view({modality: teacher[1] for modality, teacher in teachers.items()}, features)

    def embedding(self, modality: str, features: torch.Tensor) -> torch.Tensor:
        """As in the base class; for two modalities with predictors, projection and prediction side by side.

        Such a loss does not pull the projections z of two modalities together, but the prediction p of one and the z
        of the other. With (p, z) / sqrt 2 for one modality and (z, p) / sqrt 2 for the other, the cosine of two rows
        is the mean of both directions' similarities, (p_1 z_2 + z_1 p_2) / 2.
        """
        if not (self.is_cross_modal and modality in self.predictors):
            return super().embedding(modality, features)
        projection = self.projectors[modality](features)
        halves = [self.predictors[modality](projection), projection]
        if modality != self.modality_of[VIEW_NAMES[0]]:
            halves.reverse()
        return torch.cat([nn.functional.normalize(half.float(), dim=1) for half in halves], dim=1) / 2**0.5
