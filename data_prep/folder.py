"""The folder that `write` fills: local, or of any store that storage.py reaches. Files are whole or absent.

A remote store has no move: a file is put there in one piece under its own name, or not at all. What cannot be written
(a full disk, a target that is read-only, refused access) is one OSError that says what to do; files that were finished
before stay as they are, so the same command goes on from them.
"""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from avssl.data import storage
from avssl.data.location import READ_ONLY
from avssl.whole_files import write_whole
from data_prep.files import atomic_file

FULL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)}
REFUSED = {errno.EACCES, errno.EPERM}
SCRATCH = "avssl-scratch-"
CONTINUES = "what is finished is kept, and the same command goes on from there"


@dataclass(frozen=True)
class OutputFolder:
    """A folder by its location; names are those of files in it, `sub/name` included. Picklable.

    All methods raise OSError with one message that names the file, the cause and what to do.
    """

    location: str

    @classmethod
    def open(cls, location: storage.Location) -> Self:
        """The folder, made if it is local and not there. ValueError for a location that cannot be written to."""
        protocol = storage.protocol_of(location)
        if protocol in READ_ONLY:
            raise ValueError(
                f"{storage.shown(os.fspath(location))}: http(s) can only be read; write to a local path, s3://, gs:// "
                "or hf://"
            )
        if protocol:
            return cls(os.fspath(location).rstrip("/"))
        path = storage.local_path(location)
        with clear_errors(str(path), "made"):
            path.mkdir(parents=True, exist_ok=True)
        return cls(str(path))

    def __str__(self) -> str:
        return storage.shown(self.location)

    @property
    def is_local(self) -> bool:
        """Does it lie on this machine?"""
        return not storage.is_remote(self.location)

    def path(self, name: str = "") -> Path:
        """Where a file of a local folder lies; ValueError for a remote one."""
        if not self.is_local:
            raise ValueError(f"{self.location} is no local folder: {name or 'it'} has no path there")
        return Path(self.where(name)) if name else Path(self.location)

    def where(self, name: str) -> str:
        """The location of a file, for storage.py and for messages."""
        return storage.join(self.location, name)

    def exists(self, name: str) -> bool:
        """Is there such a file? Not being able to tell is an error."""
        with clear_errors(self.where(name), "looked up"):
            return storage.exists(self.where(name))

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""
        with clear_errors(self.where(name), "looked up"):
            try:
                return storage.size(self.where(name))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def names(self, prefix: str = "") -> list[str]:
        """Names that begin so of the files and folders directly in it, sorted; none if there is no such folder.

        A prefix with slashes lists a sub-folder: names("sub/part-") gives ["sub/part-1", ...].
        """
        folder, slash, start = prefix.rpartition("/")
        where = self.where(folder) if slash else self.location
        with clear_errors(where, "listed"):
            try:
                found = storage.names(where)
            except FileNotFoundError:
                return []
        return [f"{folder}{slash}{name}" for name in found if name.startswith(start)]

    def read_bytes(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError if there is none."""
        with clear_errors(self.where(name), "read"):
            return storage.read_bytes(self.where(name))

    def write_bytes(self, name: str, content: bytes) -> None:
        """The whole file, or the one that was there before."""
        with clear_errors(self.where(name), "written"):
            if self.is_local:
                write_whole(self.path(name), content)
            else:
                storage.write_bytes(self.where(name), content)

    @contextmanager
    def local_file(self, name: str) -> Iterator[Path]:
        """A path to read: the file's own in a local folder, else that of a temporary copy with the same last name."""
        if self.is_local:
            yield self.path(name)
            return
        with tempfile.TemporaryDirectory(prefix=SCRATCH) as folder:
            path = Path(folder) / name.rpartition("/")[2]
            self.get_file(name, path)
            yield path

    def scratch(self, name: str) -> Path:
        """A local path of this process alone, to make a file at that `put_file` then moves in under this name.

        It lies beside its target if that is local, else in a new folder of the system for temporary files (TMPDIR).
        """
        if not self.is_local:
            return Path(tempfile.mkdtemp(prefix=SCRATCH)) / name.rpartition("/")[2]
        path = self.path(name)
        with clear_errors(str(path.parent), "made"):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.scratch.tmp")

    def put_file(self, path: Path, name: str) -> None:
        """Move a finished local file into the folder; it is gone from its old place when it is whole at the new one."""
        with clear_errors(self.where(name), "written"):
            if self.is_local:
                _move(path, self.path(name))
                return
            storage.upload(path, self.where(name))
        path.unlink()
        if path.parent.name.startswith(SCRATCH):
            with suppress(OSError):  # somebody keeps more there
                path.parent.rmdir()

    def get_file(self, name: str, path: Path) -> None:
        """Copy a file of the folder to a local path, whole or not at all."""
        with clear_errors(str(path), "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
        with clear_errors(f"{self.where(name)} (to {path})", "copied"):
            storage.download(self.where(name), path)

    def remove(self, name: str) -> None:
        """Remove a file; none there is well, too."""
        with clear_errors(self.where(name), "removed"):
            storage.remove(self.where(name))


def _move(path: Path, target: Path) -> None:
    """Rename; between file systems copy, force to disk and rename, then remove."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.replace(target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    with path.open("rb") as source, atomic_file(target) as file:
        while block := source.read(1 << 20):
            file.write(block)
    path.unlink()


@contextmanager
def clear_errors(where: str, doing: str) -> Iterator[None]:
    """An error of the system becomes one that says what to do, of the same class and errno."""
    try:
        yield
    except OSError as error:
        if hasattr(error, "is_clear"):
            raise
        code = error.errno
        text = f"{storage.shown(where)}: could not be {doing}"
        if code in FULL:
            text += f", the disk or quota is full; free space, then run the same command again: {CONTINUES}"
        elif code == errno.EROFS:
            text += ", it lies on a read-only file system; choose another --out, or mount it writable"
        elif code in REFUSED:
            text += f", access is refused; choose another --out, or get the right to write there: {CONTINUES}"
        elif code in (errno.ENOTDIR, errno.EEXIST):
            text += ", for a file lies where a folder is needed; choose another --out, or move that file away"
        else:
            raise
        clear = type(error)(text)
        clear.errno = code
        clear.is_clear = True  # type: ignore[attr-defined]
        raise clear from error
