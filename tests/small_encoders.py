"""Encoders of almost nothing, for the tests of losses: rows of numbers in, rows of features out."""

import torch
from torch import nn


class Identity(nn.Module):
    """Returns its input."""

    def __init__(self, dim=4):
        super().__init__()
        self.dim = dim

    def forward(self, x):
        return x


class Linear(nn.Module):
    """A linear layer with tanh."""

    def __init__(self, dim, num_inputs=4):
        super().__init__()
        self.dim = dim
        self.layer = nn.Linear(num_inputs, dim)

    def forward(self, x):
        return torch.tanh(self.layer(x))


class Pooled(nn.Module):
    """Pools rows of any length, so that small crops may be smaller; remembers the shapes of its inputs."""

    def __init__(self, dim=7):
        super().__init__()
        self.dim = dim
        self.layer = nn.Linear(2, dim)
        self.rows = []

    def forward(self, x):
        self.rows.append(tuple(x.shape))
        return torch.tanh(self.layer(torch.stack([x.mean(dim=1), x.std(dim=1)], dim=1)))
