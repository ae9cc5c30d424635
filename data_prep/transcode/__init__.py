"""From one media file to the members of a sample."""
