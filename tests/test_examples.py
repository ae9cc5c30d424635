"""The scripts of examples/ do what they say, on tiny data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from avssl import config
from recipes import pretrain
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("own_registries")

TINY = ["cpu=true", "steps=2", "log_every_steps=1", "data.global_batch_size=4", "data.num_workers=0"]


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps a state per process; a second run in the same process needs a new one."""
    yield
    for state in (AcceleratorState, PartialState, GradientState):
        state._shared_state.clear()


def steps_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_every_script_is_short_and_tried_here():
    here = Path(__file__).read_text()
    for path in sorted((ROOT / "examples").glob("*.py")):
        assert len(path.read_text().splitlines()) <= 40, path.name
        assert f"examples.{path.stem} import" in here or f"import examples.{path.stem}" in here, path.name


def test_own_loop_learns_to_tell_images_apart():
    from examples.own_loop import augment, train

    torch.manual_seed(0)
    patterns = torch.rand(32, 3, 2, 2).repeat_interleave(20, 2).repeat_interleave(20, 3)
    images = [((augment(pattern), augment(pattern)), 0) for pattern in patterns for _ in range(4)]
    encoder = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(48, 16))
    losses = train(images, encoder, epochs=12, batch_size=32)
    assert len(losses) == 48
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])


def test_own_loss_is_trained_by_the_recipe(image_shards, tmp_path):
    from examples.own_loss import AlignUniform

    changes = ["encoders.image={name: resnet10, width: 4}", "views.image.size_px=24"]
    cfg = config.parse(
        config.RunConfig,
        ["loss.name=align_uniform", *TINY, *changes, f"run={tmp_path}/run", f"data.shards={image_shards}"],
    )
    assert pretrain.main(cfg) == 0
    assert AlignUniform.__name__ == "AlignUniform"
    assert all(step["alignment"] >= 0 >= step["uniformity"] for step in steps_of(tmp_path / "run"))


def test_own_encoder_is_trained_by_the_recipe(image_shards, tmp_path):
    import examples.own_encoder  # noqa: F401  (registers the encoder)

    changes = ["encoders.image={name: patch_mixer, width: 8}", "views.image.size_px=24"]
    yaml = str(ROOT / "recipes/configs/simclr.yaml")
    cfg = config.parse(
        config.RunConfig,
        [yaml, *TINY, *changes, "optim.warmup_steps=0", f"run={tmp_path}/run", f"data.shards={image_shards}"],
    )
    assert pretrain.main(cfg) == 0
    assert len(steps_of(tmp_path / "run")) == 2


def test_embeddings_to_pandas_prints_neighbors_and_draws_a_plot(tmp_path):
    from examples.embeddings_to_pandas import main

    frame = main(str(ROOT / "tests/golden/commit_8b62841/embeddings"), str(tmp_path / "plot.png"))
    assert sorted(frame["key"]) == [f"class_{number % 2}/clip_{number}_mp4" for number in (0, 2, 4, 1, 3, 5)]
    assert (frame["key"] != frame["nearest"]).all()
    assert (tmp_path / "plot.png").stat().st_size > 1000
