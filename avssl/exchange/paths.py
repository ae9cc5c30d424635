"""What stays of paths and URLs in a folder that is passed on: their last part, without queries, which may be secret."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from avssl.files.location import redacted

PUBLIC_NAME = re.compile(r"(timm|hf)/[^/~.][^/]*(/[^/]+)?")  # hf/ORG/NAME@REVISION, timm/NAME
WEB_ADDRESS = re.compile(r"https?://", re.IGNORECASE)


def last_part(location: str) -> str:
    """The last component of a path or URL; of a web address without user and query.

    >>> last_part("https://me:secret@example.org/a/shards?Signature=secret")
    'shards'
    """
    text = redacted(location.partition("?")[0]) if WEB_ADDRESS.match(location) else location
    return Path(text).name


def without_paths(value: Any) -> Any:
    """A text that is a path or URL as its last part; also within mappings and lists. Names of public models stay.

    >>> without_paths({"name": "hf//home/me/models/vit", "weights": "/home/me/vit.pt", "size_px": 32})
    {'name': 'hf/vit', 'weights': 'vit.pt', 'size_px': 32}
    """
    if isinstance(value, dict):
        return {key: without_paths(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(part) for part in value]
    if not isinstance(value, str) or "/" not in value or PUBLIC_NAME.fullmatch(value):
        return value
    library = next((prefix for prefix in ("hf/", "timm/") if value.startswith(prefix)), "")
    return library + last_part(value.removeprefix(library))
