"""Every epoch ends, with as many batches on every rank and no sample twice: a grid of ranks, workers and shards.

    python -m tests.soak.epoch_grid --orders 4000 --seed 0

Many orders are drawn and looked at as numbers alone. Then real loaders with real workers read real shards, one rank
after the other in this process; a loader that hangs ends by its own time limit.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from itertools import product
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

import avssl.data.loader as loader_module
from avssl.data.loader import Loader
from avssl.data.loader_config import LoaderConfig
from avssl.data.order import rank_order, steps_per_epoch
from avssl.shards.shard_set import ShardSet
from avssl.transforms.config import VideoViewConfig, ViewsConfig
from avssl.transforms.view_maker import ViewMaker
from avssl.types import View
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.transcode.options import WriteOptions
from data_prep.write.run import write_shards
from tests.clips import make_clip
from tests.soak.outcome import Outcome

NUM_CLIPS = 13
VIEWS = (View("video", "video"),)
CONFIG = ViewsConfig(video=VideoViewConfig(num_frames=2, size_px=16))


def check_epochs(ranks: list[list[list[int]]], num_samples: int, steps: int, batch: int) -> None:
    """ranks: for every rank the indices of each of its batches."""
    assert {len(batches) for batches in ranks} == {steps}, f"batches by rank: {[len(one) for one in ranks]}"
    assert {len(rows) for batches in ranks for rows in batches} <= {batch // len(ranks)}
    seen = [index for batches in ranks for rows in batches for index in rows]
    assert len(set(seen)) == len(seen) == steps * batch
    assert all(0 <= index < num_samples for index in seen)


def drawn_orders(outcome: Outcome, count: int, seed: int) -> None:
    """Orders of drawn shard sizes, ranks, lanes and batches, over two epochs."""
    draw = random.Random(seed)
    for number in range(count):
        world_size = draw.choice([1, 2, 3, 4, 6, 8])
        lanes = world_size * draw.choice([1, 1, 2, 3])
        batch = lanes * draw.randint(1, 5)
        sizes = [draw.randint(1, 40) for _ in range(draw.randint(1, 20))]
        sizes[0] += batch  # an epoch has at least one batch
        settings = {"seed": draw.randrange(1000), "global_batch_size": batch, "num_lanes": lanes,
                    "shuffle_block": draw.choice([1, 7, 64, 4096])}  # fmt: skip
        with outcome.case(f"order {number} of seed {seed}: {world_size} ranks, {settings}, shards {sizes}"):
            for epoch in (0, 1):
                ranks = [
                    rank_order(sizes, epoch=epoch, rank=rank, world_size=world_size, **settings).tolist()
                    for rank in range(world_size)
                ]
                check_epochs(ranks, sum(sizes), steps_per_epoch(sum(sizes), batch), batch)


def real_epochs(folder: Path, world_size: int, workers: int, epochs: int) -> None:
    """Epochs as each rank's loader gives them, and the samples that are read once, in order."""
    shards, batch = ShardSet(folder), 2 * world_size
    read: list[list[list[list[int]]]] = []
    once: list[int] = []
    for rank in range(world_size):
        with (
            patch.object(loader_module, "rank", lambda rank=rank: rank),
            patch.object(loader_module, "world_size", lambda: world_size),
        ):
            options = LoaderConfig(global_batch_size=batch, num_workers=workers, worker_timeout_seconds=60)
            device = torch.device("cpu")
            maker = ViewMaker(CONFIG, ["video"])
            loader = Loader(shards, options, VIEWS, maker, seed=3, device=device)
            read.append([[one.index.tolist() for one in loader.epoch(epoch)] for epoch in range(epochs)])
            once += [int(index) for one in loader.every_sample_once() for index in one.index]
    for epoch in range(epochs):
        check_epochs([of_rank[epoch] for of_rank in read], NUM_CLIPS, steps_per_epoch(NUM_CLIPS, batch), batch)
    np.testing.assert_array_equal(np.sort(once), np.arange(NUM_CLIPS))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=4000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--num-workers", type=int, nargs="+", default=[0, 2, 5])
    parser.add_argument("--samples-per-shard", type=int, nargs="+", default=[1, 5, NUM_CLIPS])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    outcome = Outcome("an epoch always ends, with as many batches on every rank and no sample twice")
    drawn_orders(outcome, given.orders, given.seed)
    with tempfile.TemporaryDirectory(prefix="avssl-soak-") as temporary:
        folder = Path(temporary)
        for number in range(NUM_CLIPS):
            make_clip(folder / "clips" / f"{number}.mp4", number, seconds=0.4)
        build_manifest(folder / "clips", folder / "corpus.jsonl", IndexOptions())
        for count in given.samples_per_shard:
            options = WriteOptions(short_side_px=32, samples_per_shard=count)
            write_shards(folder / "corpus.jsonl", folder / f"{count}", options)
        for count, ranks, workers in product(given.samples_per_shard, given.ranks, given.num_workers):
            with outcome.case(f"{count} samples a shard, {ranks} ranks, {workers} workers"):
                real_epochs(folder / f"{count}", ranks, workers, epochs=2)
    return outcome.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
