"""The samples that agree most with each other in two memory banks: an exact search, most of it in bfloat16.

    rho_ij = min(<v_i, v_j>, <a_i, a_j>)     consensus; union takes the max, video and audio one of the two

For each i the search returns the k largest rho_ij over j != i, and of equal ones those with the lower j. <., .> is the
inner product of float32 rows, summed in float64 in the same order for every pair: equal rows have equal scores at
any position in a bank.

How. All products of a block of queries with a panel of columns are computed in bfloat16, at more than twice the speed
of float32. They tell which pairs can be among the k best; only those are scored as above.

Why nothing is missed. Let x be the product of the rounded rows before it is rounded itself. With r the largest distance
of a row from its rounded self, n the largest norm, and the product accumulated in float32,

    |x - <., .>| <= r (2 n + r) + gamma (n + r)^2 =: e,   gamma = D u / (1 - D u), u = 2^-24

by Cauchy-Schwarz and the usual bound of a sum's rounding, with u = 2^-22 for a GPU, whose tensor cores may cut off
where a CPU rounds; min and max move by no more than their arguments, so the same e holds for rho. What is stored is
R(x), x to the nearest bfloat16. R is monotone, so it commutes with min and max, and
R(x) >= t implies x >= t - 2^-8 |t|.
(1) A bound L below the k-th largest rho of a query: the k-th best score that was computed so far; or, with t the k-th
    largest of the maxima of disjoint groups of columns, t - 2^-8 |t| - e, for k columns have R(x) >= t.
(2) A column of the k best, ties included, has rho >= L, so x >= L - e, so R(x) >= R(L - e). All columns for which the
    last inequality holds are scored.
Where too many columns remain, because rows are nearly alike, the block is compared again with products in float32 and
then float64, whose e is smaller (r = 0, u = 2^-24 and 2^-53; a GPU goes to float64 at once, as its float32 may be
TF32).

Besides the banks and the result (N, k), memory holds the rows in bfloat16 and blocks of fixed size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from avssl.distributed import rank
from avssl.files.progress import track
from avssl.ops import kernels
from avssl.types import Agreement

Bank = TypeVar("Bank")
COMBINE = {"consensus": torch.minimum, "union": torch.maximum}
MANY_PAIRS = 16  # times k: with more candidates than this per query on average, a block is compared more exactly
PAIRS_AT_ONCE = 1 << 12  # scored together: their rows in float64 are 2 x 4 MB at D = 128
ROWS_AT_ONCE = 1 << 13  # whose norms are computed together


@dataclass(frozen=True)
class Blocks:
    """Queries per block, columns per product, and products per panel: chosen so that a product stays in the cache."""

    queries: int
    columns: int
    products: int


CPU_BLOCKS = Blocks(queries=256, columns=4096, products=32)
GPU_BLOCKS = Blocks(queries=2048, columns=32_768, products=16)


def pair_scores(queries: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """<q_p, c_p> of rows (P, D) and (P, D): float64 (P,). The sum of a row does not depend on the other rows."""
    return (queries.double() * columns.double()).sum(dim=1)


def has_quick_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32 ones: on GPUs, and on CPUs for which oneDNN has kernels."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def product_dtypes(device: torch.device, dim: int) -> list[torch.dtype]:
    """The dtypes to compute products in, quickest first; each next one is for rows that the last cannot separate.

    Those whose products this machine computes wrongly are left out.
    """
    quick = [torch.bfloat16] * has_quick_bfloat16(device) + [torch.float32] * (device.type == "cpu")
    return [*(dtype for dtype in quick if kernels.products_are_right(dtype, device, dim)), torch.float64]


@contextmanager
def float32_sums() -> Iterator[None]:
    """Sum a GPU's bfloat16 products in float32 throughout; by default partial sums may be added in bfloat16."""
    settings = torch.backends.cuda.matmul
    before = settings.allow_bf16_reduced_precision_reduction
    settings.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        settings.allow_bf16_reduced_precision_reduction = before


class ModalityRows:
    """One modality's queries (Q, D) and columns (C, D), in float32 and rounded to the dtype of the products."""

    def __init__(self, queries: torch.Tensor, columns: torch.Tensor, dtype: torch.dtype) -> None:
        self.queries, self.columns, self.dtype = queries, columns, dtype
        # bfloat16 rows are kept; rows in float64 are made where they are used.
        is_kept = dtype == torch.bfloat16
        self.rounded_queries, self.rounded_columns = (
            rows.to(dtype) if is_kept else rows for rows in (queries, columns)
        )

    def products(self, queries: slice, columns: slice) -> torch.Tensor:
        """Inner products (q, c) of some queries and columns, in the dtype of the products."""
        return self.rounded_queries[queries].to(self.dtype) @ self.rounded_columns[columns].to(self.dtype).T

    def error(self) -> float:
        """e of the module's text plus the rounding of the exact scores. Raises ValueError for rows not finite."""
        distance = norm = torch.zeros((), device=self.columns.device)
        for rows in (self.queries, self.columns):
            for block in rows.split(ROWS_AT_ONCE):
                norm = torch.maximum(norm, block.norm(dim=1).max())
                if self.dtype == torch.bfloat16:
                    distance = torch.maximum(distance, (block - block.to(self.dtype)).norm(dim=1).max())
        if not norm.isfinite():
            raise ValueError("rows of a memory bank are not finite; the run that wrote them has diverged")
        r, n, dim = float(distance), float(norm), self.queries.shape[1]
        accumulated = min(kernels.UNIT_ROUNDOFF[self.dtype], kernels.sum_roundoff(self.columns.device)) * dim
        bound = r * (2 * n + r) + (accumulated / (1 - accumulated) + 2 * 2.0**-53 * dim) * (n + r) ** 2
        return bound * (1 + 2.0**-12)  # the norms were computed in float32


class Comparison:
    """Queries {modality: (Q, D)} to be compared with columns {modality: (C, D)}, float32, numbered from first_* on."""

    def __init__(
        self,
        queries: Mapping[str, torch.Tensor],
        columns: Mapping[str, torch.Tensor],
        first_query: int,
        first_column: int,
    ) -> None:
        self.queries, self.columns = queries, columns
        self.first_query, self.first_column = first_query, first_column
        self.rounded_to: dict[torch.dtype, tuple[list[ModalityRows], float]] = {}

    def rounded(self, dtype: torch.dtype) -> tuple[list[ModalityRows], float]:
        """The rows of each modality rounded to a dtype, and the larger of their errors e."""
        if dtype not in self.rounded_to:
            modalities = [ModalityRows(rows, self.columns[name], dtype) for name, rows in self.queries.items()]
            self.rounded_to[dtype] = modalities, max(rows.error() for rows in modalities)
        return self.rounded_to[dtype]


class Search:
    """The k best columns of each query so far: scores (Q, k) in float64, best first, and index (Q, k).

    Call `compare` with parts of the banks until every column was compared: the result does not depend on the parts.
    """

    def __init__(self, num_queries: int, k: int, agreement: Agreement, device: torch.device) -> None:
        self.k, self.agreement = k, agreement
        self.blocks = CPU_BLOCKS if device.type == "cpu" else GPU_BLOCKS
        self.dtypes: list[torch.dtype] = []
        self.scores = torch.full((num_queries, k), -torch.inf, dtype=torch.float64, device=device)
        self.index = torch.full((num_queries, k), torch.iinfo(torch.int64).max, device=device)
        self.memory = self.scores.new_empty(0)

    @float32_sums()
    def compare(self, comparison: Comparison) -> None:
        """Compare all queries, in the order of `scores`, with these columns, in the modalities that are given."""
        queries, columns = (len(next(iter(rows.values()))) for rows in (comparison.queries, comparison.columns))
        first_rows = next(iter(comparison.queries.values()))
        self.dtypes = product_dtypes(first_rows.device, first_rows.shape[1])
        panel = self.blocks.columns * self.blocks.products
        blocks = range(0, queries, self.blocks.queries)
        for first in track(blocks, "positives", len(blocks), "block", shown=rank() == 0, delay_seconds=2):
            rows = slice(first, min(first + self.blocks.queries, queries))
            for start in range(0, columns, panel):
                self._compare_block(comparison, rows, slice(start, min(start + panel, columns)), 0)

    def sorted_index(self) -> torch.Tensor:
        """The columns kept so far, int64 (Q, k), ascending within a row."""
        return self.index.sort(dim=1).values

    def _compare_block(self, comparison: Comparison, rows: slice, panel: slice, level: int) -> None:
        """Compare some queries with a panel in dtype number `level`, and in the next one where it leaves too many."""
        candidates = self._candidates(comparison, rows, panel, level)
        if candidates is not None:
            self._score(comparison, rows, *candidates)
            return
        size = max(1, 2 * self.blocks.queries // self.dtypes[level + 1].itemsize // 4)
        for first in range(rows.start, rows.stop, size):
            self._compare_block(comparison, slice(first, min(first + size, rows.stop)), panel, level + 1)

    def _candidates(
        self, comparison: Comparison, rows: slice, panel: slice, level: int
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Pairs (query, column) that (2) does not rule out, numbered within rows and columns; None if too many."""
        dtype, width = self.dtypes[level], self.blocks.columns
        error = comparison.rounded(dtype)[1]
        products, largest = self._products(comparison, rows, panel, dtype)
        bound = self.scores[rows, -1]
        if self.k <= width:
            t = largest.topk(self.k, dim=1).values[:, -1].double()
            bound = torch.maximum(bound, t - kernels.UNIT_ROUNDOFF[dtype] * t.abs() - error)
        # Rounded to float32 first, as products are: only the same sequence of roundings keeps the order.
        least = (bound - error).to(torch.promote_types(dtype, torch.float32)).to(dtype)
        query, group = (largest >= least[:, None]).nonzero().unbind(1)
        limit = MANY_PAIRS * self.k * len(least) if level + 1 < len(self.dtypes) else torch.inf
        if len(query) > limit:
            return None
        product, member = (products[:, query, group] >= least[query]).nonzero().unbind(1)
        if len(member) > limit:
            return None
        query, column = query[member], panel.start + product * width + group[member]
        is_self = column + comparison.first_column == query + rows.start + comparison.first_query
        is_pair = (column < panel.stop) & ~is_self
        return query[is_pair], column[is_pair]

    def _products(
        self, comparison: Comparison, rows: slice, panel: slice, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """R(x) of rows and panel (p, q, c), and its maxima over p: those of disjoint groups of columns (q, c).

        A group is one column of each product: neighboring columns, which are often alike, are in different groups, and
        maxima of whole matrices are quick. The memory is reused by the next call.
        """
        width = self.blocks.columns
        starts = range(panel.start, panel.stop, width)
        modalities = comparison.rounded(dtype)[0]
        products = self._memory(dtype, (len(starts), rows.stop - rows.start, width))
        products[-1, :, panel.stop - starts[-1] :] = -torch.inf
        largest = torch.full_like(products[0], -torch.inf)
        shift = comparison.first_query - comparison.first_column  # the column of query q itself is q + shift
        self_column = torch.arange(rows.start, rows.stop, device=largest.device) + shift
        for product, start in zip(products, starts, strict=True):
            columns = slice(start, min(start + width, panel.stop))
            used = product[:, : columns.stop - start]
            per_modality = [modality.products(rows, columns) for modality in modalities]
            used.copy_(per_modality[0]) if len(per_modality) == 1 else COMBINE[self.agreement](*per_modality, out=used)
            if rows.start + shift < columns.stop and rows.stop + shift > start:
                has_self = (self_column >= start) & (self_column < columns.stop)
                used[has_self, self_column[has_self] - start] = -torch.inf
            torch.maximum(largest, product, out=largest)
        return products, largest

    def _memory(self, dtype: torch.dtype, shape: tuple[int, int, int]) -> torch.Tensor:
        """An uninitialized tensor (p, q, c), reused, since allocating one costs as much as writing to it."""
        size = shape[0] * shape[1] * shape[2]
        if self.memory.dtype != dtype or self.memory.numel() < size:
            self.memory = torch.empty(size, dtype=dtype, device=self.scores.device)
        return self.memory[:size].view(shape)

    def _score(self, comparison: Comparison, rows: slice, query: torch.Tensor, column: torch.Tensor) -> None:
        """Score pairs exactly, and merge them into the k best of their queries."""
        query, order = query.sort(stable=True)
        column = column[order]
        blocks = zip(query.split(PAIRS_AT_ONCE), column.split(PAIRS_AT_ONCE), strict=True)
        scores = torch.cat([self.scores[:0, 0], *(self._pairs(comparison, rows, *block) for block in blocks)])
        counts = query.bincount(minlength=rows.stop - rows.start)
        position = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query] + self.k
        shape = (len(counts), self.k + int(counts.max()))
        all_scores = self.scores.new_full(shape, -torch.inf)
        all_index = self.index.new_full(shape, torch.iinfo(torch.int64).max)
        all_scores[:, : self.k], all_index[:, : self.k] = self.scores[rows], self.index[rows]
        all_scores[query, position], all_index[query, position] = scores, column + comparison.first_column
        all_index, order = all_index.sort(dim=1)
        all_scores, order = all_scores.gather(1, order).sort(dim=1, descending=True, stable=True)
        self.scores[rows] = all_scores[:, : self.k]
        self.index[rows] = all_index.gather(1, order[:, : self.k])

    def _pairs(self, comparison: Comparison, rows: slice, query: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        """Exact scores rho of pairs, float64 (P,)."""
        per_modality = [
            pair_scores(queries[rows.start + query], comparison.columns[name][column])
            for name, queries in comparison.queries.items()
        ]
        return per_modality[0] if len(per_modality) == 1 else COMBINE[self.agreement](*per_modality)


def compared_banks(banks: Mapping[str, Bank], agreement: Agreement) -> dict[str, Bank]:
    """The banks {modality: bank} that the agreement compares: both, or that of the modality it names."""
    return {name: bank for name, bank in banks.items() if agreement not in banks or name == agreement}


def most_agreeing(
    video_bank: torch.Tensor, audio_bank: torch.Tensor, k: int, agreement: Agreement, start: int, stop: int
) -> torch.Tensor:
    """The k best matches of rows start to stop - 1 among all N: int64 (stop - start, k), ascending within a row.

    video_bank and audio_bank are (N, D) in float32, N > k. Raises ValueError for rows that are not finite.
    """
    banks = compared_banks({"video": video_bank, "audio": audio_bank}, agreement)
    search = Search(stop - start, k, agreement, video_bank.device)
    search.compare(Comparison({name: bank[start:stop] for name, bank in banks.items()}, banks, start, 0))
    return search.sorted_index()
