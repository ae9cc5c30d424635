"""The scripts of examples/ do what they say, on tiny data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from avssl import config
from avssl.plugins import required
from avssl.transforms.own import apply_augment
from tests.conftest import ROOT, TINY, run_python

EXAMPLES = ROOT / "examples"
PLUGINS = [f"--plugin={EXAMPLES / name}.py" for name in ("own_loss", "own_encoder", "own_augment")]
TINY_IMAGES = [
    "cpu=true", "mixed_precision=fp32", "steps=2", "log_every_steps=1", "data.global_batch_size=4",
    "views.image.size_px=24",
]  # fmt: skip


@pytest.fixture(scope="module")
def own_run(image_shards, tmp_path_factory):
    """A run of own_loss, own_encoder and own_augment, by the command in an empty folder, with a worker process."""
    folder = tmp_path_factory.mktemp("empty")
    changes = [
        "loss.name=align_uniform", "loss.uniformity_weight=0.5", "loss.augments=[erased, turned]",
        "encoders.image={name: patch_mixer, width: 8}", f"data.shards={image_shards}", "data.num_workers=1", "run=mine",
    ]  # fmt: skip
    run_python("-m", "avssl", "pretrain", *PLUGINS, *changes, *TINY_IMAGES, folder=folder)
    return folder / "mine"


def steps_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_every_script_is_short_and_tried_here():
    here = Path(__file__).read_text()
    for path in sorted(EXAMPLES.glob("*.py")):
        assert len(path.read_text().splitlines()) <= 40, path.name
        assert f"examples.{path.stem} import" in here or f'"{path.stem}' in here, path.name


def test_own_loop_learns_to_tell_images_apart():
    from examples.own_loop import augment, train

    torch.manual_seed(0)
    patterns = torch.rand(32, 3, 2, 2).repeat_interleave(20, 2).repeat_interleave(20, 3)
    images = [((augment(pattern), augment(pattern)), 0) for pattern in patterns for _ in range(4)]
    encoder = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(48, 16))
    losses = train(images, encoder, epochs=12, batch_size=32)
    assert len(losses) == 48
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])


@pytest.mark.slow
def test_own_loss_encoder_and_augments_are_trained_by_the_command(own_run):
    steps = steps_of(own_run)
    assert len(steps) == 2
    for step in steps:
        assert step["alignment"] >= 0 >= step["uniformity"]
        assert step["loss"] == pytest.approx(step["alignment"] + 0.5 * step["uniformity"], rel=1e-5)


@pytest.mark.slow
def test_own_task_is_evaluated_by_the_command(own_run, image_shards):
    task = ["task=nearest_mean", "modality=image", "num_workers=0", "allow_overlap=true"]
    data = [f"train={image_shards}", f"test={image_shards}"]
    own_task = f"--plugin={EXAMPLES / 'own_task.py'}"
    run_python("-m", "avssl", "evaluate", own_run, *task, *data, *PLUGINS, own_task, folder=own_run.parent)
    result = json.loads((own_run / "evaluations/nearest_mean.json").read_text())
    assert result["results"]["trained"]["top1_accuracy"] >= 0.75  # dark and light images
    assert result["protocol"]["plugin"]["file"] == "own_task.py"
    assert [record["file"] for record in result["environment"]["plugins"]] == [
        "own_loss.py", "own_encoder.py", "own_augment.py", "own_task.py",
    ]  # fmt: skip


@pytest.mark.usefixtures("own_registries")
def test_own_augments_do_what_their_texts_say():
    required.use([EXAMPLES / "own_augment.py"])
    frames = torch.zeros(3, 3, 20, 30, dtype=torch.uint8)
    erased = apply_augment("erased", "video", frames, np.random.default_rng(0), "key")
    assert int((erased == 128).sum()) == 3 * 3 * 10 * 15
    assert (erased == erased[:1]).all()
    assert not frames.any()  # other views are made of the same frames
    waveform = torch.zeros(1, 4000)
    hiss = apply_augment("hiss", "audio", waveform, np.random.default_rng(1), "key")
    assert 0 < hiss.std() < 0.06
    assert torch.equal(hiss, apply_augment("hiss", "audio", waveform, np.random.default_rng(1), "key"))


@pytest.mark.usefixtures("own_registries")
def test_own_lists_are_indexed_and_bad_rows_are_reported(corpus, tmp_path, capsys):
    from data_prep.__main__ import command

    film = next(path for path in sorted((corpus / "train").rglob("*.mp4")))
    rows = [
        f"{film.name}\t0:00.5\t0:01.5\tdog,rain",
        "nothing.mp4\t0\t1\tcat",
        f"{film.name}\tsoon",
        f"{film.name}\t1\t1\tcat",
    ]
    (tmp_path / "archive.tsv").write_text("\n".join(rows))
    arguments = [
        "index",
        str(tmp_path / "archive.tsv"),
        "--media",
        str(film.parent),
        "--out",
        str(tmp_path / "out.jsonl"),
    ]
    arguments += ["--num-workers", "1", "--plugin", str(EXAMPLES / "own_list.py"), "--format"]
    assert command([*arguments, "archives"]) == 2
    assert "Did you mean 'archive'?" in capsys.readouterr().err
    assert command([*arguments, "archive"]) == 2
    error = capsys.readouterr().err
    assert "line 3" in error
    assert "row 4" in error
    assert command([*arguments, "archive", "--skip-bad-rows"]) == 0
    first, second = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (first["segment"], first["labels"], first["error"]) == ([0.5, 1.5], {"label": ["dog", "rain"]}, None)
    assert second["error"]["reason"] == "missing_file"


@pytest.mark.slow
def test_own_augments_come_before_those_of_avid(shards, tmp_path):
    operations = ["views.video.augment.operation=erased", "views.audio.augment.operation=hiss"]
    data = ["run=avid", f"data.shards={shards['train']}", "steps=2", *operations]
    run_python("-m", "avssl", "pretrain", "avid", PLUGINS[2], *TINY, *data, folder=tmp_path)
    assert config.value_of([str(tmp_path / "avid/config.yaml")], "views.audio.augment.operation", "") == "hiss"
    assert len(steps_of(tmp_path / "avid")) == 2


def test_embeddings_to_pandas_prints_neighbors_and_draws_a_plot(tmp_path):
    from examples.embeddings_to_pandas import main

    frame = main(str(ROOT / "tests/golden/commit_8b62841/embeddings"), str(tmp_path / "plot.png"))
    assert sorted(frame["key"]) == [f"class_{number % 2}/clip_{number}_mp4" for number in (0, 2, 4, 1, 3, 5)]
    assert (frame["key"] != frame["nearest"]).all()
    assert (tmp_path / "plot.png").stat().st_size > 1000
