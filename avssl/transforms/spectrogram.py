"""Spectrograms of waveforms, computed on the device, and their normalization per bin.

Shapes: waveforms float32 (B, 1, samples) in [-1, 1]; spectrograms float32 (B, 1, frames, bins) in decibels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

POWER_FLOOR = 1e-10  # -100 dB: keeps the logarithm finite, and silence becomes a constant -100 dB
STD_FLOOR = 1e-5  # added to the standard deviation when normalizing


def power_spectrum(
    waveform: torch.Tensor, window: torch.Tensor, hop_samples: int, num_frames: int | None = None
) -> torch.Tensor:
    """Squared magnitude of the centered short-time Fourier transform, with zeros outside the waveform.

    Args:
        waveform: (B, samples).
        window: (window_samples,), which is also the FFT length. The transform runs in the dtype of the window.
        hop_samples: frame k is centered on sample k * hop_samples.
        num_frames: how many frames to keep, from the first; None keeps all samples // hop_samples + 1.

    Returns (B, frames, window_samples / 2 + 1). Raises ValueError if the waveform has fewer than num_frames frames.
    """
    available = waveform.shape[-1] // hop_samples + 1
    if num_frames is not None and num_frames > available:
        raise ValueError(
            f"{num_frames} frames need at least {(num_frames - 1) * hop_samples} samples at a hop of {hop_samples}, "
            f"got {waveform.shape[-1]}; ask for at most {available} (views.audio.num_frames), or read longer audio "
            "(views.audio.seconds; it is zero-padded)"
        )
    signal, fft_samples = waveform.to(window.dtype), len(window)
    spectrum = torch.stft(
        signal, fft_samples, hop_samples, window=window, center=True, pad_mode="constant", return_complex=True
    )
    spectrum = spectrum[..., :num_frames].transpose(1, 2)
    return spectrum.real.square() + spectrum.imag.square()


def average_adjacent_bins(power: torch.Tensor, factor: int) -> torch.Tensor:
    """(..., 1 + n * factor) -> (..., 1 + n): the DC bin is kept, the others are averaged in groups of `factor`."""
    return torch.cat([power[..., :1], power[..., 1:].unflatten(-1, (-1, factor)).mean(-1)], dim=-1)


def power_to_db(power: torch.Tensor, dynamic_range_db: float) -> torch.Tensor:
    """10 log10 of the power, relative to 1, and not lower than the maximum of the clip minus `dynamic_range_db`.

    power: (B, frames, bins), not negative. Power below 1e-10 counts as 1e-10, so silence gives -100 dB everywhere.
    """
    decibels = 10 * power.clamp_min(POWER_FLOOR).log10()
    return torch.maximum(decibels, decibels.amax(dim=(-2, -1), keepdim=True) - dynamic_range_db)


class _Spectrogram(nn.Module):
    """Base class of LogSpectrogram and LogMel: checks, power spectrum and decibels.

    framing: window_samples, hop_samples, num_frames.
    """

    window: torch.Tensor
    num_bins: int

    def __init__(
        self, rate_hz: int, framing: tuple[int, int, int | None], dynamic_range_db: float, double_precision: bool
    ) -> None:
        super().__init__()
        window_samples, hop_samples, num_frames = framing
        if window_samples < 2 or window_samples % 2 or hop_samples < 1 or rate_hz < 1:
            raise ValueError(
                "a spectrogram needs a positive rate_hz, a positive even window_samples and a positive hop_samples, "
                f"got rate_hz={rate_hz}, window_samples={window_samples}, hop_samples={hop_samples}"
            )
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, or None for all frames; got {num_frames}")
        if dynamic_range_db <= 0:
            raise ValueError(f"dynamic_range_db must be positive, got {dynamic_range_db}")
        self.rate_hz, self.hop_samples = rate_hz, hop_samples
        self.num_frames, self.dynamic_range_db = num_frames, dynamic_range_db
        dtype = torch.float64 if double_precision else torch.float32
        # The window moves with the module to its device but is not saved: the arguments determine it.
        self.register_buffer("window", torch.hann_window(window_samples, dtype=dtype), persistent=False)

    def bins_of(self, power: torch.Tensor) -> torch.Tensor:
        """Combine frequencies to bins: (B, frames, window_samples / 2 + 1) -> (B, frames, num_bins)."""
        raise NotImplementedError

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """(B, 1, samples) -> (B, 1, frames, num_bins) float32 decibels, finite for every finite waveform."""
        if waveform.ndim != 3 or waveform.shape[1] != 1 or not waveform.is_floating_point():
            raise ValueError(
                "a spectrogram takes float mono waveforms of shape (B, 1, samples), "
                f"got {waveform.dtype} {tuple(waveform.shape)}"
            )
        with torch.autocast(waveform.device.type, enabled=False):
            power = power_spectrum(waveform[:, 0], self.window, self.hop_samples, self.num_frames)
            return power_to_db(self.bins_of(power).float(), self.dynamic_range_db)[:, None]


class LogSpectrogram(_Spectrogram):
    """Log power spectrogram with linear frequency, as in AVID.

    The defaults turn 2 s at 24 kHz into 200 frames (100 per second) of 257 bins: the 513 bins of a 1,024-sample
    periodic Hann window, squared, then DC and 256 averaged pairs. The small networks of the paper read
    window_samples=512, hop_samples=480, num_frames=100: 100 frames (50 per second) of 129 bins.

    Args:
        rate_hz: sampling rate of the waveforms; the transform itself does not depend on it.
        window_samples, hop_samples: length of the window and the FFT (even); distance of two frames.
        num_frames: how many frames to keep, from the first; None keeps all.
        bins_averaged: how many adjacent frequencies are averaged to one bin (DC stays alone); divides
            window_samples / 2.
        dynamic_range_db: values are not lower than the clip's maximum minus this.
        double_precision: Fourier transform in float64. In float32 it takes about half the time on a CPU, with errors of
            up to 0.03 dB in bins near the floor. Devices without float64 need False.

    >>> LogSpectrogram()(torch.randn(2, 1, 48_000)).shape
    torch.Size([2, 1, 200, 257])
    """

    def __init__(
        self,
        *,
        rate_hz: int = 24_000,
        window_samples: int = 1024,
        hop_samples: int = 240,
        num_frames: int | None = 200,
        bins_averaged: int = 2,
        dynamic_range_db: float = 100.0,
        double_precision: bool = True,
    ) -> None:
        super().__init__(rate_hz, (window_samples, hop_samples, num_frames), dynamic_range_db, double_precision)
        if bins_averaged < 1 or (window_samples // 2) % bins_averaged:
            raise ValueError(
                f"bins_averaged must divide window_samples / 2 = {window_samples // 2}, got {bins_averaged}"
            )
        self.bins_averaged = bins_averaged
        self.num_bins = 1 + window_samples // 2 // bins_averaged

    def bins_of(self, power: torch.Tensor) -> torch.Tensor:
        """(B, frames, window_samples / 2 + 1) -> (B, frames, num_bins)."""
        return average_adjacent_bins(power, self.bins_averaged)


class LogMel(_Spectrogram):
    """Log mel spectrogram: triangular filters on the HTK mel scale, peak 1 (torchaudio's defaults).

    The arguments are those of LogSpectrogram, but instead of bins_averaged: num_bins, the number of filters; low_hz and
    high_hz, the outer edges of the filters, where None is half the rate. Raises ValueError if a filter would lie
    between two frequencies of the FFT and be empty.

    >>> LogMel(num_bins=64)(torch.randn(2, 1, 48_000)).shape
    torch.Size([2, 1, 200, 64])
    """

    filters: torch.Tensor

    def __init__(
        self,
        *,
        rate_hz: int = 24_000,
        window_samples: int = 1024,
        hop_samples: int = 240,
        num_frames: int | None = 200,
        num_bins: int = 80,
        low_hz: float = 0.0,
        high_hz: float | None = None,
        dynamic_range_db: float = 100.0,
        double_precision: bool = True,
    ) -> None:
        super().__init__(rate_hz, (window_samples, hop_samples, num_frames), dynamic_range_db, double_precision)
        from torchaudio.functional import melscale_fbanks

        high_hz = rate_hz / 2 if high_hz is None else high_hz
        if num_bins < 1 or not 0 <= low_hz < high_hz <= rate_hz / 2:
            raise ValueError(
                f"mel filters need num_bins >= 1 and 0 <= low_hz < high_hz <= {rate_hz / 2} (half the rate), "
                f"got num_bins={num_bins}, low_hz={low_hz}, high_hz={high_hz}"
            )
        self.num_bins = num_bins
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # empty filters raise ValueError below
            filters = melscale_fbanks(window_samples // 2 + 1, low_hz, high_hz, num_bins, rate_hz)
        empty = int((filters.amax(dim=0) == 0).sum())
        if empty:
            raise ValueError(
                f"{empty} of {num_bins} mel filters between {low_hz} and {high_hz} Hz would be empty with "
                f"window_samples={window_samples}: use fewer filters or a longer window"
            )
        self.register_buffer("filters", filters.to(self.window.dtype), persistent=False)

    def bins_of(self, power: torch.Tensor) -> torch.Tensor:
        """(B, frames, window_samples / 2 + 1) -> (B, frames, num_bins)."""
        return power @ self.filters


class BinStatistics:
    """Mean and standard deviation of every bin over all frames of the batches added so far, in float64.

    Merging (Chan's parallel form of Welford's recurrence) stays accurate where sums of squares would cancel. `pack`
    turns the state into one tensor to gather and `unpack` reads it; merging in the same order gives all ranks the same
    bits.
    """

    def __init__(self, num_bins: int) -> None:
        self.count = 0
        self.mean = torch.zeros(num_bins, dtype=torch.float64)
        self.sum_squares = torch.zeros(num_bins, dtype=torch.float64)  # of deviations from the mean

    def update(self, spectrogram: torch.Tensor) -> None:
        """Add a batch (..., frames, bins). Raises ValueError for another number of bins or for non-finite values."""
        if spectrogram.shape[-1] != len(self.mean):
            raise ValueError(f"expected {len(self.mean)} bins in the last axis, got {tuple(spectrogram.shape)}")
        frames = spectrogram.detach().cpu().double().flatten(0, -2)
        if not frames.isfinite().all():
            raise ValueError("the spectrogram holds NaN or infinite values; its waveform must be finite")
        batch = BinStatistics(len(self.mean))
        batch.count, batch.mean = len(frames), frames.mean(dim=0)
        batch.sum_squares = (frames - batch.mean).square().sum(dim=0)
        self.merge(batch)

    def merge(self, other: BinStatistics) -> None:
        """Add all frames of `other`."""
        if len(other.mean) != len(self.mean):
            raise ValueError(f"cannot merge statistics of {len(other.mean)} bins into those of {len(self.mean)}")
        total = self.count + other.count
        if other.count == 0:
            return
        delta = other.mean - self.mean
        self.mean = self.mean + delta * (other.count / total)
        self.sum_squares = self.sum_squares + other.sum_squares + delta.square() * (self.count * other.count / total)
        self.count = total

    @property
    def std(self) -> torch.Tensor:
        """Population standard deviation, float64 (bins,). Raises ValueError before any update."""
        if self.count == 0:
            raise ValueError("no spectrogram has been seen yet: call update first")
        return (self.sum_squares / self.count).sqrt()

    def pack(self) -> torch.Tensor:
        """The state as one float64 tensor (1 + 2 * bins,): count, mean, sum of squared deviations."""
        return torch.cat([torch.tensor([self.count], dtype=torch.float64), self.mean, self.sum_squares])

    @staticmethod
    def unpack(packed: Iterable[torch.Tensor]) -> BinStatistics:
        """Merge packed states in their order. Raises ValueError if there are none."""
        states = list(packed)
        if not states:
            raise ValueError("no packed statistics were given")
        merged = BinStatistics((len(states[0]) - 1) // 2)
        for state in states:
            statistics = BinStatistics((len(state) - 1) // 2)
            statistics.count = int(state[0])
            statistics.mean, statistics.sum_squares = state[1:].cpu().double().chunk(2)
            merged.merge(statistics)
        return merged


class BinNormalize(nn.Module):
    """(x - mean) / (std + 1e-5) for each bin of spectrograms (B, 1, frames, bins).

    mean and std, (bins,) float32, are persistent buffers, because they belong to the run. They start as 0 and 1.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, num_bins: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_bins))
        self.register_buffer("std", torch.ones(num_bins))

    def set_statistics(self, statistics: BinStatistics) -> None:
        """Copy mean and standard deviation. Raises ValueError for another number of bins."""
        if statistics.mean.shape != self.mean.shape:
            raise ValueError(f"expected statistics of {len(self.mean)} bins, got {len(statistics.mean)}")
        self.mean.copy_(statistics.mean)
        self.std.copy_(statistics.std)

    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
        """Normalize spectrograms (B, 1, frames, bins): float32 of the same shape."""
        return (spectrogram - self.mean) / (self.std + STD_FLOOR)


class UnmeasuredStatistics(BinNormalize):
    """Replaces the normalization of a run without statistics, and raises an error that says how to measure them."""

    def __init__(self, num_bins: int, run: str | Path) -> None:
        super().__init__(num_bins)
        self.run = run

    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:  # noqa: ARG002  (the contract)
        """Raise ValueError with the command that measures the statistics."""
        raise ValueError(
            f"{self.run} has no statistics of its spectrograms (a published checkpoint holds none), so its audio "
            "cannot be normalized as in training. Measure them once: "
            f"avssl exchange statistics {self.run} SHARDS"
        )
