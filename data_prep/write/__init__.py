"""From a manifest to a folder of shards."""
