"""How a run begins, its log, the online probe, warnings of collapse."""
