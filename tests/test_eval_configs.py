"""Every YAML of recipes/configs/evaluate for frozen features on tiny made-up data of the right shape."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avssl import config
from avssl.embedding.embedder import Embedder
from avssl.eval import tasks
from avssl.eval.configs import FinetuneConfig
from avssl.eval.outcome import settings_of
from avssl.eval.results import read_evaluation
from data_prep.index.build import IndexOptions, build_idx_manifest, build_manifest
from data_prep.transcode.encode import write_media
from data_prep.transcode.options import WriteOptions
from data_prep.write.run import write_shards
from recipes import evaluate as recipe
from tests.conftest import ROOT
from tests.foreign import write_idx
from tests.made_runs import made_run

FOLDER = ROOT / "recipes" / "configs" / "evaluate"
TASKS = ("knn", "linear", "svm", "few_label", "retrieval", "synchronization", "clustering", "linear")
YAMLS = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem.startswith(TASKS))
YAMLS = [name for name in YAMLS if not name.startswith("linear_probe")]
# What is only for the size of the data and the time of the tests: fewer clips and costs, a shift that fits the clips.
SMALLER = {
    "svm_dcase2014": ["train_clips=3", "test_clips=3"],
    "svm_esc50": ["train_clips=2", "test_clips=2"],
    "synchronization_vggsound": ["shift_seconds=0.5"],
    "linear_ucf101": ["test_clips=2", "train_clips=1"],
    "linear_hmdb51": ["test_clips=2", "costs=[0.1]"],
    "linear_imagefolder": ["costs=[0.1]"],
}


@pytest.fixture(scope="module")
def labeled(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Shard folders of the tiny videos with the field `label`: with one label per sample, and with several."""
    folder = tmp_path_factory.mktemp("labeled")
    folders = {}
    for kind in ("single", "multi"):
        for split in ("train", "test"):
            with (corpus / split / "labels.csv").open() as stream:
                rows = list(csv.DictReader(stream))
            names = [row["visual"] if kind == "single" else f"{row['visual']}|{row['sound']}" for row in rows]
            labels = folder / f"{kind}-{split}.csv"
            lines = [f"{row['path']},{name}\n" for row, name in zip(rows, names, strict=True)]
            labels.write_text("path,label\n" + "".join(lines))
            manifest = folder / f"{kind}-{split}.jsonl"
            build_manifest(corpus / split, manifest, IndexOptions(labels=str(labels)))
            write_shards(manifest, folder / kind / split, WriteOptions(short_side_px=32, samples_per_shard=7))
        folders[kind] = folder / kind
    for fold in (1, 2, 3):
        for split in ("train", "test"):
            shutil.copytree(folders["single"] / split, folder / "folds" / f"{split}{fold}")
    folders["folds"] = folder / "folds"
    return folders


@pytest.fixture(scope="module")
def audio_shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Shards of twenty audio files, listed as ESC-50 with five folds and two classes, and as the splits of DCASE."""
    folder = tmp_path_factory.mktemp("sounds")
    generator = np.random.default_rng(0)
    lines = ["path,fold,target,label\n"]
    for number in range(20):
        kind = number % 2
        seconds = np.arange(16_000) / 16_000
        wave = np.sin(2 * np.pi * (300 + 2000 * kind) * seconds) + 0.1 * generator.normal(size=16_000)
        with (folder / f"{number:02d}.wav").open("wb") as stream:
            audio = (0.3 * wave[None]).astype(np.float32)
            write_media(stream, audio=audio, audio_rate_hz=16_000, audio_codec="pcm_s16le", container_format="wav")
        lines.append(f"{number:02d}.wav,{number // 4 + 1},{kind},{'high' if kind else 'low'}\n")
    folders = {}
    for name, rows in (("esc50", lines), ("train", lines[:13]), ("test", [lines[0], *lines[13:]])):
        (folder / f"{name}.csv").write_text("".join(rows))
        build_manifest(folder / f"{name}.csv", folder / f"{name}.jsonl", IndexOptions())
        write_shards(
            folder / f"{name}.jsonl",
            folder / "shards" / name,
            WriteOptions(samples_per_shard=8, on_missing_video="keep"),
        )
        folders[name] = folder / "shards" / name
    return folders


@pytest.fixture(scope="module")
def fashion_shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Shards of two splits of 40 and 24 gray images of ten classes, in the file format of Fashion-MNIST."""
    folder = tmp_path_factory.mktemp("fashion")
    folders = {}
    for seed, (split, count) in enumerate((("train", 40), ("t10k", 24))):
        generator = np.random.default_rng(seed)
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = generator.integers(0, 60, size=(count, 28, 28), dtype=np.uint8)
        images[np.arange(count), labels * 2] = 250
        write_idx(folder / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte.gz", labels)
        build_idx_manifest(folder / f"{split}-images-idx3-ubyte.gz", folder / f"{split}.jsonl")
        write_shards(folder / f"{split}.jsonl", folder / split, WriteOptions(samples_per_shard=16))
        folders[split] = folder / split
    return folders


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    small = "encoders.video={name: avid_video, depth: 10, width: 4}"
    heads = ["loss.projector_hidden_dims=[16]", "loss.embedding_dim=8"]
    return {
        "video": made_run(
            folder / "avid", "loss.name=avid", small, "encoders.audio={name: avid_audio, width: 4}", *heads
        ),
        "image": made_run(
            folder / "simclr", "loss.name=simclr", "encoders.image={name: resnet10, width: 4, small_stem: true}", *heads
        ),
    }


def data_for(name: str, labeled: Any, audio_shards: Any, fashion_shards: Any) -> list[str]:
    """The arguments train and test of a YAML, as its comment says."""
    if name == "svm_esc50":
        return [f"train={audio_shards['esc50']}"]
    if name == "svm_dcase2014":
        return [f"train={audio_shards['train']}", f"test={audio_shards['test']}"]
    if name.endswith(("imagefolder", "fashion_mnist")):
        parts = [f"train={fashion_shards['train']}", f"test={fashion_shards['t10k']}"]
    elif name in ("linear_ucf101", "linear_hmdb51"):
        parts = [f"train={labeled['folds']}/train{{fold}}", f"test={labeled['folds']}/test{{fold}}"]
    else:
        kind = labeled["multi" if name.endswith("audioset") else "single"]
        parts = [f"train={kind / 'train'}", f"test={kind / 'test'}"]
    if name == "retrieval_vggsound":  # classes must come more than once: the larger part is searched
        return [parts[0].replace("train=", "test=")]
    return parts[1:] if name.startswith("clustering") else parts


def test_every_promised_benchmark_has_a_yaml() -> None:
    text = " ".join(path.stem for path in FOLDER.glob("*.yaml"))
    for wanted in ("kinetics400", "ucf101", "hmdb51", "esc50", "dcase", "audioset", "vggsound", "imagefolder"):
        assert wanted in text
    assert "fashion_mnist" in text


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_every_yaml_loads_and_names_its_command(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    kind = tasks.get(config.value_of([str(path)], "task", "standard"))
    assert config.parse(kind.Config, [str(path)]).task == kind.name
    assert "avssl evaluate " in path.read_text()


@pytest.mark.grid(6)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", YAMLS)
def test_every_yaml_runs_as_it_is(name: str, runs: Any, labeled: Any, audio_shards: Any, fashion_shards: Any) -> None:
    run = runs["image" if name.endswith(("imagefolder", "fashion_mnist")) else "video"]
    given = [str(FOLDER / f"{name}.yaml"), *data_for(name, labeled, audio_shards, fashion_shards), "num_workers=0"]
    task = recipe.load_task([*given, *SMALLER.get(name, [])])
    path = recipe.evaluate(run, task)
    assert path.stem == f"{task.task}-{task.name}"
    evaluation = read_evaluation(path)
    assert (
        evaluation["results"]["trained"].keys()
        == evaluation["results"]["untrained"].keys()
        == evaluation["chance"].keys()
    )
    assert all(np.isfinite(value) for value in evaluation["results"]["trained"].values())
    assert evaluation["weights"]["trained"] == Embedder.from_run(run).weights_hash
    assert evaluation["environment"]["versions"]["torch"]
    repeats = {"linear_ucf101": 3, "linear_hmdb51": 3, "svm_esc50": 5}.get(name, 5 if name.startswith("few") else 1)
    assert len(evaluation["repeats"]["trained"]) == (5 if name.startswith("clustering") else repeats)
    if name == "svm_esc50":
        assert sum(repeat["num_test"] for repeat in evaluation["repeats"]["trained"]) == 20, (
            "each clip once over the folds"
        )
        assert [repeat["name"] for repeat in evaluation["repeats"]["trained"]] == [
            f"fold {number}" for number in range(1, 6)
        ]
    if name.startswith("svm"):
        values = evaluation["results"]["trained"]
        assert max(values[f"audio_{layer}_top1_accuracy"] for layer in ("conv2x", "conv3x")) > 0.8, "two tones are easy"
    if name.endswith("audioset"):
        amount = "10_per_class_" if name.startswith("few") else ""
        wanted = {f"{amount}audio_feature_mean_average_precision", f"{amount}audio_feature_d_prime"}
        assert wanted <= evaluation["results"]["trained"].keys()


def test_settings_of_a_finetuning_with_no_later_key_are_those_of_earlier_versions() -> None:
    first = {
        "name", "lr", "weight_decay", "momentum", "betas", "trust", "exclude_biases", "bias_lr_scale", "fused",
        "clip_norm", "schedule", "warmup_steps", "final_lr", "milestone_steps", "gamma",
    }  # fmt: skip
    assert settings_of(FinetuneConfig())["optim"].keys() == first
    config = FinetuneConfig()
    config.optim.final_weight_decay = 0.1
    assert settings_of(config)["optim"].keys() == first | {"final_weight_decay"}
