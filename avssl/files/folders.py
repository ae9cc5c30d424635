"""What a folder holds, also where links lead nowhere or to themselves and folders cannot be read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


class UnreadableFolderError(OSError):
    """A folder whose names cannot be had: refused, gone, or on a disk with errors."""


def entries_in(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """As os.scandir, closed at the end. UnreadableFolderError for all that goes wrong."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise UnreadableFolderError(error.errno, error.strerror, os.fspath(folder)) from error


def is_folder(entry: os.DirEntry[str], *, follow_links: bool) -> bool:
    """Is it a folder, or a link to one? A link that cannot be followed is none: opening it says why."""
    try:
        return entry.is_dir(follow_symlinks=follow_links)
    except OSError:
        return False
