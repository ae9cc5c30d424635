"""Optimisers by name and learning rates as a pure function of the step."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from avssl.optim.lars import LARS


@dataclass
class OptimConfig:
    """Optimiser and schedule. weight_decay is L2 in the gradient for adam, sgd, lars; decoupled for adamw."""

    name: Literal["adam", "adamw", "sgd", "lars"] = "adam"
    lr: float = 2e-4
    weight_decay: float = 1e-5
    momentum: float = 0.9  # of sgd and lars
    betas: tuple[float, float] = (0.9, 0.999)  # of adam and adamw
    trust: float = 0.001  # of lars
    clip_norm: float = 0.0  # largest norm of all gradients together; 0: no clipping
    schedule: Literal["constant", "cosine", "multistep"] = "constant"
    warmup_steps: int = 0  # linear from 0, before any schedule
    final_lr: float = 0.0  # where cosine ends
    milestone_steps: list[int] | None = None  # multistep: lr is multiplied by `gamma` at each
    gamma: float = 0.1


def build_optimizer(config: OptimConfig, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    """Optimiser over parameter groups. A group may carry its own "lr_scale", kept through the schedule."""
    groups = [{"lr_scale": 1.0, **group} for group in groups]
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.name == "adam":
        return torch.optim.Adam(groups, betas=config.betas, **common)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, betas=config.betas, **common)
    if config.name == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, **common)
    return LARS(groups, momentum=config.momentum, trust=config.trust, **common)


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Learning rate of optimiser step `step` (0-based) of `total_steps`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        span = max(1, total_steps - config.warmup_steps)
        fraction = min(1.0, (step - config.warmup_steps) / span)
        return config.final_lr + (config.lr - config.final_lr) * 0.5 * (1.0 + math.cos(math.pi * fraction))
    if config.schedule == "multistep":
        return config.lr * config.gamma ** bisect.bisect_right(sorted(config.milestone_steps or []), step)
    return config.lr


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group lr times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
