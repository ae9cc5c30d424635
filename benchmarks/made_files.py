"""Files that cost about what videos from the web cost, made from noise: for measuring."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.transcode.encode import MediaWriter
from data_prep.transcode.encode_settings import AudioSettings, VideoSettings

FPS = 30


def natural_frames(num_frames: int, width: int, height: int, seed: int = 0) -> Iterator[np.ndarray]:
    """A panned landscape of 1/f noise, two things that move before it, and grain: uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    tall, wide = height + 64, width + 256
    scale = 1 / np.maximum(
        1, np.hypot(*np.meshgrid(np.fft.fftfreq(tall) * tall, np.fft.rfftfreq(wide) * wide, indexing="ij"))
    )
    planes = [np.fft.irfft2(np.fft.rfft2(rng.standard_normal((tall, wide))) * scale, (tall, wide)) for _ in range(3)]
    land = np.stack([128 + 45 * plane / plane.std() for plane in planes], axis=-1).astype(np.float32)
    grain = rng.standard_normal((8, height, width, 1)).astype(np.float32) * 3
    rows, columns = np.mgrid[:height, :width]
    for k in range(num_frames):
        x, y = int(128 + 120 * math.sin(k / 60)), int(32 + 30 * math.cos(k / 45))
        frame = land[y : y + height, x : x + width].copy()
        for number in range(2):
            center = (
                height * (0.5 + 0.3 * math.sin(k / 20 + number)),
                width * (0.5 + 0.3 * math.cos(k / 25 + 2 * number)),
            )
            inside = np.hypot(rows - center[0], columns - center[1]) < height / 8
            frame[inside] = frame[inside] * 0.3 + np.array([200, 60, 40] if number else [40, 90, 210], np.float32)
        yield np.clip(frame + grain[k % 8], 0, 255).astype(np.uint8)


def make_file(path: Path, seconds: float, width: int, height: int) -> None:
    """h264 with B-frames and a keyframe every 250 frames, and stereo AAC at 48 kHz, as videos come from the web."""
    rng = np.random.default_rng(1)
    video = VideoSettings(width, height, FPS, keyframe_interval=250, options={"crf": "23", "preset": "veryfast"})
    audio = AudioSettings(48_000, num_channels=2, options={"b": "128000"})
    period = 300  # after this many frames the pictures come again, for a long file
    cache: list[np.ndarray] = list(natural_frames(min(period, round(seconds * FPS)), width, height))
    with MediaWriter(path, video=video, audio=audio) as writer:
        for k in range(round(seconds * FPS)):
            writer.write_video(cache[k % period])
            t = (k * 1600 + np.arange(1600)) / 48_000
            tone = 0.2 * np.sin(2 * np.pi * (300 + 200 * np.sin(t)) * t) + 0.03 * rng.standard_normal((2, 1600))
            writer.write_audio(tone.astype(np.float32))
