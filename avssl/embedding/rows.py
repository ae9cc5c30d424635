"""Decoded windows -> rows of embeddings, in batches across sources, at constant memory.

Windows of several sources come interleaved, from several workers. Their clips wait until a batch is full; a window's
row is made when all its clips have been through the network, and waits in a spool until its source is finished: a
source that fails half-way is a failure, not a shorter source. No more than a batch of clips and a bounded number of
rows is in memory, however long a source is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from avssl.embedding.media import WindowBatch
from avssl.embedding.table import EmbeddingTable, concatenate
from avssl.transforms.raw_view import RawView
from avssl.types import MediaError

Encode = Callable[[str, RawView], tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True)
class Finished:
    """A source of which all rows are in the spool, or which failed: then there are none."""

    number: int
    key: str
    error: MediaError | None = None


class RowSpool:
    """Rows that wait for their source to be finished: in memory while they are few, then on the disk.

    Args:
        folder: made if need be, for files that live no longer than the spool; None keeps everything in memory.
        max_rows: rows in memory, of all sources together.
    """

    def __init__(self, folder: Path | None = None, max_rows: int = 16_384) -> None:
        self.folder, self.max_rows = folder, max_rows
        self.most_rows = 0  # that ever were in memory
        self._tables: dict[int, list[EmbeddingTable]] = {}
        self._files: dict[int, list[Path]] = {}
        self._num_rows = 0

    def put(self, number: int, table: EmbeddingTable) -> None:
        """Add rows to those of a source."""
        self._tables.setdefault(number, []).append(table)
        self._num_rows += len(table)
        if self.folder is not None and self._num_rows > self.max_rows:
            self._spill(self.folder)
        self.most_rows = max(self.most_rows, self._num_rows)

    def take(self, number: int) -> Iterator[EmbeddingTable]:
        """The rows of a source in the order in which they were put, some at a time; they are gone then."""
        for path in self._files.pop(number, []):
            yield EmbeddingTable.read(path)
            path.unlink()
        tables = self._tables.pop(number, [])
        self._num_rows -= sum(map(len, tables))
        yield from tables

    def drop(self, number: int) -> None:
        """Forget the rows of a source."""
        for path in self._files.pop(number, []):
            path.unlink()
        self._num_rows -= sum(map(len, self._tables.pop(number, [])))

    def _spill(self, folder: Path) -> None:
        """Move the longest sources to the disk until half the room is free."""
        by_length = sorted(self._tables, key=lambda number: -sum(map(len, self._tables[number])))
        for number in by_length:
            if self._num_rows <= self.max_rows // 2:
                break
            table = concatenate(self._tables.pop(number))
            self._num_rows -= len(table)
            files = self._files.setdefault(number, [])
            files.append(table.write(folder / f"{number}-{len(files)}.parquet"))


@dataclass(eq=False)
class _Source:
    number: int
    key: str
    pieces: deque[_WindowSums] = field(default_factory=deque)  # those without rows yet, in the order of time
    has_any: bool = False  # one of the modalities, in some window
    failed: bool = False


@dataclass(eq=False)
class _WindowSums:
    """Some windows of a source: sums over the clips that have been through the network so far."""

    source: _Source
    windows: WindowBatch
    features: dict[str, NDArray[np.float64]]  # modality -> (n, F)
    embeddings: dict[str, NDArray[np.float64]]  # modality -> (n, D)
    num_missing: int  # clips that have not


class RowMaker:
    """Give it the windows of a `WindowStream` and take the sources that are `finished`; their rows are in the spool.

    Args:
        encode: (modality, raw clips) -> (features (n, F), unit embeddings (n, D)).
        widths: modality -> (F, D), of the modalities to embed.
        batch_size: clips a call of `encode`.
        for_folder: every batch is full, the last one with copies of its last clip, so that rows are the same bits
            whatever was embedded before them; and a source that has none of the modalities is a failure.
    """

    def __init__(
        self, encode: Encode, widths: dict[str, tuple[int, int]], batch_size: int, spool: RowSpool, *, for_folder: bool
    ) -> None:
        self.encode, self.widths, self.batch_size, self.spool = encode, widths, batch_size, spool
        self.for_folder = for_folder
        self.finished: deque[Finished] = deque()
        self._sources: dict[int, _Source] = {}
        # Modality -> clips that wait for a batch, and whose they are: (piece, its windows that hold the clip).
        self._clips: dict[str, list[torch.Tensor]] = {name: [] for name in widths}
        self._owners: dict[str, list[tuple[_WindowSums, list[int]]]] = {name: [] for name in widths}

    def add(self, number: int, key: str, item: WindowBatch | MediaError) -> None:
        """Take the next decoded windows of a source, or its failure."""
        source = self._sources.setdefault(number, _Source(number, key))
        is_last = isinstance(item, MediaError) or item.is_last
        if is_last:
            del self._sources[number]
        if source.failed:
            return
        if isinstance(item, MediaError):
            self._fail(source, item)
            return
        num_windows, num_clips = len(item.grid), sum(len(item.owners[name]) for name in self.widths)
        features, embeddings = (
            {name: np.zeros((num_windows, widths[kind])) for name, widths in self.widths.items()} for kind in (0, 1)
        )
        clips, item.clips = item.clips, {}  # media and clips travel no further than this
        item.media = replace(item.media, sources={}, streams={})
        piece = _WindowSums(source, item, features, embeddings, num_clips)
        source.pieces.append(piece)
        source.has_any = source.has_any or num_clips > 0
        for name, raw in clips.items():
            if name in self.widths and raw is not None:
                self._clips[name].append(raw.media)
                self._owners[name] += [(piece, windows) for windows in item.owners[name]]
                if len(self._owners[name]) >= self.batch_size:
                    self._run(name, flush=False)
        self._release(source)

    def flush(self) -> None:
        """Embed the clips that still wait."""
        for name in self.widths:
            if self._owners[name]:
                self._run(name, flush=True)

    def _run(self, name: str, *, flush: bool) -> None:
        media, owners = _joined(self._clips[name]), self._owners[name]
        num_ready = len(media) if flush else len(media) // self.batch_size * self.batch_size
        self._clips[name] = [media[num_ready:].clone()] if num_ready < len(media) else []
        self._owners[name] = owners[num_ready:]
        for first in range(0, num_ready, self.batch_size):
            batch = slice(first, min(first + self.batch_size, num_ready))
            clips = media[batch]
            if self.for_folder and len(clips) < self.batch_size:
                clips = torch.cat([clips, clips[-1:].expand(self.batch_size - len(clips), *clips.shape[1:])])
            found = [rows[: len(owners[batch])] for rows in self.encode(name, RawView(name, clips))]
            for (piece, windows), feature, embedding in zip(owners[batch], *found, strict=True):
                for window in windows:  # the same one several times where the media ends within it
                    piece.features[name][window] += feature
                    piece.embeddings[name][window] += embedding
                piece.num_missing -= 1
        for source in dict.fromkeys(piece.source for piece, _ in owners[:num_ready]):
            self._release(source)

    def _release(self, source: _Source) -> None:
        """Make rows of the pieces that are complete."""
        while source.pieces and not source.failed and source.pieces[0].num_missing == 0:
            piece = source.pieces.popleft()
            try:
                self.spool.put(source.number, rows_of(piece.windows, piece.features, piece.embeddings))
                if piece.windows.is_last and self.for_folder and not source.has_any:
                    wanted = " or ".join(self.widths)
                    raise MediaError(f"no_{next(iter(self.widths))}", f"{source.key}: has no {wanted}")  # type: ignore[arg-type]
            except MediaError as error:
                self._fail(source, error)
                return
            if piece.windows.is_last:
                self.finished.append(Finished(source.number, source.key))

    def _fail(self, source: _Source, error: MediaError) -> None:
        source.failed = True
        source.pieces.clear()
        self.spool.drop(source.number)
        self.finished.append(Finished(source.number, source.key, error))


def _joined(clips: list[torch.Tensor]) -> torch.Tensor:
    """torch.cat; of pictures whose channels lie last in memory without moving them."""
    if clips[0].ndim < 5 or clips[0].stride(-3) != 1:
        return torch.cat(clips)
    return torch.cat([media.movedim(-3, -1) for media in clips]).movedim(-1, -3)


def rows_of(
    windows: WindowBatch, features: dict[str, NDArray[np.float64]], embeddings: dict[str, NDArray[np.float64]]
) -> EmbeddingTable:
    """Rows of windows from the sums over their clips: {modality: (n, F)}, and of unit vectors {modality: (n, D)}.

    A row's feature is the mean; its embedding the mean made unit; both NaN where the window has no clip.

    Raises MediaError("no_embedding") for a mean that has no direction or is not finite.
    """
    media, grid = windows.media, windows.grid
    columns: dict[str, Any] = {}
    for name, sums in embeddings.items():
        of_clips = list(chain.from_iterable(windows.owners[name]))
        count = np.bincount(np.array(of_clips, int), minlength=len(grid))[:, None]
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        is_sound = (length > 0) & np.isfinite(length) & np.isfinite(features[name]).all(axis=1, keepdims=True)
        is_wrong = (count > 0) & ~is_sound
        if is_wrong.any():
            start, end = grid[int(is_wrong.argmax())]
            raise MediaError(
                "no_embedding",
                f"{media.key}: from {start:g} to {end:g} s the {name} embedding has length 0 or is not finite",
            )
        columns[f"{name}_feature"] = np.where(count > 0, features[name] / np.maximum(count, 1), np.nan)
        columns[f"{name}_embedding"] = np.where(count > 0, sums / np.where(length > 0, length, 1), np.nan)
    return EmbeddingTable(
        keys=[media.key] * len(grid),
        index=np.full(len(grid), media.index, np.int64),
        start_seconds=grid[:, 0],
        end_seconds=grid[:, 1],
        has_audio=windows.has["audio"],
        has_video=windows.has["video"],
        has_image=windows.has["image"],
        labels=[media.labels] * len(grid),
        **columns,
    )


def in_order(spool: RowSpool, finished: Sequence[Finished]) -> Iterator[EmbeddingTable]:
    """The rows of these sources by number; those that failed have none."""
    for source in sorted(finished, key=lambda one: one.number):
        yield from spool.take(source.number)
