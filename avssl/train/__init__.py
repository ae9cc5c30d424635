"""Monitoring of training: metrics, the online probe, collapse warnings."""
