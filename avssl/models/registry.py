"""The table of encoders. An encoder adds itself with `register_encoder`; its options are read from its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

from torch import nn

from avssl.types import Modality

Encoder = TypeVar("Encoder", bound=type[nn.Module])


class EncoderEntry(NamedTuple):
    """An encoder in the table: the modality it reads, the function that builds it, the names of its options."""

    modality: Modality
    build: Callable[..., nn.Module]
    options: tuple[str, ...]


ENCODERS: dict[str, EncoderEntry] = {}


def register_encoder(*names: str) -> Callable[[Encoder], Encoder]:
    """A decorator that makes a class available to `create_encoder` under these names.

    The class has an attribute `modality`, and its instances have `dim`. All keyword-only parameters of its constructor
    are options. If the constructor has a parameter `name`, it gets the name under which the encoder is built.
    """

    def register(encoder: Encoder) -> Encoder:
        parameters = inspect.signature(encoder).parameters
        options = tuple(name for name, value in parameters.items() if value.kind is inspect.Parameter.KEYWORD_ONLY)
        for name in names:
            build: Callable[..., nn.Module] = partial(encoder, name) if "name" in parameters else encoder
            ENCODERS[name] = EncoderEntry(encoder.modality, build, options)  # type: ignore[attr-defined]
        return encoder

    return register
