"""The corpus of the loader's benchmarks: films as AVID-CMA's loader reads them, and shards made of them. Made once.

Films are 340 x 256, ten seconds, h264 with B-frames and a keyframe every 250 frames, stereo AAC. They are drawn at
twice the size and halved, as data sets bring videos from the web down to this size: the grain is that of a shrunk film.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.claims import ROOT
from benchmarks.made_files import FPS, natural_frames
from data_prep.transcode.encode import MediaWriter
from data_prep.transcode.encode_settings import AudioSettings, VideoSettings

HEIGHT_PX, WIDTH_PX, SECONDS, NUM_FILMS = 256, 340, 10, 4
FOLDER = ROOT / ".cache" / "loader_clips"


def film(path: Path, seed: int) -> None:
    """Write one."""
    video = VideoSettings(WIDTH_PX, HEIGHT_PX, FPS, keyframe_interval=250, options={"crf": "23", "preset": "veryfast"})
    audio = AudioSettings(48_000, num_channels=2, options={"b": "128000"})
    rng = np.random.default_rng(seed)
    with MediaWriter(path, video=video, audio=audio) as writer:
        for k, frame in enumerate(natural_frames(SECONDS * FPS, 2 * WIDTH_PX, 2 * HEIGHT_PX, seed)):
            halved = frame.reshape(HEIGHT_PX, 2, WIDTH_PX, 2, 3).mean((1, 3), dtype=np.float32)
            writer.write_video(halved.round().astype(np.uint8))
            t = (k * 1600 + np.arange(1600)) / 48_000
            tone = 0.2 * np.sin(2 * np.pi * (300 + 200 * np.sin(t)) * t) + 0.03 * rng.standard_normal((2, 1600))
            writer.write_audio(tone.astype(np.float32))


def prepared(folder: Path = FOLDER) -> tuple[list[Path], Path]:
    """The films, and the shards that `python -m data_prep` makes of them with its defaults: one, in any order."""
    films, shards = folder / "films", folder / "shards"
    if not (shards / "index.json").is_file():
        films.mkdir(parents=True, exist_ok=True)
        for seed in range(NUM_FILMS):
            film(films / f"{seed}.mp4", seed)
        for arguments in (
            ["index", str(films), "--out", str(folder / "films.jsonl")],
            ["write", str(folder / "films.jsonl"), "--out", str(shards), "--workers", "1"],
        ):
            subprocess.run([sys.executable, "-m", "data_prep", *arguments], cwd=ROOT, check=True)
    return sorted(films.glob("*.mp4")), shards
