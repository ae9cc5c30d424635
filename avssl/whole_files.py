"""Files that are whole or absent: written under another name, forced to the disk, then renamed."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_path(path: Path, *, make_folder: bool = True) -> Iterator[Path]:
    """A path to write a file at. It is forced to the disk and becomes `path` when the block ends well, and goes if not.

    Its name is hidden and holds machine, process and thread, for several may write to one folder and a killed run can
    leave a worker that is still writing. It ends with .tmp. make_folder: False where such a worker must not bring
    a folder back that the next run has removed.
    """
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)  # the new name, too, is on the disk


@contextmanager
def whole_file(path: Path, *, make_folder: bool = True) -> Iterator[BinaryIO]:
    """As `whole_path`, opened for writing bytes."""
    with whole_path(path, make_folder=make_folder) as temporary, temporary.open("wb") as file:
        yield file
        file.flush()


def write_whole(path: Path, content: bytes | str) -> Path:
    """The whole content (text as UTF-8), or the file that was there before; returns the path."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return path


def sync(path: Path) -> None:
    """Force a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
