"""Measures audio: loudness, level, peak and silence. With NumPy alone, at memory that does not grow with its length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.media.decode import stream_audio

SILENCE_BLOCK_SECONDS = 0.05
FLOOR_DBFS = -120.0  # 16 bits end at -101 dBFS; digital silence would be minus infinity
CHUNK_STEPS = 40  # steps of 100 ms that are filtered at once
LEAD_SECONDS = 0.2  # earlier samples no longer affect the K filter

# ITU-R BS.1770-4, tables 1 and 2: both stages of the K filter at 48 kHz, numerator and denominator.
K_RATE_HZ = 48_000
K_STAGES = (
    ((1.53512485958697, -2.69169618940638, 1.19839281085285), (1.0, -1.69065929318241, 0.73248077421585)),
    ((1.0, -2.0, 1.0), (1.0, -1.99004745483398, 0.99007225036621)),
)
ABSOLUTE_GATE_LUFS, RELATIVE_GATE_LU = -70.0, -10.0
STEPS_PER_BLOCK = 4  # a block of 400 ms begins every 100 ms


@dataclass(frozen=True)
class AudioFacts:
    """What was measured of audio.

    loudness_lufs: integrated, ITU-R BS.1770-4; None for less than 400 ms or nothing above its gate of -70 LUFS.
    rms_dbfs, peak_dbfs: of all samples, at least FLOOR_DBFS. silent_share: fraction of silent blocks of 50 ms, 0 to 1.
    """

    loudness_lufs: float | None
    rms_dbfs: float
    peak_dbfs: float
    silent_share: float


def decibels(power: float) -> float:
    """A power in dB of full scale, at least FLOOR_DBFS."""
    return max(FLOOR_DBFS, 10 * math.log10(power)) if power > 0 else FLOOR_DBFS


def k_response(frequencies_hz: NDArray[np.floating[Any]]) -> NDArray[np.complex128]:
    """The K filter's response at these frequencies: complex128 (n,). It is that of the standard at any sample rate.

    Above 24 kHz, where the standard ends, it is constant.
    """
    delay = np.exp(-2j * np.pi * np.minimum(frequencies_hz, K_RATE_HZ / 2) / K_RATE_HZ)
    response: NDArray[np.complex128] = np.ones_like(delay)
    for above, below in K_STAGES:
        response *= np.polyval(above[::-1], delay) / np.polyval(below[::-1], delay)
    return response


def gated_loudness(powers: NDArray[np.float64]) -> float | None:
    """Integrated loudness in LUFS of one channel; powers: (n,) K-weighted mean squares of successive 100 ms."""
    if len(powers) < STEPS_PER_BLOCK:
        return None
    blocks = np.convolve(powers, np.full(STEPS_PER_BLOCK, 1 / STEPS_PER_BLOCK), "valid")
    loudness = -0.691 + 10 * np.log10(np.maximum(blocks, 1e-30))
    loud = loudness > ABSOLUTE_GATE_LUFS
    if not loud.any():
        return None
    loud &= loudness > -0.691 + 10 * math.log10(blocks[loud].mean()) + RELATIVE_GATE_LU
    return float(-0.691 + 10 * math.log10(blocks[loud].mean()))


class AudioMeter:
    """Measures the AudioFacts of mono audio that is added piece by piece.

    silence_dbfs: a block of 50 ms with less RMS is silent.
    """

    def __init__(self, rate_hz: int, silence_dbfs: float) -> None:
        self._block = max(1, round(SILENCE_BLOCK_SECONDS * rate_hz))
        self._step = 2 * self._block
        self._silent_power = 10 ** (silence_dbfs / 10)
        self._lead = np.zeros(round(LEAD_SECONDS * rate_hz))
        self._length = len(self._lead) + CHUNK_STEPS * self._step
        self._response = k_response(np.fft.rfftfreq(self._length, 1 / rate_hz))
        self._waiting: list[NDArray[np.float32]] = []
        self._powers: list[NDArray[np.float64]] = []
        self._num_samples = self._num_blocks = self._num_silent = 0
        self._energy = self._peak = 0.0

    def add(self, samples: NDArray[np.float32]) -> None:
        """Add the next samples: float32 (n,) in [-1, 1]."""
        self._waiting.append(samples)
        if sum(map(len, self._waiting)) < CHUNK_STEPS * self._step:
            return
        together = np.concatenate(self._waiting)
        num_whole = len(together) // (CHUNK_STEPS * self._step)
        for chunk in together[: num_whole * CHUNK_STEPS * self._step].reshape(num_whole, -1):
            self._measure(chunk.astype(np.float64))
        self._waiting = [together[num_whole * CHUNK_STEPS * self._step :]]

    def facts(self) -> AudioFacts:
        """The facts of all audio that was added; to be called once. Audio shorter than a block counts as one block."""
        self._measure(np.concatenate(self._waiting or [np.zeros(0, np.float32)]).astype(np.float64))
        power = self._energy / max(1, self._num_samples)
        if self._num_blocks == 0:
            self._num_blocks, self._num_silent = 1, int(power < self._silent_power)
        return AudioFacts(
            loudness_lufs=gated_loudness(np.concatenate(self._powers)),
            rms_dbfs=decibels(power),
            peak_dbfs=decibels(self._peak**2),
            silent_share=self._num_silent / self._num_blocks,
        )

    def _measure(self, chunk: NDArray[np.float64]) -> None:
        """Measure the next samples; all chunks but the last are whole steps."""
        self._num_samples += len(chunk)
        self._energy += float(chunk @ chunk)
        self._peak = max(self._peak, float(np.abs(chunk).max(initial=0)))
        blocks = chunk[: len(chunk) // self._block * self._block].reshape(-1, self._block)
        self._num_blocks += len(blocks)
        self._num_silent += int(((blocks**2).mean(axis=1) < self._silent_power).sum())
        spectrum = np.fft.rfft(np.concatenate([self._lead, chunk]), self._length)
        weighted = np.fft.irfft(spectrum * self._response, self._length)[len(self._lead) :][: len(chunk)]
        steps = weighted[: len(chunk) // self._step * self._step].reshape(-1, self._step)
        self._powers.append((steps**2).mean(axis=1))
        self._lead = np.concatenate([self._lead, chunk])[-len(self._lead) :]


def measure_audio(content: bytes, rate_hz: int, silence_dbfs: float, name: str) -> AudioFacts:
    """The facts of a whole audio member. MediaError as `stream_audio`."""
    meter = AudioMeter(rate_hz, silence_dbfs)
    for _, block in stream_audio(content, name=name):
        meter.add(np.asarray(block[0].numpy(), dtype=np.float32))
    return meter.facts()
