"""Reading: media, clips, shards, loader and device-side transforms."""
