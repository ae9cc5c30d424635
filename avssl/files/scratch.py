"""Temporary names that the next run finds again: what a killed process left goes, what a living one uses stays.

Who uses a temporary file holds its lock, which ends with the process, however that ends. So whoever gets the lock of a
file knows that nobody uses it: on this machine, in another container, and over NFS. Where a file system has no locks,
nothing is taken for left behind.
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

    Closing it gives the lock back. OSError if the file cannot be opened for writing (or, make=False, is not there).
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
        os.close(descriptor)  # somebody renamed or removed it before it was locked


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new folder in `parent` for files that live no longer than the block. name: of what it is for.

    First goes what killed processes left there for the same name.
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
    """`scratch_folder` where the system has temporary files (TMPDIR)."""
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
    """Remove what processes that are gone left in `folder` for files of these names, a regular expression."""
    temporary = re.compile(rf"\.({names})\.([a-z0-9_]{{8}}\.scratch|tmp|.+-\d+\.tmp)", re.DOTALL)
    with os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if temporary.fullmatch(entry.name)]
    for path in found:
        with suppress(OSError):  # in use, another user's, or gone this moment
            _remove_unused(path)


def _remove_unused(path: Path) -> None:
    is_folder = path.suffix == ".scratch"
    try:
        lock = lock_file(path / LOCK_NAME if is_folder else path, make=False)
    except FileNotFoundError:
        path.rmdir()  # of a process that was killed before it had locked it: nothing is in it
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
