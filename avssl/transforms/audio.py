"""Random changes of audio: their configuration, how a worker draws them and how the device applies them to a batch.

A worker draws the parameters with `draw_audio_params` from a generator that the caller seeds; the functions for the
device take one number per sample and draw nothing. They run in this order: time shift and volume on the waveform, mixup
on the decibels, crop on the normalized spectrogram.

BYOL-A (Niizumi et al. 2021, arXiv 2103.06695) as YAML. Its 60 to 7800 Hz are 0 to 8000 Hz here, and its normalization
of each batch after the augmentations is left out:

    views:
      audio:
        {seconds: 0.95, rate_hz: 16000, transform: log_mel, num_mels: 64, window_samples: 1024, hop_samples: 160,
         num_frames: 96, augment: {volume_low: 1.0, volume_high: 1.0, mixup_ratio: 0.4, crop_canvas: 1.5,
         crop_time_scale: [0.6, 1.5], crop_frequency_scale: [0.6, 1.5]}}
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:  # the configuration imports this file, and `--help` does without torch
    import numpy as np
    import torch

T = TypeVar("T")
NEPERS_PER_DB = log(10) / 10  # of power


@dataclass(frozen=True)
class AudioAugment:
    """Random changes of the training audio. The defaults are AVID's, which changes only the volume.

    mixup_ratio: the power of another sample is mixed in with a ratio uniform in [0, mixup_ratio]; this decodes one more
    clip per sample, chosen by the sample's own generator. The crop is a rectangle of the spectrogram, resized to the
    full size; its length and height are uniform fractions of the frames and bins. It is cut from a canvas that is
    crop_canvas times as long as the spectrogram and holds the average (0) outside it. Along the bins the canvas is no
    larger than the spectrogram, so a fraction above 1 counts as 1.

    >>> AudioAugment(mixup_ratio=0.4).volume_low
    0.9
    """

    volume_low: float = 0.9  # the waveform's factor is uniform in [volume_low, volume_high]
    volume_high: float = 1.1
    time_shift_seconds: float = 0.0  # largest circular shift, in both directions
    mixup_ratio: float = 0.0  # largest fraction of another sample's power
    crop_time_scale: tuple[float, float] = (1.0, 1.0)  # fraction of the frames; above 1 it needs crop_canvas
    crop_frequency_scale: tuple[float, float] = (1.0, 1.0)  # fraction of the bins
    crop_canvas: float = 1.0  # length of the canvas, in lengths of the spectrogram
    operation: str = ""  # an augment of your own (docs/plugins.md) on the waveform, before all else

    def __post_init__(self) -> None:
        if not 0 <= self.volume_low <= self.volume_high:
            raise ValueError(f"volume range must be 0 <= low <= high, got [{self.volume_low}, {self.volume_high}]")
        if self.time_shift_seconds < 0:
            raise ValueError(f"time_shift_seconds must not be negative, got {self.time_shift_seconds}")
        if not 0 <= self.mixup_ratio < 1:
            raise ValueError(f"mixup_ratio must be in [0, 1), got {self.mixup_ratio}")
        for name in ("crop_time_scale", "crop_frequency_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be 0 < low <= high, got {(low, high)}")
        if self.crop_canvas < 1 or self.crop_time_scale[0] > self.crop_canvas:
            raise ValueError(
                "crop_canvas must be at least 1 and at least the lowest crop_time_scale, "
                f"got {self.crop_canvas} and {self.crop_time_scale}"
            )

    @property
    def crops(self) -> bool:
        """Whether a crop other than the whole spectrogram is possible."""
        return self.crop_canvas != 1 or (*self.crop_time_scale, *self.crop_frequency_scale) != (1, 1, 1, 1)

    @property
    def of_spectrograms(self) -> list[str]:
        """The names of the keys that are set and change the spectrogram, not the waveform."""
        ranges = [name for name in ("crop_time_scale", "crop_frequency_scale") if tuple(getattr(self, name)) != (1, 1)]
        off = {"mixup_ratio": 0, "crop_canvas": 1}
        return [name for name, value in off.items() if getattr(self, name) != value] + ranges


class AudioParams(NamedTuple, Generic[T]):
    """The parameters drawn for one audio clip, floats; for a batch the columns of one tensor, as with ColorParams."""

    volume: T  # factor
    shift_samples: T  # a whole number, positive towards later; 0 is off
    mixup_ratio: T  # fraction of the background's power; 0 is off
    time_start: T  # of the crop, in lengths of the spectrogram, from its beginning; may be negative
    time_scale: T
    frequency_start: T
    frequency_scale: T


FULL_CROP = (0.0, 1.0, 0.0, 1.0)  # the crop that changes nothing


def draw_audio_params(generator: np.random.Generator, augment: AudioAugment, rate_hz: int) -> AudioParams[float]:
    """Draw the parameters of one audio clip, without the background. An operation that is off takes no draw."""
    volume = float(generator.uniform(augment.volume_low, augment.volume_high))
    shift = ratio = 0.0
    if augment.time_shift_seconds > 0:
        longest = round(augment.time_shift_seconds * rate_hz)
        shift = float(generator.integers(-longest, longest + 1))
    if augment.mixup_ratio > 0:
        ratio = float(generator.uniform(0, augment.mixup_ratio))
    crop = FULL_CROP
    if augment.crops:
        time = _draw_interval(generator, augment.crop_time_scale, augment.crop_canvas)
        crop = (*time, *_draw_interval(generator, augment.crop_frequency_scale, 1.0))
    return AudioParams(volume, shift, ratio, *crop)


def _draw_interval(generator: np.random.Generator, scale: tuple[float, float], canvas: float) -> tuple[float, float]:
    """(start, length) of an interval on a canvas that extends beyond [0, 1] equally far on both sides."""
    length = min(float(generator.uniform(*scale)), canvas)
    return float(generator.uniform(0, canvas - length)) - (canvas - 1) / 2, length


def scale_volume(waveform: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Multiply each waveform of (B, C, samples) by its own factor (B,). The result is not clipped to [-1, 1]."""
    if factor.shape != waveform.shape[:1]:
        raise ValueError(f"one volume factor per sample: expected shape {(len(waveform),)}, got {tuple(factor.shape)}")
    return waveform * factor.to(waveform)[:, None, None]


def shift_time(waveform: torch.Tensor, shift_samples: torch.Tensor) -> torch.Tensor:
    """Shift each waveform of (B, C, samples) circularly by its own whole number of samples (B,), later if positive.

    NaN at the end of a waveform, which stands for what lies beyond its stream, stays there.
    """
    import torch

    positions = torch.arange(waveform.shape[-1], device=waveform.device)
    length = num_samples(waveform)[:, None]
    shifted = (positions - shift_samples.to(waveform.device).long()[:, None]).remainder_(length)
    indices = torch.where(positions < length, shifted, positions)
    return waveform.gather(2, indices[:, None].expand_as(waveform))


def num_samples(waveform: torch.Tensor) -> torch.Tensor:
    """int64 (B,): how many samples of (B, C, samples) come before the NaN at the end; all of one of NaN alone."""
    import torch

    positions = torch.arange(1, waveform.shape[-1] + 1, device=waveform.device)
    last = (positions * ~waveform[:, 0].isnan()).amax(dim=1)
    return torch.where(last > 0, last, waveform.shape[-1])


def mix_power(decibels: torch.Tensor, background_db: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    """Decibels of the power (1 - ratio) * foreground + ratio * background; ratio: (B,) in [0, 1).

    Spectrograms are (B, 1, frames, bins). BYOL-A mixes the exponentials of its normalized logarithms instead of powers.
    """
    import torch

    ratio = ratio.to(decibels)[:, None, None, None]
    foreground = decibels * NEPERS_PER_DB + torch.log1p(-ratio)
    background = background_db * NEPERS_PER_DB + torch.log(ratio)
    # Written out: the last bits of torch.logaddexp depend on where a thread's part of the tensor ends.
    difference = (foreground - background).abs_().neg_()
    return torch.maximum(foreground, background).add_(difference.exp_().log1p_()) / NEPERS_PER_DB


def crop_spectrogram(spectrogram: torch.Tensor, crop: AudioParams[torch.Tensor]) -> torch.Tensor:
    """Resize a crop of each spectrogram of (B, 1, frames, bins) to the full size, bicubic; 0 outside the spectrogram.

    crop: the time_ and frequency_ fields, (B,). This is BYOL-A's RandomResizeCrop, but the crop may begin between two
    frames, and the interpolation also reads the neighborhood of the crop.
    """
    import torch

    zero = torch.zeros_like(crop.time_start)
    # Positions run from -1 to 1 between the outer edges, in the output and in the input.
    frequency = torch.stack([crop.frequency_scale, zero, 2 * crop.frequency_start + crop.frequency_scale - 1], dim=1)
    time = torch.stack([zero, crop.time_scale, 2 * crop.time_start + crop.time_scale - 1], dim=1)
    affine = torch.stack([frequency, time], dim=1).to(spectrogram)
    grid = torch.nn.functional.affine_grid(affine, list(spectrogram.shape), align_corners=False)
    return torch.nn.functional.grid_sample(spectrogram, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
