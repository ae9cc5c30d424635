"""Facts about every sample of a corpus, in one table."""
