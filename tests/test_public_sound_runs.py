"""Runs train from public models of sound, go on and embed without the models' files; what does not fit is refused."""

import shutil

import numpy as np
import pytest
import torch

from avssl import config
from avssl.config import load_run
from avssl.embedding.embedder import Embedder
from avssl.embedding.public import public_config
from avssl.public_models import settle
from avssl.types import View
from tests import public_sounds
from tests.conftest import run_python
from tests.public_sounds import RATE_HZ

PRETRAIN = (
    "cpu=true", "loss.name=simclr", "loss.modalities=[audio,audio]", "data.global_batch_size=4", "data.num_workers=0",
    "log_every_steps=1", "optim={name: adamw, lr: 0.001, layer_decay: 0.7}",
    "views.audio.augment.time_shift_seconds=0.1",
)  # fmt: skip


def settled(name, *changes):
    cfg = config.parse(config.RunConfig, ["loss.name=simclr", "loss.modalities=[audio,audio]", *changes])
    cfg.encoders = {"audio": {"name": name}}
    settle(cfg, [View("first", "audio")])
    return cfg


@pytest.mark.slow
def test_the_views_of_a_run_follow_the_processor_and_what_does_not_fit_is_refused(tmp_path):
    name = f"hf/{public_sounds.make_clap(tmp_path / 'clap')}"
    audio = settled(name).views.audio
    assert (audio.transform, audio.rate_hz, audio.seconds, audio.num_mels) == ("processor", RATE_HZ, 1.0, 16)
    assert settled(name, "views.audio.seconds=0.5").views.audio.seconds == 0.5
    with pytest.raises(ValueError, match=r"views\.audio\.seconds is 1\.5, which does not fit .*; .*set at most 1"):
        settled(name, "views.audio.seconds=1.5")
    with pytest.raises(ValueError, match=r"views\.audio\.rate_hz is 24000, which does not fit .*set 16000"):
        settled(name, "views.audio.rate_hz=24000")
    with pytest.raises(ValueError, match=r"views\.audio\.transform is 'log_mel', .*set processor"):
        settled(name, "views.audio.transform=log_mel")


def test_pe_av_embeds_audio_and_video_of_the_same_ten_seconds(tmp_path):
    cfg = public_config(f"hf/{public_sounds.make_pe_audio_video(tmp_path / 'pe')}")
    assert sorted(cfg.encoders) == ["audio", "video"]
    video, audio = cfg.views.video, cfg.views.audio
    assert (audio.seconds, video.num_frames, video.fps, video.size_px) == (10.0, 16, 1.6, 32)
    assert (video.mean, video.std, video.test_resize) == ((0.5,) * 3, (0.5,) * 3, "both_sides")


@pytest.mark.slow
@pytest.mark.parametrize("make", [public_sounds.make_clap, public_sounds.make_speech])
def test_a_run_from_a_model_of_sound_goes_on_and_embeds_without_the_models_files(tmp_path, shards, make):
    model = make(tmp_path / "model")
    train = ("recipes/pretrain.py", *PRETRAIN, f"run={tmp_path / 'run'}", f"data.shards={shards['train']}")
    encoders = f"encoders.audio={{name: hf/{model}}}"
    run_python(*train, encoders, "steps=2")
    section = load_run(tmp_path / "run").encoders["audio"]
    assert section["processor"]["sampling_rate"] == RATE_HZ
    assert len(section["sha256"]) == 64
    shutil.rmtree(model)
    run_python(*train, encoders, "steps=3")
    embedder = Embedder.from_run(tmp_path / "run")
    waveform = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1, RATE_HZ)).astype(np.float32))
    with torch.no_grad():
        assert embedder.encoders["audio"](waveform).isfinite().all()
    assert not embedder.text_modalities()
