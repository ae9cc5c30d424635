"""Loading as AVID-CMA's program does it, written anew for comparison: everything in the worker, frame by frame.

From the original file: PyAV seeks, decodes from the keyframe on, and what is needed becomes pictures of PIL; one random
resized crop, flip and color jitter for all frames of the clip, done on each by PIL; tensors in [0, 1], normalized. The
sound is decoded, mixed and resampled, and a short-time Fourier transform in NumPy (framed as librosa frames it) makes
the log spectrogram. Each step is as quick as these libraries allow when called so.
"""

# ruff: noqa: TID251 - PyAV called as a loader of one's own would call it
from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import torch
from av.audio.resampler import AudioResampler
from PIL import Image, ImageEnhance

from avssl.transforms.crop import random_resized_crop_box
from avssl.transforms.frame_tensors import IMAGENET_MEAN, IMAGENET_STD

NUM_FRAMES, FPS, SIZE_PX = 8, 16, 224
RATE_HZ, SOUND_SECONDS, WINDOW, HOP = 24_000, 2.0, 1024, 240


def load(path: Path, video_start: float, audio_start: float, generator: np.random.Generator) -> dict[str, torch.Tensor]:
    """Float clip (3, 8, 224, 224) and spectrogram (1, 200, 257)."""
    with av.open(str(path)) as container:
        frames = decode_frames(container, video_start)
        waveform = decode_sound(container, audio_start)
    return {"video": augmented(frames, generator), "audio": log_spectrogram(waveform)}


def decode_frames(container: av.container.InputContainer, start: float) -> list[Image.Image]:
    """The frames on screen at start + k / 16."""
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    container.seek(int(start / stream.time_base), stream=stream)
    wanted = start + np.arange(NUM_FRAMES) / FPS
    found: list[Image.Image] = []
    for frame in container.decode(stream):
        end = frame.time + frame.duration * float(frame.time_base)
        while len(found) < NUM_FRAMES and wanted[len(found)] < end - 1e-6:
            found.append(frame.to_image())
        if len(found) == NUM_FRAMES:
            break
    return found


def decode_sound(container: av.container.InputContainer, start: float) -> np.ndarray:
    """float32 (48,000,) mono."""
    stream = container.streams.audio[0]
    container.seek(int(start / stream.time_base), stream=stream)
    resampler = AudioResampler(format="flt", layout="mono", rate=RATE_HZ)
    needed, pieces, first = int(SOUND_SECONDS * RATE_HZ), [], None
    for frame in container.decode(stream):
        first = frame.time if first is None else first
        pieces += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
        if sum(map(len, pieces)) >= needed + (start - first) * RATE_HZ:
            break
    skip = max(0, round((start - (first or 0.0)) * RATE_HZ))
    waveform = np.concatenate(pieces)[skip : skip + needed]
    return np.pad(waveform, (0, needed - len(waveform)))


def augmented(frames: list[Image.Image], generator: np.random.Generator) -> torch.Tensor:
    """AVID's augmentation: the same for all frames, each by PIL."""
    width, height = frames[0].size
    top, left, tall, wide = random_resized_crop_box(generator, height, width, (0.08, 1.0), (3 / 4, 4 / 3))
    flips = generator.random() < 0.5
    factors = generator.uniform(0.6, 1.4, 3).tolist()
    hue = generator.uniform(-0.2, 0.2)
    order = generator.permutation(4)
    clip = []
    for frame in frames:
        box = (left, top, left + wide, top + tall)
        picture = frame.resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR, box=box)
        if flips:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for step in order:
            picture = shift_hue(picture, hue) if step == 3 else ENHANCERS[step](picture).enhance(factors[step])
        clip.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div_(255))
    video = torch.stack(clip, dim=1)
    mean, std = (torch.tensor(values)[:, None, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return video.sub_(mean).div_(std)


ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def shift_hue(picture: Image.Image, turns: float) -> Image.Image:
    """By HSV of 8 bits."""
    hue, saturation, value = picture.convert("HSV").split()
    turned = (np.array(hue).astype(np.int16) + round(turns * 255)).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def log_spectrogram(waveform: np.ndarray) -> torch.Tensor:
    """(1, 200, 257) decibels: Hann window, power, pairs of bins averaged, 100 dB of range."""
    padded = np.pad(waveform, WINDOW // 2)
    framed = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:200]
    window = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(framed * window))).astype(np.float32)
    bins = np.concatenate([power[:, :1], power[:, 1:].reshape(len(power), -1, 2).mean(-1)], axis=1)
    decibels = 10 * np.log10(np.maximum(bins, 1e-10))
    return torch.from_numpy(np.maximum(decibels, decibels.max() - 100))[None]
