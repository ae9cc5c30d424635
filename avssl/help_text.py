"""The keys of a configuration as text, for `--help`: names, types, defaults, and the comments of the source."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any


def describe(schema: type[Any], indent: str = "", section: Any = None) -> str:
    """The schema as indented `name: type = default  # comment` lines, with the comments of the source.

    section: an instance with the defaults of a section, where they differ from those of its type.
    """
    comments = dict(re.findall(r"^\s+(\w+):[^#\n]*#\s*(.*)$", _sources(schema), re.MULTILINE))
    lines = ""
    for item in dataclasses.fields(schema):
        default = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        if section is not None:
            default = getattr(section, item.name)
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            lines += f"{indent}{item.name}:\n{describe(type(default), indent + '  ', default)}"
            continue
        if isinstance(default, dict) and any(map(dataclasses.is_dataclass, default.values())):
            default = ", ".join(default)  # sections by name
        comment = comments.get(item.name, "")
        lines += f"{indent}{item.name}: {item.type} = {default!r}" + (f"  # {comment}" if comment else "") + "\n"
    return lines


def _sources(schema: type[Any]) -> str:
    return "\n".join(inspect.getsource(cls) for cls in reversed(schema.__mro__) if dataclasses.is_dataclass(cls))
