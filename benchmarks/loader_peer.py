"""Loading like AVID-CMA's program, written anew for comparison: everything in the worker, frame by frame.

From the original file, PyAV seeks and decodes from the keyframe on, and frames that are needed become PIL images. PIL
applies one random resized crop, flip and color jitter to all frames of the clip; they become normalized tensors. Audio
is decoded, mixed and resampled, and a short-time Fourier transform in NumPy (framed like librosa's) makes the log
spectrogram. Each step is as fast as these libraries allow in such calls.
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
RATE_HZ, AUDIO_SECONDS, WINDOW, HOP = 24_000, 2.0, 1024, 240


def load(path: Path, video_start: float, audio_start: float, generator: np.random.Generator) -> dict[str, torch.Tensor]:
    """Float clip (3, 8, 224, 224) and spectrogram (1, 200, 257) of a file, from their starts in seconds."""
    with av.open(str(path)) as container:
        frames = decode_frames(container, video_start)
        waveform = decode_audio(container, audio_start)
    return {"video": augmented(frames, generator), "audio": log_spectrogram(waveform)}


def decode_frames(container: av.container.InputContainer, start: float) -> list[Image.Image]:
    """The frames on screen at start + k / 16."""
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    container.seek(int(start / stream.time_base), stream=stream)
    times = start + np.arange(NUM_FRAMES) / FPS
    images: list[Image.Image] = []
    for frame in container.decode(stream):
        end = frame.time + frame.duration * float(frame.time_base)
        while len(images) < NUM_FRAMES and times[len(images)] < end - 1e-6:
            images.append(frame.to_image())
        if len(images) == NUM_FRAMES:
            break
    return images


def decode_audio(container: av.container.InputContainer, start: float) -> np.ndarray:
    """The waveform from the start on: float32 (48,000,), mono."""
    stream = container.streams.audio[0]
    container.seek(int(start / stream.time_base), stream=stream)
    resampler = AudioResampler(format="flt", layout="mono", rate=RATE_HZ)
    needed, blocks, first = int(AUDIO_SECONDS * RATE_HZ), [], None
    for frame in container.decode(stream):
        first = frame.time if first is None else first
        blocks += [block.to_ndarray()[0] for block in resampler.resample(frame)]
        if sum(map(len, blocks)) >= needed + (start - first) * RATE_HZ:
            break
    skip = max(0, round((start - (first or 0.0)) * RATE_HZ))
    waveform = np.concatenate(blocks)[skip : skip + needed]
    return np.pad(waveform, (0, needed - len(waveform)))


def augmented(frames: list[Image.Image], generator: np.random.Generator) -> torch.Tensor:
    """Frames with AVID's augmentation, the same for all frames, applied by PIL: float32 (3, frames, height, width)."""
    width, height = frames[0].size
    top, left, tall, wide = random_resized_crop_box(generator, height, width, (0.08, 1.0), (3 / 4, 4 / 3))
    flips = generator.random() < 0.5
    factors = generator.uniform(0.6, 1.4, 3).tolist()
    hue = generator.uniform(-0.2, 0.2)
    order = generator.permutation(4)
    clip = []
    for frame in frames:
        box = (left, top, left + wide, top + tall)
        image = frame.resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR, box=box)
        if flips:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for step in order:
            image = shift_hue(image, hue) if step == 3 else ENHANCERS[step](image).enhance(factors[step])
        clip.append(torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255))
    video = torch.stack(clip, dim=1)
    mean, std = (torch.tensor(values)[:, None, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return video.sub_(mean).div_(std)


ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def shift_hue(image: Image.Image, turns: float) -> Image.Image:
    """The image with its hue rotated by a fraction of a turn, in HSV of 8 bits."""
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.array(hue).astype(np.int16) + round(turns * 255)).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def log_spectrogram(waveform: np.ndarray) -> torch.Tensor:
    """Spectrogram in decibels (1, 200, 257): Hann window, power, pairs of bins averaged, a range of 100 dB."""
    padded = np.pad(waveform, WINDOW // 2)
    framed = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:200]
    window = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(framed * window))).astype(np.float32)
    bins = np.concatenate([power[:, :1], power[:, 1:].reshape(len(power), -1, 2).mean(-1)], axis=1)
    decibels = 10 * np.log10(np.maximum(bins, 1e-10))
    return torch.from_numpy(np.maximum(decibels, decibels.max() - 100))[None]
