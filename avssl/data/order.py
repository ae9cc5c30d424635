"""The order of samples: a pure function of (shard sizes, seed, epoch, global batch, lanes).

In every epoch the shards get a new random order and a new random first sample. This sequence is cut to whole global
batches and divided into lanes of equal length. A lane is a contiguous run of shards that one process reads from start
to end; its samples are shuffled within blocks, so that reading stays local. Every global batch takes equally many
samples, a share, from each lane:

    batch t = [lane 0's t-th share, lane 1's t-th share, ...]

With one lane per process (the default) each process reads its own shards. For a given number of lanes, the global
batches do not depend on the number of processes (at most one per lane) or workers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def steps_per_epoch(num_samples: int, global_batch_size: int) -> int:
    """The number of whole global batches in an epoch. Raises ValueError if there is none."""
    steps = num_samples // global_batch_size
    if steps == 0:
        raise ValueError(
            f"data.global_batch_size is {global_batch_size}, but the shards hold {num_samples} samples; "
            f"choose at most {num_samples}"
        )
    return steps


def check_lanes(global_batch_size: int, num_lanes: int, world_size: int) -> None:
    """Raise ValueError unless the lanes divide evenly over processes, and the global batch over lanes."""
    if num_lanes < 1 or num_lanes % world_size or global_batch_size % num_lanes:
        raise ValueError(
            f"{num_lanes} order lanes do not fit {world_size} processes and a global batch of {global_batch_size}: "
            "data.order_lanes must be a multiple of the processes, data.global_batch_size a multiple of the lanes"
        )


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
    lanes_per_rank = num_lanes // world_size
    columns = []
    for lane in range(rank * lanes_per_rank, (rank + 1) * lanes_per_rank):
        start = lane * steps * share
        positions = _cyclic_slice(shard_sizes, shards, offset + start, steps * share)
        lane_generator = np.random.default_rng((seed, epoch, 1 + lane))
        for block in range(0, len(positions), shuffle_block):
            lane_generator.shuffle(positions[block : block + shuffle_block])
        columns.append(positions.reshape(steps, share))
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
    return np.concatenate(indices)
