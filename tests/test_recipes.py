"""Every recipe's YAML loads and trains two steps through the real loop, on tiny networks and tiny shards."""

import json

import pytest
from safetensors.torch import load_file, save_file

from avssl import config, losses
from avssl.losses.configs import CaptionConfig
from avssl.models import create_encoder
from recipes import pretrain
from tests.captioned import make_text_model, with_captions
from tests.conftest import ROOT
from tests.fixtures import fresh_accelerate  # noqa: F401
from tests.tiny import TINY_LOSSES

RECIPES = sorted(
    path.stem
    for path in (ROOT / "recipes/configs").glob("*.yaml")
    if "\nloss:" in path.read_text()  # those of evaluation train nothing
)
TINY_RUN = [
    "cpu=true", "mixed_precision=fp32",
    "sync_batch_norm=false", "gradient_accumulation_steps=1", "steps=2",
    "log_every_steps=1", "data.global_batch_size=4", "data.num_workers=0", "data.order_lanes=0",
    "views.video.num_frames=2", "views.video.size_px=32", "views.video.small_size_px=24", "views.image.size_px=32",
    "views.image.small_size_px=24", "views.audio.seconds=0.5", "views.audio.rate_hz=16000",
    "views.audio.transform=log_mel", "views.audio.num_mels=32", "views.audio.window_samples=512",
    "views.audio.hop_samples=160", "views.audio.num_frames=48",
    "encoders.image={name: resnet10, width: 4, small_stem: true}",
    "encoders.video={name: avid_video, depth: 10, width: 2}", "encoders.audio={name: avid_audio, width: 2}",
    "optim.warmup_steps=0",
]  # fmt: skip


def test_every_loss_has_a_recipe():
    named = {config.value_of([str(ROOT / f"recipes/configs/{name}.yaml")], "loss.name", "") for name in RECIPES}
    assert named == set(losses.names())


@pytest.mark.quick(1)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_loads_and_trains_two_steps(recipe, shards, image_shards, tmp_path):
    yaml = str(ROOT / f"recipes/configs/{recipe}.yaml")
    given = config.parse(config.RunConfig, [yaml])
    options = TINY_LOSSES.get(given.loss.name, {})
    modalities = losses.get(given.loss.name).modalities(given.loss)
    data = image_shards if modalities == ["image"] else shards["train"]
    if isinstance(given.loss, CaptionConfig):
        data = with_captions(shards["train"], tmp_path / "captioned")
        options = {"text_encoder.name": f"hf/{make_text_model(tmp_path / 'model')}"}
    changes = [f"loss.{key}={value}".replace("'", "") for key, value in options.items()]
    if hasattr(given.loss, "teacher"):
        path, network = tmp_path / "teacher.safetensors", {"name": "resnet10", "width": 4, "small_stem": True}
        save_file(create_encoder(**network).state_dict(), path)
        changes.append(f"loss.teacher.encoder={json.dumps(network | {'weights': str(path)})}")
    cfg = config.parse(config.RunConfig, [yaml, *TINY_RUN, *changes, f"run={tmp_path}/run", f"data.shards={data}"])
    pretrain.main(cfg)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    weights = load_file(tmp_path / "run/encoders.safetensors")
    for modality in modalities:
        assert any(key.startswith(f"loss.encoders.{modality}.") for key in weights)
    assert all(value.isfinite().all() for value in weights.values() if value.is_floating_point())
