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
    """A row of the table: what the encoder reads, how it is built, which keyword options it takes."""

    modality: Modality
    build: Callable[..., nn.Module]
    options: tuple[str, ...]


ENCODERS: dict[str, EncoderEntry] = {}


def register_encoder(*names: str) -> Callable[[Encoder], Encoder]:
    """A decorator that makes a class known to `create_encoder` under these names.

    The class has `modality`, and sets `dim`. All keyword-only parameters of its constructor are options. If the
    constructor has a parameter `name`, it gets the name under which the encoder is built.
    """

    def register(encoder: Encoder) -> Encoder:
        parameters = inspect.signature(encoder).parameters
        options = tuple(name for name, each in parameters.items() if each.kind is inspect.Parameter.KEYWORD_ONLY)
        for name in names:
            build: Callable[..., nn.Module] = partial(encoder, name) if "name" in parameters else encoder
            ENCODERS[name] = EncoderEntry(encoder.modality, build, options)  # type: ignore[attr-defined]
        return encoder

    return register
