"""Rows of embeddings from decoded windows, in batches across sources, at constant memory.

Windows of several sources arrive interleaved, from several worker processes. Their clips wait until a batch is full. A
window becomes a row when all its clips have been encoded, and its row waits in a spool until its source is finished: a
source that fails half-way is a failure, not a shorter source. However long a source is, no more than a batch of clips
and a bounded number of rows is in memory.
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
class FinishedSource:
    """A source whose rows are all in the spool; or, with an error, a source that failed and has no rows."""

    number: int
    key: str
    error: MediaError | None = None


class RowSpool:
    """Rows that wait for their source to be finished: in memory while they are few, otherwise on disk.

    Args:
        folder: for files that live no longer than the spool, made when the first one is written; None keeps all rows
            in memory.
        max_rows: rows in memory, of all sources together.
    """

    def __init__(self, folder: Path | None = None, max_rows: int = 16_384) -> None:
        self.folder, self.max_rows = folder, max_rows
        self.most_rows = 0  # the largest number of rows that were in memory
        self._tables: dict[int, list[EmbeddingTable]] = {}
        self._files: dict[int, list[Path]] = {}
        self._num_rows = 0

    def put(self, number: int, table: EmbeddingTable) -> None:
        """Append rows to those of a source."""
        self._tables.setdefault(number, []).append(table)
        self._num_rows += len(table)
        if self.folder is not None and self._num_rows > self.max_rows:
            self._spill(self.folder)
        self.most_rows = max(self.most_rows, self._num_rows)

    def take(self, number: int) -> Iterator[EmbeddingTable]:
        """Remove the rows of a source, a table at a time, in the order in which they were put."""
        for path in self._files.pop(number, []):
            yield EmbeddingTable.read(path)
            path.unlink()
        tables = self._tables.pop(number, [])
        self._num_rows -= sum(map(len, tables))
        yield from tables

    def take_all(self, finished: Sequence[FinishedSource]) -> Iterator[EmbeddingTable]:
        """Remove the rows of these sources, in the order of their numbers; sources that failed have none."""
        for source in sorted(finished, key=lambda source: source.number):
            yield from self.take(source.number)

    def drop(self, number: int) -> None:
        """Forget the rows of a source."""
        for path in self._files.pop(number, []):
            path.unlink()
        self._num_rows -= sum(map(len, self._tables.pop(number, [])))

    def _spill(self, folder: Path) -> None:
        """Write the sources with the most rows to disk until at most max_rows / 2 rows are in memory."""
        by_length = sorted(self._tables, key=lambda number: -sum(map(len, self._tables[number])))
        for number in by_length:
            if self._num_rows <= self.max_rows // 2:
                break
            table = concatenate(self._tables.pop(number))
            self._num_rows -= len(table)
            files = self._files.setdefault(number, [])
            files.append(table.write(folder / f"{number}-{len(files)}.parquet"))


@dataclass(eq=False)
class _SourceProgress:
    number: int
    key: str
    waiting: deque[_WindowSums] = field(default_factory=deque)  # windows without rows yet, in the order of time
    has_clips: bool = False  # whether any window so far holds a clip
    failed: bool = False


@dataclass(eq=False)
class _WindowSums:
    """Windows of a source, with sums over their clips that have been encoded so far."""

    source: _SourceProgress
    windows: WindowBatch
    features: dict[str, NDArray[np.float64]]  # modality -> (n, F)
    embeddings: dict[str, NDArray[np.float64]]  # modality -> (n, D)
    num_missing: int  # clips that have not been encoded


class RowMaker:
    """Makes rows of the windows that `add` is given. Take sources from `finished`; their rows are in the spool.

    Args:
        encode: (modality, raw clips) -> (features (n, F), unit embeddings (n, D)).
        dims: modality -> (F, D), of the modalities to embed.
        batch_size: clips per call of `encode`.
        for_folder: every batch is full, the last one with copies of its last clip, so that rows are the same bits
            whatever was embedded before them; and a source that has none of the modalities is a failure.
    """

    def __init__(
        self, encode: Encode, dims: dict[str, tuple[int, int]], batch_size: int, spool: RowSpool, *, for_folder: bool
    ) -> None:
        self.encode, self.dims, self.batch_size, self.spool = encode, dims, batch_size, spool
        self.for_folder = for_folder
        self.finished: deque[FinishedSource] = deque()
        self._sources: dict[int, _SourceProgress] = {}
        # Modality -> clips that wait for a batch, and for each of them (its sums, the windows that hold it).
        self._clips: dict[str, list[torch.Tensor]] = {name: [] for name in dims}
        self._owners: dict[str, list[tuple[_WindowSums, list[int]]]] = {name: [] for name in dims}

    def add(self, number: int, key: str, item: WindowBatch | MediaError) -> None:
        """Take the next decoded windows of a source, or its error."""
        source = self._sources.setdefault(number, _SourceProgress(number, key))
        is_last = isinstance(item, MediaError) or item.is_last
        if is_last:
            del self._sources[number]
        if source.failed:
            return
        if isinstance(item, MediaError):
            self._fail(source, item)
            return
        num_windows, num_clips = len(item.grid), sum(len(item.owners[name]) for name in self.dims)
        features, embeddings = (
            {name: np.zeros((num_windows, dims[kind])) for name, dims in self.dims.items()} for kind in (0, 1)
        )
        clips_by_modality, item.clips = item.clips, {}  # clips and files are not kept until the rows are made
        item.media = replace(item.media, files={}, streams={})
        sums = _WindowSums(source, item, features, embeddings, num_clips)
        source.waiting.append(sums)
        source.has_clips = source.has_clips or num_clips > 0
        for name, clips in clips_by_modality.items():
            if name in self.dims and clips is not None:
                self._clips[name].append(clips.media)
                self._owners[name] += [(sums, windows) for windows in item.owners[name]]
                if len(self._owners[name]) >= self.batch_size:
                    self._encode_batches(name, flush=False)
        self._make_rows(source)

    def flush(self) -> None:
        """Embed the clips that still wait."""
        for name in self.dims:
            if self._owners[name]:
                self._encode_batches(name, flush=True)

    def _encode_batches(self, name: str, *, flush: bool) -> None:
        """Encode the full batches of a modality, and with `flush` also the rest, and add the results to the sums."""
        waiting, owners = _joined(self._clips[name]), self._owners[name]
        num_ready = len(waiting) if flush else len(waiting) // self.batch_size * self.batch_size
        self._clips[name] = [waiting[num_ready:].clone()] if num_ready < len(waiting) else []
        self._owners[name] = owners[num_ready:]
        for first in range(0, num_ready, self.batch_size):
            batch = slice(first, min(first + self.batch_size, num_ready))
            clips = waiting[batch]
            if self.for_folder and len(clips) < self.batch_size:
                clips = torch.cat([clips, clips[-1:].expand(self.batch_size - len(clips), *clips.shape[1:])])
            encoded = [values[: len(owners[batch])] for values in self.encode(name, RawView(name, clips))]
            for (sums, windows), feature, embedding in zip(owners[batch], *encoded, strict=True):
                for window in windows:  # the same window several times where the media ends within it
                    sums.features[name][window] += feature
                    sums.embeddings[name][window] += embedding
                sums.num_missing -= 1
        for source in dict.fromkeys(sums.source for sums, _ in owners[:num_ready]):
            self._make_rows(source)

    def _make_rows(self, source: _SourceProgress) -> None:
        """Put the rows of a source's next windows into the spool, as far as all their clips have been encoded."""
        while source.waiting and not source.failed and source.waiting[0].num_missing == 0:
            sums = source.waiting.popleft()
            try:
                self.spool.put(source.number, rows_of(sums.windows, sums.features, sums.embeddings))
                if sums.windows.is_last and self.for_folder and not source.has_clips:
                    names = " or ".join(self.dims)
                    raise MediaError(f"no_{next(iter(self.dims))}", f"{source.key}: has no {names}")  # type: ignore[arg-type]
            except MediaError as error:
                self._fail(source, error)
                return
            if sums.windows.is_last:
                self.finished.append(FinishedSource(source.number, source.key))

    def _fail(self, source: _SourceProgress, error: MediaError) -> None:
        source.failed = True
        source.waiting.clear()
        self.spool.drop(source.number)
        self.finished.append(FinishedSource(source.number, source.key, error))


def _joined(clips: list[torch.Tensor]) -> torch.Tensor:
    """torch.cat of clips; where the channels of frames come last in memory, they do so in the result, too."""
    if clips[0].ndim < 5 or clips[0].stride(-3) != 1:
        return torch.cat(clips)
    return torch.cat([frames.movedim(-3, -1) for frames in clips]).movedim(-1, -3)


def rows_of(
    windows: WindowBatch, features: dict[str, NDArray[np.float64]], embeddings: dict[str, NDArray[np.float64]]
) -> EmbeddingTable:
    """Rows of windows from sums over their clips: of features {modality: (n, F)} and of unit embeddings (n, D).

    A row's feature is the mean over its clips; its embedding is the mean divided by its length; both are NaN if the
    window has no clip. Raises MediaError("no_embedding") for a mean of length 0 or one that is not finite.
    """
    media, grid = windows.media, windows.grid
    columns: dict[str, Any] = {}
    for name, sums in embeddings.items():
        owners = list(chain.from_iterable(windows.owners[name]))
        count = np.bincount(np.array(owners, int), minlength=len(grid))[:, None]
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        is_usable = (length > 0) & np.isfinite(length) & np.isfinite(features[name]).all(axis=1, keepdims=True)
        is_wrong = (count > 0) & ~is_usable
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
        captions=None if media.caption is None else [media.caption] * len(grid),
        **columns,
    )
