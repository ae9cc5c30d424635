"""Statistics of a corpus and its page."""
