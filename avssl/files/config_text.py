"""Is text a configuration that can be built within bounds? Knows YAML, not OmegaConf."""

from __future__ import annotations

import os
from typing import Any

import yaml

from avssl.files.checked_json import MAX_DEPTH
from avssl.files.plain_text import plain


class ConfigError(ValueError):
    """What is wrong with a configuration, in one message for the person who wrote it."""


def check_yaml(text: str, where: str) -> None:
    """ConfigError for what would grow or nest without bound when it is built."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{where}: refers to another place of it (*{plain(event.anchor)}); write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ConfigError(f"{where}: is nested more than {MAX_DEPTH} deep")


def one_line(error: Exception) -> str:
    """A library's message of several lines as one."""
    return " ".join(str(error).split())[:300]


def is_file(name: str) -> bool:
    """Is there such a file? Text that can be no name (too long, a zero byte) is none."""
    return os.path.isfile(name)  # noqa: PTH113  (Path raises OSError for a name that is too long)


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of sections in each other."""
    if not isinstance(values, dict):
        return {prefix: list(values) if isinstance(values, tuple) else values}
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}.{name}" if prefix else str(name))
    return found
