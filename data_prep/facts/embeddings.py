"""Facts of an embedding folder: how near the nearest other sample is, and whether sound and picture belong together.

The windows of a sample are pooled to one unit vector per modality, the normalized mean. They lie in files, so that
memory does not grow with vectors: about 60 bytes per sample are held.

av_correspondence of a sample i, with picture v_i and sound a_i, is the share of mismatched pairs that fit worse than
its own: over references j other than i, the pairs (v_i, a_j) and (v_j, a_i) whose cosine is below that of (v_i, a_i);
an equal one counts half. The references are the NUM_REFERENCES samples with both whose keys have the lowest hashes: the
same ones whatever the order of the corpus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from avssl.embedding.index import FolderIndex
from avssl.embedding.parquet import read_row_groups
from avssl.files.progress import Bar
from avssl.ops.nearest import similarity_chunks
from data_prep.facts.cells import EXACT_ROWS, nearest_cosines
from data_prep.facts.table import EMBEDDING_COLUMNS

NUM_REFERENCES = 1000
ROWS_AT_A_TIME = 8192
MODALITIES = ("video", "audio", "image")

Columns = dict[str, NDArray[np.float32]]
Rows = NDArray[np.int64]


def describe_folder(folder: Path) -> dict[str, Any]:
    """What tells the embeddings of a folder from others.

    FileNotFoundError if it is not finished or lacks a file, ValueError if it is damaged.
    """
    index = FolderIndex.read(folder)
    index.paths(folder)
    files = "\n".join(record.sha256 for record in index.files)
    return {
        "sha256": hashlib.sha256(files.encode()).hexdigest(),
        "weights": str(index.settings["weights"]),
        "modalities": modalities_of(index),
        "num_references": NUM_REFERENCES,
        "exact_rows": EXACT_ROWS,
    }


def modalities_of(index: FolderIndex) -> list[str]:
    """The modalities that any row has."""
    return [name for name in MODALITIES if index.rows_with.get(name, 0)]


@dataclass(frozen=True)
class Keys:
    """The keys of a corpus by 64 bits of their hashes. hashes: uint64 (N,), by row. order: that sorts them."""

    hashes: NDArray[np.uint64]
    order: Rows

    @classmethod
    def of(cls, keys: Iterable[list[str]]) -> Keys:
        """The keys in the order of the rows, many at a time."""
        hashes = np.concatenate([np.zeros(0, np.uint64), *map(hashes_of, keys)])
        return cls(hashes, np.argsort(hashes, kind="stable"))

    def rows(self, keys: list[str]) -> Rows:
        """The rows of keys, -1 for one that is not in the corpus."""
        wanted = hashes_of(keys)
        places = np.searchsorted(self.hashes, wanted, sorter=self.order)
        rows = self.order[np.minimum(places, len(self.order) - 1)]
        return np.where(self.hashes[rows] == wanted, rows, -1)


def hashes_of(keys: list[str]) -> NDArray[np.uint64]:
    """64 bits of BLAKE2b of each key."""
    return np.frombuffer(b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys), np.uint64)


@dataclass(frozen=True)
class Pooled:
    """One unit vector per sample that has the modality: float32 (N, D) in a file, rows: those that hold one."""

    vectors: NDArray[np.float32]
    rows: Rows


def pooled_vectors(folder: Path, keys: Iterable[list[str]], scratch: Path) -> dict[str, Pooled]:
    """The vectors of each modality that the folder has. Arguments and errors as of `embedding_columns`."""
    return _pooled_modalities(folder, Keys.of(keys), scratch)


def embedding_columns(folder: Path, keys: Iterable[list[str]], scratch: Path) -> tuple[Columns, dict[str, Any]]:
    """({column: float32 (N,), NaN where there is none}, facts for the metadata).

    Args:
        folder: of embeddings. keys: of the corpus, by row, many at a time. scratch: a folder for the vectors.

    Raises ValueError if no sample of the corpus has an embedding, and as describe_folder.
    """
    known = Keys.of(keys)
    pooled = _pooled_modalities(folder, known, scratch)
    has_any = np.zeros(len(known.hashes), np.bool_)
    for one in pooled.values():
        has_any[one.rows] = True
    columns = {name: np.full(len(has_any), np.nan, np.float32) for name in EMBEDDING_COLUMNS}
    facts: dict[str, Any] = {"num_embedded": int(has_any.sum())}
    for modality, one in pooled.items():
        found, recall = nearest_cosines(one.vectors, one.rows, scratch / f"{modality}.cells", f"nearest {modality}")
        columns[f"nearest_{modality}"][one.rows] = found
        facts |= {} if recall is None else {f"nearest_{modality}_recall": recall}
    if "video" in pooled and "audio" in pooled:
        _correspondence(pooled["video"], pooled["audio"], known, columns)
    return columns, facts


def _pooled_modalities(folder: Path, known: Keys, scratch: Path) -> dict[str, Pooled]:
    index = FolderIndex.read(folder)
    pooled = {name: _pooled(index, folder, name, known, scratch / name) for name in modalities_of(index)}
    if not any(len(one.rows) for one in pooled.values()):
        raise ValueError(
            f"{folder}: holds embeddings of none of these samples (their keys differ); embed the same corpus with "
            "`avssl embed`"
        )
    return pooled


def _pooled(index: FolderIndex, folder: Path, modality: str, keys: Keys, path: Path) -> Pooled:
    """The pooled vectors of a modality; rows of the folder that are not in the corpus are left out."""
    column, flag = f"{modality}_embedding", f"has_{modality}"
    dim = index.widths[column]
    vectors = np.memmap(path, np.float32, "w+", shape=(len(keys.hashes), dim))
    has = np.zeros(len(keys.hashes), np.bool_)
    groups = (group for file in index.paths(folder) for _, group in read_row_groups(file, ["key", flag, column]))
    for group in groups:
        numbers = np.where(group[flag], keys.rows(group["key"]), -1)
        inside = numbers >= 0
        order = np.argsort(numbers[inside], kind="stable")
        rows, starts = np.unique(numbers[inside][order], return_index=True)
        if len(rows):
            vectors[rows] += np.add.reduceat(group[column][inside][order].astype(np.float64), starts, axis=0)
            has[rows] = True
    for begin in range(0, len(vectors), ROWS_AT_A_TIME):
        part = vectors[begin : begin + ROWS_AT_A_TIME].astype(np.float64)
        lengths = np.linalg.norm(part, axis=1, keepdims=True)
        vectors[begin : begin + ROWS_AT_A_TIME] = np.divide(part, lengths, out=np.zeros_like(part), where=lengths > 0)
    return Pooled(vectors, np.flatnonzero(has))


def _correspondence(video: Pooled, audio: Pooled, keys: Keys, columns: Columns) -> None:
    """Fill av_cosine and av_correspondence of the samples that have both; nothing if they have no common space."""
    if video.vectors.shape[1] != audio.vectors.shape[1]:
        return
    both = np.intersect1d(video.rows, audio.rows)
    references = np.sort(both[np.argsort(keys.hashes[both], kind="stable")[:NUM_REFERENCES]])
    seen, heard = (_double(one, references) for one in (video, audio))
    with Bar("correspondence", len(both), "sample") as bar:
        for rows in _parts(both):
            own_video, own_audio = _double(video, rows), _double(audio, rows)
            own = torch.round((own_video * own_audio).sum(dim=1) * 2.0**30) / 2.0**30
            columns["av_cosine"][rows] = own.numpy()
            is_other = torch.from_numpy(rows[:, None] != references)
            below = torch.zeros(len(rows), dtype=torch.float64)
            for queries, gallery in ((own_video, heard), (own_audio, seen)):
                cosines = torch.cat([part for _, part in similarity_chunks(queries, gallery)])
                less, equal = cosines < own[:, None], cosines == own[:, None]
                below += ((less.double() + equal.double() / 2) * is_other).sum(dim=1)
            num_pairs = 2 * is_other.sum(dim=1)
            columns["av_correspondence"][rows] = torch.where(num_pairs > 0, below / num_pairs, torch.nan).numpy()
            bar.update(len(rows))


def _parts(rows: Rows) -> Iterator[Rows]:
    for begin in range(0, len(rows), ROWS_AT_A_TIME):
        yield rows[begin : begin + ROWS_AT_A_TIME]


def _double(one: Pooled, rows: Rows) -> torch.Tensor:
    return torch.from_numpy(one.vectors[rows].astype(np.float64))
