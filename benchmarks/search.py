"""What an index of a million embeddings costs and finds: Lance's kinds beside FAISS's, and the search of a folder.

    python benchmarks/search.py [--rows 1000000] [--queries 200] [--methods lance-IVF_PQ,faiss-hnsw] [--vectors random]

The rows are synthetic unit vectors of dim 128, each with a key, a window and a label. "clustered": a thousand
directions, all rows around one before those around the next, as a folder of videos lists them (cosine .8 within a
cluster); "random": no vector is close to another, the hardest case. Queries are new vectors of the same kind. Recall is
the fraction of the true ten closest rows that are found.

Each method is built in a process of its own and asked in another, so that the peaks of memory are its own: anonymous
memory above what the process had once its libraries were loaded. Times are CPU time of all threads, which other
programs affect less; a query's is the mean of single ones, after five to warm up. FAISS is called bare, with the kinds
and depths that this program had before Lance; Lance as `avssl search` asks it, which also reads keys and windows and
computes the scores again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from avssl.embedding.index import FileRecord, FolderIndex
from avssl.embedding.lance_table import LanceTable
from avssl.embedding.search import EmbeddingIndex
from avssl.embedding.table import EmbeddingTable, write_tables
from avssl.exchange.targets import lance_table as target
from avssl.exchange.targets.rows import RowSource
from benchmarks.claims import cpu_seconds, machine

DIM, NUM_CLUSTERS, SPREAD, TOP, WARM_UP = 128, 1000, 0.5, 10, 5
LANCE = ("lance-IVF_HNSW_SQ", "lance-IVF_PQ")
FAISS = ("faiss-flat", "faiss-ivf", "faiss-hnsw")
WHERE = "label = 'c3' AND start_seconds < 5"  # a hundredth of the rows: half of every fiftieth


def vectors(kind: str, count: int, seed: int) -> np.ndarray:
    """Unit rows (count, DIM) in float32; the rows of a cluster are consecutive."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((count, DIM), dtype=np.float32)
    if kind == "clustered":
        centers = np.random.default_rng(99).standard_normal((NUM_CLUSTERS, DIM), dtype=np.float32)
        rows = centers[np.sort(generator.integers(0, NUM_CLUSTERS, count))] + np.float32(SPREAD) * rows
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_folder(rows: np.ndarray, folder: Path) -> None:
    """A finished folder with the rows as video embeddings, ten windows per file, a label per file."""
    count = len(rows)

    def tables() -> Any:
        for first in range(0, count, 8192):
            numbers = np.arange(first, min(first + 8192, count))
            yield EmbeddingTable(
                [f"videos/{row // 10:06d}_mp4" for row in numbers], np.full(len(numbers), -1), numbers % 10.0,
                numbers % 10 + 1.0, np.zeros(len(numbers), np.bool_), np.ones(len(numbers), np.bool_),
                video_embedding=rows[numbers], labels=[{"label": [f"c{row // 10 % 50}"]} for row in numbers],
            )  # fmt: skip

    path = folder / "embeddings.parquet"
    write_tables(path, tables(), {"weights": "none"})
    FolderIndex(
        settings={"weights": "none", "modalities": ["video"], "sources": ["/videos"], "shards": None},
        widths={"video_embedding": DIM}, num_listed=1, num_embedded=1, num_skipped=0, skipped_by_reason={},
        num_rows=count, rows_with={"video": count}, run_folder="", files=[FileRecord.of_file(path, count)],
    ).write(folder)  # fmt: skip


class Peak:
    """The most anonymous memory of this process above what it had at the beginning, in MiB, sampled every 20 ms."""

    def __enter__(self) -> Peak:
        self.first, self.most, self._ended = _anonymous_mib(), 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.most = max(self.most, _anonymous_mib() - self.first)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def _anonymous_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def faiss_index(kind: str, rows: np.ndarray) -> Any:
    """An index of FAISS, of the kinds and depths that this program had."""
    import faiss

    count = len(rows)
    if kind == "flat":
        built = faiss.IndexFlatIP(DIM)
    elif kind == "hnsw":
        built = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT)
        built.hnsw.efConstruction, built.hnsw.efSearch = 200, 256
    else:
        lists = max(1, min(int(4 * count**0.5), count // 39))
        built = faiss.IndexIVFFlat(faiss.IndexFlatIP(DIM), DIM, lists, faiss.METRIC_INNER_PRODUCT)
        built.train(rows[:: max(1, count // (256 * lists))])
        built.nprobe = max(1, round(lists / 8))
    built.add(rows)
    return built


def build(method: str, folder: Path, out: Path) -> None:
    """Build an index of the folder at `out`."""
    kind = method.partition("-")[2]
    if method.startswith("lance"):
        target._recall = lambda *_: {}  # type: ignore[assignment]  # measured below, and no part of the build
        out.mkdir()
        target.write_lance_table(RowSource(folder), out, kind)
        return
    import faiss

    rows = np.concatenate([group.vectors for group in EmbeddingIndex(folder).rows("video")])
    out.mkdir()
    faiss.write_index(faiss_index(kind, rows), str(out / "index"))


def opened(method: str, folder: Path, out: Path) -> Callable[[np.ndarray, str], list[list[int]]]:
    """A function: (queries (n, DIM), condition) -> numbers of the rows that are found."""
    if method == "exact":
        index = EmbeddingIndex(folder)
        return lambda queries, where: [[hit.row for hit in hits] for hits in index.search("video", queries, TOP)]
    if method.startswith("lance"):
        table = LanceTable(out)
        return lambda queries, where: [
            [hit.row for hit in hits] for hits in table.search("video", queries, TOP, where=where)
        ]
    import faiss

    built = faiss.read_index(str(out / "index"))
    return lambda queries, where: built.search(queries, TOP)[1].tolist()


def measured(step: str, method: str, folder: Path, out: Path) -> dict[str, float]:
    """What one step of a method takes, in this process."""
    before, began = cpu_seconds(), time.perf_counter()
    if step == "build":
        with Peak() as peak:
            build(method, folder, out)
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        return {
            "build_cpu_s": cpu_seconds() - before, "build_s": time.perf_counter() - began,
            "build_peak_mib": peak.most, "size_mib": size / 2**20,
        }  # fmt: skip
    queries, truth = np.load(folder / "queries.npy"), np.load(folder / "truth.npy")
    with Peak() as peak:
        ask = opened(method, folder, out)
        for row in queries[:WARM_UP]:
            ask(row[None], "")
        before, began = cpu_seconds(), time.perf_counter()
        single = [ask(row[None], "")[0] for row in queries]
        facts = {
            "query_cpu_ms": (cpu_seconds() - before) / len(queries) * 1000,
            "query_ms": (time.perf_counter() - began) / len(queries) * 1000,
            "recall": recall(single, truth),
        }
        if method.startswith("lance"):
            right = np.load(folder / "truth_where.npy")
            before = cpu_seconds()
            found = [ask(row[None], WHERE)[0] for row in queries]
            facts["where_cpu_ms"] = (cpu_seconds() - before) / len(queries) * 1000
            facts["where_recall"] = recall(found, right)
    return facts | {"query_peak_mib": peak.most}


def recall(found: list[list[int]], truth: np.ndarray) -> float:
    """The share of the true closest rows that are found."""
    return float(np.mean([len({*rows} & {*best}) / TOP for rows, best in zip(found, truth.tolist(), strict=True)]))


def truths(rows: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ten closest rows of each query, of all rows and of those of WHERE, by products in float64."""
    numbers = np.arange(len(rows))
    chosen = np.flatnonzero((numbers // 10 % 50 == 3) & (numbers % 10 < 5))
    best, best_where = [], []
    for query in queries.astype(np.float64):
        scores = rows @ query
        best.append(np.argsort(-scores, kind="stable")[:TOP])
        best_where.append(chosen[np.argsort(-scores[chosen], kind="stable")[:TOP]])
    return np.array(best), np.array(best_where)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--methods", default=",".join(["exact", "lance-none", *LANCE, *FAISS]))
    parser.add_argument("--vectors", default="clustered,random")
    parser.add_argument("--folder", type=Path, help="where the files lie meanwhile")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        step, method, folder, out = arguments.one
        print(json.dumps(measured(step, method, Path(folder), Path(out))))
        return
    print(machine(), flush=True)
    for kind in arguments.vectors.split(","):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            folder = Path(name)
            rows, queries = vectors(kind, arguments.rows, 1), vectors(kind, arguments.queries, 2)
            write_folder(rows, folder)
            np.save(folder / "queries.npy", queries)
            best, best_where = truths(rows, queries)
            np.save(folder / "truth.npy", best)
            np.save(folder / "truth_where.npy", best_where)
            del rows
            for method in arguments.methods.split(","):
                facts: dict[str, float] = {}
                for step in ("build", "ask") if method != "exact" else ("ask",):
                    command = [sys.executable, __file__, "--one", step, method, str(folder), str(folder / method)]
                    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                    facts |= json.loads(text.splitlines()[-1])
                shown = ", ".join(f"{name} {value:.4g}" for name, value in facts.items())
                print(f"{kind}, {arguments.rows:,} rows, {method}: {shown}", flush=True)


if __name__ == "__main__":
    main()
