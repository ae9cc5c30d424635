"""The rows of a folder of embeddings as they are handed on: a row group at a time, with where their media lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.embedding.index import LISTING_NAME, FolderIndex
from avssl.embedding.parquet import column_names, read_row_groups
from avssl.embedding.sources import sources_of_folder
from avssl.embedding.table import SCALAR_COLUMNS, VECTOR_COLUMNS
from avssl.files.checked_json import Fields
from avssl.files.location import join
from avssl.files.plain_text import brief, note
from avssl.shards.shard_set import ShardSet
from avssl.types import MediaError

VECTOR_KINDS = ("embedding", "feature")
Labels = dict[str, list[str]]
# Path or URL of a file, the second of it that is second 0 of the rows, and whether the file holds other samples, too.
Link = tuple[str | None, float, bool]
_NOWHERE: Link = (None, 0.0, False)


@dataclass(frozen=True)
class Rows:
    """n consecutive rows of a folder.

    first: number of the first one in the folder. keys: names of the sources. scalars: the columns of SCALAR_COLUMNS,
    each (n,). labels, captions: per row; None is a row without a caption. vectors: {column: float32 (n, D)}, NaN where
    the row lacks the modality. media: path or URL of the file of each row, for a sample of shards its tar, whose
    members begin with the key, for one of another archive that; None if that is not known. is_within: whether that
    file is such an archive. begin_seconds, end_seconds: float64 (n,), the row's seconds
    in that file (for shards: on the clock of the sample); both are 0 of an image.
    """

    first: int
    keys: list[str]
    scalars: dict[str, NDArray[Any]]
    labels: list[Labels]
    captions: list[str | None]
    vectors: dict[str, NDArray[np.float32]]
    media: list[str | None]
    is_within: list[bool]
    begin_seconds: NDArray[np.float64]
    end_seconds: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.keys)


class RowSource:
    """A finished folder of embeddings, read in order; a row group is in memory at a time.

    Args:
        folder: that `avssl embed` wrote.
        kinds: of vectors, of VECTOR_KINDS.
        moved: (beginning of the paths of the media when they were embedded, what stands in its place now).

    Attributes: folder, index (its index.json), vectors (names of the columns of vectors), widths (dim of each).

    FileNotFoundError and ValueError as FolderIndex.read and FolderIndex.paths; ValueError if there are no rows.
    """

    def __init__(
        self,
        folder: str | Path,
        kinds: Sequence[str] = ("embedding",),
        moved: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.folder, self._moved = Path(folder), tuple(moved)
        self.index = FolderIndex.read(self.folder)
        self._paths = self.index.paths(self.folder)
        if not self._paths:
            raise ValueError(f"{folder} holds no rows: nothing could be embedded; its skipped.jsonl says why")
        self._columns = column_names(self._paths[0])
        wanted = [name for name in VECTOR_COLUMNS if name.rsplit("_", 1)[1] in kinds]
        self.vectors = [name for name in wanted if name in self._columns]
        self.widths = {name: self.index.widths[name] for name in self.vectors}

    def __len__(self) -> int:
        return self.index.num_rows

    @property
    def is_of_shards(self) -> bool:
        """Whether the rows are of the samples of a shard folder."""
        return self.index.settings.get("shards") is not None

    @cached_property
    def _most_names(self) -> dict[str, int]:
        """{label field: the largest number of names that a row has}, by name."""
        most: dict[str, int] = {}
        for texts in self._column("labels"):
            for labels in (_labels(text, str(self.folder)) for text in set(texts)):
                most |= {field: max(len(names), most.get(field, 0)) for field, names in labels.items()}
        return dict(sorted(most.items()))

    @property
    def label_fields(self) -> list[str]:
        """Names of the label fields of all rows, sorted."""
        return list(self._most_names)

    @property
    def several(self) -> set[str]:
        """Label fields of which some row has more than one name."""
        return {field for field, count in self._most_names.items() if count > 1}

    @cached_property
    def longest_key(self) -> int:
        """Characters of the longest key; 1 at least."""
        return max(1, *(max(map(len, keys)) for keys in self._column("key")))

    @cached_property
    def shards(self) -> ShardSet | None:
        """The shards whose samples were embedded; None if they are not where they were, or are others now."""
        location = self._now(str(self.index.settings["sources"][0]))
        try:
            shards = ShardSet(location)
        except (OSError, ValueError, MediaError) as error:
            note(f"the shards that were embedded cannot be opened, so rows have no link to media: {error}", "warning")
            return None
        if shards.fingerprint != self.index.settings["shards"]:
            note(f"{location} holds other shards than those that were embedded: rows have no link to media", "warning")
            return None
        return shards

    def groups(self) -> Iterator[Rows]:
        """The rows in order. ValueError if a file is damaged or a key is in none of the sources."""
        names = ["key", "labels", *(name for name in SCALAR_COLUMNS if name in self._columns), *self.vectors]
        names += ["caption"] if "caption" in self._columns else []
        links, number = self._links(), 0
        for path in self._paths:
            for _, columns in read_row_groups(path, names):
                keys = columns["key"]
                count = len(keys)
                scalars = {
                    name: columns[name] if name in columns else np.zeros(count, dtype)
                    for name, dtype in SCALAR_COLUMNS.items()
                }
                pairs = zip(keys, scalars["index"].tolist(), strict=True)
                found = [links.find(key, index) for key, index in pairs]
                offsets = np.array([offset for _, offset, _ in found], np.float64)
                yield Rows(
                    first=number,
                    keys=keys,
                    scalars=scalars,
                    labels=[_labels(text, str(path)) for text in columns["labels"]],
                    captions=columns.get("caption", [None] * count),
                    vectors={name: columns[name] for name in self.vectors},
                    media=[media for media, _, _ in found],
                    is_within=[is_within for _, _, is_within in found],
                    begin_seconds=offsets + scalars["start_seconds"],
                    end_seconds=offsets + scalars["end_seconds"],
                )
                number += count

    def _links(self) -> _ShardLinks | _FileLinks:
        return _ShardLinks(self.shards) if self.is_of_shards else _FileLinks(self)

    def _column(self, name: str) -> Iterator[list[str]]:
        """The texts of one column, a row group at a time."""
        for path in self._paths:
            for _, columns in read_row_groups(path, [name]):
                yield columns[name]

    def _now(self, path: str) -> str:
        """A path or URL as it is now, where it was moved."""
        for before, after in self._moved:
            if path.startswith(before):
                return after + path[len(before) :]
        return path


class _FileLinks:
    """Where the files of rows lie. They are asked for in the order of the rows, which is that of the sources."""

    def __init__(self, rows: RowSource) -> None:
        self._rows = rows
        self._sources = sources_of_folder(rows.folder, rows.index.settings)
        self._is_listed = (rows.folder / LISTING_NAME).is_file()
        self._key, self._found = "", _NOWHERE

    def find(self, key: str, index: int) -> Link:  # noqa: ARG002  (as of shards)
        """The file of a key, from the begin of its segment."""
        if key == self._key:
            return self._found
        for source in self._sources:
            if source.key == key:
                self._key = key
                begin = source.segment[0] if source.segment else 0.0
                self._found = self._rows._now(source.path), begin, source.within is not None
                return self._found
        if not self._is_listed:  # of an earlier version: the files may have changed since
            if self._found is not _NOWHERE or not self._key:
                note(f"{self._rows.folder} has no list of its files; from {brief(key)} on rows have no link", "warning")
            self._key, self._found = key, _NOWHERE
            return self._found
        raise ValueError(
            f"{self._rows.folder}: the rows of {brief(key)} are of no file in its list of sources; embed again with "
            "--overwrite"
        )


class _ShardLinks:
    """Where the samples of rows lie: the tar, whose members begin with the key."""

    def __init__(self, shards: ShardSet | None) -> None:
        self._shards = shards

    def find(self, key: str, index: int) -> Link:  # noqa: ARG002  (as of files)
        """The tar of a sample, from its second 0."""
        if self._shards is None:
            return _NOWHERE
        return join(self._shards.location, self._shards.shard_of(index).name), 0.0, True


@lru_cache(maxsize=4096)
def _labels(text: str, where: str) -> Labels:
    """{field: [names]} of a cell. ValueError names the file."""
    return Fields({"labels": Fields.parse(text, where).record}, where).labels("labels")


def label_text(labels: Labels, field: str) -> str | None:
    """The names of a field in one text, " | " between them; None if there are none."""
    return " | ".join(labels[field]) if labels.get(field) else None
