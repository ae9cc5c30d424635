"""Media given as a path or as the bytes of a file: its name in messages, and opening it."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from avssl.types import MediaError

Source = str | os.PathLike[str] | bytes


def label_of(source: Source, name: str) -> str:
    """The name of a source in messages: `name`, or the path if that is empty."""
    label = name or ("<bytes>" if isinstance(source, bytes) else os.fspath(source))
    return os.fsencode(label).decode(errors="backslashreplace")  # file names need not be Unicode


@contextmanager
def open_source(source: Source, label: str) -> Iterator[BinaryIO]:
    """The file or bytes, open for reading. MediaError if it is no regular file, cannot be opened or is empty."""
    try:
        if not isinstance(source, bytes) and not stat.S_ISREG(Path(source).stat().st_mode):
            raise MediaError("missing_file", f"{label}: is no regular file")  # opening a pipe would wait for a writer
        file: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")  # noqa: SIM115
    except OSError as error:
        raise MediaError("missing_file", f"{label}: cannot be opened ({error.strerror})") from error
    with file:
        if not file.read(1):
            raise MediaError("empty_file", f"{label}: has zero bytes")
        file.seek(0)
        yield file
