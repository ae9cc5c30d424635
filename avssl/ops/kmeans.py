"""k-means on the rows of a matrix, Euclidean and by cosine, and the whitening that DeepCluster puts before it.

Both run Lloyd's iterations from k distinct random rows: assign every row to its nearest centroid, then move centroids
to the mean of their rows. They differ in what happens to a centroid without rows. Distances are computed in blocks, so
that the whole (N, k) matrix is never held, and sums are matrix products and not scattered additions: the same x and
the same generator give the same bits on every rank.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import normalize, one_hot

BLOCK_ELEMENTS = 2**24  # of a block of the (N, k) matrix: 64 MB in float32
SPLIT_SHIFT = 1.0 / 1024  # how far the two halves of a split centroid move apart, relative to each coordinate
FLATTEST_DIRECTION = 1e-7  # a variance below this fraction of the largest is rounding error: it is not scaled to 1


@torch.no_grad()
def spherical_kmeans(
    x: torch.Tensor, k: int, iterations: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """k-means by cosine (DeepCluster-v2): rows and centroids are unit vectors, an empty cluster keeps its centroid.

    Args:
        x: (N, D), normalized here; any float.
        k: number of clusters, 1 to N.
        iterations: >= 1; each assigns rows and then moves centroids. A last assignment follows.
        generator: draws the k rows to start from.

    Returns:
        centroids, float32 (k, D) unit rows; assignments of the rows to these centroids, int64 (N,).

    >>> rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> labels = spherical_kmeans(rows, k=2, iterations=5, generator=torch.Generator().manual_seed(0))[1]
    >>> (labels[0] == labels[1]).item(), (labels[0] == labels[2]).item()
    (True, False)
    """
    x = normalize(x.float(), dim=1)
    centroids = x[_distinct_rows(len(x), k, generator, x.device)]
    for _ in range(iterations):
        sums, _ = _cluster_sums(x, _nearest(x, centroids), k)
        # A cluster without rows, or whose rows cancel each other, has no direction: it keeps its last one.
        lengths = sums.norm(dim=1, keepdim=True)
        centroids = torch.where(lengths > 0, sums / lengths.clamp_min(1e-30), centroids)
    return centroids, _nearest(x, centroids)


@torch.no_grad()
def kmeans(x: torch.Tensor, k: int, iterations: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """k-means by Euclidean distance; an empty cluster takes over half of a random larger one, as DeepCluster's do.

    Arguments and results as in `spherical_kmeans`, without any normalization. The cluster to split is drawn with a
    probability proportional to its size minus one; the two halves start 1/1024 to either side of its centroid.
    """
    x = x.float()
    centroids = x[_distinct_rows(len(x), k, generator, x.device)]
    for _ in range(iterations):
        sums, sizes = _cluster_sums(x, _nearest(x, centroids), k)
        centroids = torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp_min(1), centroids)
        _split_into_empty(centroids, sizes, generator)
    return centroids, _nearest(x, centroids)


@torch.no_grad()
def whiten(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Principal components of the rows, each scaled to variance 1: (N, D) -> (N, dim) float32.

    Directions in which the rows do not vary stay near 0. The covariance and its eigenvectors are float64. Raises
    ValueError unless dim <= D and dim < N: fewer rows do not span as many directions.

    >>> rows = whiten(torch.randn(100, 5), dim=3)
    >>> rows.shape, rows.var(dim=0).round(decimals=1)
    (torch.Size([100, 3]), tensor([1., 1., 1.]))
    """
    num_rows, input_dim = x.shape
    if not 0 < dim <= min(input_dim, num_rows - 1):
        raise ValueError(
            f"whitening {num_rows} rows of dim {input_dim} to {dim} components: at most "
            f"{min(input_dim, num_rows - 1)} are possible; lower it (loss.pca_dim), use larger features or more samples"
        )
    mean = torch.stack([block.double().sum(dim=0) for block in _blocks(x, input_dim)]).sum(dim=0) / num_rows
    covariance = x.new_zeros((input_dim, input_dim), dtype=torch.float64)
    for block in _blocks(x, input_dim):
        centered = block.double() - mean
        covariance += centered.T @ centered / num_rows
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values[-dim:].flip(0), vectors[:, -dim:].flip(1)
    scale = values.clamp_min(float(values[0]) * FLATTEST_DIRECTION).clamp_min(torch.finfo(torch.float64).tiny).rsqrt()
    return torch.cat([((block.double() - mean) @ vectors * scale).float() for block in _blocks(x, input_dim)])


def _blocks(x: torch.Tensor, columns: int) -> Iterator[torch.Tensor]:
    """Consecutive rows of x: as many as a matrix of BLOCK_ELEMENTS with `columns` columns has."""
    return iter(x.split(max(1, BLOCK_ELEMENTS // columns)))


def _distinct_rows(num_rows: int, k: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    if not 0 < k <= num_rows:
        raise ValueError(
            f"k-means of {num_rows} rows into {k} clusters: every cluster starts from a row of its own; "
            f"ask for 1 to {num_rows} clusters or use more samples"
        )
    return torch.randperm(num_rows, generator=generator, device=generator.device)[:k].to(device)


def _nearest(x: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """The number of the nearest centroid for each row, of equally near ones the first: int64 (N,)."""
    # |x - c|^2 = |x|^2 - 2 (x c - |c|^2 / 2); between unit vectors this is the order of the cosines.
    half_norms = centroids.square().sum(dim=1) / 2
    return torch.cat([(block @ centroids.T - half_norms).argmax(dim=1) for block in _blocks(x, len(centroids))])


def _cluster_sums(x: torch.Tensor, assignments: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums float32 (k, D) and sizes int64 (k,) of the clusters."""
    sums = x.new_zeros((k, x.shape[1]))
    for rows, labels in zip(_blocks(x, k), _blocks(assignments, k), strict=True):
        sums += one_hot(labels, k).to(x.dtype).T @ rows
    return sums, torch.bincount(assignments, minlength=k)


def _split_into_empty(centroids: torch.Tensor, sizes: torch.Tensor, generator: torch.Generator) -> None:
    """Give every cluster without rows half of another one, in place in centroids (k, D)."""
    shift = torch.full_like(centroids[0], SPLIT_SHIFT)
    shift[1::2] *= -1
    remaining = sizes.to(generator.device, torch.float64)
    for empty in (sizes == 0).nonzero().flatten().tolist():
        donor = int(torch.multinomial((remaining - 1).clamp_min(0), 1, generator=generator))
        centroids[empty] = centroids[donor] * (1 + shift)
        centroids[donor] = centroids[donor] * (1 - shift)
        remaining[empty] = remaining[donor] / 2
        remaining[donor] /= 2
