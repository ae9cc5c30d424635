"""Each loss once more, in float64 NumPy, as a textbook would write it: slow, plain, sharing nothing with avssl."""
