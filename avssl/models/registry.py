"""The table of encoders. An encoder adds itself with `register_encoder`; its options are read from its signature."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar, get_args

from torch import nn

from avssl.plugins.registry import Registry
from avssl.types import Modality

Encoder = TypeVar("Encoder", bound=Callable[..., nn.Module])


class EncoderEntry(NamedTuple):
    """An encoder in the table: the modality it reads, the function that builds it, the names of its options.

    source: where the network is from, such as a paper, for the table of docs/encoders.md; it is the attribute `source`
    of the class, a text or {name: text}.

    >>> EncoderEntry("image", torch.nn.Identity, ("dim",)).options
    ('dim',)
    """

    modality: Modality
    build: Callable[..., nn.Module]
    options: tuple[str, ...]
    source: str = ""


def _import_encoders() -> None:
    """Import the files of this folder whose encoders register themselves."""
    for module in ("audio", "image", "video"):
        importlib.import_module(f"{__package__}.{module}")


ENCODERS: Registry[EncoderEntry] = Registry("encoder", _import_encoders, "timm/NAME, hf/ORG/NAME")


def register_encoder(*names: str, modality: Modality | None = None) -> Callable[[Encoder], Encoder]:
    """A decorator that makes a class, or a function that builds a network, available to `create_encoder`.

    Instances have an attribute `dim`. All keyword-only parameters of the constructor or function are options. If it has
    a parameter `name`, it gets the name under which the encoder is built.

    Args:
        names: under which it is found. ValueError if one is taken.
        modality: what it reads, "image", "video" or "audio"; default: the attribute `modality` of the class.

    >>> @register_encoder("flat", modality="image")
    ... def flat(*, dim: int = 8):
    ...     net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, dim))
    ...     net.dim = dim
    ...     return net
    >>> create_encoder("flat", dim=4).dim
    4
    """

    def register(encoder: Encoder) -> Encoder:
        reads: Any = modality or getattr(encoder, "modality", None)
        if not names or reads not in get_args(Modality):
            raise ValueError(
                f"register_encoder({', '.join(map(repr, names))}) of {getattr(encoder, '__qualname__', encoder)}: give "
                f"a name and a modality of {', '.join(get_args(Modality))}, such as "
                f"@register_encoder('mine', modality='video'); the modality is {reads!r}"
            )
        parameters = inspect.signature(encoder).parameters
        options = tuple(name for name, value in parameters.items() if value.kind is inspect.Parameter.KEYWORD_ONLY)
        for name in names:
            build: Callable[..., nn.Module] = partial(encoder, name) if "name" in parameters else encoder
            source = getattr(encoder, "source", "")
            source = source if isinstance(source, str) else source.get(name, "")
            ENCODERS.add(name, EncoderEntry(reads, build, options, source), encoder)
        return encoder

    return register
