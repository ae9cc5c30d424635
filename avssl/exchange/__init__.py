"""Weights from and for others: published checkpoints, exchange folders, graphs, the hub."""
