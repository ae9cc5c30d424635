"""What `auto` becomes: a recipe fitted to the corpus and to the machine.

data.global_batch_size=auto is the recipe's batch if an epoch then has LEAST_STEPS steps and the activations of a step
fit in memory; else the largest power of two (times the lanes) of which that is true. With it goes what depends on it:

    optim.lr, final_lr  of sgd and lars are scaled with the batch, as the papers that use these do; of adam and adamw
                        they stay
    loss                what its class says in `fitted`: positives, clusters, prototypes, queues
    optim.warmup_steps  at most WARM_UP_EPOCHS epochs, if the recipe's are more than a quarter of the run
    milestone_steps     scaled so that the last lies at LAST_MILESTONE of the run, if it lies beyond its end

data.num_workers=auto follows the cores of a process. All of it is printed and written to config.yaml. A run that goes
on keeps what was fitted when it began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from avssl import checkpoint
from avssl.config import load_run, set_value, value_at
from avssl.data.loader import Loader
from avssl.device import free_memory_bytes
from avssl.distributed import broadcast_object, local_processes, world_size
from avssl.losses.base import Loss
from avssl.models.create import create_encoder, without_weights
from avssl.models.public import is_public
from avssl.processes.limits import default_num_workers
from avssl.shards.shard_set import ShardSet
from avssl.transforms.view_maker import ViewMaker
from avssl.types import TooFewSamplesError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from avssl.config import RunConfig

BATCH, WORKERS = "data.global_batch_size", "data.num_workers"
LEAST_STEPS = 8  # of an epoch
LEAST_BATCH = 4  # batch norm and comparisons within a batch need some samples
WARM_UP_EPOCHS, LAST_MILESTONE = 10, 0.8
SCALED_OPTIMIZERS = ("sgd", "lars")
SCHEDULE = ("optim.lr", "optim.final_lr", "optim.warmup_steps", "optim.milestone_steps")
MOST_WORKERS = 16
MEMORY_SHARE = 0.6  # of what is free, for activations; the rest is for gradients on their way and work areas
BYTES_PER_WEIGHT = 16  # value, gradient and two moments in float32

SMALL_RECIPES = {"avid": "avid_small", "avid_cma": "avid_cma_small"}  # {loss: recipe for at most SMALL_CORPUS samples}
SMALL_CORPUS, LARGE_FRAMES_PX = 1000, 112
FEW_SAMPLES = 200  # from which on a network that is trained from random weights may tell something of other videos

Changes = dict[str, Any]  # {dotted key: value}


def fit(cfg: RunConfig, loss_class: type[Loss], shards: ShardSet, accelerator: Accelerator) -> list[str]:
    """Replace what `cfg.auto` names, and what goes with it, in place; lines that say what became of it.

    The values are the same on every rank. Raises TooFewSamplesError for shards of less than the smallest batch.
    """
    if not cfg.auto:
        return []
    goes_on = bool(checkpoint.checkpoints(Path(cfg.run)))
    changes: Changes = {}
    if goes_on:
        changes = _kept(cfg, loss_class, shards.num_samples)
    else:
        if BATCH in cfg.auto:
            changes |= _fitted_recipe(cfg, loss_class, shards, accelerator)
        if WORKERS in cfg.auto:
            changes[WORKERS] = fitted_num_workers(accelerator.device.type)
    changes, cfg.auto = broadcast_object(changes), []
    said = [f"{key} {value_at(cfg, key)} -> {changes[key]}" for key in changes if value_at(cfg, key) != changes[key]]
    for key, value in changes.items():
        set_value(cfg, key, value)
    why = f"as {cfg.run} began" if goes_on else f"for {shards.num_samples} samples"
    return [f"auto, {why}: {', '.join(said) or 'the values of the recipe stay'}"]


def _kept(cfg: RunConfig, loss_class: type[Loss], num_samples: int) -> Changes:
    """What an earlier start of this run has fitted."""
    then = load_run(cfg.run)
    keys = [WORKERS] if WORKERS in cfg.auto else []
    if BATCH in cfg.auto:
        keys += [BATCH, *SCHEDULE]
        if then.loss.name == cfg.loss.name:
            fitted = loss_class.fitted(cfg.loss, num_samples, then.data.global_batch_size)
            keys += [f"loss.{name}" for name in fitted]
    return {key: value_at(then, key) for key in keys}


def keep_precision(cfg: RunConfig) -> None:
    """Replace mixed_precision=auto by that of the earlier start, if the run has a checkpoint to go on from."""
    if cfg.mixed_precision == "auto" and checkpoint.checkpoints(Path(cfg.run)):
        cfg.mixed_precision = load_run(cfg.run).mixed_precision


def _fitted_recipe(cfg: RunConfig, loss_class: type[Loss], shards: ShardSet, accelerator: Accelerator) -> Changes:
    least, most = _smallest_batch(cfg, loss_class), cfg.data.global_batch_size
    lanes = cfg.data.order_lanes or world_size()
    batch = fitted_batch_size(most, shards.num_samples, least, lanes, lambda size: True)  # noqa: ARG005
    if batch > least:
        is_small = _memory_test(cfg, loss_class, shards, least, accelerator)
        batch = broadcast_object(fitted_batch_size(batch, shards.num_samples, least, lanes, is_small))
    return recipe_changes(cfg, loss_class, shards.num_samples, batch)


def _smallest_batch(cfg: RunConfig, loss_class: type[Loss]) -> int:
    lanes = cfg.data.order_lanes or world_size()
    least = lanes
    while least < max(LEAST_BATCH, loss_class.min_global_batch_size, 2 * world_size()):
        least *= 2
    return least


def fitted_batch_size(
    published: int, num_samples: int, least: int, lanes: int, fits_in_memory: Callable[[int], bool]
) -> int:
    """The published batch, or the largest power of two times `lanes` below it, of which an epoch has LEAST_STEPS steps
    and which fits in memory; `least` if none does. TooFewSamplesError for fewer samples than `least`.

    >>> fitted_batch_size(1024, 100_000, 4, 1, lambda size: True), fitted_batch_size(1024, 600, 4, 1, lambda size: True)
    (1024, 64)
    """
    if num_samples < least:
        raise TooFewSamplesError(f"the shards hold {num_samples} samples; training needs at least a batch of {least}")
    powers = (lanes << exponent for exponent in reversed(range(published.bit_length())))
    for size in (published, *(size for size in powers if size < published)):
        if size <= least:
            break
        if size % lanes == 0 and num_samples // size >= LEAST_STEPS and fits_in_memory(size):
            return size
    return min(least, published)


def recipe_changes(cfg: RunConfig, loss_class: type[Loss], num_samples: int, batch: int) -> Changes:
    """What a batch of this size changes in a recipe; see the module's text."""
    published, optim = cfg.data.global_batch_size, cfg.optim
    changes: Changes = {BATCH: batch}
    if batch != published and optim.name in SCALED_OPTIMIZERS:
        for name in ("lr", "final_lr"):
            changes[f"optim.{name}"] = getattr(optim, name) * batch / published
    for name, value in loss_class.fitted(cfg.loss, num_samples, batch).items():
        changes[f"loss.{name}"] = value
    epoch_steps = num_samples // batch
    steps = cfg.epochs * epoch_steps // cfg.gradient_accumulation_steps
    steps = min(cfg.steps or steps, steps)
    if optim.warmup_steps > steps // 4:
        changes["optim.warmup_steps"] = min(WARM_UP_EPOCHS * epoch_steps, steps // 10)
    milestones = sorted(optim.milestone_steps or [])
    if optim.schedule == "multistep" and milestones and milestones[-1] >= steps:
        scale = LAST_MILESTONE * steps / milestones[-1]
        changes["optim.milestone_steps"] = [round(milestone * scale) for milestone in milestones]
    return changes


def small_recipe(cfg: RunConfig, num_samples: int) -> str:
    """A hint at the recipe for so few samples, if the networks and frames of this run are for many; else ""."""
    name = SMALL_RECIPES.get(cfg.loss.name, "")
    if not name or num_samples > SMALL_CORPUS or cfg.views.video.size_px < LARGE_FRAMES_PX:
        return ""
    return (
        f"{num_samples} clips are few for this recipe: `avssl pretrain {name}` has smaller networks and frames, for 30 "
        "to 1,000 clips and two cores"
    )


def advice(cfg: RunConfig, num_samples: int) -> str:
    """As `small_recipe`, and a line on networks that others trained, if this one begins with random weights."""
    lines = [small_recipe(cfg, num_samples)]
    is_begun = cfg.init_from or any(is_public(str(encoder.get("name"))) for encoder in cfg.encoders.values())
    if num_samples < FEW_SAMPLES and not is_begun:
        lines.append(
            f"{num_samples} samples show the way, but teach a network little about others; with fewer than "
            f"{FEW_SAMPLES}, one that others trained is the better start (docs/public_models.md)"
        )
    return "\n".join(filter(None, lines))


def fitted_num_workers(device_type: str, num_cores: int | None = None, num_processes: int | None = None) -> int:
    """Decoding processes per training process: a GPU needs all cores but one; on a CPU the networks need most of them.

    num_cores: default those that this process may use. num_processes: of the run on this machine, likewise.

    >>> fitted_num_workers("cuda", 16, 2), fitted_num_workers("cpu", 8, 1), fitted_num_workers("cpu", 2, 2)
    (7, 2, 1)
    """
    cores = max(1, (num_cores or default_num_workers()) // (num_processes or local_processes()))
    return min(MOST_WORKERS, max(1, cores // 4 if device_type == "cpu" else cores - 1))


def workers_advice(num_workers: int, device_type: str, num_cores: int | None = None) -> str:
    """A line about more decoding processes than the cores of a training process can serve, "" without.

    >>> print(workers_advice(8, "cpu", num_cores=2))
    data.num_workers is 8, and there are 2 cores: data.num_workers=auto takes 1
    >>> workers_advice(2, "cpu", num_cores=2)
    ''
    """
    processes = local_processes()
    cores = num_cores or default_num_workers()
    if num_workers <= max(1, cores // processes):
        return ""
    each = f" for each of {processes} processes" if processes > 1 else ""
    fitted = fitted_num_workers(device_type, cores, processes)
    return f"data.num_workers is {num_workers}{each}, and there are {cores} cores: data.num_workers=auto takes {fitted}"


@contextmanager
def few_samples_advised(cfg: RunConfig, loss_class: type[Loss], num_samples: int) -> Iterator[None]:
    """A context whose TooFewSamplesError says what to add to the command."""
    try:
        yield
    except TooFewSamplesError as error:
        try:
            lanes = cfg.data.order_lanes or world_size()
            least = _smallest_batch(cfg, loss_class)
            batch = fitted_batch_size(cfg.data.global_batch_size, num_samples, least, lanes, lambda size: True)  # noqa: ARG005
        except TooFewSamplesError:
            raise error from None
        changes = recipe_changes(cfg, loss_class, num_samples, batch)
        pairs = " ".join(
            f"{key}={value}".replace(" ", "") for key, value in changes.items() if value != value_at(cfg, key)
        )
        hint = small_recipe(cfg, num_samples)
        raise TooFewSamplesError(
            f"{error}. The recipe is made for a larger corpus: add {BATCH}=auto, which fits it to this one, or {pairs}"
            + (f". {hint}" if hint else "")
        ) from error


def _memory_test(
    cfg: RunConfig, loss_class: type[Loss], shards: ShardSet, batch: int, accelerator: Accelerator
) -> Callable[[int], bool]:
    """Whether a global batch fits in memory, as measured on a forward pass of a batch of the size `batch`."""
    small = replace(cfg, data=replace(cfg.data, num_workers=0, global_batch_size=batch, max_failure_rate=1.0))
    fitted: dict[str, Any] = loss_class.fitted(cfg.loss, shards.num_samples, batch)
    small.loss = replace(cfg.loss, **fitted)
    modalities = loss_class.modalities(small.loss)
    views = ViewMaker(small.views, modalities).to(accelerator.device)
    view_list, device = loss_class.views(small.loss), accelerator.device
    loader = Loader(shards, small.data, view_list, views, seed=small.seed, device=device)
    encoders = {name: create_encoder(modality=name, **without_weights(small.encoders[name])) for name in modalities}
    loss = loss_class(small.loss, encoders, shards.num_samples).to(device)
    tensors = next(loader.epoch(0)).views
    rows = loader.per_device_batch_size
    per_sample = saved_bytes(loss, tensors, accelerator.autocast()) / rows
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what the pass took is free again
    weights = BYTES_PER_WEIGHT * sum(weight.numel() for weight in loss.parameters() if weight.requires_grad)
    free = MEMORY_SHARE * free_memory_bytes(device) - weights
    return lambda size: size / world_size() * per_sample <= free


def saved_bytes(loss: Loss, views: Mapping[str, torch.Tensor], autocast: AbstractContextManager[Any]) -> int:
    """Bytes of memory that a forward pass keeps for the backward pass, weights aside; the networks train on the way."""
    weights = {weight.untyped_storage().data_ptr() for weight in (*loss.parameters(), *loss.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # the storages stay alive, so that no two have the same address

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(dict(views))
    return sum(storage.nbytes() for storage in kept.values())
