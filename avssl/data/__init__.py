"""Batches from shards: the recipe's loader, and a plain Dataset for a loop of your own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avssl.exports import offer

if TYPE_CHECKING:
    from avssl.data.loader import Loader as Loader
    from avssl.data.loader_config import LoaderConfig as LoaderConfig
    from avssl.data.shard_dataset import ShardDataset as ShardDataset

offer(
    __name__,
    {
        "loader": "Loader",
        "loader_config": "LoaderConfig",
        "shard_dataset": "ShardDataset",
    },
)
