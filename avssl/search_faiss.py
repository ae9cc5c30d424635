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
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from avssl.search import EmbeddingIndex, Hit, best_of, hits_among
from avssl.table_folders import FAISS_NAME
from avssl.whole_files import whole_file

Kind = Literal["flat", "ivf", "hnsw"]
KINDS: tuple[str, ...] = get_args(Kind)
NUM_RECALL_QUERIES, RECALL_AT = 100, 10
HNSW_LINKS, HNSW_BUILD_DEPTH, HNSW_SEARCH_DEPTH = 32, 200, 128
IVF_ROWS_PER_LIST = 39  # the fewest that FAISS trains a list on without a warning
IVF_SEARCHED_SHARE = 1 / 8  # of the lists


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
    """How many of what is found for stored rows is truly among the closest, by score: of equals any will do."""
    queries = _sample(index, modality, NUM_RECALL_QUERIES)[:NUM_RECALL_QUERIES]
    exact = index.search(modality, queries, RECALL_AT)
    found = _search(index, modality, made, queries, RECALL_AT, (), one_per_key=False)
    right = sum(hit.score >= best[-1].score for best, hits in zip(exact, found, strict=True) for hit in hits)
    return {f"recall_at_{RECALL_AT}": right / sum(map(len, exact)), "num_recall_queries": len(queries)}


def search(
    index: EmbeddingIndex,
    kind: str,
    modality: str,
    queries: Any,
    top: int = 10,
    *,
    exclude: Collection[str] = (),
    one_per_key: bool = False,
) -> list[list[Hit]]:
    """As EmbeddingIndex.search, through an index that `build` made.

    Raises FileNotFoundError: it was not built. ValueError: it was built from other files than the folder holds.
    """
    path = _path(index, modality, kind)
    index.check(modality)
    if not path.with_suffix(".json").is_file():
        raise FileNotFoundError(
            f"{path} was not built; run: python recipes/search.py build {index.folder} --kind {kind}"
        )
    facts = json.loads(path.with_suffix(".json").read_text())
    if facts["files"] != _fingerprint(index):
        raise ValueError(f"{path} was built from other files than lie in {index.folder} now; build it again")
    faiss = _faiss()
    made = faiss.deserialize_index(np.fromfile(path, np.uint8))
    return _search(index, modality, made, queries, top, exclude, one_per_key=one_per_key)


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
    result: list[list[Hit]] = []
    for query, row in zip(given, unit, strict=True):
        count = min(made.ntotal, 4 * top + 32)
        while True:
            scores, numbers, vectors = (one[0] for one in made.search_and_reconstruct(row[None], count))
            order = np.argsort(numbers[numbers >= 0])
            numbers, vectors = numbers[order], vectors[order]
            hits: list[Hit] = []
            for rows in index.rows(modality, numbers, with_vectors=False):
                mine = replace(rows, vectors=vectors[np.searchsorted(numbers, rows.numbers)])
                hits += hits_among(mine, query[None], len(rows.numbers), exclude)[0]
            best = best_of(hits, top, one_per_key=one_per_key)
            # More candidates, while keys that are left out took places, or rows as good as the last may be missing.
            is_full = len(best) == top and scores[len(numbers) - 1] < best[-1].score - 1e-5
            if is_full or count >= made.ntotal or len(numbers) < count:
                break
            count = min(made.ntotal, 4 * count)
        result.append(best)
    return result


def _path(index: EmbeddingIndex, modality: str, kind: str) -> Path:
    return index.folder / FAISS_NAME / f"{modality}-{kind}.faiss"


def _fingerprint(index: EmbeddingIndex) -> list[str]:
    return [record.sha256 for record in index.index.files]
