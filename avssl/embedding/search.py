"""Search in a finished folder of embeddings: the closest rows by cosine, exactly, at constant memory.

    index = EmbeddingIndex("embeddings/")
    index.search("audio", query, top=10)        # query (M, D), of the same space: [[Hit, ...], ...], best first

Rows are read a row group at a time, and only what a search needs of them. Scores are those of ops/nearest.py:
float64 cosines, the same however the rows are divided; of equals the lower row comes first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.embedding.embedder import Embedder
from avssl.embedding.index import FolderIndex
from avssl.embedding.parquet import read_pieces
from avssl.embedding.sources import key_of
from avssl.embedding.table import MODALITIES
from avssl.files.location import is_remote
from avssl.ops.nearest import nearest

_WHERE = ("key", "start_seconds", "end_seconds")


@dataclass(frozen=True)
class Hit:
    """One row that was found. row: its number in the folder, from 0; score: the cosine, in [-1, 1]."""

    key: str
    start_seconds: float
    end_seconds: float
    score: float
    row: int


@dataclass(frozen=True)
class EmbeddingRows:
    """Some rows that have a modality: numbers int64 (n,), vectors float32 (n, D), and where they are from."""

    numbers: NDArray[np.int64]
    vectors: NDArray[np.float32]
    keys: list[str]
    start_seconds: NDArray[np.float64]
    end_seconds: NDArray[np.float64]


class EmbeddingIndex:
    """A finished folder. Attributes: folder, index (its index.json), modalities (those that some row has).

    Raises FileNotFoundError: no finished folder, or a file of it is missing. ValueError: a file of another size.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.index = FolderIndex.read(self.folder)
        paths = self.index.paths(self.folder)
        first_rows = np.cumsum([0, *(record.num_rows for record in self.index.files)]).tolist()
        self._files = list(zip(paths, first_rows, strict=False))
        self.modalities = [name for name in MODALITIES if self.index.rows_with.get(name, 0)]

    @property
    def weights_hash(self) -> str:
        """Of the weights that made the rows."""
        return str(self.index.settings["weights"])

    def rows(
        self, modality: str, wanted: NDArray[np.int64] | None = None, *, with_vectors: bool = True
    ) -> Iterator[EmbeddingRows]:
        """Rows that have a modality, in order, a row group at a time; wanted: only these numbers, sorted.

        with_vectors=False does not read the vectors: they are (n, 0) then.
        """
        self.check(modality)
        column = f"{modality}_embedding"
        names = [*_WHERE, f"has_{modality}", *([column] if with_vectors else [])]
        for path, first_row in self._files:

            def holds(first: int, end: int, offset: int = first_row) -> bool:
                if wanted is None:
                    return True
                left, right = np.searchsorted(wanted, [offset + first, offset + end])
                return bool(left < right)

            for first, columns in read_pieces(path, names, holds):
                numbers = first_row + first + np.arange(len(columns["key"]))
                keep = columns[f"has_{modality}"]
                if wanted is not None:
                    keep = keep & np.isin(numbers, wanted)
                chosen = np.flatnonzero(keep)
                if len(chosen):
                    keys = [columns["key"][row] for row in chosen]
                    starts, ends = (columns[name][chosen] for name in _WHERE[1:])
                    vectors = columns[column][chosen] if with_vectors else np.zeros((len(chosen), 0), np.float32)
                    yield EmbeddingRows(numbers[chosen], vectors, keys, starts, ends)

    def check(self, modality: str) -> None:
        """ValueError for a modality that no row has."""
        if modality not in self.modalities:
            raise ValueError(f"{self.folder} has no {modality} rows; it has {', '.join(self.modalities) or 'none'}")

    def check_queries(self, modality: str, queries: Any) -> NDArray[np.float64]:
        """Queries as float64 (M, D); ValueError unless they are as wide as the rows."""
        self.check(modality)
        found = np.asarray(queries, np.float64)
        width = self.index.widths[f"{modality}_embedding"]
        if found.ndim != 2 or found.shape[1] != width:
            raise ValueError(f"queries have shape {found.shape}; the {modality} rows of {self.folder} are {width} wide")
        return found

    def search(
        self,
        modality: str,
        queries: Any,
        top: int = 10,
        *,
        exclude: Collection[str] = (),
        one_per_key: bool = False,
    ) -> list[list[Hit]]:
        """The `top` closest rows of a modality for each query, best first; fewer if there are fewer.

        Args:
            queries: (M, D), of any length but 0. exclude: keys whose rows do not count.
            one_per_key: of each key only its best row counts.
        """
        given = self.check_queries(modality, queries)
        best: list[list[Hit]] = [[] for _ in given]
        for rows in self.rows(modality):
            for number, hits in enumerate(hits_among(rows, given, top, exclude, one_per_key=one_per_key)):
                best[number] = best_of([*best[number], *hits], top, one_per_key=one_per_key)
        return best


def hits_among(
    rows: EmbeddingRows,
    queries: NDArray[np.float64],
    top: int,
    exclude: Collection[str] = (),
    *,
    one_per_key: bool = False,
) -> list[list[Hit]]:
    """The `top` closest of some rows for each query (M, D); see EmbeddingIndex.search."""
    allowed = np.flatnonzero([key not in exclude for key in rows.keys])
    if not len(allowed):
        return [[] for _ in queries]
    # Of one key any number of rows may come first, so that all are needed.
    found, scores = nearest(queries, rows.vectors[allowed], len(allowed) if one_per_key else top)
    result = []
    for positions, cosines in zip(allowed[found], scores, strict=True):
        hits = [
            Hit(rows.keys[p], float(rows.start_seconds[p]), float(rows.end_seconds[p]), float(c), int(rows.numbers[p]))
            for p, c in zip(positions, cosines, strict=True)
        ]
        result.append(best_of(hits, top, one_per_key=one_per_key))
    return result


def best_of(hits: list[Hit], top: int, *, one_per_key: bool) -> list[Hit]:
    """The `top` best, of equal scores the lower rows; of each key only the best if one_per_key."""
    ordered = sorted(hits, key=lambda hit: (-hit.score, hit.row))
    if one_per_key:
        by_key: dict[str, Hit] = {}
        for hit in ordered:
            by_key.setdefault(hit.key, hit)
        ordered = list(by_key.values())
    return ordered[:top]


def comparable(embedder: Embedder, modality: str, other: str) -> bool:
    """Do the embeddings of two modalities of a run lie in one space?"""
    if modality == other:
        return True
    widths = embedder.widths([modality, other])
    return embedder.loss.has_one_space and widths[modality][1] == widths[other][1]


def load_embedder_of(index: EmbeddingIndex, run: str | Path = "", device: str = "cpu") -> Embedder:
    """The embedder that made the rows: of `run`, or of where the run lay then.

    Raises FileNotFoundError: no run there. ValueError: it has other weights than the rows were made with.
    """
    where = str(run or index.index.run_folder)
    if not where:
        raise FileNotFoundError(f"{index.folder} does not say where its run lies; give it with --run")
    if not run and not is_remote(where) and not Path(where).exists():
        raise FileNotFoundError(f"{index.folder} was made with {where}, which is not there; say where it is with --run")
    embedder = Embedder.from_run(where, device=device, untrained=index.weights_hash == "untrained")
    if embedder.weights_hash != index.weights_hash:
        raise ValueError(
            f"{where} has the weights {embedder.weights_hash}, but {index.folder} was made with {index.weights_hash}; "
            "search with the run that made it, or embed again"
        )
    return embedder


def key_of_source(index: EmbeddingIndex, path: str | Path) -> str:
    """The key that a file has in the folder; ValueError if it lies in none of the sources that were embedded."""
    file = Path(path).resolve()
    for source in index.index.settings["sources"]:
        if not is_remote(source) and index.index.settings["shards"] is None and file.is_relative_to(source):
            return key_of(file.name if file == Path(source) else file.relative_to(source).as_posix())
    raise ValueError(f"{file} is none of the files that {index.folder} was made of; name the keys to leave out instead")
