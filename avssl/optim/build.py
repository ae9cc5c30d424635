"""Optimizers from a configuration, and their schedules as pure functions of the step."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from avssl.ops import kernels
from avssl.optim.config import OptimConfig
from avssl.optim.lars import LARS
from avssl.optim.layers import placements, split_layers

__all__ = ["OptimConfig", "build_optimizer", "forget", "learning_rate", "set_schedules", "weight_decay"]

KINDS: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def build_optimizer(
    config: OptimConfig, groups: Sequence[Mapping[str, object]], networks: nn.Module | None = None
) -> torch.optim.Optimizer:
    """The optimizer for the parameter groups of a loss.

    A group may have lr_scale, a factor on the scheduled learning rate; constant_lr, True for no schedule; and options
    of the optimizer. networks: where encoders are looked for that say the layers of their parameters (optim/layers.py).

    Raises ValueError for a group with a learning rate, which the schedule would replace at the first step.

    >>> network = torch.nn.Linear(2, 2)
    >>> build_optimizer(OptimConfig(name="lars", lr=0.2), [{"params": list(network.parameters())}]).__class__.__name__
    'LARS'
    """
    for rate in (group["lr"] for group in groups if "lr" in group):
        raise ValueError(
            f"a parameter group of the loss has lr={rate}, which the schedule would replace; give it lr_scale, a "
            "factor on optim.lr, and constant_lr=True if it keeps that rate"
        )
    placed = placements(config, networks)
    split_groups = [
        split
        for group in groups
        for part in split_layers(config, group, placed)
        for split in _split_biases(config, part)
    ]
    if config.final_weight_decay is not None:
        for group in split_groups:
            group["decays"] = "weight_decay" not in group  # by the configuration's, which set_schedules changes
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.name == "lars":
        exclude = config.exclude_biases is not False
        return LARS(split_groups, momentum=config.momentum, trust=config.trust, exclude_biases=exclude, **common)
    kind = KINDS[config.name]
    common["fused"] = _fused(config, kind, split_groups)
    optimizer: torch.optim.Optimizer
    if config.name == "sgd":
        optimizer = torch.optim.SGD(split_groups, momentum=config.momentum, **common)
        if common["fused"] and config.momentum:
            optimizer.register_step_pre_hook(_begin_momentum)
    else:
        optimizer = kind(split_groups, betas=config.betas, **common)
    optimizer.register_load_state_dict_pre_hook(partial(_keep_fused, fused=common["fused"]))
    optimizer.register_load_state_dict_post_hook(_lay_out_as_weights)
    return optimizer


def _fused(config: OptimConfig, kind: Any, groups: Sequence[Mapping[str, Any]]) -> bool:
    """Whether to use the fused kernels. Raises ValueError if config.fused is true but they are wrong here."""
    device = next((weight.device for group in groups for weight in group["params"]), torch.device("cpu"))
    if config.fused is False:
        return False
    is_right = kernels.fused_is_right(kind, device)
    if config.fused and not is_right:
        raise ValueError(f"optim.fused=true: this machine computes the fused {kind.__name__} wrongly; leave it out")
    return is_right


def _keep_fused(optimizer: torch.optim.Optimizer, state: dict[str, Any], *, fused: bool) -> dict[str, Any]:  # noqa: ARG001
    """The stored state with this run's choice of kernels instead of the choice with which it was stored."""
    return {**state, "param_groups": [{**group, "fused": fused} for group in state["param_groups"]]}


def _lay_out_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded moments the strides of their weights, which may differ from those of the stored run (channels last).

    PyTorch keeps the stored strides, but its fused kernels go through raw memory: they would silently use the moments
    of other weights.
    """
    for parameter, moments in optimizer.state.items():
        for name, moment in moments.items():
            if isinstance(moment, torch.Tensor) and moment.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)


def _begin_momentum(optimizer: torch.optim.Optimizer, arguments: object, options: object) -> None:  # noqa: ARG001
    """Set missing momentum to zeros, which give the same first step.

    The fused SGD of PyTorch 2.14 needs momentum for all parameters or for none. Some start late: prototypes that are
    frozen at first, and classifiers whose moments were dropped.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _split_biases(config: OptimConfig, group: Mapping[str, object]) -> list[dict[str, Any]]:
    """The group, split into weights and biases if the configuration treats these differently."""
    options: dict[str, Any] = {"lr_scale": 1.0, "constant_lr": False, **group}
    no_decay = bool(config.exclude_biases) and config.name != "lars"  # LARS does this itself
    if "is_placed" in options:  # split_layers has done this
        return [{key: value for key, value in options.items() if key != "is_placed"}]
    if not no_decay and config.bias_lr_scale == 1.0:
        return [options]
    parameters: list[torch.nn.Parameter] = options.pop("params")
    biases = dict(options, lr_scale=options["lr_scale"] * config.bias_lr_scale)
    if no_decay:
        biases["weight_decay"] = 0.0
    groups = [
        dict(options, params=[parameter for parameter in parameters if parameter.ndim > 1]),
        dict(biases, params=[parameter for parameter in parameters if parameter.ndim <= 1]),
    ]
    return [group for group in groups if group["params"]]


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step` (0-based) of `total_steps`.

    >>> learning_rate(OptimConfig(lr=1.0, schedule="cosine", warmup_steps=10), step=4, total_steps=100)
    0.5
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        span = max(1, total_steps - config.warmup_steps)
        fraction = min(1.0, (step - config.warmup_steps) / span)
        return config.final_lr + (config.lr - config.final_lr) * 0.5 * (1.0 + math.cos(math.pi * fraction))
    if config.schedule == "multistep":
        return config.lr * config.gamma ** bisect.bisect_right(sorted(config.milestone_steps or []), step)
    return config.lr


def weight_decay(config: OptimConfig, step: int, total_steps: int) -> float:
    """Weight decay of optimizer step `step` (0-based) of `total_steps`.

    >>> weight_decay(OptimConfig(weight_decay=0.04, final_weight_decay=0.4), step=50, total_steps=100)
    0.22
    """
    if config.final_weight_decay is None:
        return config.weight_decay
    first, last = config.weight_decay, config.final_weight_decay
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, total_steps))))


def set_schedules(optimizer: torch.optim.Optimizer, config: OptimConfig, step: int, total_steps: int) -> None:
    """Set every group's learning rate for this step, times its lr_scale; groups with constant_lr keep config.lr.

    With a final weight decay also that, but for groups that have their own (biases, which have none).
    """
    scheduled = learning_rate(config, step, total_steps)
    for group in optimizer.param_groups:
        group["lr"] = (config.lr if group.get("constant_lr") else scheduled) * group.get("lr_scale", 1.0)
        if config.final_weight_decay is not None and group["decays"]:
            group["weight_decay"] = weight_decay(config, step, total_steps)


def forget(optimizer: torch.optim.Optimizer) -> Callable[[Sequence[torch.nn.Parameter]], None]:
    """A function that drops the moments of its argument, some parameters, and the gradients that wait for a step."""

    def reset(parameters: Sequence[torch.nn.Parameter]) -> None:
        for parameter in parameters:
            optimizer.state.pop(parameter, None)
            parameter.grad = None  # of micro-batches before: with accumulation a step may reach over an epoch's end

    return reset
