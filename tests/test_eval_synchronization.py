"""The task `synchronization` with networks that read the time of their clip from made-up videos, or cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from avssl.embedding.embedder import Embedder
from avssl.eval import tasks
from avssl.eval.outcome import Outcome
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.transcode.encode import write_media
from data_prep.transcode.options import WriteOptions
from data_prep.write.run import write_shards
from tests.labeled_runs import tiny_embedder

NUM_VIDEOS, SECONDS, FPS, RATE_HZ = 6, 3.0, 16, 24_000
SHIFT_SECONDS = 0.5


def write_videos(folder: Path, video_delay_seconds: float = 0.0) -> Path:
    """Shards of videos that get lighter while their tone rises: both tell the time.

    Frames go from black to white and a tone from 500 to 4,500 Hz, in every other video the other way round, so that
    late is not always light. The frames may be late against the audio.
    """
    (folder / "videos").mkdir(parents=True)
    for number in range(NUM_VIDEOS):
        backward = bool(number % 2)
        frames = (np.arange(round(SECONDS * FPS)) + 0.5) / FPS - video_delay_seconds
        shares = np.clip(frames / SECONDS, 0, 1)
        light = (20 + 215 * (1 - shares if backward else shares)).astype(np.uint8)
        samples = np.arange(round(SECONDS * RATE_HZ)) / RATE_HZ
        pitch = 500 + 4000 * (1 - samples / SECONDS if backward else samples / SECONDS)
        wave = 0.4 * np.sin(2 * np.pi * np.cumsum(pitch) / RATE_HZ)
        write_media(
            folder / "videos" / f"{number}.mkv",
            video=[np.full((32, 32, 3), value, np.uint8) for value in light],
            video_fps=FPS,
            audio=wave[None].astype(np.float32),
            audio_rate_hz=RATE_HZ,
            audio_codec="flac",
        )
    build_manifest(folder / "videos", folder / "videos.jsonl", IndexOptions())
    write_shards(folder / "videos.jsonl", folder / "shards", WriteOptions(short_side_px=32))
    return folder / "shards"


class Reader(nn.Module):
    """Reads a share in [0, 1] from a view and gives its point on a quarter of a circle: (B, 2)."""

    dim = 2

    def __init__(self, modality: str, share: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.modality, self.share = modality, share

    def forward(self, view: torch.Tensor) -> torch.Tensor:
        angle = self.share(view.float()).clamp(0, 1) * torch.pi / 2
        return torch.stack([angle.cos(), angle.sin()], dim=1)


def reading(shares: dict[str, Callable[[torch.Tensor], torch.Tensor]]) -> Embedder:
    """A tiny run whose networks read the time of a clip as a share of its video; the embedding is the feature."""
    embedder = tiny_embedder()
    for modality, share in shares.items():
        embedder.encoders[modality] = Reader(modality, share)
    embedder.loss.embedding = lambda modality, feature: feature  # type: ignore[method-assign, assignment]
    return embedder


def lightness(view: torch.Tensor) -> torch.Tensor:
    """Mean brightness of (B, 3, T, H, W) standardized pixels, as a share from the darkest to the lightest frame of the
    videos.
    """
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None, None]
    return ((view * std + mean).mean(dim=(1, 2, 3, 4)) * 255 - 20) / 215


def pitch(view: torch.Tensor) -> torch.Tensor:
    """The strongest frequency of (B, 1, frames, bins) log spectra: where it lies between 500 and 4,500 Hz."""
    power = 10 ** ((view[:, 0] * 20 - 40) / 10)
    bins = torch.arange(view.shape[-1], dtype=torch.float32) * RATE_HZ / 2 / view.shape[-1]
    hertz = bins[power.argmax(dim=2)].mean(dim=1)
    return (hertz - 500) / 4000


def synchronization(embedder: Embedder, shards: Path, **changes: Any) -> Outcome:
    kind = tasks.get("synchronization")
    given = {"test": str(shards), "test_clips": 2, "shift_seconds": SHIFT_SECONDS, "num_workers": 0, **changes}
    return kind.run(embedder, kind.Config(task="synchronization", **given))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("in-sync"))


@pytest.mark.slow
def test_networks_that_tell_the_time_are_nearly_always_right(videos: Path) -> None:
    repeat = synchronization(reading({"video": lightness, "audio": pitch}), videos).repeats[0]
    values = repeat.values()
    assert values["synchronization_auc"] > 0.99
    assert values["synchronization_pair_accuracy"] == 1.0
    # A shift of half a second of three is a sixth of the quarter circle: 15 degrees.
    np.testing.assert_allclose(repeat.columns["aligned"], 1.0, atol=0.005)
    np.testing.assert_allclose(repeat.columns["shifted"], np.cos(np.pi / 2 * SHIFT_SECONDS / SECONDS), atol=0.02)


@pytest.mark.slow
def test_a_video_whose_frames_are_late_by_the_shift_is_detected(tmp_path: Path) -> None:
    """The audio of half a second before fits better than the aligned audio, that of half a second after fits worse."""
    shards = write_videos(tmp_path / "late", video_delay_seconds=SHIFT_SECONDS)
    repeat = synchronization(reading({"video": lightness, "audio": pitch}), shards, test_clips=1).repeats[0]
    gap = repeat.columns["aligned"] - repeat.columns["shifted"]
    forward = np.arange(NUM_VIDEOS) % 2 == 0
    assert (gap[forward] > 0).all()
    assert (gap[~forward] < 0).all()
    assert repeat.values()["synchronization_pair_accuracy"] == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("blind", ["video", "audio"])
def test_networks_that_do_not_tell_the_time_are_at_chance_or_wrong(videos: Path, blind: str) -> None:
    shares = {"video": lightness, "audio": pitch, blind: lambda view: torch.full((len(view),), 0.5)}
    values = synchronization(reading(shares), videos).repeats[0].values()
    if blind == "audio":
        assert values["synchronization_pair_accuracy"] == 0.0, "equal cosines count as wrong"
        assert values["synchronization_auc"] == pytest.approx(0.5, abs=1e-6)
    else:
        assert values["synchronization_auc"] < 0.75
