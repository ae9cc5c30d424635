"""Clips of rows and of uploads, cut in processes that may be killed, into a folder of which nothing else is served.

What a browser gets is always made anew here, small and in formats that every browser plays; no file of a corpus is
sent as it is, and no name in a request becomes a path.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from threading import Lock

from avssl.embedding.media import open_file, open_media
from avssl.embedding.table import RowFacts
from avssl.embedding_pages.cards import Shown
from avssl.embedding_pages.clips import Clip, clip_of
from avssl.embedding_pages.origins import Origins
from avssl.explorer.question import CLIPS_ADDRESS
from avssl.processes.pool import Sandbox
from avssl.shards.manifest import FileSource
from avssl.types import MediaError, Span

MOST_BYTES = 512 << 20  # of clips that are kept; the one that was asked for least recently goes first


@dataclass(frozen=True)
class Cut:
    """A clip that is to be made of a row's or an upload's seconds.

    place: the file; or the folder of embeddings, of shards, with its settings, in which `row.index` is a sample.
    """

    row: RowFacts
    place: FileSource | Origins
    modalities: tuple[str, ...]
    from_start: bool = False

    @property
    def identity(self) -> tuple[object, ...]:
        """What tells clips apart."""
        where = self.place.path if isinstance(self.place, FileSource) else ""
        return where, self.row.key, self.row.start_seconds, self.row.end_seconds, self.from_start


def make_clip(cut: Cut) -> Clip:
    """The clip, or MediaError. Runs in a process of the sandbox."""
    row, place = cut.row, cut.place
    opened = open_file(place, cut.modalities) if isinstance(place, FileSource) else place.media(row.key, row.index)
    with closing(opened) as media:
        return clip_of(media, Span(row.start_seconds, row.end_seconds), from_start=cut.from_start)


def media_seconds(task: tuple[str, tuple[str, ...]]) -> float:
    """How long a file (path, modalities) lasts; 0 for an image. Runs in a process of the sandbox."""
    path, modalities = task
    with closing(open_media(path, "upload", modalities)) as media:
        return max((span.end_seconds for span in media.spans.values()), default=0.0)


def told_without(path: str, error: MediaError, name: str) -> str:
    """The message of an error, in which a path of this machine is replaced by a name that the reader knows."""
    return error.message.replace(path, name) if path else error.message


@dataclass(frozen=True)
class _Kept:
    """A clip that was made: how a page shows it, its files, their bytes together."""

    shown: Shown
    names: tuple[str, ...]
    num_bytes: int


class ClipStore:
    """The clips by name, each made once while it is kept.

    folder: for their files. sandbox: makes them. most_bytes: of what is kept. Its methods may be called from several
    threads.
    """

    def __init__(self, folder: Path, sandbox: Sandbox, most_bytes: int = MOST_BYTES) -> None:
        self.folder, self.sandbox, self.most_bytes = folder, sandbox, most_bytes
        self._lock = Lock()
        self._kept: OrderedDict[tuple[object, ...], _Kept] = OrderedDict()
        self._files: dict[str, Path] = {}
        self._numbers = count(1)

    def path(self, name: str) -> Path | None:
        """The file of a clip that was made here; None for every other name."""
        with self._lock:
            return self._files.get(name)

    def shown(self, cuts: Sequence[Cut]) -> list[Shown]:
        """The rows as a page shows them, made side by side; a clip that cannot be made says why in its place."""
        with self._lock:
            kept = [self._kept.get(cut.identity) for cut in cuts]
            for cut in cuts:
                if cut.identity in self._kept:
                    self._kept.move_to_end(cut.identity)
        futures: dict[tuple[object, ...], Future[Clip]] = {}
        for cut, one in zip(cuts, kept, strict=True):
            if one is None and cut.identity not in futures:
                futures[cut.identity] = self.sandbox.submit(make_clip, cut, cut.row.key)
        found = {identity: _outcome(future) for identity, future in futures.items()}
        return [
            one.shown if one is not None else self._shown(cut, found[cut.identity])
            for cut, one in zip(cuts, kept, strict=True)
        ]

    def _shown(self, cut: Cut, made: Clip | MediaError) -> Shown:
        """A clip that was just made, from now on kept; failures are not, since another try may succeed."""
        if isinstance(made, MediaError):
            path = cut.place.path if isinstance(cut.place, FileSource) else ""
            return Shown(cut.row, problem=told_without(path, made, cut.row.key))
        with self._lock:
            if cut.identity in self._kept:  # twice on one page, or made by another request meanwhile
                return self._kept[cut.identity].shown
            contents = {"still": (made.still, ".jpg"), "sound": (made.sound, ".jpg"),
                        "movie": (made.movie, ".mp4" if made.has_video else ".m4a")}  # fmt: skip
            names = {}
            for part, (content, suffix) in contents.items():
                if content is not None:
                    names[part] = f"{next(self._numbers)}{suffix}"
                    self._files[names[part]] = self.folder / names[part]
                    self._files[names[part]].write_bytes(content)
            addresses = {part: CLIPS_ADDRESS + names[part] if part in names else "" for part in ("still", "sound")}
            light = replace(made, still=None, sound=None, movie=b"" if "movie" in names else None)
            shown = Shown(cut.row, light, names.get("movie", ""), **addresses)
            size = sum(len(content) for content, _ in contents.values() if content is not None)
            self._kept[cut.identity] = _Kept(shown, tuple(names.values()), size)
            self._make_room()
        return shown

    def _make_room(self) -> None:
        """Remove the clips that were asked for least recently, but for the last one, until the rest fits."""
        total = sum(kept.num_bytes for kept in self._kept.values())
        while total > self.most_bytes and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            total -= oldest.num_bytes
            for name in oldest.names:
                self._files.pop(name).unlink(missing_ok=True)


def _outcome(future: Future[Clip]) -> Clip | MediaError:
    try:
        return future.result()
    except MediaError as error:
        return error
