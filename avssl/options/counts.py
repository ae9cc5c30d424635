"""The least value of each count of a configuration, in one place: it is checked before PyTorch is loaded.

A count is a number of things, or after how many steps or epochs something is due again. Zero is allowed only where its
key says what it means. Counts that depend on the corpus or on the network are checked where these are known.
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
    "OptimConfig": {"warmup_steps": 0},
    "AVIDCMAConfig": {"search_every_epochs": 1},
    "DeepClusterConfig": {"cluster_every_epochs": 1},
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


def least_of(kind: type[Any]) -> dict[str, int]:
    """{count of a section of this class: its least value}."""
    found: dict[str, int] = {}
    for base in reversed(kind.__mro__):
        found |= LEAST.get(base.__name__, {})
    return found


def check_counts(config: Any, section: str = "") -> None:
    """Raise ValueError for the first count in a section, or in one below it, that is less than it may be.

    section: the dotted key of `config`; "" for a whole configuration.
    """
    known = least_of(type(config))
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), f"{section}.{field.name}" if section else field.name
        if dataclasses.is_dataclass(value):
            check_counts(value, key)
        elif field.name in known and value < known[field.name]:
            never = "; for never, give one that is larger than the run" if "every" in field.name else ""
            raise ValueError(
                f"{key} is {value}; it must be at least {known[field.name]}. Give such a number, or leave the key out "
                f"for the {field.default} that it has by itself{never}"
            )
