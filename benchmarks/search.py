"""Claim: search with FAISS finds most of what the exact search in the same folder finds, in less time.

    python benchmarks/search.py [--rows 100000] [--queries 500] [--kinds hnsw,ivf] [--vectors clustered,random]

The rows are synthetic unit vectors of dim 128. "clustered": a thousand directions, all rows around one before those
around the next, as a folder of videos lists them (cosine .8 within a cluster); "random": no vector is close to another,
the hardest case. Queries are new vectors of the same kind. Recall is the fraction of the true ten closest rows that are
found; depths are those of `recipes/search.py --depth`. Time is CPU time with one thread and the index loaded; both
methods take turns, with all queries together and with one query per call. Building uses all threads and is not judged.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from avssl.embedding import faiss_index
from avssl.embedding.index import FileRecord, FolderIndex
from avssl.embedding.search import EmbeddingIndex
from avssl.embedding.table import EmbeddingTable, Hit
from benchmarks.claims import Claim, command_line, cpu_seconds, median_ratio, publish, take_turns

DIM, NUM_CLUSTERS, SPREAD, TOP, ROUNDS = 128, 1000, 0.5, 10, 3
DEPTHS = {"hnsw": (128, 0, 512, 1024), "ivf": (0,)}
TOGETHER, ONE_BY_ONE = 200, 5  # number of timed queries


def vectors(kind: str, count: int, seed: int) -> np.ndarray:
    """Unit rows (count, DIM) in float32; the rows of a cluster are consecutive."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((count, DIM))
    if kind == "clustered":
        centers = np.random.default_rng(99).standard_normal((NUM_CLUSTERS, DIM))
        rows = centers[np.sort(generator.integers(0, NUM_CLUSTERS, count))] + SPREAD * rows
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def folder_of(rows: np.ndarray, folder: Path) -> EmbeddingIndex:
    """A finished folder with the rows as video embeddings, ten windows per file."""
    count = len(rows)
    table = EmbeddingTable(
        [f"videos/{row // 10:06d}.mp4" for row in range(count)], np.full(count, -1), np.arange(count) % 10,
        np.arange(count) % 10 + 1.0, np.zeros(count, np.bool_), np.ones(count, np.bool_),
        video_embedding=rows, metadata={"weights": "none"},
    )  # fmt: skip
    path = table.write(folder / "embeddings.parquet")
    FolderIndex(
        settings={"weights": "none", "modalities": ["video"], "sources": ["/videos"], "shards": None},
        widths={"video_embedding": DIM}, num_listed=1, num_embedded=1, num_skipped=0, skipped_by_reason={},
        num_rows=count, rows_with={"video": count}, run_folder="", files=[FileRecord.of_file(path, count)],
    ).write(folder)  # fmt: skip
    return EmbeddingIndex(folder)


def recall(results: list[list[Hit]], exact: list[list[Hit]]) -> float:
    """Fraction of the hits that are among the true closest by score; among equal scores any row counts."""
    correct = sum(hit.score >= best[-1].score for best, hits in zip(exact, results, strict=True) for hit in hits)
    return correct / sum(map(len, exact))


def measure(
    kind: str, vector_kind: str, index: EmbeddingIndex, queries: np.ndarray, exact: list[list[Hit]], threads: int
) -> list[Claim]:
    """Recall at every depth, and both speeds at the depth that the index was built with."""
    faiss: Any = faiss_index.import_faiss()
    faiss.omp_set_num_threads(threads)
    facts = faiss_index.build(index, kind)["video"]
    faiss.omp_set_num_threads(1)
    size = f"{kind}, {facts['num_rows']:,} {vector_kind} rows"
    print(
        f"{size}: built in {facts['build_seconds']:.0f} s with {threads} threads, "
        f"recall at 10 {facts['recall_at_10']:.3f} of stored rows, {facts['noisy_recall_at_10']:.3f} with noise",
        flush=True,
    )
    claims = []
    for depth in DEPTHS[kind]:
        loaded = faiss_index.LoadedIndex(index, kind, "video", depth)
        before = cpu_seconds()
        fraction = recall(loaded.search(queries, TOP), exact)
        rate = len(queries) / (cpu_seconds() - before)
        name = f"{size}, {f'depth {depth}' if depth else 'as built'}: recall at {TOP}"
        claims.append(Claim(name, fraction, None, "found", "the exact search", fraction, note=f"{rate:,.0f} queries/s"))
    built = faiss_index.LoadedIndex(index, kind, "video")
    calls = {"together": [queries[:TOGETHER]], "one by one": [row[None] for row in queries[:ONE_BY_ONE]]}
    for how, batches in calls.items():
        count = sum(map(len, batches))
        seconds = take_turns(
            {
                "ours": lambda batches=batches: [built.search(batch, TOP) for batch in batches],  # type: ignore[misc]
                "exact": lambda batches=batches: [index.search("video", batch, TOP) for batch in batches],  # type: ignore[misc]
            },
            ROUNDS,
            cpu_seconds,
            warm_up_rounds=0,
        )
        rates = {name: count / float(np.median(each)) for name, each in seconds.items()}
        ratio = median_ratio(seconds["exact"], seconds["ours"])
        name = f"{size}: {count} queries {how}"
        claims.append(Claim(name, rates["ours"], rates["exact"], "queries/s", "the exact search", ratio))
    return claims


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--kinds", default="hnsw,ivf")
    parser.add_argument("--vectors", default="clustered,random")
    arguments = parser.parse_args()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for vector_kind in arguments.vectors.split(","):
        with tempfile.TemporaryDirectory() as folder:
            index = folder_of(vectors(vector_kind, arguments.rows, 1), Path(folder))
            queries = vectors(vector_kind, arguments.queries, 2)
            exact = index.search("video", queries, TOP)
            for kind in arguments.kinds.split(","):
                publish(measure(kind, vector_kind, index, queries, exact, threads), arguments.json)


if __name__ == "__main__":
    main()
