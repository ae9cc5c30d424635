"""Shards: their format, sets of them, and shards that lie elsewhere."""
