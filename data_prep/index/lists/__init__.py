"""Lists that others publish: their formats and rows."""
