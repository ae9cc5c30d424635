"""The least value of each count of a configuration, in one place: it is checked before PyTorch is loaded.

A count is a number of things, or after how many steps or epochs something is due again. Zero is allowed only where its
key says what it means. Counts that depend on the corpus or on the network are checked where these are known.

Beside the counts are numbers that silently turn a training around below 0: PyTorch clips gradients to a negative norm
by changing their sign, and a negative rate or temperature climbs where it should descend.
"""

from __future__ import annotations

import dataclasses
from typing import Any

# {class of a section: {key: its least value}}; classes that extend it have the same. By name, for those of tasks load
# PyTorch.
LEAST: dict[str, dict[str, int]] = {
    "RunConfig": {"epochs": 1, "steps": 0, "log_every_steps": 1, "checkpoint_every_steps": 1,
                  "gradient_accumulation_steps": 1, "num_cpu_threads": 0},
    "LoaderConfig": {"global_batch_size": 1, "num_workers": 0, "prefetch_batches": 1, "order_lanes": 0,
                     "shuffle_block": 1, "cache_decoded": 0},
    "ProbeConfig": {"every_steps": 1, "num_threads": 1, "num_neighbors": 1},
    "OptimConfig": {"warmup_steps": 0, "lr": 0, "final_lr": 0, "gamma": 0, "clip_norm": 0, "weight_decay": 0,
                    "final_weight_decay": 0, "momentum": 0, "trust": 0, "bias_lr_scale": 0},
    "ViewsConfig": {"statistics_samples": 1},
    "VideoViewConfig": {"num_frames": 1},
    "AVIDCMAConfig": {"search_every_epochs": 1},
    "DeepClusterConfig": {"cluster_every_epochs": 1, "kmeans_iterations": 1},
    "DeepClusterV2Config": {"num_heads": 1, "kmeans_iterations": 1},
    "SeLaConfig": {"num_heads": 1},
    "MultiCropConfig": {"num_small_crops": 0},
    "DINOConfig": {"num_prototypes": 2, "teacher_temperature_epochs": 0, "freeze_epochs": 0},
    "SwAVConfig": {"sinkhorn_iterations": 1, "freeze_steps": 0, "queue_size": 0, "queue_from_epoch": 0},
    "TaskConfig": {"batch_size": 1, "num_workers": 0},
    "FrozenConfig": {"train_clips": 1, "test_clips": 1},
    "TrainedConfig": {"epochs": 1, "clips_per_sample": 1, "train_batch_size": 1, "test_clips": 1, "order_lanes": 0,
                      "log_every_steps": 1, "checkpoint_every_steps": 1},
    "FinetuneConfig": {"head_epochs": 0},
    "StandardConfig": {"num_neighbors": 1, "num_positives": 1},
    "KNNConfig": {"num_neighbors": 1},
    "FewLabelConfig": {"num_neighbors": 1, "max_iterations": 1},
    "LinearConfig": {"max_iterations": 1},
    "SVMConfig": {"max_iterations": 1},
    "ClusteringConfig": {"num_clusters": 0, "num_restarts": 1},
    "ZeroShotConfig": {"test_clips": 1},
}  # fmt: skip


# {class of a section: its keys that must be above 0}
POSITIVE: dict[str, tuple[str, ...]] = {
    "VideoViewConfig": ("fps",),
    "AudioViewConfig": ("seconds",),
    **dict.fromkeys(
        ("AVIDConfig", "CropConfig", "MoCoConfig", "MoCoV3Config", "NPIDConfig", "PIRLConfig", "SimCLRConfig"),
        ("temperature",),
    ),
    "DINOConfig": ("temperature", "teacher_temperature", "teacher_temperature_start"),
}


def least_of(kind: type[Any]) -> dict[str, int]:
    """{count of a section of this class: its least value}."""
    found: dict[str, int] = {}
    for base in reversed(kind.__mro__):
        found |= LEAST.get(base.__name__, {})
    return found


def check_counts(config: Any, section: str = "") -> None:
    """Raise ValueError for the first number in a section, or in one below it, that is less than it may be.

    section: the dotted key of `config`; "" for a whole configuration.
    """
    known = least_of(type(config))
    positive = {name for base in type(config).__mro__ for name in POSITIVE.get(base.__name__, ())}
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), f"{section}.{field.name}" if section else field.name
        allowed = ""
        if dataclasses.is_dataclass(value):
            check_counts(value, key)
        elif value is None:  # it says itself what that means
            continue
        elif field.name in known and not value >= known[field.name]:  # NaN is no number, either
            allowed = f"at least {known[field.name]}"
        elif field.name in positive and not value > 0:
            allowed = "above 0"
        if allowed:
            never = "; for never, give one that is larger than the run" if "every" in field.name else ""
            raise ValueError(
                f"{key} is {value}; it must be {allowed}. Give such a number, or leave the key out for the "
                f"{field.default} that it has by itself{never}"
            )
