"""Text from data in Markdown, as the cards of models and of data sets have it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from avssl.files.plain_text import plain

YAML_WORDS = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null"])  # that are no text in YAML


def words(text: object) -> str:
    """Text from data, escaped for Markdown: on one line, its own markup and HTML shown as text."""
    return re.sub(r"[\\`*\[\]|]", r"\\\g<0>", plain(text)).replace("<", "&lt;")


def code(text: object) -> str:
    """Text from data as inline code; it can end neither the code nor the cell of a table."""
    escaped = plain(text).replace("`", "'").replace("|", "/")
    return f"`{escaped}`"


def quoted(text: object) -> str:
    """Text from data as a string of JSON on one line, which YAML reads as the same text.

    No character becomes an escape of JSON for half of it: YAML does not join the two.
    """
    return json.dumps(plain(text), ensure_ascii=False)


def scalar(text: object) -> str:
    """Text from data as a value of YAML that is read as the same text: quoted, unless it is a word or a name."""
    shown = plain(text)
    is_name = re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", shown) and shown.lower() not in YAML_WORDS
    return shown if is_name else quoted(text)


def section(title: str, lines: Sequence[str]) -> str:
    """A section with its heading."""
    return f"## {title}\n" + "\n".join(lines)
