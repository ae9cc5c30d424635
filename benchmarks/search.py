"""Search through FAISS against the exact search in the same folder of embeddings: what it finds, and what it costs.

    python benchmarks/search.py [--rows 100000] [--queries 500] [--kinds hnsw,ivf] [--vectors clustered,random]

Made-up unit vectors of width 128, one a row. "clustered": a thousand directions, rows around one of them after those
around the last, as a folder of films lists them (cosine .8 within a cluster); "random": nothing is close to anything,
the hardest case there is. Queries are new vectors of the same kind. Recall is the share of the true ten closest, by the
exact search; depths are those of `recipes/search.py --depth`. Time is CPU time with one thread, the index loaded, both
methods taking turns: all queries together, and one by one. Building is not judged; it takes all threads.
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
from avssl.embedding.index import FolderIndex
from avssl.embedding.search import EmbeddingIndex, Hit
from avssl.embedding.state import file_record
from avssl.embedding.table import EmbeddingTable
from benchmarks.claims import Claim, command_line, cpu_seconds, median_ratio, publish, take_turns

WIDTH, NUM_CLUSTERS, SPREAD, TOP, ROUNDS = 128, 1000, 0.5, 10, 3
DEPTHS = {"hnsw": (128, 0, 512, 1024), "ivf": (0,)}
TOGETHER, ONE_BY_ONE = 200, 5  # queries whose time is taken


def vectors(kind: str, count: int, seed: int) -> np.ndarray:
    """Unit rows (count, WIDTH) in float32; a cluster's rows stand together."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((count, WIDTH))
    if kind == "clustered":
        centers = np.random.default_rng(99).standard_normal((NUM_CLUSTERS, WIDTH))
        rows = centers[np.sort(generator.integers(0, NUM_CLUSTERS, count))] + SPREAD * rows
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def folder_of(rows: np.ndarray, folder: Path) -> EmbeddingIndex:
    """The rows as the video of a finished folder, ten windows a file."""
    count = len(rows)
    table = EmbeddingTable(
        [f"films/{row // 10:06d}.mp4" for row in range(count)], np.full(count, -1), np.arange(count) % 10,
        np.arange(count) % 10 + 1.0, np.zeros(count, np.bool_), np.ones(count, np.bool_),
        video_embedding=rows, metadata={"weights": "none"},
    )  # fmt: skip
    path = table.write(folder / "embeddings.parquet")
    FolderIndex(
        settings={"weights": "none", "modalities": ["video"], "sources": ["/films"], "shards": None},
        widths={"video_embedding": WIDTH}, num_listed=1, num_embedded=1, num_skipped=0, skipped_by_reason={},
        num_rows=count, rows_with={"video": count}, run_folder="", files=[file_record(path, count)],
    ).write(folder)  # fmt: skip
    return EmbeddingIndex(folder)


def recall(found: list[list[Hit]], exact: list[list[Hit]]) -> float:
    """The share of the true closest; of equals any will do."""
    right = sum(hit.score >= best[-1].score for best, hits in zip(exact, found, strict=True) for hit in hits)
    return right / sum(map(len, exact))


def measure(
    kind: str, words: str, index: EmbeddingIndex, queries: np.ndarray, exact: list[list[Hit]], threads: int
) -> list[Claim]:
    """Recall at every depth, and both speeds at the depth that the index was built with."""
    faiss: Any = faiss_index._faiss()
    faiss.omp_set_num_threads(threads)
    facts = faiss_index.build(index, kind)["video"]
    faiss.omp_set_num_threads(1)
    size = f"{kind}, {facts['num_rows']:,} {words} rows"
    print(
        f"{size}: built in {facts['build_seconds']:.0f} s with {threads} threads, "
        f"recall at 10 {facts['recall_at_10']:.3f} of stored rows, {facts['noisy_recall_at_10']:.3f} with noise",
        flush=True,
    )
    claims = []
    for depth in DEPTHS[kind]:
        loaded = faiss_index.LoadedIndex(index, kind, "video", depth)
        before = cpu_seconds()
        share = recall(loaded.search(queries, TOP), exact)
        rate = len(queries) / (cpu_seconds() - before)
        name = f"{size}, {f'depth {depth}' if depth else 'as built'}: recall at {TOP}"
        claims.append(Claim(name, share, None, "found", "the exact search", share, note=f"{rate:,.0f} queries/s"))
    built = faiss_index.LoadedIndex(index, kind, "video")
    for how, asked in (("together", [queries[:TOGETHER]]), ("one by one", [row[None] for row in queries[:ONE_BY_ONE]])):
        count = sum(map(len, asked))
        seconds = take_turns(
            {
                "ours": lambda asked=asked: [built.search(one, TOP) for one in asked],  # type: ignore[misc]
                "exact": lambda asked=asked: [index.search("video", one, TOP) for one in asked],  # type: ignore[misc]
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
    for words in arguments.vectors.split(","):
        with tempfile.TemporaryDirectory() as folder:
            index = folder_of(vectors(words, arguments.rows, 1), Path(folder))
            queries = vectors(words, arguments.queries, 2)
            exact = index.search("video", queries, TOP)
            for kind in arguments.kinds.split(","):
                publish(measure(kind, words, index, queries, exact, threads), arguments.json)


if __name__ == "__main__":
    main()
