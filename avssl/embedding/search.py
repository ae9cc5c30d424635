"""Exact search for the closest rows by cosine in a finished folder of embeddings, at constant memory.

    index = EmbeddingIndex("embeddings/")
    index.search("audio", queries, top=10)      # queries (M, D) of the same space -> [[Hit, ...], ...], best first
    search("embeddings/", "a dog barks", "audio")  # text, if the model that made the folder reads it

Rows are read a row group at a time, and only the columns that a search needs. Scores are those of ops/nearest.py:
float64 cosines, which do not depend on how the rows are divided into files; among equal scores the lower row is first.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.embedding.embedder import Embedder
from avssl.embedding.index import SKIPPED_NAME, FolderIndex, differences
from avssl.embedding.parquet import read_row_groups
from avssl.embedding.public import names_public_model
from avssl.embedding.sources import located, sources_of_folder
from avssl.embedding.table import MODALITIES, EmbeddingRows, EmbeddingTable, Hit, RowFacts, concatenate
from avssl.files.checked_json import Fields
from avssl.files.location import is_remote
from avssl.files.plain_text import brief
from avssl.ops.nearest import nearest, possible_nearest

NAME_OF_ENCODER = re.compile(r"encoders\.\w+\.name")  # where the files lie: the same ones may lie elsewhere now
RESULTS_AT_ONCE = 1 << 22  # places and scores of rows that a search holds, 16 bytes each
_WINDOW_COLUMNS = ("key", "start_seconds", "end_seconds")


@dataclass(frozen=True)
class Query:
    """What is searched for: a file, rows of the folder, or texts.

    name: as it is shown. modality: of the query, or "text". vectors: {modality to search: (n, D)}.
    parts: for each of the n vectors its start_seconds and end_seconds in the file, with its row if it is one of the
    folder's; or its text.
    path: of the file; key: of the rows; "" if it is not asked by one.
    """

    name: str
    modality: str
    vectors: dict[str, Any]
    parts: list[dict[str, Any]]
    path: str = ""
    key: str = ""


class EmbeddingIndex:
    """A finished folder of embeddings. Attributes: folder, content (index.json), modalities (that some row has).

    FileNotFoundError if the folder is not finished or lacks a file, ValueError if a file has another size than listed.

    >>> index = EmbeddingIndex(embeddings)
    >>> index.modalities
    ['video', 'audio']
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.content = FolderIndex.read(self.folder)
        paths = self.content.paths(self.folder)
        first_rows = np.cumsum([0, *(record.num_rows for record in self.content.files)]).tolist()
        self._files = list(zip(paths, first_rows, strict=False))
        self.modalities = [name for name in MODALITIES if self.content.rows_with.get(name, 0)]

    @property
    def weights_hash(self) -> str:
        """Hash of the weights with which the rows were made."""
        return str(self.content.settings["weights"])

    def rows(
        self, modality: str, numbers: NDArray[np.int64] | None = None, *, with_vectors: bool = True
    ) -> Iterator[EmbeddingRows]:
        """Rows that have a modality, in order, a row group at a time; numbers: only these rows, sorted.

        with_vectors=False does not read the vectors; they are (n, 0) then.
        """
        self.check(modality)
        column = f"{modality}_embedding"
        names = [*_WINDOW_COLUMNS, f"has_{modality}", *([column] if with_vectors else [])]
        for path, first_row in self._files:

            def is_needed(first: int, end: int, offset: int = first_row) -> bool:
                if numbers is None:
                    return True
                low, high = np.searchsorted(numbers, [offset + first, offset + end])
                return bool(low < high)

            for first, columns in read_row_groups(path, names, is_needed):
                group_numbers = first_row + first + np.arange(len(columns["key"]))
                keep = columns[f"has_{modality}"]
                if numbers is not None:
                    low, high = np.searchsorted(numbers, [group_numbers[0], group_numbers[-1] + 1])
                    is_wanted = np.zeros(len(keep), bool)
                    is_wanted[numbers[low:high] - group_numbers[0]] = True
                    keep = keep & is_wanted
                chosen = np.flatnonzero(keep)
                if len(chosen):
                    keys = [columns["key"][row] for row in chosen]
                    starts, ends = (columns[name][chosen] for name in _WINDOW_COLUMNS[1:])
                    vectors = columns[column][chosen] if with_vectors else np.zeros((len(chosen), 0), np.float32)
                    yield EmbeddingRows(group_numbers[chosen], vectors, keys, starts, ends)

    def table_of(self, key: str) -> tuple[EmbeddingTable, NDArray[np.int64]]:
        """(the rows of a key, their numbers in the folder). ValueError if the folder has no rows of it."""
        found: list[EmbeddingTable] = []
        numbers: list[int] = []
        for path, first_row in self._files:
            rows = [
                first + place
                for first, columns in read_row_groups(path, ["key"])
                for place, name in enumerate(columns["key"])
                if name == key
            ]
            if rows:
                found.append(EmbeddingTable.read(path).select(rows))
                numbers += [first_row + row for row in rows]
        if not found:
            raise ValueError(f"{self.folder} has no rows of the key {brief(key)}{self._similar(key)}")
        return concatenate(found), np.array(numbers, np.int64)

    def _similar(self, key: str) -> str:
        """A hint: keys of the folder that are written alike, or its first one."""
        keys = {
            name for path, _ in self._files for _, columns in read_row_groups(path, ["key"]) for name in columns["key"]
        }
        near = get_close_matches(key, sorted(keys)[:20_000], 3, 0.5) or sorted(keys)[:1]
        return f"; it has, for example, {', '.join(map(brief, near))}" if near else ""

    def names(self) -> Iterator[tuple[list[str], list[str]]]:
        """(the keys, the labels as JSON) of all rows in order, many at a time."""
        for path, _ in self._files:
            for _, columns in read_row_groups(path, ["key", "labels"]):
                yield columns["key"], columns["labels"]

    def head(self, num_rows: int) -> EmbeddingTable:
        """The first rows, at least so many if there are; whole files. ValueError if there are none."""
        tables: list[EmbeddingTable] = []
        for path, _ in self._files:
            if sum(map(len, tables)) >= num_rows:
                break
            tables.append(EmbeddingTable.read(path))
        self.refuse_empty()
        return concatenate(tables)

    def refuse_empty(self) -> None:
        """ValueError if there are no rows."""
        if not self.content.num_rows:
            raise ValueError(f"{self.folder} holds no rows: {SKIPPED_NAME} says why nothing could be embedded")

    def facts(self, numbers: Collection[int]) -> dict[int, RowFacts]:
        """{number of a row: its facts} of some rows; only the row groups that hold them are read."""
        wanted, found = np.array(sorted(set(numbers)), np.int64), {}
        names = [*_WINDOW_COLUMNS, "index", "labels"]
        for path, first_row in self._files:

            def is_needed(first: int, end: int, offset: int = first_row) -> bool:
                low, high = np.searchsorted(wanted, [offset + first, offset + end])
                return bool(low < high)

            for first, columns in read_row_groups(path, names, is_needed):
                group = first_row + first + np.arange(len(columns["key"]))
                for place in np.flatnonzero(np.isin(group, wanted)).tolist():
                    labels = Fields.parse(columns["labels"][place], f"{path}, row {place}").record
                    key, start, end = (columns[name][place] for name in _WINDOW_COLUMNS)
                    checked = Fields({"labels": labels}, str(path)).labels("labels")
                    found[int(group[place])] = RowFacts(
                        key, int(columns["index"][place]), float(start), float(end), checked
                    )
        return found

    def check(self, modality: str) -> None:
        """ValueError if no row has the modality."""
        if modality not in self.modalities:
            raise ValueError(f"{self.folder} has no {modality} rows; it has {', '.join(self.modalities) or 'none'}")

    def check_queries(self, modality: str, queries: Any) -> NDArray[np.float64]:
        """Queries as float64 (M, D); ValueError unless they have the dim of the rows."""
        self.check(modality)
        vectors = np.asarray(queries, np.float64)
        dim = self.content.widths[f"{modality}_embedding"]
        if vectors.ndim != 2 or vectors.shape[1] != dim:
            raise ValueError(
                f"queries have shape {vectors.shape}; it must be (M, {dim}), the dim of the {modality} rows of "
                f"{self.folder}"
            )
        return vectors

    def search(
        self,
        modality: str,
        queries: Any,
        top: int = 10,
        *,
        exclude: Collection[str] = (),
        one_per_key: bool = False,
    ) -> list[list[Hit]]:
        """The `top` closest rows of a modality for each query, best first; fewer if the folder has fewer.

        Args:
            queries: (M, D), vectors of any length but 0. exclude: keys whose rows are left out.
            one_per_key: only the best row of each key is returned.
        """
        check_top(top)
        vectors = self.check_queries(modality, queries)
        best: list[list[Hit]] = [[] for _ in vectors]
        for rows in self.rows(modality):
            for number, hits in enumerate(hits_among(rows, vectors, top, exclude, one_per_key=one_per_key)):
                best[number] = best_of([*best[number], *hits], top, one_per_key=one_per_key)
        return best


def search(
    source: str | Path | EmbeddingIndex | EmbeddingTable,
    queries: Any,
    modality: str,
    top: int = 10,
    *,
    one_per_key: bool = False,
) -> list[list[Hit]]:
    """The `top` closest rows of a folder or a table of embeddings for each query, best first, by exact search.

    Args:
        source: a folder that `avssl embed` wrote, opened (also a LanceTable) or not, or a table.
        queries: (M, D) vectors of any length but 0, of the same run; or a text, or a list of texts: the model that made
            the rows reads them, and is loaded for each call.
        modality: of the rows, which may be another than that of the queries. one_per_key: the best row of each key.

    Raises as EmbeddingIndex, and ValueError for queries that do not fit the rows, and for text where the rows were not
    made by a model that reads it.

    >>> table = EmbeddingTable.read(embeddings)
    >>> search(embeddings, table.video_embedding[:1], "audio", top=1)[0][0].key in table.keys
    True
    """
    check_top(top)
    index = source if isinstance(source, EmbeddingTable | EmbeddingIndex) else EmbeddingIndex(source)
    if isinstance(index, EmbeddingIndex):
        index.check(modality)
    elif modality not in index.modalities():
        raise ValueError(f"the table has no {modality} rows; it has {', '.join(index.modalities()) or 'none'}")
    texts = [queries] if isinstance(queries, str) else queries
    if isinstance(texts, list | tuple) and texts and all(isinstance(text, str) for text in texts):
        queries = load_embedder_of(index).embed_text(texts, modality)
    if isinstance(index, EmbeddingIndex):
        return index.search(modality, queries, top, one_per_key=one_per_key)
    return hits_among(_rows_of(index, modality), np.asarray(queries, np.float64), top, one_per_key=one_per_key)


def check_top(top: int) -> None:
    """ValueError for a search for less than one row."""
    if top < 1:
        raise ValueError(f"top is {top}; it must be at least 1")


def _rows_of(table: EmbeddingTable, modality: str) -> EmbeddingRows:
    """The rows of a table that have a modality."""
    numbers = np.flatnonzero(table.has(modality))
    chosen, vectors = table.select(numbers), table.embedding(modality)
    assert vectors is not None  # it is one of the table's modalities
    return EmbeddingRows(numbers, vectors[numbers], chosen.keys, chosen.start_seconds, chosen.end_seconds)


def hits_among(
    rows: EmbeddingRows,
    queries: NDArray[np.float64],
    top: int,
    exclude: Collection[str] = (),
    *,
    one_per_key: bool = False,
) -> list[list[Hit]]:
    """The `top` closest of these rows for each query (M, D); see EmbeddingIndex.search."""
    allowed = np.flatnonzero([key not in exclude for key in rows.keys])
    if not len(allowed) or not len(queries):
        return [[] for _ in queries]
    if len(allowed) > top:
        keys = [rows.keys[row] for row in allowed] if one_per_key else None
        allowed = allowed[possible_nearest(queries, rows.vectors[allowed], top, keys)]
    # Any number of rows of one key may come first, so that all of these are needed; of some queries at a time.
    count = len(allowed) if one_per_key else min(top, len(allowed))
    at_once = max(1, RESULTS_AT_ONCE // count)
    result = []
    for start in range(0, len(queries), at_once):
        nearest_rows, scores = nearest(queries[start : start + at_once], rows.vectors[allowed], count)
        for positions, cosines in zip(allowed[nearest_rows], scores, strict=True):
            order = _first_of_keys(rows.keys, positions, top) if one_per_key else range(count)
            result.append([_hit(rows, positions[place], cosines[place]) for place in order])
    return result


def _first_of_keys(keys: Sequence[str], positions: NDArray[np.int64], top: int) -> list[int]:
    """Where in `positions` each of the first `top` keys comes first."""
    first: dict[str, int] = {}
    for place, position in enumerate(positions.tolist()):
        if first.setdefault(keys[position], place) == place and len(first) == top:
            break
    return list(first.values())


def _hit(rows: EmbeddingRows, position: np.int64, cosine: np.float64) -> Hit:
    start, end = float(rows.start_seconds[position]), float(rows.end_seconds[position])
    return Hit(rows.keys[position], start, end, float(cosine), int(rows.numbers[position]))


def best_of(hits: list[Hit], top: int, *, one_per_key: bool) -> list[Hit]:
    """The `top` best hits, among equal scores the lower rows; only the best of each key if one_per_key."""
    ordered = sorted(hits, key=lambda hit: (-hit.score, hit.row))
    if one_per_key:
        by_key: dict[str, Hit] = {}
        for hit in ordered:
            by_key.setdefault(hit.key, hit)
        ordered = list(by_key.values())
    return ordered[:top]


def in_one_space(embedder: Embedder, modality: str, other: str) -> bool:
    """Whether the embeddings of two modalities of a run lie in one space."""
    if modality == other:
        return True
    dims = embedder.dims([modality, other])
    return embedder.loss.has_one_space and dims[modality][1] == dims[other][1]


def load_embedder_of(source: EmbeddingIndex | EmbeddingTable, run: str | Path = "", device: str = "cpu") -> Embedder:
    """The embedder that made the rows of a folder or a table, loaded from `run` or from where it lay then.

    FileNotFoundError if there is no run, ValueError if its weights, or of a public model the views or the options, are
    not those with which the rows were made.
    """
    if isinstance(source, EmbeddingTable):
        where, settings = "the table", source.metadata
        lay = str(settings.get("run", ""))
    else:
        where, settings, lay = str(source.folder), source.content.settings, source.content.run_folder
    made_with, step = settings.get("weights"), settings.get("checkpoint_step")
    folder = str(run or lay)
    if not folder:
        raise FileNotFoundError(f"{where} does not say where its run lies; give it with --run")
    if not run and not is_remote(folder) and not names_public_model(folder) and not Path(folder).exists():
        raise FileNotFoundError(f"{where} was made with {folder}, which does not exist; give the run with --run")
    name = "" if step is None else str(step)  # rows of a checkpoint are compared with those of the same step alone
    embedder = Embedder.from_run(folder, device=device, untrained=made_with == "untrained", checkpoint_name=name)
    if embedder.weights_hash != made_with:
        raise ValueError(
            f"{folder} has the weights {embedder.weights_hash}, but {where} was made with {made_with}; "
            "search with the run that made it, or embed again"
        )
    # Weights of a public model do not say how media are read. Tables are searched for text, which no view changes.
    names = ("encoders",) if isinstance(source, EmbeddingTable) else ("encoders", "inputs")
    for name in (name for name in names if name in settings):
        now = embedder.settings(None, None, settings["modalities"])
        changed = differences(settings[name], now.get(name), name)
        shown = "; ".join(f"{key}: {both}" for key, both in changed.items() if not NAME_OF_ENCODER.fullmatch(key))
        if shown:
            raise ValueError(
                f"{folder}, as it stands, makes other rows than those of {where} ({shown}); leave out --run: the "
                "settings that made them lie beside them"
            )
    return embedder


def keys_of_file(index: EmbeddingIndex, path: str | Path) -> set[str]:
    """The keys of a file in a folder of embeddings: several if a manifest listed some of its seconds.

    ValueError if the file is none of the sources that were embedded.
    """
    place, real = located(path), str(Path(path).resolve())
    found = set()
    for file in sources_of_folder(index.folder, index.content.settings):
        is_named_so = file.within is None and Path(file.path).name in (Path(place).name, Path(real).name)
        if is_named_so and (file.path == real or located(file.path) in (place, real)):
            found.add(file.key)
    if not found:
        raise ValueError(
            f"{path} is none of the files from which {index.folder} was made; name the keys to leave out instead"
        )
    return found
