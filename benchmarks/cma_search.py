"""CMA's positive search against a plain implementation, and against FAISS's exact search of one modality.

    python benchmarks/cma_search.py [--rows 100000] [--queries 1024] [--device cuda] [--all] [--threads 2]

For each query, the 32 rows with the largest min(<v, v'>, <a, a'>) among 100,000 x 128 rows of two banks. Plain: the
float32 products of 16 queries with both banks, their minimum, topk. FAISS: IndexFlatIP, 33 neighbors in one bank, half
of the products. Each gets its fastest call: plain 16 queries at a time, FAISS and ours all queries together. Rows are
clustered like those of a trained bank: 1,000 centers, cosines up to 0.9.

Some queries are searched among all rows; the claims are ratios of queries per second, on a CPU in CPU time of one
thread, on a GPU in wall time. --all also searches every row, once. Recall is against the k best scores of plain.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).parent.parent))
from avssl.ops.agreement import most_agreeing
from benchmarks.claims import Claim, command_line, cpu_seconds, median_ratio, publish, take_turns

DIM, POSITIVES, PLAIN_QUERIES = 128, 32, 16
GOAL_SECONDS, GOAL_ROWS = 60.0, 1_780_000  # on one H200 or a similar GPU


def bank(num_rows: int, seed: int, device: str) -> torch.Tensor:
    """Unit rows around 1,000 centers, float32 (N, 128); a row belongs to the same center in both modalities."""
    generator = torch.Generator().manual_seed(seed)
    centers = normalize(torch.randn(1000, DIM, generator=generator), dim=1)
    center_of = torch.randint(1000, (num_rows,), generator=torch.Generator().manual_seed(0))
    return normalize(centers[center_of] + 0.08 * torch.randn(num_rows, DIM, generator=generator), dim=1).to(device)


class Case:
    """Two banks, and several methods to search them."""

    def __init__(self, num_rows: int, num_queries: int, device: str) -> None:
        self.video, self.audio = (bank(num_rows, seed, device) for seed in (1, 2))
        self.num_queries, self.device = min(num_queries, num_rows), device

    def ours(self) -> torch.Tensor:
        """Positive sets of the first queries: (queries, k)."""
        return self.waited(most_agreeing(self.video, self.audio, POSITIVES, "consensus", 0, self.num_queries))

    def plain(self, num_queries: int) -> torch.Tensor:
        """Positive sets of the first `num_queries` by the plain search."""
        positives = []
        for first in range(0, num_queries, PLAIN_QUERIES):
            rows = slice(first, first + PLAIN_QUERIES)
            rho = torch.minimum(self.video[rows] @ self.video.T, self.audio[rows] @ self.audio.T)
            numbers = torch.arange(len(rho), device=rho.device)
            rho[numbers, numbers + first] = -torch.inf
            positives.append(rho.topk(POSITIVES, dim=1).indices)
        return self.waited(torch.cat(positives))

    def waited(self, result: torch.Tensor) -> torch.Tensor:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return result

    def faiss(self, threads: int) -> Callable[[], Any]:
        """FAISS's search of the video bank."""
        import faiss  # measured bare

        faiss.omp_set_num_threads(threads)
        index = faiss.IndexFlatIP(DIM)
        index.add(self.video.cpu().numpy())
        queries = self.video[: self.num_queries].cpu().numpy()
        return lambda: index.search(queries, POSITIVES + 1)

    def recall(self, num_queries: int) -> float:
        """Fraction of the positives of the plain search that ours finds."""
        ours, plain = self.ours()[:num_queries], self.plain(num_queries)
        return float((ours[:, :, None] == plain[:, None]).any(dim=1).float().mean())


def search_all(case: Case) -> Claim:
    """The row of a search for every row of the banks, as a run does it at the start of an epoch."""
    case.num_queries = num_rows = len(case.video)
    is_gpu, note = case.device.startswith("cuda"), ""
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    case.ours()
    seconds = time.perf_counter() - began
    if is_gpu:
        peak, banks = torch.cuda.max_memory_allocated(), case.video.nbytes + case.audio.nbytes
        note = f"peak memory {peak / 2**30:.1f} GiB, of which banks {banks / 2**30:.1f}"
    name = f"CMA positives of all {num_rows:,} rows ({case.device})"
    goal = GOAL_SECONDS if is_gpu and num_rows >= GOAL_ROWS else None
    return Claim(name, seconds, None, "s", "the clock", seconds, "at most", goal, note)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--plain-queries", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    is_gpu = arguments.device.startswith("cuda")
    case = Case(arguments.rows, arguments.queries, arguments.device)
    recall = case.recall(arguments.plain_queries)
    methods: dict[str, Callable[[], Any]] = {"ours": case.ours, "plain": lambda: case.plain(arguments.plain_queries)}
    counts = {"ours": case.num_queries, "plain": arguments.plain_queries, "FAISS": case.num_queries}
    if not is_gpu:
        methods["FAISS"] = case.faiss(arguments.threads)
    clock = cpu_seconds if arguments.threads == 1 and not is_gpu else time.perf_counter
    seconds = take_turns(methods, arguments.rounds, clock)
    each = {name: [value / counts[name] for value in values] for name, values in seconds.items()}
    rate = {name: 1 / statistics.median(values) for name, values in each.items()}
    where = f"{arguments.device}, {arguments.threads} thread{'s' if arguments.threads > 1 else ''}"
    name = f"CMA positive search, {arguments.rows:,} x {DIM}, k = {POSITIVES}, consensus ({where})"
    unit = "queries/s" if clock is time.perf_counter else "queries per CPU second"
    goals = {"plain": ("plain, 16 at a time", 2.5), "FAISS": ("FAISS exact, one modality", 0.5)}
    claims = []
    for other in list(methods)[1:]:
        against, goal = goals[other]
        ratio = median_ratio(each[other], each["ours"])
        claims.append(Claim(name, rate["ours"], rate[other], unit, against, ratio, goal=goal))
    claims.append(Claim("recall of this search", recall, 1.0, "", "float32 topk", recall, goal=1.0))
    if arguments.all:
        claims.append(search_all(case))
    publish(claims, arguments.json)


if __name__ == "__main__":
    main()
