"""The one door to the media of a listed sample, wherever they lie: a file, a URL, a member of an archive, a cell.

A file of its own is given as its path, a remote one as that of a temporary copy; what lies within a file as its bytes,
or, if there are more than MAX_BYTES_IN_MEMORY, as the path of a temporary copy. Nothing else of the file is copied.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from avssl.files import storage
from avssl.files.disk_errors import clear_errors, is_of_this_machine
from avssl.files.location import is_remote
from avssl.files.scratch import temporary_folder
from avssl.files.whole import content_digest
from avssl.shards.manifest import Entry, FileSource
from avssl.shards.parquet_cells import read_cell
from avssl.shards.places import Cell, Place, Range, Sounding
from avssl.types import MediaError

MAX_BYTES_IN_MEMORY = 256 << 20

Media = Path | bytes


@dataclass(frozen=True)
class Opened:
    """Open media. media: path or bytes of the file. sound: of its audio if that lies apart, else None. name: of the
    media in messages; suffix: in lower case with its dot, "" if there is none.
    """

    media: Media
    sound: Media | None
    name: str
    suffix: str

    @property
    def num_bytes(self) -> int:
        """Size of the media, with the sound apart."""
        return sum(map(_num_bytes, self._files))

    @property
    def content(self) -> str:
        """`content_digest` of the file; of a video and a sound apart 16 hex digits of both."""
        digests = [content_digest(file) for file in self._files]
        return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]

    @property
    def _files(self) -> list[Media]:
        return [self.media] if self.sound is None else [self.media, self.sound]


@contextmanager
def opened(entry: Entry | FileSource | Sounding, root: str | Path = "") -> Iterator[Opened]:
    """A context with the media of an entry. root: the folder or URL that its paths are relative to.

    Raises MediaError: missing_file, unreachable; truncated, if an archive or a table ends before; changed_file, if a
    table has no such cell. OSError if the disk for temporary copies (TMPDIR) is full or cannot be written.
    """
    place = entry.place.at(root)
    with ExitStack() as stack:
        media = stack.enter_context(_opened(place))
        sound = None if entry.sound is None else stack.enter_context(_opened(entry.sound.at(root)))
        yield Opened(media, sound, str(place), _suffix(place.name))


@contextmanager
def _opened(place: Place) -> Iterator[Media]:
    with ExitStack() as stack:
        try:
            media = _fetched(place, stack)
        except OSError as error:
            raise unreadable(place.path, error) from error
        yield media


def _fetched(place: Place, stack: ExitStack) -> Media:
    """The media of a place. stack: is given what must be removed afterwards."""
    within = place.within
    if not is_remote(place.path) and not stat.S_ISREG(storage.local_path(place.path).stat().st_mode):
        raise FileNotFoundError("is no regular file")  # opening a pipe would wait for a writer
    if within is None:
        return stack.enter_context(storage.local_copy(place.path))
    if isinstance(within, Cell):
        return read_cell(place.path, within, str(place))
    if within.num_bytes <= MAX_BYTES_IN_MEMORY:
        content = storage.read_bytes(place.path, within.offset, within.offset + within.num_bytes)
        _check_whole(place, within, len(content))
        return content
    path = stack.enter_context(temporary_folder()) / f"member{_suffix(within.name)}"
    with clear_errors(path, "written"), path.open("wb") as file:
        num_bytes = storage.copy_range(place.path, file, within.offset, within.offset + within.num_bytes)
    _check_whole(place, within, num_bytes)
    return path


def _check_whole(place: Place, within: Range, num_bytes: int) -> None:
    if num_bytes < within.num_bytes:
        raise MediaError("truncated", f"{place}: has {within.num_bytes} bytes, and the file ends after {num_bytes}")


def unreadable(path: str, error: OSError) -> MediaError:
    """The error for a file that cannot be fetched or opened: missing_file, or unreachable.

    Raises the error itself if it is that of this machine's disk, on which temporary copies lie.
    """
    if is_of_this_machine(error):
        raise error
    is_far = is_remote(path) and not isinstance(error, FileNotFoundError)
    return MediaError("unreachable" if is_far else "missing_file", f"{path}: {error}")


def _num_bytes(media: Media) -> int:
    return len(media) if isinstance(media, bytes) else media.stat().st_size


def _suffix(name: str) -> str:
    """The suffix of a file's name or of a URL, in lower case; only letters and digits, because names are data."""
    match = re.search(r"[^/](\.[A-Za-z0-9]{1,8})$", name.partition("?")[0] if is_remote(name) else name)
    return match[1].lower() if match else ""
