"""`python -m data_prep stats`: what is in a shard folder, as numbers, plots and lists of duplicates."""
