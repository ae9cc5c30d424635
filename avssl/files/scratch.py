"""Temporary files and folders: those left by killed processes are removed by the next run, those in use stay.

A process holds the lock of a temporary file while it uses it; the system frees the lock when the process ends in any
way. So a process that gets the lock of a file knows that nobody uses it: on this machine, in another container, and
over NFS. On a file system without locks, nothing is taken for left behind.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

LOCK_NAME = "lock"


def lock_file(path: Path, *, make: bool = True) -> int | None:
    """The descriptor of a file whose lock this process holds now; None if another one does, or there are no locks.

    Closing it frees the lock. OSError if the file cannot be opened for writing or, with make=False, is absent.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_CREAT if make else 0)
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                return descriptor
        except OSError:
            os.close(descriptor)
            return None
        os.close(descriptor)  # another process renamed or removed it before it was locked


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new folder in `parent` for files that live no longer than the block. name: says what it is for.

    First, the leftovers of killed processes with the same name are removed.
    """
    remove_leftovers(parent, re.escape(name))
    folder, lock = _locked_folder(parent, name)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def temporary_folder() -> AbstractContextManager[Path]:
    """A `scratch_folder` in the system's folder for temporary files (TMPDIR)."""
    return scratch_folder(Path(tempfile.gettempdir()), "avssl")


def _locked_folder(parent: Path, name: str) -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".scratch", dir=parent))
        try:
            return folder, lock_file(folder / LOCK_NAME)
        except FileNotFoundError:  # another process took it for left behind before it was locked
            continue
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def remove_leftovers(folder: Path, names: str) -> None:
    """Remove leftovers of ended processes in `folder` for files of these names (a regular expression)."""
    temporary = re.compile(rf"\.({names})\.([a-z0-9_]{{8}}\.scratch|tmp|.+-\d+\.tmp)", re.DOTALL)
    with os.scandir(folder) as entries:
        paths = [Path(entry.path) for entry in entries if temporary.fullmatch(entry.name)]
    for path in paths:
        with suppress(OSError):  # it is in use, belongs to another user, or has just gone
            _remove_unused(path)


def _remove_unused(path: Path) -> None:
    is_folder = path.suffix == ".scratch"
    try:
        lock = lock_file(path / LOCK_NAME if is_folder else path, make=False)
    except FileNotFoundError:
        path.rmdir()  # its process was killed before it had locked it: it is empty
        return
    if lock is None:
        return
    try:
        if is_folder:
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(lock)
