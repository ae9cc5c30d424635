"""The configuration of optimizer and schedule, which `--help` shows without loading libraries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class OptimConfig:
    """Optimizer and schedule. weight_decay is L2 in the gradient for adam, sgd and lars; decoupled for adamw.

    "Biases" are all tensors with at most one axis: biases and the scales and shifts of norms. In weight decay, the
    embeddings of public models (positions, class and register tokens) count as biases, too.

    >>> OptimConfig(name="sgd", lr=0.1, schedule="cosine").momentum
    0.9
    """

    name: Literal["adam", "adamw", "sgd", "lars"] = "adam"
    lr: float = 2e-4
    weight_decay: float = 1e-5
    final_weight_decay: float | None = None  # reached along a cosine over the whole run (DINO); null: it stays
    momentum: float = 0.9  # of sgd and lars
    betas: tuple[float, float] = (0.9, 0.999)  # of adam and adamw
    trust: float = 0.001  # of lars
    exclude_biases: bool | None = None  # from weight decay and lars' scaling; null: for lars, and of public models
    layer_decay: float = 1.0  # public models: factor on the learning rate for each layer below the last (BEiT)
    bias_lr_scale: float = 1.0  # factor on the learning rate of biases (Barlow Twins)
    fused: bool | None = None  # adam, adamw, sgd: update all weights in one kernel; null: yes, if this machine can
    clip_norm: float = 0.0  # largest norm of all gradients together; 0: no clipping
    schedule: Literal["constant", "cosine", "multistep"] = "constant"
    warmup_steps: int = 0  # linear from 0, before any schedule
    final_lr: float = 0.0  # at the end of cosine
    milestone_steps: list[int] | None = None  # multistep: lr is multiplied by `gamma` at each of these steps
    gamma: float = 0.1
