"""LARS: layer-wise adaptive rate scaling (You et al. 2017, arXiv 1708.03888), as in self-supervised learning.

For each tensor with more than one axis:  d = g + wd w;  q = trust ||w|| / ||d|| (1 if either norm is 0);  d <- q d.
Then for all:  v <- momentum v + d;  w <- w - lr v.  Tensors with at most one axis (biases, norm scales) get neither
weight decay nor q, unless exclude_biases is False: then they are treated like weights (SwAV's LARC without clipping).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class LARS(torch.optim.Optimizer):
    """The optimizer in the module's text. trust is the coefficient eta: 0.001 in SimCLR, BYOL, Barlow Twins and VICReg.

    >>> network = torch.nn.Linear(2, 1)
    >>> optimizer = LARS(network.parameters(), lr=0.1)
    >>> network(torch.ones(1, 2)).sum().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust: float = 0.001,
        exclude_biases: bool = True,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust}
        super().__init__(params, defaults | {"exclude_biases": exclude_biases})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        direction = weight.grad
        assert direction is not None  # for the type checker: step() has checked it
        if weight.ndim > 1 or not group["exclude_biases"]:
            direction = direction.add(weight, alpha=group["weight_decay"])
            weight_norm, norm = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(direction)
            usable = (weight_norm > 0) & (norm > 0)
            ratio = torch.where(usable, group["trust"] * weight_norm / norm, torch.ones_like(norm))
            direction = direction * ratio
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(direction)
        weight.add_(buffer, alpha=-group["lr"])
