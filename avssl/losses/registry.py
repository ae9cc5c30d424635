"""The loss registry: one file per loss in this folder, found by name. `register` lets users add their own."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

from avssl.losses.base import Loss
from avssl.plugins.registry import Registry

PUBLIC_MODEL = "public_model"  # stands where a run has its loss, and is in no list of losses
_NOT_LOSSES = {"base", "configs", "crops", PUBLIC_MODEL, "registry", "__main__"}


def _import_losses() -> None:
    """Import every file of this folder, each of which registers its losses."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name not in _NOT_LOSSES:
            importlib.import_module(f"{__package__}.{module.name}")


_REGISTRY: Registry[type[Loss]] = Registry("loss", _import_losses)
plugin_of = _REGISTRY.plugin_of


def register(name: str) -> Callable[[type[Loss]], type[Loss]]:
    """Class decorator: `@register("avid")` makes a Loss available as `loss.name=avid`. ValueError for a taken name.

    >>> @register("weighted_simclr")
    ... class WeightedSimCLR(get("simclr")):
    ...     pass
    >>> get("weighted_simclr").__name__
    'WeightedSimCLR'
    """

    def add(cls: type[Loss]) -> type[Loss]:
        _REGISTRY.add(name, cls, cls)
        return cls

    return add


def names() -> list[str]:
    """All registered names, sorted. Imports every file of the folder once, and the installed plugin packages.

    >>> {"avid", "avid_cma", "simclr"} <= set(names())
    True
    """
    return _REGISTRY.names()


def get(name: str) -> type[Loss]:
    """The loss class of a name. UnknownNameError, a KeyError, with the allowed names and the nearest one.

    >>> get("barlow_twins").paper
    'Zbontar et al. 2021, arXiv 2103.03230'
    """
    if name == PUBLIC_MODEL:
        return importlib.import_module(f"{__package__}.{PUBLIC_MODEL}").PublicModel  # type: ignore[no-any-return]
    return _REGISTRY.find(name)
