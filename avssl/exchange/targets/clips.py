"""Rows of embeddings by the file that they are of, for programs that show files: a clip with its windows.

Programs that show media need files that play. Of rows of a shard folder the samples are written out as such files,
packets as they are stored, nothing encoded anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avssl.exchange.targets.rows import Labels, RowSource
from avssl.files.location import is_remote
from avssl.files.whole import write_whole
from avssl.shards.keys import plain_key
from avssl.shards.shard_set import ShardSet
from data_prep.inspect.show import playable, suffixes


@dataclass
class Clip:
    """The w rows of a key.

    path: of its file. is_within: whether that is an archive, which holds others, too. index: of its sample in a shard
    folder, -1 of a plain file.
    windows: float64 (w, 2), begin and end of each row in seconds of the file. first: number of the first row.
    vectors: {column: float32 (w, D)}, NaN where a row lacks the modality. has_video, has_image: whether any row has.
    """

    key: str
    path: str | None
    is_within: bool
    index: int
    first: int
    labels: Labels
    caption: str | None
    windows: NDArray[np.float64]
    vectors: dict[str, NDArray[np.float32]]
    has_video: bool
    has_image: bool

    @property
    def kind(self) -> str:
        """ "video", "image" or "audio": what the file is shown as."""
        return "video" if self.has_video else "image" if self.has_image else "audio"

    def mean(self, column: str) -> NDArray[np.float32] | None:
        """The mean (D,) of the rows that have the modality, of unit length for embeddings; None if no row has it."""
        values = self.vectors[column]
        present = values[~np.isnan(values).any(axis=1)].astype(np.float64)
        if not len(present):
            return None
        mean = present.mean(axis=0)
        length = float(np.linalg.norm(mean))
        is_unit = column.endswith("embedding") and length > 0
        result: NDArray[np.float32] = (mean / length if is_unit else mean).astype(np.float32)
        return result


def clips_of(rows: RowSource) -> Iterator[Clip]:
    """The clips in order; the rows of one are in memory at a time, and a row group."""
    waiting: Clip | None = None
    for group in rows.groups():
        keys = np.array(group.keys)
        begins = [0, *(np.flatnonzero(keys[1:] != keys[:-1]) + 1).tolist(), len(keys)]
        for begin, end in pairwise(begins):
            part = slice(begin, end)
            clip = Clip(
                key=group.keys[begin],
                path=group.media[begin],
                is_within=group.is_within[begin],
                index=int(group.scalars["index"][begin]),
                first=group.first + begin,
                labels=group.labels[begin],
                caption=group.captions[begin],
                windows=np.stack([group.begin_seconds[part], group.end_seconds[part]], axis=1),
                vectors={name: vectors[part] for name, vectors in group.vectors.items()},
                has_video=bool(group.scalars["has_video"][part].any()),
                has_image=bool(group.scalars["has_image"][part].any()),
            )
            if waiting is not None and waiting.key == clip.key:
                waiting = _joined(waiting, clip)
                continue
            if waiting is not None:
                yield waiting
            waiting = clip
    if waiting is not None:
        yield waiting


def _joined(first: Clip, second: Clip) -> Clip:
    first.windows = np.concatenate([first.windows, second.windows])
    first.vectors = {name: np.concatenate([values, second.vectors[name]]) for name, values in first.vectors.items()}
    first.has_video |= second.has_video
    first.has_image |= second.has_image
    return first


class MediaFiles:
    """The files that play of clips.

    Args:
        rows: that the clips are of. folder: for the samples of shards, each below its key; None for rows of files.

    ValueError if there is no folder and the rows are of shards, or if the shards are not there.
    """

    def __init__(self, rows: RowSource, folder: Path | None) -> None:
        self.rows, self.folder = rows, folder
        self._shards: ShardSet | None = None
        if not rows.is_of_shards:
            if folder is not None:
                raise ValueError("--media is for embeddings of shards; the files of these are shown where they lie")
            return
        if folder is None:
            raise ValueError(
                f"{rows.folder} was made of shards, whose samples are no files; give --media FOLDER, where each is "
                "written as a file that plays"
            )
        self._shards = rows.shards
        if self._shards is None:
            raise FileNotFoundError(
                f"{rows.index.settings['sources'][0]}: the shards of {rows.folder} are not there, and without them no "
                "media can be shown; say where they are now with --moved OLD=NEW"
            )

    def file_of(self, clip: Clip) -> Path:
        """The file of a clip. FileNotFoundError: it is not there. ValueError: it lies on a server."""
        if self._shards is not None:
            return self._written(clip, self._shards)
        path = clip.path or ""
        if not path or is_remote(path):
            raise ValueError(
                f"{clip.key}: its file {path or 'is not known'}{' lies on a server' if path else ''}; only files on "
                "this machine can be shown. Say with --moved OLD=NEW where a copy lies"
            )
        if clip.is_within:
            raise ValueError(
                f"{clip.key}: lies within {path}, and only files of their own can be shown. Write shards (`avssl prep "
                "write`) and export the embeddings of these with --media"
            )
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: is not there any more; say with --moved OLD=NEW where it lies now")
        return Path(path)

    def _written(self, clip: Clip, shards: ShardSet) -> Path:
        assert self.folder is not None
        sample = shards.read(clip.index)
        if sample.info.key != clip.key:
            raise ValueError(f"{clip.key}: the shard folder holds {sample.info.key} in its place; embed it again")
        suffix = suffixes(sample)[0]
        stem = plain_key(clip.key).strip("/")
        if stem != clip.key:  # no key of this program: nothing but its number is sure to be its own
            stem = f"{stem}_{clip.index}"
        return write_whole(self.folder / f"{stem}{suffix}", playable(sample, suffix)).absolute()
