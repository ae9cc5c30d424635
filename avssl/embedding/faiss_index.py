"""FAISS indices beside a folder of embeddings, for so many rows that an exact search is slow. The only user of faiss.

FAISS gives candidates; their scores are then computed as the exact search computes them, from the same bits, so that
"flat", which compares all rows, gives the same result. "ivf" and "hnsw" compare some of the rows: how many of the true
ten closest they find (the recall) is measured when they are built, and stored beside them. An index is built and
searched in memory: 4 * D bytes per row, and about 280 bytes more per row for "hnsw".
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.embedding.index import FAISS_KINDS, FAISS_NAME
from avssl.embedding.search import EmbeddingIndex, best_of, hits_among
from avssl.embedding.table import EmbeddingRows, Hit
from avssl.files.whole import whole_file

NUM_RECALL_QUERIES, RECALL_AT = 100, 10
HNSW_LINKS, HNSW_BUILD_DEPTH, HNSW_SEARCH_DEPTH = 32, 200, 256
IVF_ROWS_PER_LIST = 39  # the fewest that FAISS trains a list on without a warning
IVF_SEARCHED_FRACTION = 1 / 8  # of the lists
MOST_NUMBERS = 2**24  # in the vectors of all candidates of the queries that are searched together: 64 MiB


def import_faiss() -> Any:
    """The module faiss; ValueError if it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise ValueError('this needs FAISS, an extra: pip install "avssl[faiss]"') from error
    return faiss


def build(index: EmbeddingIndex, kind: str) -> dict[str, dict[str, Any]]:
    """Build an index of every modality that the folder has; return {modality: facts}, with the recall.

    ValueError for another kind, and if FAISS is not installed.
    """
    if kind not in FAISS_KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(FAISS_KINDS)}")
    return {modality: _build(index, modality, kind) for modality in index.modalities}


def _build(index: EmbeddingIndex, modality: str, kind: str) -> dict[str, Any]:
    faiss, began = import_faiss(), time.monotonic()
    num_rows, dim = index.content.rows_with[modality], index.content.widths[f"{modality}_embedding"]
    facts: dict[str, Any] = {"kind": kind, "modality": modality, "num_rows": num_rows, "files": _fingerprint(index)}
    if kind == "flat":
        built = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))
    elif kind == "hnsw":
        graph = faiss.IndexHNSWFlat(dim, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction, graph.hnsw.efSearch = HNSW_BUILD_DEPTH, HNSW_SEARCH_DEPTH
        built = faiss.IndexIDMap2(graph)
        facts |= {"links": HNSW_LINKS, "build_depth": HNSW_BUILD_DEPTH, "search_depth": HNSW_SEARCH_DEPTH}
    else:
        num_lists = max(1, min(int(4 * num_rows**0.5), num_rows // IVF_ROWS_PER_LIST))
        quantizer = faiss.IndexFlatIP(dim)
        built = faiss.IndexIVFFlat(quantizer, dim, num_lists, faiss.METRIC_INNER_PRODUCT)
        built.train(_sample(index, modality, 256 * num_lists))
        built.nprobe = max(1, round(num_lists * IVF_SEARCHED_FRACTION))
        facts |= {"lists": num_lists, "searched_lists": built.nprobe}
    for rows in index.rows(modality):
        built.add_with_ids(np.ascontiguousarray(rows.vectors), rows.numbers)
    if built.ntotal != num_rows:
        raise ValueError(f"{index.folder}: index.json says {num_rows} {modality} rows, the files hold {built.ntotal}")
    facts |= _recall(index, modality, built)
    facts["build_seconds"] = round(time.monotonic() - began, 3)
    path = _path(index, modality, kind)
    with whole_file(path) as stream:
        stream.write(faiss.serialize_index(built).tobytes())
    with whole_file(path.with_suffix(".json")) as stream:
        stream.write(json.dumps(facts, indent=1).encode() + b"\n")
    return facts


def _sample(index: EmbeddingIndex, modality: str, count: int) -> Any:
    """About `count` vectors, or all if there are fewer, evenly spaced over the rows: float32 (n, D)."""
    step = max(1, index.content.rows_with[modality] // count)
    num_read, vectors = 0, []
    for rows in index.rows(modality):
        vectors.append(rows.vectors[-num_read % step :: step])
        num_read += len(rows.numbers)
    return np.concatenate(vectors)


def _recall(index: EmbeddingIndex, modality: str, built: Any) -> dict[str, Any]:
    """The fraction of hits that are among the true closest by score; among equal scores any row counts.

    The queries are stored rows, and the same rows with noise of the same length added (cosine with the row about .7): a
    graph was built by searching for the stored rows, and finds what is near them more easily than the neighbors of new
    files.
    """
    stored = _sample(index, modality, NUM_RECALL_QUERIES)[:NUM_RECALL_QUERIES]
    noise = np.random.default_rng(0).standard_normal(stored.shape)
    noisy = stored + noise / np.linalg.norm(noise, axis=1, keepdims=True)
    facts: dict[str, Any] = {"num_recall_queries": len(stored)}
    for name, queries in (("recall", stored), ("noisy_recall", noisy)):
        exact = index.search(modality, queries, RECALL_AT)
        results = _search(index, modality, built, queries, RECALL_AT, (), one_per_key=False)
        correct = sum(hit.score >= best[-1].score for best, hits in zip(exact, results, strict=True) for hit in hits)
        facts[f"{name}_at_{RECALL_AT}"] = correct / sum(map(len, exact))
    return facts


class LoadedIndex:
    """An index of one modality that `build` made, in memory, for any number of searches.

    depth: the number of candidates that a search keeps ("hnsw"), or of lists that it reads ("ivf"); 0: as built. A
    larger depth is slower and finds more. "flat" compares all rows.

    Raises:
        FileNotFoundError: the index was not built.
        ValueError: it was built from other files than the folder holds, or depth is below 0.
    """

    def __init__(self, index: EmbeddingIndex, kind: str, modality: str, depth: int = 0) -> None:
        self.index, self.modality = index, modality
        path = _path(index, modality, kind)
        index.check(modality)
        if not path.with_suffix(".json").is_file():
            raise FileNotFoundError(f"{path} was not built; run `avssl search build {index.folder} --kind {kind}`")
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if facts["files"] != _fingerprint(index):
            raise ValueError(f"{path} was built from other files than {index.folder} holds now; build it again")
        if depth < 0:
            raise ValueError(
                f"depth is {depth}; it must be at least 1, or 0 for the depth with which the index was built"
            )
        faiss = import_faiss()
        self._built = faiss.deserialize_index(np.fromfile(path, np.uint8))
        if depth and kind == "ivf":
            self._built.nprobe = depth
        elif depth and kind == "hnsw":
            faiss.downcast_index(self._built.index).hnsw.efSearch = depth

    def search(
        self, queries: Any, top: int = 10, *, exclude: Collection[str] = (), one_per_key: bool = False
    ) -> list[list[Hit]]:
        """The closest rows, as EmbeddingIndex.search; the folder is read once for all queries of a call."""
        return _search(self.index, self.modality, self._built, queries, top, exclude, one_per_key=one_per_key)


def _search(
    index: EmbeddingIndex,
    modality: str,
    built: Any,
    queries: Any,
    top: int,
    exclude: Collection[str],
    *,
    one_per_key: bool,
) -> list[list[Hit]]:
    exact_queries = index.check_queries(modality, queries)
    lengths = np.linalg.norm(exact_queries, axis=1, keepdims=True)
    unit = np.divide(exact_queries, lengths, out=np.zeros_like(exact_queries), where=lengths > 0).astype(np.float32)
    result: list[list[Hit]] = [[] for _ in exact_queries]
    waiting, count = np.arange(len(exact_queries)), min(built.ntotal, 4 * top + 32)
    while len(waiting):
        unfinished = []
        chunk_size = max(1, MOST_NUMBERS // (count * unit.shape[1]))
        for chunk in np.split(waiting, range(chunk_size, len(waiting), chunk_size)):
            all_scores, all_numbers, all_vectors = built.search_and_reconstruct(unit[chunk], count)
            windows = _Windows(index, modality, np.unique(all_numbers[all_numbers >= 0]))
            for query, scores, numbers, vectors in zip(chunk, all_scores, all_numbers, all_vectors, strict=True):
                num_found = int((numbers >= 0).sum())  # missing candidates come last
                rows = windows.rows(numbers[:num_found], vectors[:num_found])
                hits = hits_among(rows, exact_queries[query][None], num_found, exclude)[0]
                best = result[query] = best_of(hits, top, one_per_key=one_per_key)
                # More candidates are needed while excluded keys are among them, or while rows as good as the last hit
                # may be missing.
                is_full = len(best) == top and scores[num_found - 1] < best[-1].score - 1e-5
                if not is_full and count < built.ntotal and num_found == count:
                    unfinished.append(query)
        waiting, count = np.array(unfinished, np.int64), min(built.ntotal, 4 * count)
    return result


class _Windows:
    """Keys and windows of rows (sorted numbers), read once for all queries that found them."""

    def __init__(self, index: EmbeddingIndex, modality: str, numbers: NDArray[np.int64]) -> None:
        groups = list(index.rows(modality, numbers, with_vectors=False)) if len(numbers) else []
        self.numbers = numbers
        self.keys = [key for group in groups for key in group.keys]
        self.starts = np.concatenate([np.zeros(0), *(group.start_seconds for group in groups)])
        self.ends = np.concatenate([np.zeros(0), *(group.end_seconds for group in groups)])

    def rows(self, numbers: NDArray[np.int64], vectors: NDArray[np.float32]) -> EmbeddingRows:
        """Some of the rows with their vectors (n, D), in the order of their numbers."""
        order = np.argsort(numbers)
        positions = np.searchsorted(self.numbers, numbers[order])
        keys = [self.keys[position] for position in positions]
        return EmbeddingRows(numbers[order], vectors[order], keys, self.starts[positions], self.ends[positions])


def _path(index: EmbeddingIndex, modality: str, kind: str) -> Path:
    return index.folder / FAISS_NAME / f"{modality}-{kind}.faiss"


def _fingerprint(index: EmbeddingIndex) -> list[str]:
    return [record.sha256 for record in index.content.files]
