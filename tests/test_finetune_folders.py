"""The folder of a training on labels: one for every fold, below that of the task, whatever the labels are."""

from dataclasses import replace

import pytest
import torch

from avssl.eval.finetune import task
from avssl.eval.finetune.data import shard_folds
from avssl.eval.finetune.state import training_folder
from tests.labeled_runs import image_embedder
from tests.test_finetune import configured

LABELS = [
    "1",
    "split-1.a_b",
    "ü",
    "1,2",
    "12",
    "1 2",
    "1-2",
    "../../../x",
    "..",
    ".",
    "/etc",
    "a/b",
    "x" * 300,
    "é" * 150,
]
LABELS += ["a\n", "a", "\ud800", "\x00"]


def test_every_fold_has_a_folder_of_its_own_below_that_of_the_task(tmp_path):
    found = {}
    for label in LABELS:
        for seed in ("", ", seed 0"):
            folder = training_folder(tmp_path, "0123456789abcdef", f"fold {label}", f"fold {label}{seed}")
            folder.mkdir()
            found[label, seed] = folder.resolve()
    assert {folder.parent for folder in found.values()} == {tmp_path.resolve()}
    assert len(set(found.values())) == 2 * len(LABELS)


def test_plain_folds_and_seeds_have_the_folders_that_they_always_had(tmp_path):
    """The classifiers of earlier versions are found."""
    for fold, name, folder in (
        ("", "", "ab12"),
        ("", "seed 3", "ab12-seed-3"),
        ("fold 1", "fold 1", "ab12-fold-1"),
        ("fold split-1.a_b", "fold split-1.a_b, seed 0", "ab12-fold-split-1.a_b-seed-0"),
    ):
        assert training_folder(tmp_path, "ab12", fold, name) == tmp_path / folder


def test_a_fold_that_is_named_like_a_path_is_trained_below_the_folder_of_the_task(image_shards, tmp_path, monkeypatch):
    def stopped(*_, folder, **__):
        folders.append(folder)
        raise KeyboardInterrupt

    folders = []
    monkeypatch.setattr(task, "train_or_load", stopped)
    config = configured({"train": image_shards, "test": "other"}, tmp_path, "label_field=label", "modality=image")
    fold = next(shard_folds(replace(config, test="", fold_field="label"), ["image"]))
    fold = replace(fold, name="fold ../../../x")
    with pytest.raises(KeyboardInterrupt):
        task.run_repeat(
            image_embedder(), config, fold.name, 0, fold, lambda *_: torch.nn.Linear(1, 1), lambda _: []
        )  # fmt: skip
    assert folders[0].resolve().parent == tmp_path.resolve()
