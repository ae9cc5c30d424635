"""The entries of folders, also where links lead nowhere or to themselves and folders cannot be read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


class UnreadableFolderError(OSError):
    """A folder whose entries cannot be listed: access is refused, it has gone, or the disk has errors."""


def entries_in(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """The entries of os.scandir, which is closed at the end. UnreadableFolderError for every OSError."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise UnreadableFolderError(error.errno, error.strerror, os.fspath(folder)) from error


def is_folder(entry: os.DirEntry[str], *, follow_links: bool) -> bool:
    """Whether an entry is a folder or, with follow_links, a link to one. A link that cannot be followed is none."""
    try:
        return entry.is_dir(follow_symlinks=follow_links)
    except OSError:
        return False
