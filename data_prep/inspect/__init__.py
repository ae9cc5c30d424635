"""Looking at what there is: verify, coverage, stats, show."""
