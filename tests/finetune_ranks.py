"""What tests/test_finetune.py runs on one process and on two: train a classifier, test it, keep its scores."""

import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from avssl import distributed
from avssl.config import parse
from avssl.eval import tasks
from avssl.eval.finetune.data import shard_folds
from avssl.eval.finetune.task import run_repeat
from avssl.eval.finetune.training import Classifier, Stage
from avssl.optim.config import OptimConfig
from avssl.shards.shard_set import ShardSet
from tests.labeled_runs import tiny_embedder
from tests.ranks import SumEncoder, assert_replicated


def train_and_test(train: str, test: str, folder: str | Path) -> None:
    """Write FOLDER/scores.npz: of an untrained and a trained classifier without batch norm and dropout."""
    config = parse(
        tasks.get("finetune").Config,
        [
            "task=finetune", f"train={train}", f"test={test}", "label_field=visual", "num_workers=0", "epochs=1",
            "train_batch_size=6", "test_clips=3", "order_lanes=2",
        ],
    )  # fmt: skip
    embedder = tiny_embedder()
    (fold,) = shard_folds(config, ["video"])
    scores = {}
    for name, lr in (("untrained", 0.0), ("trained", 0.5)):
        config.folder = f"{folder}/{name}"
        found = run_repeat(
            embedder, config, name, 0, fold,
            lambda fold, maker, views: Classifier(
                {"video": SumEncoder("video")}, len(fold.classes), dropout=0.0, head="video"
            ),
            lambda steps, lr=lr: [Stage(3 * steps, OptimConfig(name="sgd", lr=lr, weight_decay=0.0), True, "train")],
        )  # fmt: skip
        scores[name] = found.scores["video"].mean
        assert_replicated(name, torch.from_numpy(found.scores["video"].mean))
    if distributed.rank() == 0:
        np.savez(Path(folder) / "scores.npz", keys=np.array(ShardSet(test).keys), **scores)


if __name__ == "__main__":
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    assert distributed.world_size() == 2
    train_and_test(*sys.argv[1:])
    distributed.barrier()
    state.destroy_process_group()
