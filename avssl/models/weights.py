"""Initial weights of an encoder: from a local file, or torchvision's by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

# The names of torchvision's weights: IMAGENET1K_V1, KINETICS400_V1. Anything else is a path.
TORCHVISION_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
HEADS = ("fc.", "classifier.", "head.")  # of torchvision's classifiers, which encoders do not have


def load_weights(network: nn.Module, weights: str, name: str) -> None:
    """Load all tensors except those of a classifier into the network, strictly.

    Args:
        network: its modules have torchvision's names.
        weights: a file with a state dict, safetensors or `torch.save`d; or a name of torchvision's weights for the
            network `name`, which torchvision downloads once into its cache. Nothing else is ever downloaded.
        name: of the network, for torchvision and for messages.

    Raises FileNotFoundError if the path does not exist, ValueError for weights that do not fit.
    """
    is_name = TORCHVISION_NAME.fullmatch(weights) is not None and not Path(weights).is_file()
    state = _from_torchvision(weights, name) if is_name else _from_file(weights, name)
    try:
        network.load_state_dict({key: value for key, value in state.items() if not key.startswith(HEADS)})
    except RuntimeError as error:  # names every tensor that is missing, unknown or of another shape
        raise ValueError(f"{name}: the weights in {weights} are not this network's: {error}") from error


def _from_file(path: str, name: str) -> Mapping[str, torch.Tensor]:
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{name}: weights is {path!r}, and there is no such file; give a local file, a name of torchvision's "
            "weights in capitals such as KINETICS400_V1, or None for random weights"
        )
    from safetensors.torch import load_file

    try:
        is_safe = Path(path).suffix == ".safetensors"
        state = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the two libraries share no base class of their errors
        raise ValueError(f"{name}: {path} cannot be read as weights: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{name}: {path} cannot be read as weights: it holds no state dict of tensors alone")
    return state


def _from_torchvision(weights: str, name: str) -> Mapping[str, torch.Tensor]:
    from torchvision import models

    if name not in models.list_models():
        raise ValueError(f"{name}: torchvision has no such network, so no weights {weights}; give a local file")
    available = models.get_model_weights(name)
    if weights not in available.__members__:
        raise ValueError(f"{name}: torchvision has no weights {weights}; it has {', '.join(available.__members__)}")
    try:
        state: Mapping[str, torch.Tensor] = available[weights].get_state_dict(
            progress=True, check_hash=True, weights_only=True
        )
    except OSError as error:  # connection errors among them
        raise ValueError(f"{name}: torchvision's {weights} could not be downloaded: {error}") from error
    return state
