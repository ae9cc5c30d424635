"""Teachers: copies of a network that follow it as an exponential moving average (MoCo, BYOL, MoCo v3)."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def frozen_copy(network: ModuleT, *, independent: bool = False) -> ModuleT:
    """A copy of a network that needs no gradients.

    independent: give it random weights of its own (as BYOL starts), drawn from torch's generator by each layer's
    default initialization. Parameters that belong to no layer, such as position tables, stay copies.
    """
    teacher = copy.deepcopy(network).requires_grad_(False)
    if independent:
        for module in teacher.modules():
            # The only layer of PyTorch whose initialization has another name.
            name = "_reset_parameters" if isinstance(module, nn.MultiheadAttention) else "reset_parameters"
            if callable(reset := getattr(module, name, None)):
                reset()
    return teacher


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum teacher + (1 - momentum) student, parameters only.

    Running statistics of batch norm are the teacher's own: they come from its own forward passes.
    """
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.lerp_(fast, 1.0 - momentum)


def check_momentum(momentum: float) -> None:
    """Raise ValueError for a loss.teacher_momentum outside 0 to 1."""
    if not 0 <= momentum <= 1:
        raise ValueError(
            f"loss.teacher_momentum is {momentum}; it must be from 0 to 1, the weight of the teacher's past"
        )


def cosine_momentum(base: float, step: int, total_steps: int) -> float:
    """1 - (1 - base) (1 + cos(pi step / total_steps)) / 2: from `base` at step 0 to 1 at the end.

    Source: Grill et al. 2020 (arXiv 2006.07733), section 3.3; used by MoCo v3 too.

    >>> cosine_momentum(0.996, 0, 100), cosine_momentum(0.996, 100, 100)
    (0.996, 1.0)
    """
    if total_steps < 1:
        raise ValueError(f"a momentum schedule needs the length of the run; total_steps is {total_steps}")
    fraction = min(1.0, step / total_steps)
    return 1.0 - (1.0 - base) * 0.5 * (1.0 + math.cos(math.pi * fraction))
