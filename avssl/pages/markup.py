"""Functions that make HTML. Text is escaped unless it already is Html."""

from __future__ import annotations

import html
import json
import math
from typing import Any

_VOID = frozenset({"meta", "img", "br", "hr", "input", "link", "source"})


class Html(str):
    """Text that is markup; `tag` and `join` escape everything else."""

    __slots__ = ()


def escaped(content: object) -> Html:
    """Html as it is, None as nothing, anything else as escaped text (<, >, &, and both quotes)."""
    if isinstance(content, Html):
        return content
    return Html("" if content is None else html.escape(str(content), quote=True))


def join(*parts: object, by: str = "") -> Html:
    """The parts, each escaped unless it is Html, concatenated with `by` between them."""
    return Html(by.join(escaped(part) for part in parts))  # `by` is markup, not text


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """<name attributes>children</name>.

    Attributes: None and False are left out, True stands alone, `class_` and `for_` lose the underscore, other
    underscores become hyphens (aria_label -> aria-label); values are escaped, floats are written with two decimals.
    """
    text = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        shown = key.rstrip("_").replace("_", "-")
        text.append(shown if value is True else f'{shown}="{escaped(short(value))}"')
    opening = f"<{' '.join(text)}>"
    return Html(opening) if name in _VOID else Html(f"{opening}{join(*children)}</{name}>")


def short(value: object) -> object:
    """Floats as text with at most two decimals (coordinates); everything else as it is."""
    if not isinstance(value, float):
        return value
    return f"{value:.2f}".rstrip("0").rstrip(".")


def json_block(identifier: str, data: Any) -> Html:
    """Data for the script of the page as JSON. `<` is escaped, so that no text in it can end the element."""
    text = json.dumps(data, sort_keys=True, ensure_ascii=True).replace("<", "\\u003c")
    return Html(f'<script type="application/json" id="{escaped(identifier)}">{text}</script>')


def number(value: float) -> str:
    """Four significant digits, thousands separated, no exponent between 1e-3 and 1e15: 0.4853, 12.5, 96,000, 2e-4."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or abs(value) >= 1e15 or abs(value) < 1e-3:
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e+")
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
