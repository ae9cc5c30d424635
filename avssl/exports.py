"""The public names of a package, imported lazily: `from avssl.losses import nt_xent`.

`import avssl` and the `--help` of commands stay quick, because the module of a name is imported at its first use. Code
of avssl itself imports from the modules; the names of the packages are for everybody else.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """A package whose offered names are looked up in its modules.

    A module and an object of it may have the same name (avssl.losses.vicreg). The attribute then is the object, even if
    the module was imported before; the module itself stays in sys.modules.
    """

    _offered: Mapping[str, str]

    def __getattr__(self, name: str) -> Any:
        if name not in self._offered:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(self._offered[name]), name)
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system sets a package's attribute when it has imported a module of that name.
        if isinstance(value, ModuleType) and name in self._offered:
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._offered})


def offer(package: str, modules: Mapping[str, str]) -> None:
    """Make names of modules importable from their package, lazily.

    Args:
        package: `__name__` of the package that calls this in its __init__.py.
        modules: {module: names that it defines, separated by spaces}. The module is named without the package, or from
            "avssl." on if it lies elsewhere.

    >>> import avssl.losses
    >>> avssl.losses.nt_xent.__module__
    'avssl.losses.simclr'
    """
    module = sys.modules[package]
    offered = {
        name: below if below.startswith("avssl.") else f"{package}.{below}"
        for below, names in modules.items()
        for name in names.split()
    }
    module.__dict__.update(_offered=offered, __all__=sorted(offered))
    module.__class__ = _Package
