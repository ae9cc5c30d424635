"""What public encoders have in common: the module around a library's network, and what it demands of the views."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from math import inf
from typing import Any, NamedTuple

import torch
from torch import nn

from avssl.files.plain_text import brief
from avssl.types import Modality

# Parts of the names of learned embeddings in both libraries. Projections of patches have other names there.
EMBEDDING_WORDS = (
    "pos_embed", "position_embedding", "positional_embedding", "relative_position_bias_table", "cls_token",
    "class_token", "class_embedding", "head.probe", "reg_token", "register_token", "mask_token", "dist_token",
    "distillation_token",
)  # fmt: skip


class Demand(NamedTuple):
    """What a model demands of one key of the views.

    is_fixed: no other value fits. Otherwise the value is taken unless the recipe says another one, which must then be a
    multiple of `multiple_of`, and not above `at_most`.
    """

    value: Any
    is_fixed: bool = True
    multiple_of: int = 1
    at_most: float = inf


class PublicEncoder(nn.Module):
    """A network of timm or transformers as an encoder. Subclasses write `features`.

    Args:
        net: the library's network. modality, dim: as of every encoder.
        layer_ids: {name of a parameter of net: its layer, 0 for what is nearest to the input}; of layer-wise learning
            rates. no_decay: names of parameters of net besides biases and norms that weight decay leaves out.

    A network of images reads video as the mean of its features over the frames.
    """

    def __init__(
        self,
        net: nn.Module,
        modality: Modality,
        dim: int,
        *,
        layer_ids: Mapping[str, int],
        no_decay: Iterable[str],
    ) -> None:
        super().__init__()
        self.net, self.modality, self.dim = net, modality, dim
        self.layer_ids = {f"net.{name}": number for name, number in layer_ids.items()}
        self.no_decay = frozenset(f"net.{name}" for name in no_decay)

    def features(self, media: torch.Tensor) -> torch.Tensor:
        """The network's input in the library's layout -> (B, dim)."""
        raise NotImplementedError(f"{type(self).__name__}.features")

    def forward(self, media: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W), (B, 3, T, H, W) or (B, 1, frames, bins) -> (B, dim). ValueError on another shape."""
        shapes = {"image": (4, 3, "(B, 3, H, W)"), "video": (5, 3, "(B, 3, T, H, W)"), "audio": (4, 1, "(B, 1, ...)")}
        ndim, channels, shape = shapes[self.modality]
        if media.ndim != ndim or media.shape[1] != channels:
            raise ValueError(f"this encoder of {self.modality} takes {shape}, got {tuple(media.shape)}")
        return self.features(media)


class Tower(NamedTuple):
    """One modality of a model: the encoder, and the projection of its features into the model's joint space, if any."""

    encoder: nn.Module
    projection: nn.Module | None


def mean_over_frames(frames: torch.Tensor, encode: nn.Module | Any) -> torch.Tensor:
    """(B, 3, T, H, W) -> (B, dim): the mean over T of what `encode` makes of images (n, 3, H, W)."""
    batch_size, _, num_frames = frames.shape[:3]
    features: torch.Tensor = encode(frames.transpose(1, 2).flatten(0, 1))
    return features.view(batch_size, num_frames, -1).mean(dim=1)


def embeddings_of(net: nn.Module, listed: Iterable[str] = ()) -> set[str]:
    """Names of the parameters that are embeddings: positions, class and register tokens, tables, and those listed.

    listed: names with wildcards, as timm gives them.
    """
    patterns = [*listed, *(f"*{word}*" for word in EMBEDDING_WORDS)]
    names = {name for name, _ in net.named_parameters() if any(fnmatch(name, pattern) for pattern in patterns)}
    tables = (name for name, module in net.named_modules() if isinstance(module, nn.Embedding))
    return names | {f"{name}.weight" for name in tables}


def layers_of(names: Iterable[str], block: re.Pattern[str]) -> dict[str, int]:
    """{parameter: layer}: 0 before the first block, k + 1 in block k; what follows a block belongs to it.

    block: finds the number of a block in the name of a parameter.
    """
    result, blocks = {}, list[str]()
    for name in names:
        found = block.search(name)
        if found and found.group() not in blocks:
            blocks.append(found.group())
        result[name] = blocks.index(found.group()) + 1 if found else len(blocks)
    return result


def check_options(name: str, options: Mapping[str, Any], allowed: Iterable[str]) -> None:
    """Raise ValueError for an option that is not allowed, with those that are."""
    if not isinstance(options.get("drop_path") or 0.0, int | float):
        raise ValueError(f"{name}: drop_path is {brief(str(options['drop_path']))}; it must be a number")
    allowed = list(allowed)
    for option in options:
        if option not in allowed:
            near = difflib.get_close_matches(option, allowed, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"encoder {name!r} has no option {option!r}{hint}; its options: {', '.join(allowed)}")
