"""Synthetic videos for benchmarks: made from noise, and about as costly to decode as videos from the web."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data_prep.transcode.encode import MediaWriter
from data_prep.transcode.encode_settings import AudioSettings, VideoSettings

FPS, AUDIO_RATE_HZ = 30, 48_000


def natural_frames(num_frames: int, width: int, height: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Frames of a panned landscape of 1/f noise with two moving discs and grain: uint8 (height, width, 3)."""
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
    """Write a video of natural frames; a long one repeats its first 300 frames."""
    num_frames, period = round(seconds * FPS), 300
    frames = list(natural_frames(min(period, num_frames), width, height))
    write_file(path, (frames[number % period] for number in range(num_frames)), width, height, seed=1)


def write_file(path: Path, frames: Iterable[np.ndarray], width: int, height: int, seed: int) -> None:
    """Write frames with audio, a sweeping tone in noise, as videos from the web are encoded: h264 with B-frames and a
    keyframe every 250 frames, and stereo AAC at 48 kHz.
    """
    rng = np.random.default_rng(seed)
    video = VideoSettings(width, height, FPS, keyframe_interval=250, options={"crf": "23", "preset": "veryfast"})
    audio = AudioSettings(AUDIO_RATE_HZ, num_channels=2, options={"b": "128000"})
    num_samples = AUDIO_RATE_HZ // FPS  # per frame
    with MediaWriter(path, video=video, audio=audio) as writer:
        for number, frame in enumerate(frames):
            writer.write_video(frame)
            t = (number * num_samples + np.arange(num_samples)) / AUDIO_RATE_HZ
            noise = rng.standard_normal((2, num_samples))
            writer.write_audio(
                (0.2 * np.sin(2 * np.pi * (300 + 200 * np.sin(t)) * t) + 0.03 * noise).astype(np.float32)
            )
