"""FAISS indices beside a folder of embeddings, for more rows than an exact search reads in time. The door to faiss.

FAISS names candidates; their scores are then computed as the exact search computes them, from the same bits, so that
"flat", which looks at all rows, gives the same result. "ivf" and "hnsw" look at some: how many of the true ten closest
they find is measured when they are built, and kept beside them. An index is built and searched in memory: 4 * D bytes
a row, "hnsw" about 280 bytes more.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from avssl.embedding.index import FAISS_NAME
from avssl.embedding.search import EmbeddingIndex, EmbeddingRows, Hit, best_of, hits_among
from avssl.files.whole import whole_file

Kind = Literal["flat", "ivf", "hnsw"]
KINDS: tuple[str, ...] = get_args(Kind)
NUM_RECALL_QUERIES, RECALL_AT = 100, 10
HNSW_LINKS, HNSW_BUILD_DEPTH, HNSW_SEARCH_DEPTH = 32, 200, 256
IVF_ROWS_PER_LIST = 39  # the fewest that FAISS trains a list on without a warning
IVF_SEARCHED_SHARE = 1 / 8  # of the lists
MOST_NUMBERS = 2**24  # of the candidates' vectors, of all queries that are answered together: 64 MiB


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ValueError('this needs FAISS, an extra: pip install "avssl[faiss]"') from error
    return faiss


def build(index: EmbeddingIndex, kind: str) -> dict[str, dict[str, Any]]:
    """Build an index of every modality that the folder has; {modality: facts}, recall included.

    Raises ValueError: another kind, or FAISS is not installed.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    return {modality: _build(index, modality, kind) for modality in index.modalities}


def _build(index: EmbeddingIndex, modality: str, kind: str) -> dict[str, Any]:
    faiss, began = _faiss(), time.monotonic()
    num_rows, width = index.index.rows_with[modality], index.index.widths[f"{modality}_embedding"]
    facts: dict[str, Any] = {"kind": kind, "modality": modality, "num_rows": num_rows, "files": _fingerprint(index)}
    if kind == "flat":
        made = faiss.IndexIDMap2(faiss.IndexFlatIP(width))
    elif kind == "hnsw":
        graph = faiss.IndexHNSWFlat(width, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction, graph.hnsw.efSearch = HNSW_BUILD_DEPTH, HNSW_SEARCH_DEPTH
        made = faiss.IndexIDMap2(graph)
        facts |= {"links": HNSW_LINKS, "build_depth": HNSW_BUILD_DEPTH, "search_depth": HNSW_SEARCH_DEPTH}
    else:
        num_lists = max(1, min(int(4 * num_rows**0.5), num_rows // IVF_ROWS_PER_LIST))
        quantizer = faiss.IndexFlatIP(width)
        made = faiss.IndexIVFFlat(quantizer, width, num_lists, faiss.METRIC_INNER_PRODUCT)
        made.train(_sample(index, modality, 256 * num_lists))
        made.nprobe = max(1, round(num_lists * IVF_SEARCHED_SHARE))
        facts |= {"lists": num_lists, "searched_lists": made.nprobe}
    for rows in index.rows(modality):
        made.add_with_ids(np.ascontiguousarray(rows.vectors), rows.numbers)
    if made.ntotal != num_rows:
        raise ValueError(f"{index.folder}: index.json says {num_rows} {modality} rows, the files hold {made.ntotal}")
    facts |= _recall(index, modality, made)
    facts["build_seconds"] = round(time.monotonic() - began, 3)
    path = _path(index, modality, kind)
    with whole_file(path) as stream:
        stream.write(faiss.serialize_index(made).tobytes())
    with whole_file(path.with_suffix(".json")) as stream:
        stream.write(json.dumps(facts, indent=1).encode() + b"\n")
    return facts


def _sample(index: EmbeddingIndex, modality: str, count: int) -> Any:
    """At most about `count` vectors, evenly spaced over the rows: float32 (n, D)."""
    step = max(1, index.index.rows_with[modality] // count)
    seen, pieces = 0, []
    for rows in index.rows(modality):
        pieces.append(rows.vectors[-seen % step :: step])
        seen += len(rows.numbers)
    return np.concatenate(pieces)


def _recall(index: EmbeddingIndex, modality: str, made: Any) -> dict[str, Any]:
    """How many of what is found is truly among the closest, by score: of equals any will do.

    Asked for stored rows, and for the same with as much noise again (cosine about .7 with the row): a graph was built
    by searching for the stored rows, and finds what is near them more easily than what new files ask for.
    """
    stored = _sample(index, modality, NUM_RECALL_QUERIES)[:NUM_RECALL_QUERIES]
    noise = np.random.default_rng(0).standard_normal(stored.shape)
    noisy = stored + noise / np.linalg.norm(noise, axis=1, keepdims=True)
    facts: dict[str, Any] = {"num_recall_queries": len(stored)}
    for name, queries in (("recall", stored), ("noisy_recall", noisy)):
        exact = index.search(modality, queries, RECALL_AT)
        found = _search(index, modality, made, queries, RECALL_AT, (), one_per_key=False)
        right = sum(hit.score >= best[-1].score for best, hits in zip(exact, found, strict=True) for hit in hits)
        facts[f"{name}_at_{RECALL_AT}"] = right / sum(map(len, exact))
    return facts


class LoadedIndex:
    """An index of one modality that `build` made, in memory, for any number of searches.

    depth: how much is looked at: with "hnsw" the candidates that a search keeps, with "ivf" the lists; 0 as built. More
    is slower and finds more. "flat" looks at everything.

    Raises:
        FileNotFoundError: it was not built.
        ValueError: it was built from other files than the folder holds; a depth below 0.
    """

    def __init__(self, index: EmbeddingIndex, kind: str, modality: str, depth: int = 0) -> None:
        self.index, self.modality = index, modality
        path = _path(index, modality, kind)
        index.check(modality)
        if not path.with_suffix(".json").is_file():
            raise FileNotFoundError(
                f"{path} was not built; run: python recipes/search.py build {index.folder} --kind {kind}"
            )
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if facts["files"] != _fingerprint(index):
            raise ValueError(f"{path} was built from other files than lie in {index.folder} now; build it again")
        if depth < 0:
            raise ValueError(f"depth is {depth}; it must be at least 1, or 0 for what the index was built with")
        faiss = _faiss()
        self._made = faiss.deserialize_index(np.fromfile(path, np.uint8))
        if depth and kind == "ivf":
            self._made.nprobe = depth
        elif depth and kind == "hnsw":
            faiss.downcast_index(self._made.index).hnsw.efSearch = depth

    def search(
        self, queries: Any, top: int = 10, *, exclude: Collection[str] = (), one_per_key: bool = False
    ) -> list[list[Hit]]:
        """As EmbeddingIndex.search. Queries that come together are answered with one reading of the folder."""
        return _search(self.index, self.modality, self._made, queries, top, exclude, one_per_key=one_per_key)


def search(
    index: EmbeddingIndex,
    kind: str,
    modality: str,
    queries: Any,
    top: int = 10,
    *,
    exclude: Collection[str] = (),
    one_per_key: bool = False,
    depth: int = 0,
) -> list[list[Hit]]:
    """As EmbeddingIndex.search, through an index that `build` made; raises as LoadedIndex."""
    loaded = LoadedIndex(index, kind, modality, depth)
    return loaded.search(queries, top, exclude=exclude, one_per_key=one_per_key)


def _search(
    index: EmbeddingIndex,
    modality: str,
    made: Any,
    queries: Any,
    top: int,
    exclude: Collection[str],
    *,
    one_per_key: bool,
) -> list[list[Hit]]:
    given = index.check_queries(modality, queries)
    lengths = np.linalg.norm(given, axis=1, keepdims=True)
    unit = np.divide(given, lengths, out=np.zeros_like(given), where=lengths > 0).astype(np.float32)
    result: list[list[Hit]] = [[] for _ in given]
    waiting, count = np.arange(len(given)), min(made.ntotal, 4 * top + 32)
    while len(waiting):
        unfinished = []
        at_once = max(1, MOST_NUMBERS // (count * unit.shape[1]))
        for chunk in np.split(waiting, range(at_once, len(waiting), at_once)):
            scores, numbers, vectors = made.search_and_reconstruct(unit[chunk], count)
            named = _Named(index, modality, np.unique(numbers[numbers >= 0]))
            for query, own_scores, own, rows in zip(chunk, scores, numbers, vectors, strict=True):
                there = int((own >= 0).sum())  # what is missing stands at the end
                hits = hits_among(named.rows(own[:there], rows[:there]), given[query][None], there, exclude)[0]
                best = result[query] = best_of(hits, top, one_per_key=one_per_key)
                # More candidates, while keys that are left out took places, or rows as good as the last may be missing.
                is_full = len(best) == top and own_scores[there - 1] < best[-1].score - 1e-5
                if not is_full and count < made.ntotal and there == count:
                    unfinished.append(query)
        waiting, count = np.array(unfinished, np.int64), min(made.ntotal, 4 * count)
    return result


class _Named:
    """Where some rows (sorted numbers) are from, read once for all queries that found them."""

    def __init__(self, index: EmbeddingIndex, modality: str, numbers: NDArray[np.int64]) -> None:
        pieces = list(index.rows(modality, numbers, with_vectors=False)) if len(numbers) else []
        self.numbers = numbers
        self.keys = [key for piece in pieces for key in piece.keys]
        self.starts = np.concatenate([np.zeros(0), *(piece.start_seconds for piece in pieces)])
        self.ends = np.concatenate([np.zeros(0), *(piece.end_seconds for piece in pieces)])

    def rows(self, numbers: NDArray[np.int64], vectors: NDArray[np.float32]) -> EmbeddingRows:
        """Some of them, with their vectors (n, D), in the order of their numbers."""
        order = np.argsort(numbers)
        places = np.searchsorted(self.numbers, numbers[order])
        keys = [self.keys[place] for place in places]
        return EmbeddingRows(numbers[order], vectors[order], keys, self.starts[places], self.ends[places])


def _path(index: EmbeddingIndex, modality: str, kind: str) -> Path:
    return index.folder / FAISS_NAME / f"{modality}-{kind}.faiss"


def _fingerprint(index: EmbeddingIndex) -> list[str]:
    return [record.sha256 for record in index.index.files]
