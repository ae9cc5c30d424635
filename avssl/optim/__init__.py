"""Optimizers and schedules by configuration: Adam, AdamW, SGD and LARS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avssl.exports import offer

if TYPE_CHECKING:
    from avssl.optim.build import build_optimizer as build_optimizer
    from avssl.optim.build import learning_rate as learning_rate
    from avssl.optim.config import OptimConfig as OptimConfig
    from avssl.optim.lars import LARS as LARS

offer(
    __name__,
    {
        "build": "build_optimizer learning_rate",
        "config": "OptimConfig",
        "lars": "LARS",
    },
)
