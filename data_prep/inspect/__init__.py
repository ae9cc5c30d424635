"""Commands that inspect manifests and shards: verify, coverage, stats, show."""
