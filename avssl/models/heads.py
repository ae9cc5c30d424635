"""Heads: small networks that losses put on top of encoders."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn


def mlp(
    dims: Sequence[int],
    *,
    batch_norm: bool = False,
    final_batch_norm: bool = False,
    final_affine: bool = True,
    final_bias: bool = True,
    gelu: bool = False,
) -> nn.Sequential:
    """Multi-layer perceptron (B, dims[0]) -> (B, dims[-1]): linear layers with ReLU or GELU between them.

    Args:
        dims: of the input, of each hidden layer and of the output; (512, 512, 512, 128) is AVID's projector, (512, 128)
            one linear layer.
        batch_norm: put a batch norm before each of them.
        final_batch_norm: put a batch norm after the last linear layer.
        final_affine: the final batch norm has scale and shift.
        final_bias: the last linear layer has a bias, unless a batch norm follows it.
        gelu: GELU in place of ReLU.

    A linear layer has a bias unless a batch norm follows it, which would cancel the bias. Without batch norm the
    linear layers are modules 0, 2, 4, ... of the result. Raises ValueError for fewer than two dims or dims below 1.

    >>> mlp((512, 512, 128))(torch.zeros(4, 512)).shape
    torch.Size([4, 128])
    """
    if len(dims) < 2 or min(dims) < 1:
        raise ValueError(f"mlp: dims must be at least two positive numbers, input to output, got {list(dims)}")
    layers: list[nn.Module] = []
    last = len(dims) - 2
    for position, (dim_in, dim_out) in enumerate(pairwise(dims)):
        is_last = position == last
        normalize = final_batch_norm if is_last else batch_norm
        bias = not normalize and (final_bias or not is_last)
        layers.append(nn.Linear(dim_in, dim_out, bias=bias))
        if normalize:
            layers.append(nn.BatchNorm1d(dim_out, affine=final_affine or not is_last))
        if not is_last:
            layers.append(nn.GELU() if gelu else nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def on_each(head: nn.Module, batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """[head(batch) for batch in batches] of shapes (B, F), where batch norm sees each batch separately.

    The linear layers of an `mlp` process all batches at once: one product of many rows costs less than several of few
    rows, and the gradient of the weights is one product instead of a sum in memory. Heads of other types are called on
    each batch.
    """
    if len(batches) < 2 or not isinstance(head, nn.Sequential):
        return [head(batch) for batch in batches]
    rows, sizes = torch.cat(list(batches)), [len(batch) for batch in batches]
    for layer in head:
        if isinstance(layer, nn.Linear | nn.ReLU):
            rows = layer(rows)
        else:
            rows = torch.cat([layer(batch) for batch in rows.split(sizes)])
    return list(rows.split(sizes))
