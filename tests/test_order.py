"""The order of samples is a pure function and reaches every sample at most once per epoch."""

import numpy as np
import pytest

from avssl.data.order import rank_order, steps_per_epoch

SIZES = {1: [103], 2: [60, 43], 3: [50, 3, 50], 7: [20, 10, 1, 30, 12, 20, 10]}


def orders(sizes, world_size, *, lanes=None, epoch=0, seed=0, batch=12, block=16):
    return [
        rank_order(
            sizes,
            seed=seed,
            epoch=epoch,
            global_batch_size=batch,
            num_lanes=lanes or world_size,
            shuffle_block=block,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("num_shards", SIZES)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_rank_has_equal_steps_and_no_sample_twice(num_shards, world_size):
    ranks = orders(SIZES[num_shards], world_size)
    assert {order.shape for order in ranks} == {(103 // 12, 12 // world_size)}
    seen = np.concatenate([order.ravel() for order in ranks])
    assert len(set(seen.tolist())) == len(seen) == 96
    assert seen.min() >= 0
    assert seen.max() < 103


@pytest.mark.parametrize("num_shards", SIZES)
def test_every_sample_is_reached_over_a_few_epochs(num_shards):
    """With one shard, too: the rest that fills no batch must differ between epochs."""
    seen = {
        i for epoch in range(12) for order in orders(SIZES[num_shards], 2, epoch=epoch) for i in order.ravel().tolist()
    }
    assert seen == set(range(103))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_with_fixed_lanes_the_global_batches_do_not_depend_on_the_number_of_processes(world_size):
    alone = orders(SIZES[7], 1, lanes=4)[0]
    together = np.concatenate(orders(SIZES[7], world_size, lanes=4), axis=1)
    np.testing.assert_array_equal(alone, together)


def test_epochs_and_seeds_differ_and_repeat():
    first = orders(SIZES[3], 1)[0]
    np.testing.assert_array_equal(first, orders(SIZES[3], 1)[0])
    assert not np.array_equal(first, orders(SIZES[3], 1, epoch=1)[0])
    assert not np.array_equal(first, orders(SIZES[3], 1, seed=1)[0])


def test_a_process_stays_within_its_own_run_of_shards():
    """Two lanes over eight equal shards: each process reads four of them and, in part, the one in which it begins."""
    for order in orders([25] * 8, 2, batch=10):
        assert len({int(i) // 25 for i in order.ravel()}) <= 5


def test_neighbors_in_the_shards_are_apart_in_the_order():
    order = orders([1000], 1, batch=10, block=250)[0].ravel()
    assert np.mean(np.abs(np.diff(order)) == 1) < 0.05


def test_a_batch_larger_than_the_data_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match="64, but the shards hold 10 samples"):
        steps_per_epoch(10, 64)


@pytest.mark.parametrize(("world_size", "lanes", "batch"), [(2, 3, 12), (2, 4, 10), (3, 3, 10)])
def test_lanes_that_do_not_divide_are_refused(world_size, lanes, batch):
    with pytest.raises(ValueError, match="order lanes do not fit"):
        orders(SIZES[3], world_size, lanes=lanes, batch=batch)
