"""Layers of transformers in the optimizer: which weights do not decay, and lower learning rates below the last layer.

An encoder that knows its layers has `layer_ids`, {parameter: layer, 0 nearest to the input}, and `no_decay`, names of
embeddings (PublicEncoder in models/public). Everything else, as heads, belongs to no layer and is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from avssl.optim.config import OptimConfig


class Placement(NamedTuple):
    """A parameter's place.

    lr_scale: layer_decay^(last layer - layer). is_bias: it has at most one axis. decays: by weight decay.
    """

    lr_scale: float
    is_bias: bool
    decays: bool


def placements(config: OptimConfig, networks: nn.Module | None) -> dict[nn.Parameter, Placement]:
    """The place of every parameter of encoders that know their layers.

    ValueError for a layer_decay outside (0, 1], or below 1 if no encoder knows its layers.
    """
    if not 0 < config.layer_decay <= 1:
        raise ValueError(f"optim.layer_decay is {config.layer_decay}; it must be above 0 and at most 1")
    result: dict[nn.Parameter, Placement] = {}
    for module in networks.modules() if networks is not None else ():
        layers: Mapping[str, int] | None = getattr(module, "layer_ids", None)
        if not layers:
            continue
        last = max(layers.values())
        embeddings: frozenset[str] = getattr(module, "no_decay", frozenset())
        for name, parameter in module.named_parameters():
            scale = config.layer_decay ** (last - layers.get(name, last))
            is_bias = parameter.ndim <= 1
            decays = config.exclude_biases is False or not (is_bias or name in embeddings)
            result[parameter] = Placement(scale, is_bias, decays)
    if config.layer_decay != 1 and not result:
        raise ValueError(
            f"optim.layer_decay is {config.layer_decay}, but no encoder of this run knows its layers; it is for public "
            "models, timm/NAME and hf/ORG/NAME"
        )
    return result


def split_layers(
    config: OptimConfig, group: Mapping[str, Any], placed: Mapping[nn.Parameter, Placement]
) -> list[dict[str, Any]]:
    """The group itself; or its parameters without a place, and those with one in a group for each kind.

    The last layer comes first, so that the first group has the learning rate that is logged.
    """
    parameters: list[nn.Parameter] = list(group["params"])
    others = [parameter for parameter in parameters if parameter not in placed]
    if len(others) == len(parameters):
        return [dict(group)]
    kinds: dict[Placement, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter in placed:
            kinds.setdefault(placed[parameter], []).append(parameter)
    result = [{**group, "params": others}] if others else []
    for place in sorted(kinds, key=lambda place: (-place.lr_scale, place.is_bias, not place.decays)):
        scale = float(group.get("lr_scale", 1.0)) * place.lr_scale * (config.bias_lr_scale if place.is_bias else 1.0)
        decay = {} if place.decays else {"weight_decay": 0.0}
        result.append({**group, **decay, "params": kinds[place], "lr_scale": scale, "is_placed": True})
    return result
