"""What full fine-tuning and linear probes share: their keys, and one repeat from shards to scores."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from avssl.data.every_sample import ClipSets
from avssl.data.loader import Loader
from avssl.data.loader_config import LoaderConfig
from avssl.data.statistics import measure_statistics
from avssl.distributed import gather_objects, rank, world_size
from avssl.eval.finetune.data import ShardFold, changed, few_labels, same_sound, shard_folds, training_views
from avssl.eval.finetune.scores import Scores, clip_accuracy, score
from avssl.eval.finetune.state import CLASSIFIER_FILE, TRAINING_FILE, load_state, read_step, save_state
from avssl.eval.finetune.training import Criterion, Headed, Stage, TrainingOptions, train
from avssl.eval.frozen import wanted_modalities
from avssl.eval.outcome import LabelTaskConfig, Metric, Repeat, classified
from avssl.ops import kernels
from avssl.optim.config import OptimConfig
from avssl.transforms.config import ViewsConfig
from avssl.transforms.view_maker import ViewMaker

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder


@dataclass
class TrainedConfig(LabelTaskConfig):
    """Classifiers trained by gradient steps on augmented clips. `batch_size` counts clips of the test."""

    epochs: int = 10  # each of `clips_per_sample` passes over the training samples
    clips_per_sample: int = 1  # random clips of every sample in an epoch, one a pass
    train_batch_size: int = 64  # samples a step, over all processes
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4, weight_decay=0.0))
    milestone_epochs: list[float] = field(default_factory=list)  # lr times optim.gamma after these; sets the schedule
    label_smoothing: float = 0.0  # of single labels
    label_share: float = 1.0  # of the training samples of each class that may be used, at least one; drawn by the seed
    seeds: list[int] = field(default_factory=lambda: [0])  # heads, order, augmentation; one repeat each, of every fold
    augment: str = ""  # a set of views.augments for training pictures and video; "": the run's, of pictures crop, flip
    views: dict[str, Any] = field(default_factory=dict)  # changes to the run's views, e.g. {video: {num_frames: 32}}
    test_clips: int = 10  # evenly spaced over each sample; what is said of them is averaged
    test_crops: int = 1  # of a picture: the center, or 3 along the longer side
    mixed_precision: str = "fp32"  # or bf16
    order_lanes: int = 0  # as data.order_lanes in pretraining: fixes the order for any number of processes
    max_failure_rate: float = 0.01  # share of unreadable training samples at which it stops; of the test none may be
    log_every_steps: int = 10
    checkpoint_every_steps: int = 500


# What says nothing about the training of a classifier: it may change when one goes on.
NOT_OF_TRAINING = (
    "name", "folder", "untrained", "batch_size", "num_workers", "device", "test_clips", "test_crops", "test", "folds",
    "log_every_steps", "checkpoint_every_steps", "seeds", "train", "max_failure_rate",
)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """One repeat: protocol and facts as in Outcome, scores by head."""

    repeat: Repeat
    protocol: dict[str, Any]
    facts: dict[str, Any]
    scores: dict[str, Scores]


MakeModel = Callable[[ShardFold, ViewMaker, ViewsConfig], Headed]
MakeStages = Callable[[int], list[Stage]]


def check(config: TrainedConfig) -> None:
    """ValueError for values that cannot be."""
    for name in ("epochs", "clips_per_sample", "train_batch_size", "test_clips", "checkpoint_every_steps"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if config.mixed_precision not in ("fp32", "bf16"):
        raise ValueError(f"mixed_precision is {config.mixed_precision!r}; allowed are fp32 and bf16")
    if not config.folder:
        raise ValueError("folder is not set: say where checkpoints and the classifier are to be kept")
    if not config.seeds or len(set(config.seeds)) != len(config.seeds):
        raise ValueError(f"seeds must be at least one number, each once; got {list(config.seeds)}")
    if config.multi_label and config.label_smoothing:
        raise ValueError("label_smoothing is for single labels; leave it out with multi_label: true")
    if not 0 <= config.label_smoothing < 1:
        raise ValueError(f"label_smoothing must be at least 0 and below 1, got {config.label_smoothing}")
    if config.milestone_epochs and config.optim.milestone_steps:
        raise ValueError("milestone_epochs and optim.milestone_steps are both given; choose one")


def scheduled(config: TrainedConfig, steps_per_pass: int) -> OptimConfig:
    """The optimizer with its milestones in steps."""
    if not config.milestone_epochs:
        return config.optim
    per_epoch = config.clips_per_sample * steps_per_pass
    steps = [round(epoch * per_epoch) for epoch in config.milestone_epochs]
    return replace(config.optim, schedule="multistep", milestone_steps=steps)


def repeats(config: TrainedConfig, embedder: Embedder) -> Iterator[tuple[str, int, ShardFold]]:
    """(name, seed, fold) of every repeat: each fold with each seed."""
    for fold in shard_folds(config, wanted_modalities(config, embedder)):
        for seed in config.seeds:
            parts = [fold.name] if fold.name else []
            parts += [f"seed {seed}"] if len(config.seeds) > 1 else []
            yield ", ".join(parts), seed, few_labels(fold, config.label_share, seed)


def make_views(embedder: Embedder, config: TrainedConfig) -> tuple[ViewsConfig, ViewMaker, bool]:
    """The views, their maker on the device, and whether its statistics of sound are still to be measured.

    The run's statistics are kept where spectrograms are made as in the run.
    """
    modalities = wanted_modalities(config, embedder)
    views = changed(embedder.config.views, dict(config.views))
    maker = ViewMaker(views, modalities).to(embedder.device).eval()
    unmeasured = "audio" in modalities
    if unmeasured and same_sound(views, embedder.config.views):
        own = {name.removeprefix("normalize_audio."): value for name, value in embedder.views.state_dict().items()
               if name.startswith("normalize_audio.")}  # fmt: skip
        if own.keys() == maker.normalize_audio.state_dict().keys():  # a published checkpoint has none
            maker.normalize_audio.load_state_dict(own)
            unmeasured = False
    return views, maker, unmeasured


def make_loader(embedder: Embedder, config: TrainedConfig, fold: ShardFold, maker: ViewMaker, seed: int) -> Loader:
    """The loader of the training samples. ValueError for batches larger than all of them."""
    if config.train_batch_size > fold.train.num_samples:
        raise ValueError(
            f"train_batch_size is {config.train_batch_size}, but there are {fold.train.num_samples} samples to learn "
            f"from; choose at most {fold.train.num_samples}"
        )
    reading = LoaderConfig(
        global_batch_size=config.train_batch_size,
        num_workers=config.num_workers,
        order_lanes=config.order_lanes,
        max_failure_rate=config.max_failure_rate,
    )
    views = training_views(wanted_modalities(config, embedder), config.augment)
    return Loader(fold.train, reading, views, maker, seed=seed, device=embedder.device)


def facts_of(embedder: Embedder, config: TrainedConfig, fold: ShardFold, loader: Loader) -> dict[str, Any]:
    """What a stored training must agree with to be gone on with."""
    return {
        **{key: value for key, value in dataclasses.asdict(config).items() if key not in NOT_OF_TRAINING},
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
    """Train the model, or take it from the folder if it was trained there with the same facts; what there is to say."""
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
    """Train and test. A classifier that was trained before with the same settings is taken from its file."""
    device = embedder.device
    views, maker, unmeasured = make_views(embedder, config)
    loader = make_loader(embedder, config, fold, maker, seed)
    if unmeasured:
        measure_statistics(maker, loader)
    torch.manual_seed(seed)  # of the heads
    model = make_model(fold, maker, views).to(device)
    kernels.refuse_wrong_kernels(model, config.mixed_precision, device)
    stages = make_stages(loader.steps_per_epoch)
    said = {
        "train_test_classes": [fold.train.num_samples, fold.test.num_samples, len(fold.classes)],
        "left_out": fold.left_out,
        "steps": sum(stage.num_steps for stage in stages),
        "steps_per_pass": loader.steps_per_epoch,
    }
    options = TrainingOptions(seed, config.mixed_precision, config.log_every_steps, config.checkpoint_every_steps)
    criterion = Criterion(fold.train_targets.to(device), config.label_smoothing)
    folder = Path(config.folder) / "-".join([embedder.weights_hash, *name.replace(",", "").split()])
    facts = facts_of(embedder, config, fold, loader)
    of_training = train_or_load(model, loader, stages, criterion, options, folder=folder, facts=facts, device=device)
    del loader  # and with it its workers
    found = score(
        model,
        ClipSets(fold.test, views, wanted_modalities(config, embedder), config.test_clips, config.test_crops),
        maker,
        multi_label=config.multi_label,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        device=device,
        mixed_precision=config.mixed_precision,
    )
    return Trained(as_repeat(found, fold, name, multi_label=config.multi_label), said, of_training, found)


def as_repeat(found: Mapping[str, Scores], fold: ShardFold, name: str, *, multi_label: bool) -> Repeat:
    """The metrics of every head, with the accuracy of single clips beside those of whole samples."""
    targets, train_targets = fold.test_targets.numpy(), fold.train_targets.numpy()
    columns: dict[str, Any] = {}
    metrics: dict[str, Metric] = {}
    for head, scores in found.items():
        one = classified(
            fold.test.keys, scores.mean, targets, fold.classes, prefix=f"{head}_",
            train_targets=None if multi_label else train_targets,
        )  # fmt: skip
        columns |= one.columns
        metrics |= one.metrics
        if not multi_label:
            columns[f"{head}_clips_right"] = clip_accuracy(scores.clips, targets)
            chance = one.metrics[f"{head}_top1_accuracy"].chance
            metrics[f"{head}_clip_accuracy"] = Metric("mean", (f"{head}_clips_right",), chance)
    return Repeat(name, list(fold.test.keys), columns, metrics, list(fold.train.keys), fold.classes)
