"""The keys of a configuration as text, for `--help`: names, types, defaults, and the comments of the source."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Sequence
from typing import Any

from avssl.files.plain_text import plain
from avssl.options.encoders import encoder_text


def keys_text(schema: type[Any], config: Any, given: Sequence[str]) -> str:
    """The keys of a schema as text: with their values in a configuration, or with their defaults if it is None.

    given: the YAMLs and changes that made the configuration.
    """
    if config is None:
        return f"{describe(schema)}\nWith a RECIPE: the values there, and the keys of its loss and of its encoders."
    text = describe(schema, section=config)
    for modality, section in getattr(config, "encoders", {}).items():
        text = text.replace(f"  {modality}: {section!r}\n", encoder_text(modality, section), 1)
    return f"{text}\nThe values are those of {plain(' '.join(given))}; a key that is not given keeps its value."


def other_loss(wrong_key: str, files: Sequence[str], changes: Sequence[str]) -> str:
    """What to do about a key that a section has not, if it is one of a recipe's loss and the command names another
    loss; "" otherwise.
    """
    is_of_recipe = wrong_key.startswith("loss.") and not any(change.startswith(wrong_key) for change in changes)
    names = [change.partition("=")[2] for change in changes if change.startswith("loss.name=")]
    if not (files and names and is_of_recipe):
        return ""
    return (
        f"; the recipe sets it, and the loss {plain(names[-1])} has no such key: leave the recipe out, or copy it "
        "(`avssl copy RECIPE .`) and write the keys of this loss below `loss:`"
    )


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
        if isinstance(default, dict) and default and all(isinstance(value, dict) for value in default.values()):
            lines += f"{indent}{item.name}:" + (f"  # {comment}" if comment else "") + "\n"
            lines += "".join(f"{indent}  {name}: {value!r}\n" for name, value in default.items())
            continue
        lines += f"{indent}{item.name}: {item.type} = {default!r}" + (f"  # {comment}" if comment else "") + "\n"
    return lines


def _sources(schema: type[Any]) -> str:
    return "\n".join(inspect.getsource(cls) for cls in reversed(schema.__mro__) if dataclasses.is_dataclass(cls))
