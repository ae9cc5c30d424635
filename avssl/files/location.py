"""Locations: a local path, or a URL of an allowed protocol. Pure functions on text, which open nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path

Location = str | os.PathLike[str]

# {protocol: (package that fsspec needs for it, extra of avssl that installs the package)}
REMOTE = {
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "gcs": ("gcsfs", "gs"),
    "hf": ("huggingface_hub", "hf"),
    "http": ("aiohttp", "http"),
    "https": ("aiohttp", "http"),
    "memory": ("", ""),
}
READ_ONLY = ("http", "https")


def protocol_of(location: Location) -> str:
    """The protocol, one of REMOTE, or "" for a local path. ValueError for a protocol that is not allowed."""
    text = os.fspath(location)
    scheme, separator, _ = text.partition("://")
    if separator and (re.fullmatch(r"[A-Za-z0-9+.-]+", scheme) or "::" in scheme):
        name = scheme.lower()
        if name == "file":
            return ""
        if name not in REMOTE:
            why = " (chained URLs are not read)" if "::" in scheme else ""
            raise ValueError(
                f"{redacted(text)}: the protocol {scheme!r} is not allowed{why}; allowed are a local path, "
                + ", ".join(f"{allowed}://" for allowed in REMOTE)
            )
        return name
    command = re.match(r"(pipe):|([a-z][a-z0-9+.-]*)::", text)
    if command and not Path(text).exists():
        raise ValueError(f"{text}: pipes and chained URLs are not read; give a local path or a URL such as s3://...")
    if isinstance(location, os.PathLike) and (changed := re.match(r"([a-z0-9]+):/[^/]", text)) and changed[1] in REMOTE:
        raise ValueError(f"{text}: this URL was made a Path, which spoils it; pass it on as text")
    return ""


def is_remote(location: Location) -> bool:
    """Whether it is a URL of another machine (or of memory://). ValueError for a protocol that is not allowed."""
    return protocol_of(location) != ""


def local_path(location: Location) -> Path:
    """The path of a location that is not remote, without file://."""
    return Path(re.sub(r"^file://", "", os.fspath(location), flags=re.IGNORECASE))


def join(location: Location, name: str) -> str:
    """The location of a file (or `folder/file`) in a folder. ValueError for a name that leads out of it."""
    if name.startswith("/") or "://" in name or ".." in name.split("/"):
        raise ValueError(f"{name!r} in {location}: a name must lie below its folder, without .. and protocols")
    protocol = protocol_of(location)
    if not protocol:
        return str(local_path(location) / name)
    folder, question, query = os.fspath(location).partition("?") if protocol in READ_ONLY else (location, "", "")
    return f"{os.fspath(folder).rstrip('/')}/{name}{question}{query}"


def redacted(text: str) -> str:
    """A location, or a message about one, without the users and queries of web addresses, which may be secret."""
    return re.sub(r"(https?://)(?:[^/\s@]*@)?([^\s?'\"),]*)(?:\?[^\s'\"),]*)?", r"\1\2", text, flags=re.IGNORECASE)
