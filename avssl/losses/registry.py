"""The loss registry: one file per loss in this folder, found by name. `register` lets users add their own."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

from avssl.losses.base import Loss

_REGISTRY: dict[str, type[Loss]] = {}
_NOT_LOSSES = {"base", "crops", "registry", "__main__"}


def register(name: str) -> Callable[[type[Loss]], type[Loss]]:
    """Class decorator: `@register("avid")` makes a Loss available as `loss.name=avid`. ValueError for a taken name.

    >>> @register("weighted_simclr")
    ... class WeightedSimCLR(get("simclr")):
    ...     pass
    >>> get("weighted_simclr").__name__
    'WeightedSimCLR'
    """

    def add(cls: type[Loss]) -> type[Loss]:
        registered = _REGISTRY.get(name)
        if registered is not None and registered.__qualname__ != cls.__qualname__:
            raise ValueError(f"loss name {name!r} is taken by {registered.__module__}.{registered.__qualname__}")
        _REGISTRY[name] = cls
        return cls

    return add


def names() -> list[str]:
    """All registered names, sorted. Imports every file of the folder once.

    >>> {"avid", "avid_cma", "simclr"} <= set(names())
    True
    """
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name not in _NOT_LOSSES:
            importlib.import_module(f"{__package__}.{module.name}")
    return sorted(_REGISTRY)


def get(name: str) -> type[Loss]:
    """The loss class of a name. Raises KeyError with the allowed names and the nearest one.

    >>> get("barlow_twins").paper
    'Zbontar et al. 2021, arXiv 2103.03230'
    """
    if name not in _REGISTRY and name not in names():
        near = difflib.get_close_matches(name, _REGISTRY, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise KeyError(f"no loss is called {name!r}.{hint} Registered: {', '.join(sorted(_REGISTRY))}")
    return _REGISTRY[name]
