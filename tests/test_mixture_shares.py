"""The share that each of several shard folders has of the samples of training, by its weight."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from avssl.data.order import mixed_rank_order, taken

FOLDERS = [[20, 10, 5], [7, 4], [30, 27]]
SIZES = [35, 11, 57]
WEIGHTS = [1.0, 3.0, 0.5]
FIRST = np.cumsum([0, *SIZES])
SETTINGS = {"seed": 4, "global_batch_size": 12, "num_lanes": 4, "shuffle_block": 16}
EPOCH = sum(SIZES) // 12 * 12


def epoch_order(epoch, world_size=1, folders=FOLDERS, weights=WEIGHTS, **changes):
    """int64 (steps, 12): the global batches of an epoch, from the orders of all ranks."""
    options = {**SETTINGS, **changes, "epoch": epoch, "world_size": world_size}
    return np.concatenate([mixed_rank_order(folders, weights, rank=rank, **options) for rank in range(world_size)], 1)


def folder_of(index):
    return np.searchsorted(FIRST, index, side="right") - 1


@pytest.mark.parametrize("weights", [[1, 3], [1.0, 1.0, 1.0], [0.1, 0.2, 0.7], [5, 1e-3, 2, 2], [7]])
def test_counts_are_those_of_the_samples_in_the_order_in_which_they_are_due(weights):
    due = sorted((Fraction(2 * k + 1, 2) / Fraction(w), i) for i, w in enumerate(weights) for k in range(400))
    folders = [folder for _, folder in due]
    for count in (*range(40), 100, 399):
        assert taken(weights, count) == [folders[:count].count(i) for i in range(len(weights))]


def test_shares_are_exact_after_any_number_of_samples_however_many():
    generator = np.random.default_rng(0)
    for count in (1, 17, 10**6, 10**12):
        weights = generator.uniform(0.01, 5, size=6).tolist()
        counts = taken(weights, count)
        assert sum(counts) == count
        for number, weight in zip(counts, weights, strict=True):
            assert abs(number - Fraction(weight) / sum(map(Fraction, weights)) * count) <= (6 + 1) / 2


def test_an_epoch_has_the_samples_of_all_folders_as_often_as_their_weights_say():
    counts = np.zeros(3)
    for epoch in range(30):
        order = epoch_order(epoch)
        assert order.size == EPOCH
        counts += np.bincount(folder_of(order.ravel()), minlength=3)
        shares = np.array(WEIGHTS) / sum(WEIGHTS) * EPOCH * (epoch + 1)
        assert np.abs(counts - shares).max() <= 2


def test_no_sample_comes_again_before_all_of_its_folder_have_come():
    seen: Counter[int] = Counter()
    for epoch in range(30):
        seen.update(epoch_order(epoch).ravel().tolist())
        for first, size in zip(FIRST, SIZES, strict=False):
            counts = [seen[index] for index in range(first, first + size)]
            assert max(counts) - min(counts) <= 1
    assert set(seen) == set(range(sum(SIZES)))  # every index, those of the folder with half a pass an epoch too


def test_folders_are_mixed_within_an_epoch_and_each_pass_has_an_order_of_its_own():
    batches = epoch_order(0, shuffle_block=4096)
    shares = [(folder_of(batch) == 1).mean() for batch in np.array_split(batches, 3)]
    assert np.abs(np.array(shares) - 3 / 4.5).max() < 0.2
    of_small = [index for epoch in range(2) for index in epoch_order(epoch, num_lanes=1, shuffle_block=1).ravel()]
    of_small = [index for index in of_small if FIRST[1] <= index < FIRST[2]]
    passes = [tuple(of_small[start : start + 11]) for start in range(0, 11 * (len(of_small) // 11), 11)]
    assert all(sorted(one) == list(range(35, 46)) for one in passes)
    assert len(passes) > 10
    assert len(set(passes)) > 3


@pytest.mark.parametrize("world_size", [2, 4])
def test_global_batches_do_not_depend_on_the_number_of_processes(world_size):
    np.testing.assert_array_equal(epoch_order(3), epoch_order(3, world_size))


def test_a_folder_of_a_small_weight_may_have_no_sample_in_an_epoch():
    options = {"global_batch_size": 4, "num_lanes": 1, "shuffle_block": 16, "rank": 0, "world_size": 1}
    folders, weights, counts = [[5], [50, 50]], [1, 1000], [0, 0]
    for epoch in range(60):
        order = mixed_rank_order(folders, weights, seed=0, epoch=epoch, **options).ravel()
        counts = [counts[0] + int((order < 5).sum()), counts[1] + int((order >= 5).sum())]
    assert counts == taken(weights, sum(counts))
