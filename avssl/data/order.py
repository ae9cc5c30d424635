"""The order of samples: a pure function of (shard sizes, seed, epoch, global batch, lanes).

In every epoch the shards get a new random order and a new random first sample. This sequence is cut to whole global
batches and divided into lanes of equal length. A lane is a contiguous run of shards that one process reads from start
to end; its samples are shuffled within blocks, so that reading stays local. Every global batch takes equally many
samples, a share, from each lane:

    batch t = [lane 0's t-th share, lane 1's t-th share, ...]

With one lane per process (the default) each process reads its own shards. For a given number of lanes, the global
batches do not depend on the number of processes (at most one per lane) or workers.

Several folders with weights. An epoch is as long as without weights: as many whole global batches as all samples fill.
The samples of all epochs are one endless sequence, in which each folder has its share: after any number of samples,
folder i has had weight_i / (sum of weights) of them, to within (number of folders + 1) / 2. Each folder is read in
passes: a pass has every sample of it once, in an order of its own, and the next begins where it ends, within an epoch
or in a later one. So a folder with a small weight is seen in parts over several epochs, one with a large weight several
times in one, and no sample comes again before all others of its folder have come. The lanes of an epoch are
consecutive pieces of the sequence and are read at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from avssl.types import TooFewSamplesError


def steps_per_epoch(num_samples: int, global_batch_size: int) -> int:
    """The number of whole global batches in an epoch. Raises ValueError if there is none."""
    steps = num_samples // global_batch_size
    if steps == 0:
        raise TooFewSamplesError(
            f"data.global_batch_size is {global_batch_size}, but the shards hold {num_samples} samples; "
            f"choose at most {num_samples}"
        )
    return steps


def check_lanes(global_batch_size: int, num_lanes: int, world_size: int) -> None:
    """Raise ValueError unless the lanes divide evenly over processes, and the global batch over lanes."""
    if num_lanes < 1 or num_lanes % world_size or global_batch_size % num_lanes:
        numbers = ", ".join(map(str, processes_of_lanes(num_lanes)))
        raise ValueError(
            f"{num_lanes} order lanes do not fit {world_size} processes and a global batch of {global_batch_size}: "
            "data.order_lanes must be a multiple of the processes, data.global_batch_size a multiple of the lanes"
            + (f". {num_lanes} lanes fit {numbers} processes" if num_lanes > 0 and num_lanes % world_size else "")
        )


def processes_of_lanes(num_lanes: int) -> list[int]:
    """The numbers of processes that this many lanes divide evenly over.

    >>> processes_of_lanes(4)
    [1, 2, 4]
    """
    return [number for number in range(1, num_lanes + 1) if num_lanes % number == 0]


def rank_order(
    shard_sizes: Sequence[int],
    *,
    seed: int,
    epoch: int,
    global_batch_size: int,
    num_lanes: int,
    shuffle_block: int,
    rank: int,
    world_size: int,
) -> NDArray[np.int64]:
    """Sample indices of one process in one epoch: int64 (steps, global_batch_size / world_size).

    Memory grows only with the part of the epoch that this process reads.
    """
    check_lanes(global_batch_size, num_lanes, world_size)
    steps = steps_per_epoch(sum(shard_sizes), global_batch_size)
    share = global_batch_size // num_lanes
    generator = np.random.default_rng((seed, epoch))
    shards = generator.permutation(len(shard_sizes))
    # Each epoch begins at another sample, so that other samples are left over as the rest that fills no global batch.
    offset = int(generator.integers(sum(shard_sizes)))

    def lane_positions(lane: int) -> NDArray[np.int64]:
        return _cyclic_slice(shard_sizes, shards, offset + lane * steps * share, steps * share)

    lanes = range(rank * num_lanes // world_size, (rank + 1) * num_lanes // world_size)
    return _shuffled(lane_positions, lanes, seed=seed, epoch=epoch, steps=steps, shuffle_block=shuffle_block)


def mixed_rank_order(
    folders: Sequence[Sequence[int]],
    weights: Sequence[float],
    *,
    seed: int,
    epoch: int,
    global_batch_size: int,
    num_lanes: int,
    shuffle_block: int,
    rank: int,
    world_size: int,
) -> NDArray[np.int64]:
    """As `rank_order`, for folders with weights. folders: the shard sizes of each; weights: above 0."""
    check_lanes(global_batch_size, num_lanes, world_size)
    sizes = [sum(shard_sizes) for shard_sizes in folders]
    steps = steps_per_epoch(sum(sizes), global_batch_size)
    share = global_batch_size // num_lanes
    first_index = [0, *accumulate(sizes)]

    def lane_positions(lane: int) -> NDArray[np.int64]:
        start = (epoch * num_lanes + lane) * steps * share
        begins, ends = taken(weights, start), taken(weights, start + steps * share)
        indices, due = [], []
        for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            indices.append(first_index[number] + _passes(folders[number], begin, end, (seed, number)))
            due.append((np.arange(begin, end) + 0.5) / weights[number])
        return np.concatenate(indices)[np.argsort(np.concatenate(due), kind="stable")]

    lanes = range(rank * num_lanes // world_size, (rank + 1) * num_lanes // world_size)
    return _shuffled(lane_positions, lanes, seed=seed, epoch=epoch, steps=steps, shuffle_block=shuffle_block)


def taken(weights: Sequence[float], count: int) -> list[int]:
    """How many of the first `count` samples of the endless sequence are from each folder; their sum is `count`.

    Folder i's sample number k is due at (k + 1/2) / weight_i, and the samples come in the order in which they are due
    (the divisor method of Webster and Sainte-Laguë, which never takes back a sample for a larger count).

    >>> taken([1, 3], 8), taken([1, 3], 9)
    ([2, 6], [2, 7])
    """
    shares = [Fraction(weight) for weight in weights]
    total = sum(shares)
    # None has fewer than these, and few are missing: each folder is within (number + 1) / 2 of its share.
    counts = [max(0, int(count * share / total) - len(shares)) for share in shares]
    for _ in range(count - sum(counts)):
        next_due = [(2 * number + 1) / share for number, share in zip(counts, shares, strict=True)]
        counts[next_due.index(min(next_due))] += 1
    return counts


def _passes(shard_sizes: Sequence[int], begin: int, end: int, key: tuple[int, int]) -> NDArray[np.int64]:
    """Samples `begin` to `end` - 1 of a folder's endless sequence of passes. key: (seed, number of the folder)."""
    size = sum(shard_sizes)
    seed, folder = key
    parts = [np.zeros(0, np.int64)]
    for number in range(begin // size, -(-end // size)):
        generator = np.random.default_rng((seed, number, 1 + folder, 1))
        shards, offset = generator.permutation(len(shard_sizes)), int(generator.integers(size))
        low, high = max(begin - number * size, 0), min(end - number * size, size)
        parts.append(_cyclic_slice(shard_sizes, shards, offset + low, high - low))
    return np.concatenate(parts)


def _shuffled(
    lane_positions: Callable[[int], NDArray[np.int64]],
    lanes: Sequence[int],
    *,
    seed: int,
    epoch: int,
    steps: int,
    shuffle_block: int,
) -> NDArray[np.int64]:
    """The samples of some lanes, shuffled in blocks: (steps, samples of all these lanes in a global batch)."""
    columns = []
    for lane in lanes:
        positions = lane_positions(lane)
        lane_generator = np.random.default_rng((seed, epoch, 1 + lane))
        for block in range(0, len(positions), shuffle_block):
            lane_generator.shuffle(positions[block : block + shuffle_block])
        columns.append(positions.reshape(steps, -1))
    return np.concatenate(columns, axis=1)


def _cyclic_slice(shard_sizes: Sequence[int], shards: NDArray[np.int64], start: int, length: int) -> NDArray[np.int64]:
    """`length` indices from position `start` on, as in `_sequence_slice`; the first sample follows the last one."""
    total = sum(shard_sizes)
    start %= total
    first = _sequence_slice(shard_sizes, shards, start, min(start + length, total))
    if len(first) == length:
        return first
    return np.concatenate([first, _sequence_slice(shard_sizes, shards, 0, length - len(first))])


def _sequence_slice(shard_sizes: Sequence[int], shards: NDArray[np.int64], start: int, stop: int) -> NDArray[np.int64]:
    """Sample indices at positions start to stop - 1 of the sequence of all samples, shard by shard in this order."""
    sizes = np.asarray(shard_sizes, dtype=np.int64)
    first_index = np.concatenate([[0], np.cumsum(sizes)])
    ends = np.cumsum(sizes[shards])
    indices = []
    for number in range(int(np.searchsorted(ends, start, side="right")), len(shards)):
        shard = shards[number]
        begin = ends[number] - sizes[shard]
        if begin >= stop:
            break
        low, high = max(start, begin) - begin, min(stop, ends[number]) - begin
        indices.append(np.arange(first_index[shard] + low, first_index[shard] + high, dtype=np.int64))
    return np.concatenate([np.zeros(0, np.int64), *indices])  # a folder of a small weight may have none in a lane
