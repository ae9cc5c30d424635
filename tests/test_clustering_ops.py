"""Sinkhorn, k-means, whitening, transport and the statistics of clusters against NumPy and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import normalized_mutual_info_score

from avssl.ops import kmeans as kmeans_module
from avssl.ops.clusters import (
    check_num_clusters,
    cross_entropy_of_heads,
    describe_labels,
    normalized_mutual_information,
    usage_entropy,
)
from avssl.ops.kmeans import kmeans, spherical_kmeans, whiten
from avssl.ops.transport import self_labels, sinkhorn
from tests.textbook import kmeans as textbook_kmeans
from tests.textbook import sela as textbook_sela
from tests.textbook import swav as textbook_swav

RNG = np.random.default_rng(0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def start_rows(num_rows, k, seed=0):
    """The rows that k-means starts from, by the same draw."""
    return torch.randperm(num_rows, generator=seeded(seed))[:k].numpy()


def blobs(num_rows=120, num_blobs=4, width=6, spread=0.3, seed=0):
    """Float32 rows around num_blobs centers."""
    rng = np.random.default_rng(seed)
    centers = 2 * rng.normal(size=(num_blobs, width))
    rows = centers[np.arange(num_rows) % num_blobs] + spread * rng.normal(size=(num_rows, width))
    return rows.astype(np.float32)


@pytest.mark.parametrize(("rows", "columns", "iterations"), [(6, 4, 1), (5, 7, 3), (16, 3, 10)])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_sinkhorn_equals_the_textbook(rows, columns, iterations, epsilon):
    scores = RNG.uniform(-1, 1, size=(rows, columns))
    codes = sinkhorn(torch.tensor(scores), epsilon, iterations)
    np.testing.assert_allclose(codes, textbook_swav.sinkhorn(scores, epsilon, iterations), atol=1e-5)


def test_sinkhorns_rows_sum_to_1_and_its_columns_approach_equal_mass():
    scores = torch.randn(64, 8, generator=seeded())
    off = []
    for iterations in (1, 3, 10, 200):
        codes = sinkhorn(scores, 0.5, iterations)
        torch.testing.assert_close(codes.sum(dim=1), torch.ones(64))
        off.append((codes.sum(dim=0) - 8).abs().max().item())
    assert off[0] > off[1] > off[2] > off[3]
    assert off[1] > 0.1, "three iterations balance only roughly"
    assert off[3] < 1e-4


@pytest.mark.parametrize("iterations", [3, 100])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sinkhorn_of_extreme_scores_of_any_dtype_is_finite_float32_without_gradient(dtype, iterations):
    scores = torch.tensor([[1.0, -1.0, -1.0], [1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]], dtype=dtype, requires_grad=True)
    codes = sinkhorn(scores * 100, 0.01, iterations)  # exponents of +-10,000
    assert codes.dtype == torch.float32
    assert not codes.requires_grad
    assert codes.isfinite().all()
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(3))


def test_sinkhorn_refuses_impossible_options():
    for epsilon, iterations in ((0.0, 3), (-1.0, 3), (0.05, 0)):
        with pytest.raises(ValueError, match=r"epsilon is .* and iterations"):
            sinkhorn(torch.zeros(2, 2), epsilon, iterations)


@pytest.mark.parametrize("iterations", [1, 2, 10])
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_spherical_kmeans_equals_brute_force_from_the_same_rows(iterations, spread):
    x = blobs(spread=spread)
    centroids, labels = spherical_kmeans(torch.tensor(x), 5, iterations, seeded(3))
    start = textbook_kmeans.unit(x)[start_rows(len(x), 5, 3)]
    expected, expected_labels = textbook_kmeans.spherical_kmeans(x, start, iterations)
    np.testing.assert_allclose(centroids, expected, atol=1e-5)
    np.testing.assert_array_equal(labels, expected_labels)
    assert labels.dtype == torch.int64
    torch.testing.assert_close(centroids.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("iterations", [1, 2, 10])
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_kmeans_equals_brute_force_and_scikit_learn_from_the_same_rows(iterations, spread):
    x = blobs(spread=spread)
    centroids, labels = kmeans(torch.tensor(x), 5, iterations, seeded(3))
    start = x[start_rows(len(x), 5, 3)]
    expected, expected_labels = textbook_kmeans.kmeans(x, start, iterations)
    np.testing.assert_allclose(centroids, expected, atol=1e-5)
    np.testing.assert_array_equal(labels, expected_labels)
    if iterations == 10 and spread == 0.3:  # both have converged: scikit-learn stops where nothing moves
        oracle = KMeans(5, init=start, n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(x)
        np.testing.assert_allclose(centroids, oracle.cluster_centers_, atol=1e-5)
        np.testing.assert_array_equal(labels, oracle.labels_)


@pytest.mark.parametrize("search", [kmeans, spherical_kmeans])
def test_blocks_of_rows_change_nothing(search, monkeypatch):
    x = torch.tensor(blobs(spread=1.0))
    whole = search(x, 7, 5, seeded())
    monkeypatch.setattr(kmeans_module, "BLOCK_ELEMENTS", 70)  # ten rows per block
    for one, other in zip(whole, search(x, 7, 5, seeded()), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("search", [kmeans, spherical_kmeans])
def test_the_same_generator_gives_the_same_bits_and_another_seed_another_start(search):
    x = torch.tensor(blobs(spread=3.0))
    first, again, other = (search(x, 6, 4, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_an_empty_cluster_of_spherical_kmeans_keeps_its_centroid():
    # Three equal rows: the first of three equal centroids takes them all.
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    centroids, labels = spherical_kmeans(x, 3, 4, seeded())
    assert torch.equal(centroids, torch.tensor([[1.0, 0.0]] * 3))
    assert labels.tolist() == [0, 0, 0]


def test_rows_that_cancel_leave_the_centroid_where_it_was():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    centroids, _ = spherical_kmeans(x, 1, 3, seeded())
    assert centroids.norm() == 1


def test_an_empty_cluster_of_kmeans_takes_over_half_of_a_larger_one():
    # 30 equal rows and 10 others: most starts lie on the equal rows, and all but one of their clusters are empty.
    x = torch.cat([torch.full((30, 2), 5.0), torch.tensor(RNG.normal(size=(10, 2)), dtype=torch.float32)])
    centroids, labels = kmeans(x, 6, 20, seeded(0))
    used = torch.bincount(labels, minlength=6)
    drawn = torch.from_numpy(start_rows(40, 6))
    assert (drawn < 30).sum() >= 3, "the start is to hold equal rows"
    assert (used > 0).sum() >= 5, "one cluster for the equal rows, the rest for the others"
    assert centroids.isfinite().all()


@pytest.mark.parametrize("seed", range(20))
def test_splitting_moves_the_halves_a_1024th_to_either_side_and_spares_clusters_of_one_row(seed):
    centroids = torch.tensor([[8.0, -4.0], [1.0, 1.0], [0.0, 0.0]])
    kmeans_module._split_into_empty(centroids, torch.tensor([3, 1, 0]), seeded(seed))
    torch.testing.assert_close(centroids[2], torch.tensor([8 * (1 + 1 / 1024), -4 * (1 - 1 / 1024)]), rtol=1e-6, atol=0)
    torch.testing.assert_close(centroids[0], torch.tensor([8 * (1 - 1 / 1024), -4 * (1 + 1 / 1024)]), rtol=1e-6, atol=0)
    assert torch.equal(centroids[1], torch.ones(2))


@pytest.mark.parametrize("search", [kmeans, spherical_kmeans])
@pytest.mark.parametrize("k", [0, 11])
def test_more_clusters_than_rows_are_refused_with_the_remedy(search, k):
    with pytest.raises(ValueError, match=f"10 rows into {k} clusters.*ask for 1 to 10 clusters"):
        search(torch.zeros(10, 2), k, 1, seeded())


def test_whitening_equals_scikit_learns_up_to_signs(monkeypatch):
    x = RNG.normal(size=(50, 6)) @ RNG.normal(size=(6, 6)) + 3
    monkeypatch.setattr(kmeans_module, "BLOCK_ELEMENTS", 60)  # several blocks
    ours = whiten(torch.tensor(x), 4).numpy()
    oracle = PCA(4, whiten=True, svd_solver="full").fit_transform(x) * math.sqrt(50 / 49)  # variance over N, not N - 1
    signs = np.sign((ours * oracle).sum(axis=0))
    np.testing.assert_allclose(ours, oracle * signs, atol=1e-5)
    np.testing.assert_allclose(np.cov(ours.T, bias=True), np.eye(4), atol=1e-5)


def test_whitening_does_not_enlarge_rounding_errors_where_rows_do_not_vary():
    x = torch.randn(40, 3, generator=seeded())
    flat = torch.cat([x, x[:, :1] + x[:, 1:2], torch.full((40, 1), 1e-3)], dim=1)  # five columns, three directions
    white = whiten(flat, 5)
    assert white[:, :3].var(dim=0, unbiased=False).sub(1).abs().max() < 1e-4
    assert white[:, 3:].abs().max() < 1e-2
    assert whiten(torch.ones(5, 3), 2).abs().max() == 0


@pytest.mark.parametrize("dim", [0, 7, 10])
def test_whitening_to_more_directions_than_there_are_is_refused(dim):
    with pytest.raises(ValueError, match="at most 6"):
        whiten(torch.zeros(10, 6), dim)
    with pytest.raises(ValueError, match="at most 4"):
        whiten(torch.zeros(5, 6), 5)


@pytest.mark.parametrize("sharpness", [1.0, 5.0, 25.0])
def test_self_labels_equal_the_textbook_at_its_stop_and_where_it_is_clear_the_converged_plan(sharpness):
    logits = RNG.normal(size=(60, 5)) + np.array([2.0, 0, 0, 0, 0])  # most samples prefer the first cluster
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = self_labels(torch.tensor(np.log(probabilities)), sharpness)
    assert labels.dtype == torch.int64
    np.testing.assert_array_equal(labels, textbook_sela.labels(probabilities, sharpness))
    converged = textbook_sela.plan(probabilities, sharpness)
    np.testing.assert_allclose(converged.sum(axis=0), 1 / 5, rtol=1e-6)
    second, first = np.sort(converged, axis=1)[:, -2:].T
    clear = first > 1.1 * second
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(labels[clear], converged.argmax(axis=1)[clear])


def test_sharp_self_labels_are_balanced_where_the_predictions_are_not():
    logits = torch.randn(200, 4, generator=seeded()) + torch.tensor([3.0, 0, 0, 0])
    assert torch.bincount(logits.argmax(dim=1), minlength=4)[0] > 150
    sizes = torch.bincount(self_labels(logits.log_softmax(dim=1), 25.0), minlength=4)
    assert (sizes - 50).abs().max() <= 4


@pytest.mark.slow
def test_self_labels_need_logarithms_up_to_a_constant_per_row_and_survive_powers_that_underflow(monkeypatch):
    logits = 100 * torch.randn(16, 4, generator=seeded())  # P^25 reaches exp(-10,000)
    labels = self_labels(logits.log_softmax(dim=1), 25.0)
    assert torch.equal(labels, self_labels(logits, 25.0))
    monkeypatch.setattr("avssl.ops.transport.BLOCK_ELEMENTS", 12)  # three rows per block
    assert torch.equal(labels, self_labels(logits, 25.0))
    monkeypatch.setattr("avssl.ops.transport.KEPT_ELEMENTS", 0)  # the plan is computed anew in each iteration
    assert torch.equal(labels, self_labels(logits, 25.0))
    with pytest.raises(ValueError, match="sharpness is 0"):
        self_labels(logits, 0)


def test_mutual_information_equals_scikit_learns():
    for seed in range(4):
        rng = np.random.default_rng(seed)
        first = rng.integers(0, 6, size=200)
        second = np.where(rng.random(200) < 0.3 * seed, (first + 1) % 6, rng.integers(0, 9, size=200))
        expected = normalized_mutual_info_score(first, second, average_method="geometric")
        value = normalized_mutual_information(torch.tensor(first), torch.tensor(second))
        assert value.item() == pytest.approx(expected, abs=1e-6)


def test_mutual_information_is_1_for_renamed_labels_and_0_where_one_labeling_is_constant():
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    assert normalized_mutual_information(labels, 7 - labels).item() == pytest.approx(1)
    assert normalized_mutual_information(labels, torch.zeros_like(labels)) == 0
    assert normalized_mutual_information(torch.zeros_like(labels), torch.zeros_like(labels)) == 0


def test_usage_entropy_is_1_for_equal_use_0_for_a_single_cluster_and_a_half_for_the_root():
    counts = torch.tensor([[3, 3, 3, 3], [12, 0, 0, 0], [6, 6, 0, 0]])
    torch.testing.assert_close(usage_entropy(counts), torch.tensor([1.0, 0.0, 0.5]))


def test_labels_are_described_by_the_means_over_columns():
    before = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    after = torch.tensor([[1, 0], [1, 0], [0, 0], [0, 0]])  # renamed; all in one of two
    torch.testing.assert_close(describe_labels(before, after, 2), torch.tensor([0.5, 0.5]))


def test_the_cross_entropy_of_heads_is_the_textbooks():
    logits, labels = RNG.normal(size=(5, 3, 4)), RNG.integers(0, 4, size=(5, 3))
    value = cross_entropy_of_heads(torch.tensor(logits), torch.tensor(labels))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(textbook_sela.loss([logits], labels), rel=1e-5)


@pytest.mark.parametrize("num_clusters", [1, 21])
def test_numbers_of_clusters_that_samples_cannot_fill_are_refused(num_clusters):
    with pytest.raises(ValueError, match=f"loss.num_heaps is {num_clusters} with 20 samples.*choose 2 to 20"):
        check_num_clusters("num_heaps", num_clusters, 20)
    check_num_clusters("num_heaps", 20, 20)


@pytest.mark.parametrize("epsilon", [0.005, 0.01, 0.05])
@pytest.mark.parametrize(("num_prototypes", "width"), [(4, 2), (15, 8)])
def test_sinkhorn_loses_no_code_that_many_iterations_bring_back(epsilon, num_prototypes, width):
    """Nearly all samples are near one prototype: the mass of the others comes from codes that start almost at 0."""
    generator = torch.Generator().manual_seed(0)
    normalize = torch.nn.functional.normalize
    prototypes = normalize(torch.randn(num_prototypes, width, generator=generator), dim=1)
    centers = prototypes[:1].expand(512, -1).clone()
    centers[:10] = prototypes[1]
    scores = normalize(centers + 0.02 * torch.randn(512, width, generator=generator), dim=1) @ prototypes.T
    logarithms = scores.double() / epsilon
    for _ in range(50):
        logarithms = logarithms.log_softmax(0).log_softmax(1)
    torch.testing.assert_close(sinkhorn(scores, epsilon, 50).double(), logarithms.exp(), rtol=1e-3, atol=1e-4)
