"""Shards: their format, reading the samples of a shard folder, and remote folders with a local cache."""
