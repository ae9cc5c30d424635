"""The folder that `write` fills: local, or on any store that storage.py reaches. Files are whole or absent.

A remote store cannot rename: a file is uploaded whole under its final name, or not at all. A write that fails (full
disk, read-only folder, no access) is one OSError that says what to do; files that were finished before stay as they
are, so that the same command continues.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from avssl.files import storage
from avssl.files.disk_errors import clear_errors
from avssl.files.location import READ_ONLY
from avssl.files.scratch import temporary_folder
from avssl.files.whole import HashedFile, hashed_file, write_whole


@dataclass(frozen=True)
class OutputFolder:
    """A folder by its location; `name` is a file in it, `sub/name` included. Picklable.

    All methods raise OSError with one message that names the file, the cause and what to do.
    """

    location: str

    @classmethod
    def open(cls, location: storage.Location) -> Self:
        """The folder, which is made if it is local and missing. ValueError for a location that cannot be written to."""
        protocol = storage.protocol_of(location)
        if protocol in READ_ONLY:
            raise ValueError(
                f"{storage.redacted(os.fspath(location))}: http(s) can only be read; write to a local path, s3://, "
                "gs:// or hf://"
            )
        if protocol:
            return cls(os.fspath(location).rstrip("/"))
        path = storage.local_path(location)
        with _clear(str(path), "made"):
            path.mkdir(parents=True, exist_ok=True)
        return cls(str(path))

    def __str__(self) -> str:
        return storage.redacted(self.location)

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine."""
        return not storage.is_remote(self.location)

    def path(self, name: str = "") -> Path:
        """The path of a file of a local folder; ValueError for a remote one."""
        if not self.is_local:
            raise ValueError(f"{self.location} is no local folder: {name or 'it'} has no path there")
        return Path(self.where(name)) if name else Path(self.location)

    def where(self, name: str) -> str:
        """The location of a file, for storage.py and for messages."""
        return storage.join(self.location, name)

    def exists(self, name: str) -> bool:
        """Whether there is such a file. OSError if that cannot be found out."""
        with _clear(self.where(name), "looked up"):
            return storage.exists(self.where(name))

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""
        with _clear(self.where(name), "looked up"):
            try:
                return storage.size(self.where(name))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def names(self, prefix: str = "") -> list[str]:
        """The sorted names of the files and folders directly in it that begin with the prefix; [] if there is no
        folder.

        A prefix with slashes lists a sub-folder: names("sub/part-") gives ["sub/part-1", ...].
        """
        folder, slash, start = prefix.rpartition("/")
        where = self.where(folder) if slash else self.location
        with _clear(where, "listed"):
            try:
                names = storage.names(where)
            except FileNotFoundError:
                return []
        return [f"{folder}{slash}{name}" for name in names if name.startswith(start)]

    def read_bytes(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError if there is none."""
        with _clear(self.where(name), "read"):
            return storage.read_bytes(self.where(name))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file; if that fails, an older file stays as it was."""
        with _clear(self.where(name), "written"):
            if self.is_local:
                write_whole(self.path(name), content)
            else:
                storage.write_bytes(self.where(name), content)

    @contextmanager
    def local_file(self, name: str) -> Iterator[Path]:
        """A path to read: the file itself in a local folder, otherwise a temporary copy with the same last name."""
        if self.is_local:
            yield self.path(name)
            return
        with temporary_folder() as folder:
            path = folder / name.rpartition("/")[2]
            self.get_file(name, path)
            yield path

    @contextmanager
    def whole_file(self, name: str) -> Iterator[HashedFile]:
        """A file to write, which appears in the folder only if the block ends without an error."""
        with _clear(self.where(name), "written"):
            if self.is_local:
                path = self.path(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                with hashed_file(path) as file:
                    yield file
                return
            with temporary_folder() as folder:
                path = folder / name.rpartition("/")[2]
                with hashed_file(path) as file:
                    yield file
                storage.upload(path, self.where(name))

    def get_file(self, name: str, path: Path) -> None:
        """Copy a file of the folder to a local path, whole or not at all."""
        with _clear(str(path), "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
        with _clear(f"{self.where(name)} (to {path})", "copied"):
            storage.download(self.where(name), path)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        with _clear(self.where(name), "removed"):
            storage.remove(self.where(name))


def _clear(where: str, doing: str) -> AbstractContextManager[None]:
    return clear_errors(storage.redacted(where), doing)
