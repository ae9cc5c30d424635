"""Training of classifiers on labels, in stages, resumable to the bit: for full fine-tuning and linear probes.

A stage trains the heads alone on frozen encoders, or the whole network. The state is weights, the moments of the
optimizer and the number of steps: order and augmentation are pure functions of the loader, the learning rate is a
function of the step, and dropout is drawn from (seed, step, rank).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from avssl.distributed import all_finite, all_mean, barrier, broadcast_state, is_active, rank, seed_of_rank
from avssl.eval.finetune.state import TRAINING_FILE, load_state, read_step, save_state
from avssl.files.disk_errors import clear_errors
from avssl.files.json_lines import truncate_log
from avssl.files.progress import Bar
from avssl.optim.build import build_optimizer, set_schedules
from avssl.optim.config import OptimConfig
from avssl.types import Batch

BatchNormMode = Literal["train", "frozen"]
ADVICE = "lower optim.lr or set optim.clip_norm"  # if a number is not finite


class Batches(Protocol):
    """The part of a loader (avssl/data/loader.py) that training needs."""

    steps_per_epoch: int

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """The batches of a pass over the data, from number first_batch on."""


class Headed(nn.Module):
    """Encoders with heads on top: {view name: tensor} -> {head: logits (B, C)}."""

    encoders: nn.ModuleDict

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters that do not belong to the encoders."""
        of_encoders = {id(parameter) for parameter in self.encoders.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in of_encoders]


@dataclass(frozen=True)
class Stage:
    """A number of training steps with the same settings.

    encoders: whether they are trained. batch_norm: of the encoders: "train" normalizes by the batch and moves the
    running statistics, even if the weights are frozen; "frozen" leaves the statistics as they are. encoder_lr_scale:
    the learning rate of the encoders over that of the heads.
    """

    num_steps: int
    optim: OptimConfig
    encoders: bool
    batch_norm: BatchNormMode
    encoder_lr_scale: float = 1.0


@dataclass(frozen=True)
class Criterion:
    """Cross-entropy with targets int64 (N,), or binary cross-entropy with targets float (N, C), by sample index."""

    targets: torch.Tensor
    label_smoothing: float = 0.0

    def __call__(self, logits: Mapping[str, torch.Tensor], index: torch.Tensor) -> torch.Tensor:
        """Sum over the heads of the mean loss over the batch (with several labels, over classes, too): float32 ()."""
        targets = self.targets[index]
        losses = []
        for scores in logits.values():
            if targets.ndim == 2:
                losses.append(binary_cross_entropy_with_logits(scores.float(), targets))
            else:
                losses.append(cross_entropy(scores.float(), targets, label_smoothing=self.label_smoothing))
        return torch.stack(losses).sum()


@dataclass(frozen=True)
class TrainingOptions:
    """The seed, the precision of the forward pass, and how often logs and checkpoints are written."""

    seed: int = 0
    mixed_precision: str = "fp32"  # or bf16
    log_every_steps: int = 10
    checkpoint_every_steps: int = 500


def set_stage(model: Headed, stage: Stage, trainable: Sequence[nn.Parameter]) -> None:
    """Set the modes and gradients of a stage. trainable: encoder parameters that the network does not freeze itself."""
    model.train()
    if not stage.encoders:
        model.encoders.eval()
    for module in model.encoders.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(stage.batch_norm == "train")
    for parameter in trainable:
        parameter.requires_grad_(stage.encoders)


def train(
    model: Headed,
    loader: Batches,
    stages: Sequence[Stage],
    criterion: Criterion,
    options: TrainingOptions,
    *,
    folder: Path,
    facts: Mapping[str, Any],
    device: torch.device,
) -> None:
    """Train `model` in place through all stages, from the checkpoint of `folder` on if there is one.

    Afterwards it is in eval mode and the same on every rank. ValueError if the checkpoint has other `facts`;
    FloatingPointError if the loss of a step that is logged, or a weight of one that is saved, is not finite.
    """
    checkpoint = folder / TRAINING_FILE
    step = read_step(checkpoint, facts)
    trainable = [parameter for parameter in model.encoders.parameters() if parameter.requires_grad]
    if step:
        load_state(checkpoint, model)
    total_steps, first = sum(stage.num_steps for stage in stages), 0
    with closing(_Log(folder, total_steps, step, options)) as log:
        for stage in stages:
            last = first + stage.num_steps
            if step < last:
                set_stage(model, stage, trainable)
                groups: list[dict[str, Any]] = [{"params": model.head_parameters()}]
                if stage.encoders:
                    groups.append({"params": trainable, "lr_scale": stage.encoder_lr_scale})
                optimizer = build_optimizer(stage.optim, groups, model if stage.encoders else None)
                if step > first:
                    load_state(checkpoint, model, optimizer)
                step = _train_stage(
                    model, loader, stage, criterion, options, optimizer, log, step=step, first=first, device=device,
                    save=lambda at, moments: _save(checkpoint, model, moments, at, facts),
                )  # fmt: skip
            first = last
    for parameter in trainable:
        parameter.requires_grad_(True)
    broadcast_state(model)
    model.eval()


def _train_stage(
    model: Headed,
    loader: Batches,
    stage: Stage,
    criterion: Criterion,
    options: TrainingOptions,
    optimizer: torch.optim.Optimizer,
    log: _Log,
    *,
    step: int,
    first: int,
    device: torch.device,
    save: Callable[[int, torch.optim.Optimizer], None],
) -> int:
    """Train to the end of a stage; returns the number of steps since training began."""
    last = first + stage.num_steps
    wrapped: nn.Module = model
    if is_active():
        # Buffers are broadcast before every forward pass: running statistics are rank 0's, and so resume is exact.
        ids = [device.index] if device.type == "cuda" else None
        wrapped = nn.parallel.DistributedDataParallel(model, device_ids=ids)
    while step < last:
        for batch in loader.epoch(*divmod(step, loader.steps_per_epoch)):
            set_schedules(optimizer, stage.optim, step - first, stage.num_steps)
            seed_step(options.seed, step)
            with torch.autocast(device.type, torch.bfloat16, enabled=options.mixed_precision == "bf16"):
                logits = wrapped(batch.views)
            loss = criterion(logits, batch.index)
            optimizer.zero_grad()
            loss.backward()
            if stage.optim.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), stage.optim.clip_norm)
            optimizer.step()
            step += 1
            log.step_done(step, loss, optimizer)
            if step % options.checkpoint_every_steps == 0 or step == last:
                save(step, optimizer)
            if step == last:
                break
    return step


def seed_step(seed: int, step: int) -> None:
    """Seed PyTorch, so that dropout is a function of (seed, step, rank)."""
    torch.manual_seed(seed_of_rank(seed, step))


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, facts: Mapping[str, Any]) -> None:
    if not all_finite(model.parameters()):  # the loss was, if it was looked at, and its gradient was not
        raise FloatingPointError(f"a weight is not finite after step {step} of {path.parent}; {ADVICE}")
    if rank() == 0:
        save_state(path, model, optimizer, step, facts)
    barrier()


class _Log:
    """Writes FOLDER/metrics.jsonl and a progress bar; FloatingPointError for a loss that is not finite."""

    def __init__(self, folder: Path, total_steps: int, step: int, options: TrainingOptions) -> None:
        self.path, self.every, self.is_first = folder / "metrics.jsonl", options.log_every_steps, rank() == 0
        if self.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            truncate_log(self.path, step)
        self.bar = Bar(folder.name, total_steps, "step", done=step, shown=self.is_first)

    def step_done(self, step: int, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        self.bar.update()
        if step % self.every and step != self.bar.total:
            return
        value = float(all_mean(loss))
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {step} of {self.path.parent}; {ADVICE}")
        if self.is_first:
            with clear_errors(self.path, "written"), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "loss": value, "lr": optimizer.param_groups[0]["lr"]}) + "\n")

    def close(self) -> None:
        self.bar.close()


class Classifier(Headed):
    """Concatenated features of the encoders, dropout, a linear layer: {modality: media} -> {head: logits (B, C)}.

    Args:
        encoders: {modality: module with .dim}, in the order of concatenation.
        num_classes: C. dropout: share of the features that is dropped in training. head: its name in the results.

    The linear layer has PyTorch's default initialization.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], num_classes: int, *, dropout: float, head: str) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
        self.head_name = head
        self.encoders = nn.ModuleDict(dict(encoders))
        self.dropout = nn.Dropout(dropout)
        dims: list[Any] = [encoder.dim for encoder in encoders.values()]
        self.head = nn.Linear(sum(dims), num_classes)

    def forward(self, views: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """{modality: media of its encoder} -> {head: logits (B, C)}."""
        features = [encoder(views[modality]) for modality, encoder in self.encoders.items()]
        return {self.head_name: self.head(self.dropout(torch.cat(features, dim=1)))}
