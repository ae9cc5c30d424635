"""What fine-tuning and linear probes have in common: their keys, and one repeat from shards to metrics."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from avssl.data.every_sample import ClipSets
from avssl.data.loader import Loader
from avssl.data.loader_config import LoaderConfig
from avssl.data.statistics import measure_statistics
from avssl.distributed import gather_objects, rank, world_size
from avssl.eval.configs import TrainedConfig
from avssl.eval.finetune.data import ShardFold, changed, few_labels, has_same_spectrograms, shard_folds, training_views
from avssl.eval.finetune.scores import Scores, clip_accuracy, score
from avssl.eval.finetune.state import (
    CLASSIFIER_FILE,
    TRAINING_FILE,
    load_state,
    read_step,
    save_state,
    training_folder,
)
from avssl.eval.finetune.training import Criterion, Headed, Stage, TrainingOptions, train
from avssl.eval.frozen import modalities_of
from avssl.eval.outcome import Metric, Repeat, classified, settings_of, targets_digest
from avssl.models.create import create_encoder, without_weights
from avssl.ops import kernels
from avssl.optim.config import OptimConfig
from avssl.options.counts import check_counts
from avssl.transforms.config import ViewsConfig
from avssl.transforms.view_maker import ViewMaker

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder


# Keys without influence on the training of a classifier: they may change when it is resumed.
NOT_OF_TRAINING = (
    "name", "folder", "untrained", "batch_size", "num_workers", "device", "test_clips", "test_crops", "test", "folds",
    "log_every_steps", "checkpoint_every_steps", "seeds", "train", "max_failure_rate", "plugins",
)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """One repeat of a trained classifier: protocol and facts as in Outcome, {head: scores}, digests of the labels."""

    repeat: Repeat
    protocol: dict[str, Any]
    facts: dict[str, Any]
    scores: dict[str, Scores]
    targets: list[str]


MakeModel = Callable[[ShardFold, ViewMaker, ViewsConfig], Headed]
MakeStages = Callable[[int], list[Stage]]


def check(config: TrainedConfig) -> None:
    """Raise ValueError for values that are not allowed."""
    check_counts(config)
    if config.mixed_precision not in ("fp32", "bf16"):
        raise ValueError(f"mixed_precision is {config.mixed_precision!r}; allowed are fp32 and bf16")
    if not config.folder:
        raise ValueError("folder is not set: name the folder for checkpoints and the classifier")
    if not config.seeds or len(set(config.seeds)) != len(config.seeds):
        raise ValueError(f"seeds must be at least one number, each once; got {list(config.seeds)}")
    if config.multi_label and config.label_smoothing:
        raise ValueError("label_smoothing is for single labels; leave it out with multi_label: true")
    if not 0 <= config.label_smoothing < 1:
        raise ValueError(f"label_smoothing must be at least 0 and below 1, got {config.label_smoothing}")
    if config.milestone_epochs and config.optim.milestone_steps:
        raise ValueError("milestone_epochs and optim.milestone_steps are both given; choose one")


def scheduled(config: TrainedConfig, steps_per_pass: int) -> OptimConfig:
    """The settings of the optimizer, with milestone_epochs as milestones in steps."""
    if not config.milestone_epochs:
        return config.optim
    per_epoch = config.clips_per_sample * steps_per_pass
    steps = [round(epoch * per_epoch) for epoch in config.milestone_epochs]
    return replace(config.optim, schedule="multistep", milestone_steps=steps)


def repeats(config: TrainedConfig, embedder: Embedder) -> Iterator[tuple[str, int, ShardFold]]:
    """(name, seed, fold) of every repeat: each fold with each seed."""
    for fold in shard_folds(config, modalities_of(config, embedder)):
        for seed in config.seeds:
            names = [fold.name] if fold.name else []
            names += [f"seed {seed}"] if len(config.seeds) > 1 else []
            yield ", ".join(names), seed, few_labels(fold, config.label_share, seed)


def encoder_of(embedder: Embedder, config: TrainedConfig, modality: str) -> nn.Module:
    """A copy of an encoder of the run, with the changed options and the run's weights.

    ValueError for an option that the encoder does not have.
    """
    changes = config.encoders.get(modality)
    if not changes:
        return copy.deepcopy(embedder.encoders[modality])
    if "name" in changes:
        raise ValueError(f"encoders.{modality}.name is the run's and cannot be changed; its other options can")
    section = without_weights({**embedder.config.encoders[modality], **changes})
    encoder = create_encoder(modality=modality, **section)
    encoder.load_state_dict(embedder.encoders[modality].state_dict())
    return encoder.to(embedder.device)


def make_views(embedder: Embedder, config: TrainedConfig) -> tuple[ViewsConfig, ViewMaker, bool]:
    """(the views, their maker on the device, whether the statistics of its spectrograms must be measured).

    The statistics of the run are used if spectrograms are made as in the run.
    """
    modalities = modalities_of(config, embedder)
    views = changed(embedder.config.views, dict(config.views))
    maker = ViewMaker(views, modalities).to(embedder.device).eval()
    is_unmeasured = hasattr(maker, "normalize_audio")
    if is_unmeasured and has_same_spectrograms(views, embedder.config.views):
        statistics = embedder.views.normalize_audio.state_dict()
        if statistics.keys() == maker.normalize_audio.state_dict().keys():  # a published checkpoint has none
            maker.normalize_audio.load_state_dict(statistics)
            is_unmeasured = False
    return views, maker, is_unmeasured


def make_loader(embedder: Embedder, config: TrainedConfig, fold: ShardFold, maker: ViewMaker, seed: int) -> Loader:
    """The loader of the training samples. ValueError for a batch size above their number."""
    if config.train_batch_size > fold.train.num_samples:
        raise ValueError(
            f"train_batch_size is {config.train_batch_size}, but there are {fold.train.num_samples} training samples; "
            f"choose at most {fold.train.num_samples}"
        )
    reading = LoaderConfig(
        global_batch_size=config.train_batch_size,
        num_workers=config.num_workers,
        order_lanes=config.order_lanes,
        max_failure_rate=config.max_failure_rate,
    )
    views = training_views(modalities_of(config, embedder), config.augment)
    return Loader(fold.train, reading, views, maker, seed=seed, device=embedder.device)


def facts_of(embedder: Embedder, config: TrainedConfig, fold: ShardFold, loader: Loader) -> dict[str, Any]:
    """The values that must be equal for a stored training to be resumed."""
    return {
        **{key: value for key, value in settings_of(config).items() if key not in NOT_OF_TRAINING},
        **({"plugins": config.plugins} if config.plugins else {}),  # what was stored before there were any has no key
        **loader.order_facts(),
        "train_samples": fold.train.fingerprint,
        "classes": hashlib.sha256("\n".join(fold.classes).encode()).hexdigest()[:16],
        "weights": embedder.weights_hash,
        "world_size": world_size(),
    }


def train_or_load(
    model: Headed, loader: Loader, stages: list[Stage], criterion: Criterion, options: TrainingOptions, *,
    folder: Path, facts: dict[str, Any], device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """Train the model, or load it from the folder if it was trained with these facts; returns facts of the training."""
    steps = sum(stage.num_steps for stage in stages)
    if read_step(folder / CLASSIFIER_FILE, facts) == steps:
        load_state(folder / CLASSIFIER_FILE, model)
        model.eval()
        return {"classifier": "as stored"}
    train(model, loader, stages, criterion, options, folder=folder, facts=facts, device=device)
    if rank() == 0:
        save_state(folder / CLASSIFIER_FILE, model, None, steps, facts)
        (folder / TRAINING_FILE).unlink(missing_ok=True)
    failures = gather_objects(dict(loader.failures))
    unreadable: Counter[str] = sum(map(Counter, failures), Counter())
    return {"unreadable_training_clips": dict(unreadable)}


def run_repeat(
    embedder: Embedder,
    config: TrainedConfig,
    name: str,
    seed: int,
    fold: ShardFold,
    make_model: MakeModel,
    make_stages: MakeStages,
) -> Trained:
    """Train and test a classifier. One that was trained before with the same settings is loaded from its file."""
    device = embedder.device
    views, maker, is_unmeasured = make_views(embedder, config)
    loader = make_loader(embedder, config, fold, maker, seed)
    if is_unmeasured:
        measure_statistics(maker, loader)
    torch.manual_seed(seed)  # of the heads
    model = make_model(fold, maker, views).to(device)
    kernels.refuse_wrong_kernels(model, config.mixed_precision, device)
    stages = make_stages(loader.steps_per_epoch)
    protocol = {
        "train_test_classes": [fold.train.num_samples, fold.test.num_samples, len(fold.classes)],
        "left_out": fold.left_out,
        "steps": sum(stage.num_steps for stage in stages),
        "steps_per_pass": loader.steps_per_epoch,
    }
    options = TrainingOptions(seed, config.mixed_precision, config.log_every_steps, config.checkpoint_every_steps)
    criterion = Criterion(fold.train_targets.to(device), config.label_smoothing)
    folder = training_folder(config.folder, embedder.weights_hash, fold.name, name)
    facts = facts_of(embedder, config, fold, loader)
    training_facts = train_or_load(model, loader, stages, criterion, options, folder=folder, facts=facts, device=device)
    del loader  # ends its workers
    scores = score(
        model,
        ClipSets(fold.test, views, modalities_of(config, embedder), config.test_clips, config.test_crops),
        maker,
        multi_label=config.multi_label,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        device=device,
        mixed_precision=config.mixed_precision,
    )
    repeat = as_repeat(scores, fold, name, multi_label=config.multi_label)
    return Trained(repeat, protocol, training_facts, scores, label_digests(fold))


def label_digests(fold: ShardFold) -> list[str]:
    """The digests of the labels of the training and of the test samples."""
    digests = []
    for shards, targets in ((fold.train, fold.train_targets), (fold.test, fold.test_targets)):
        rows = targets.tolist()
        names = [
            [name for name, has in zip(fold.classes, row, strict=True) if has]
            if isinstance(row, list)
            else [fold.classes[row]]
            for row in rows
        ]
        digests.append(targets_digest(shards.keys, names))
    return digests


def as_repeat(scores_of_heads: Mapping[str, Scores], fold: ShardFold, name: str, *, multi_label: bool) -> Repeat:
    """The metrics of every head, and for single labels the accuracy of single clips."""
    targets, train_targets = fold.test_targets.numpy(), fold.train_targets.numpy()
    columns: dict[str, Any] = {}
    metrics: dict[str, Metric] = {}
    for head, scores in scores_of_heads.items():
        result = classified(
            fold.test.keys, scores.mean, targets, fold.classes, prefix=f"{head}_",
            train_targets=None if multi_label else train_targets,
        )  # fmt: skip
        columns |= result.columns
        metrics |= result.metrics
        if not multi_label:
            columns[f"{head}_clips_right"] = clip_accuracy(scores.clips, targets)
            chance = result.metrics[f"{head}_top1_accuracy"].chance
            metrics[f"{head}_clip_accuracy"] = Metric("mean", (f"{head}_clips_right",), chance)
    return Repeat(name, list(fold.test.keys), columns, metrics, list(fold.train.keys), fold.classes)
