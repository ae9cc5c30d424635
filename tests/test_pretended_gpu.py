"""Every loss and view on a pretended GPU: nothing is computed on two devices at once, and nothing waits for the GPU."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from avssl.optim.build import build_optimizer
from avssl.transforms.audio import AudioAugment, draw_audio_params
from avssl.transforms.config import AudioViewConfig, ImageViewConfig, VideoViewConfig, ViewsConfig
from avssl.transforms.published_sets import published_sets
from avssl.transforms.raw_view import RawView, draw_view_params
from avssl.transforms.view_maker import ViewMaker
from tests.pretended_gpu import CUDA, Drawing, move, pretended_generators, pretended_gpu
from tests.test_contract import CASES, LAST, identify
from tests.tiny import Run

QUICK = {("avid_cma", ("video", "audio")), ("swav", ("image", "image"))}
every_case = pytest.mark.parametrize(
    "case", [pytest.param(case, id=identify(case), marks=[] if case in QUICK else pytest.mark.slow) for case in CASES]
)
INDEX = range(8)


def test_the_quick_cases_are_among_all():
    assert set(CASES) > QUICK
    assert set(CASES) > LAST


@every_case
def test_a_loss_computes_on_the_gpu_alone(case, monkeypatch):
    """Forward, loss, update and health; a value that Python asks for would be an error, for there is none."""
    run = Run(*case)
    with pretended_gpu(monkeypatch) as mode:
        move(mode, run.loss)
        views = {name: mode.from_tensor(x).to(CUDA) for name, x in run.make_views(torch.tensor(INDEX), ()).items()}
        index = torch.arange(len(INDEX), device=CUDA)
        outputs = run.loss(views)
        result = run.loss.loss(outputs, index, run.progress)
        run.loss.update(outputs, index)
        run.loss.after_step(run.progress)
        health = run.loss.diagnostics(outputs)
        for name, tensor in [("the loss", result.total), *outputs.items(), *run.loss.named_buffers()]:
            assert tensor.device.type == "cuda", name
        for name, value in [*result.terms.items(), *health.items()]:
            assert value.device.type == "cuda", name


@every_case
def test_gradients_and_the_optimizer_stay_on_the_device(case, monkeypatch):
    run = Run(*case)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know this device
    with pretended_generators(monkeypatch):
        run.loss.to("meta")
        optimizer = build_optimizer(run.optim, run.loss.param_groups())
        views = {name: x.to("meta") for name, x in run.make_views(torch.tensor(INDEX), ()).items()}
        with Drawing():
            result = run.loss.loss(run.loss(views), torch.arange(len(INDEX), device="meta"), run.progress)
        result.total.backward()
        run.loss.before_step(run.progress)
        optimizer.step()
    gradients = [parameter.grad for parameter in run.loss.parameters() if parameter.grad is not None]
    assert gradients
    assert {gradient.device.type for gradient in gradients} == {"meta"}


def raw_views() -> dict[str, RawView]:
    """A batch of two as workers send it: images and clips of every set, and audio that is changed in all ways."""
    generator = np.random.default_rng(0)
    views = {}
    for name, augment in CONFIG.augments.items():
        for modality, frames in (("image", 1), ("video", 2)):
            params = [draw_view_params(generator, 40, 40, augment).color_params[0] for _ in range(2)]
            media = torch.zeros(2, frames, 32, 32, 3, dtype=torch.uint8).movedim(-1, -3)
            views[f"{modality} {name}"] = RawView(modality, media, color_params=torch.tensor(params))
    views["image test"] = RawView("image", torch.zeros(2, 1, 3, 32, 32, dtype=torch.uint8))
    params = torch.tensor([draw_audio_params(generator, CONFIG.audio.augment, CONFIG.audio.rate_hz) for _ in range(2)])
    samples = round(CONFIG.audio.seconds * CONFIG.audio.rate_hz)
    sound, tiles = torch.zeros(2, 1, samples), torch.arange(9).expand(2, 9)
    views["audio"] = RawView("audio", sound, audio_params=params, background=sound)
    views["audio jigsaw"] = RawView("audio", sound, audio_params=params, tiles=tiles)
    return views


CONFIG = ViewsConfig(
    video=VideoViewConfig(num_frames=2, size_px=32),
    image=ImageViewConfig(size_px=32),
    audio=AudioViewConfig(
        seconds=0.5, window_samples=256, hop_samples=480, num_frames=25, num_mels=16,
        augment=AudioAugment(
            time_shift_seconds=0.1, mixup_ratio=0.4, crop_canvas=1.5, crop_time_scale=(0.6, 1.5),
            crop_frequency_scale=(0.6, 1.5),
        ),
    ),
    augments=published_sets(),
)  # fmt: skip


@pytest.mark.parametrize(
    "transform", ["log_mel", *(pytest.param(name, marks=pytest.mark.slow) for name in ("log_spectrogram", "processor"))]
)
def test_views_are_made_on_the_device_alone(transform, monkeypatch):
    """On "meta": what was drawn stays in host memory, where it has numbers."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know this device
    monkeypatch.setattr(CONFIG.audio, "transform", transform)
    maker, raw = ViewMaker(CONFIG, ["audio", "image", "video"]).to("meta"), raw_views()
    if transform == "processor":
        raw = {"audio": RawView("audio", raw["audio"].media, audio_params=raw["audio"].audio_params)}
    made = maker(raw, torch.device("meta"))
    assert made.keys() == raw.keys()
    assert {view.device.type for view in made.values()} == {"meta"}


def test_the_pretended_gpu_refuses_what_a_gpu_refuses(monkeypatch):
    """An operation on two devices, a generator of another device, and a value that is not there."""
    with pretended_gpu(monkeypatch) as mode:
        here, there = torch.zeros(3), mode.from_tensor(torch.zeros(3)).to(CUDA)
        with pytest.raises(RuntimeError, match="device"):
            here + there
        with pytest.raises(RuntimeError, match="a generator on cpu cannot draw on cuda"):
            torch.rand(3, generator=torch.Generator(), device=CUDA)
        assert torch.rand(3, generator=torch.Generator(CUDA), device=CUDA).device.type == "cuda"
        with pytest.raises(Exception, match="_local_scalar_dense"):
            float(there.sum())
