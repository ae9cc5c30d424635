"""A training step of the recipe on synthetic media, whole and in parts, for the benchmarks of training.

Raw views of random images and audio replace those of the loader's workers; all that follows is the program's own: the
views on the device, encoders, heads, loss, optimizer, banks, log.
"""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from avssl import config, losses
from avssl.files.progress import Stages
from avssl.models import create_encoder
from avssl.optim.build import build_optimizer, set_schedules
from avssl.train.monitor import Monitor
from avssl.transforms.audio import draw_audio_params
from avssl.transforms.color_augment import draw_color_params
from avssl.transforms.raw_view import RawView
from avssl.transforms.view_maker import ViewMaker
from avssl.types import Batch, LossOutput, Progress


@dataclass
class Size:
    """The sizes of a step. batch_size: of one process. num_samples: rows of a bank. video, audio: encoders."""

    batch_size: int = 256
    num_samples: int = 1_780_000
    num_negatives: int = 1024
    num_frames: int = 8
    size_px: int = 112
    video: dict[str, Any] = field(default_factory=lambda: {"name": "avid_video"})
    audio: dict[str, Any] = field(default_factory=lambda: {"name": "avid_audio"})
    changes: tuple[str, ...] = ()  # further key=value of the configuration


class WholeStep:
    """AVID's training step at a size. precision: fp32 or bf16 (autocast of the networks)."""

    def __init__(self, size: Size, device: str = "cpu", precision: str = "fp32") -> None:
        self.size, self.device, self.precision = size, torch.device(device), precision
        self.folder = tempfile.TemporaryDirectory()
        changes = [
            f"run={self.folder.name}", "loss.name=avid", f"loss.num_negatives={size.num_negatives}",
            f"data.global_batch_size={size.batch_size}", f"views.video.num_frames={size.num_frames}",
            f"views.video.size_px={size.size_px}", *size.changes,
        ]  # fmt: skip
        self.cfg = config.parse(config.RunConfig, changes)
        self.views_of = ViewMaker(self.cfg.views, ["audio", "video"]).to(self.device)
        encoders = {"video": create_encoder(**size.video), "audio": create_encoder(**size.audio)}
        self.loss: Any = losses.get("avid")(self.cfg.loss, encoders, size.num_samples).to(self.device)
        self.model: torch.nn.Module = self.loss  # or DDP around it
        self.optimizer = build_optimizer(self.cfg.optim, self.loss.param_groups())
        self.progress = Progress(total_steps=1_000_000, batch=1)
        self.loss.partition.fill_(2.2)
        loader = SimpleNamespace(
            config=self.cfg.data,
            take_wait_seconds=lambda: 0.0,
            waited_seconds=0.0,
            views=[],
            steps_per_epoch=1,
            device=self.device,
        )
        accelerator = SimpleNamespace(
            is_main_process=False, sync_gradients=True, _optimizers=[self.optimizer], log_with=[]
        )
        self.monitor = Monitor(
            accelerator, self.cfg, self.progress.total_steps, loader, self.progress, Stages(shown=False)
        )
        accelerator.is_main_process = True  # it writes metrics.jsonl, without a bar
        self.raw = synthetic_views(size.batch_size, self.cfg, pin=self.device.type == "cuda")
        generator = torch.Generator().manual_seed(1)
        self.index = torch.randint(size.num_samples, (size.batch_size,), generator=generator).to(self.device)
        self.ready = self.make_views()
        self.features = {
            name: torch.randn(size.batch_size, encoder.dim, device=self.device, requires_grad=True)
            for name, encoder in encoders.items()
        }
        for parameter in self.loss.parameters():
            parameter.grad = torch.full_like(parameter, 1e-4)

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def make_views(self) -> dict[str, torch.Tensor]:
        """The views: copied to the device, augmented, audio as spectrogram."""
        return self.views_of(self.raw, self.device)

    def encode(self, rows: int | None = None) -> None:
        """Both encoders forward and backward on views that lie on the device: the first `rows` of the batch."""
        with self.autocast():
            features = [encoder(self.ready[name][:rows]) for name, encoder in self.loss.encoders.items()]
        sum(output.float().sum() for output in features).backward()

    def heads(self) -> dict[str, torch.Tensor]:
        """Unit embeddings of random features: {modality: (B, D)}."""
        with self.autocast():
            projections = {name: self.loss.projectors[name](rows) for name, rows in self.features.items()}
        return {name: normalize(rows.float(), dim=1) for name, rows in projections.items()}

    def heads_and_loss(self) -> tuple[dict[str, torch.Tensor], LossOutput]:
        """Forward from the encoders' features to the loss, and backward to the features."""
        outputs = self.heads()
        result = self.loss.loss(outputs, self.index, self.progress)
        result.total.backward()
        return outputs, result

    def optimize(self) -> None:
        """Set the learning rate and update every weight; the gradients stay for the next call."""
        set_schedules(self.optimizer, self.cfg.optim, self.progress.step, self.progress.total_steps)
        self.optimizer.step()

    def outside(self) -> None:
        """Run all of a step but the encoders' forward and backward."""
        self.make_views()
        outputs, result = self.heads_and_loss()
        self.optimize()
        self.finish(outputs, result)

    def whole(self) -> None:
        """Run a step as recipes/pretrain.py does."""
        views = self.make_views()
        with self.autocast():
            outputs = self.model(views)
        result = self.loss.loss(outputs, self.index, self.progress)
        result.total.backward()
        self.optimize()
        self.optimizer.zero_grad()
        self.finish(outputs, result)

    def finish(self, outputs: dict[str, torch.Tensor], result: LossOutput) -> None:
        """Update banks and counters, and write the log if it is due."""
        self.loss.update(outputs, self.index)
        self.progress.step += 1
        self.progress.batch += 1
        self.monitor.batch_done(Batch({}, self.index), result, self.loss, outputs)

    def close(self) -> None:
        self.folder.cleanup()

    @property
    def metrics(self) -> Path:
        return self.monitor.path


def synthetic_views(batch_size: int, cfg: config.RunConfig, *, pin: bool = False) -> dict[str, RawView]:
    """A batch as workers send it: random uint8 clips with color parameters, and waveforms with audio parameters."""
    drawn, video, audio = np.random.default_rng(0), cfg.views.video, cfg.views.audio
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, video.num_frames, 3, video.size_px, video.size_px)
    clips = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    color_params = torch.tensor([draw_color_params(drawn, video.augment, video.size_px) for _ in range(batch_size)])
    waveforms = 0.1 * torch.randn(batch_size, 1, round(audio.seconds * audio.rate_hz), generator=generator)
    audio_params = torch.tensor([draw_audio_params(drawn, audio.augment, audio.rate_hz) for _ in range(batch_size)])
    views = {
        "video": RawView("video", clips, color_params=color_params),
        "audio": RawView("audio", waveforms, audio_params=audio_params),
    }
    return {name: view.pin_memory() if pin else view for name, view in views.items()}
