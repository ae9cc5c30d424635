"""What others give and take: published checkpoints, exchange folders, graphs, the hub."""
