"""From raw media files to verified shards."""
