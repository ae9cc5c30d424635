"""One HTML file that needs nothing but a browser: style, scripts and media are inside it.

The page carries a content security policy that forbids requests and every script but its own, so that the name
or label of a clip cannot run a script even if escaping were forgotten.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from avssl.pages.markup import Html, join, json_block, tag

NO_SCRIPT = "Playing media and the charts need JavaScript, which is switched off here."


def kit_file(name: str, package: str = "avssl.pages") -> str:
    """The text of a style sheet or script that lies in a package."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def html_page(
    title: str,
    body: Html,
    *,
    media: Mapping[str, str] | None = None,
    data: Mapping[str, Any] | None = None,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    is_served: bool = False,
) -> str:
    """The whole text of a page. The same input gives the same text.

    Args:
        title: of the window; escaped.
        body: the visible content, with the landmarks (header, main, footer) that it needs.
        media: {id: data: URI} of what players with `data-media="id"` play, see MediaLibrary.embedded.
        data: {id: JSON} for the scripts, read with `JSON.parse(document.getElementById(id).textContent)`.
        styles: texts of style sheets besides style.css.
        scripts: texts of scripts, run in this order after players.js.
        is_served: the page comes from a server of ours, of which it may ask for media and pages.
    """
    blocks = [json_block(name, content) for name, content in {"media": media or {}, **(data or {})}.items()]
    programs = [kit_file("players.js"), *scripts]
    content = tag(
        "body",
        body,
        tag("noscript", tag("p", NO_SCRIPT, class_="note")),
        *blocks,
        *(tag("script", Html(program)) for program in programs),
    )
    head = _head(title, [kit_file("style.css"), *styles], programs, is_served=is_served)
    return f"<!doctype html>\n{tag('html', head, content, lang='en')}\n"


def _head(title: str, styles: Sequence[str], scripts: Sequence[str], *, is_served: bool) -> Html:
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    ours, asked = (" 'self'", "'self'") if is_served else ("", "'none'")
    policy = (
        f"default-src 'none'; img-src data:{ours}; media-src data:{ours}; style-src 'unsafe-inline'; "
        f"script-src {allowed}; connect-src {asked}; base-uri 'none'; form-action {asked}"
    )
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        Html('<meta http-equiv="Content-Security-Policy" content="' + policy + '">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),  # otherwise a browser asks the server for one
        tag("title", title),
        join(*(tag("style", Html(style)) for style in styles)),
    )
