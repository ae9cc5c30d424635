"""The audio of the demo corpus: eight synthesized timbres.

The timbre is the class; pitch, melody, rhythm, loudness and noise are drawn anew for every clip, from the same ranges
for every class. A `Score` (notes with onset, strength, attack, decay and pitch) drives the audio and the frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.floating[Any]]

GLIDE_SECONDS = 0.04
LOWEST_PITCH_HZ, HIGHEST_PITCH_HZ = 180.0, 420.0
MELODY_SEMITONES = 7.0


@dataclass(frozen=True)
class Score:
    """The rhythm and melody of a clip.

    onsets_seconds: (notes,), increasing. envelope: loudness, (samples,) in [0, 1]. semitones: relative to pitch_hz,
    gliding from note to note, (samples,) in [-7, 7].
    """

    rate_hz: int
    pitch_hz: float
    onsets_seconds: Signal
    envelope: Signal
    semitones: Signal

    @property
    def frequency_hz(self) -> Signal:
        """The melody in Hz, (samples,)."""
        return self.pitch_hz * 2 ** (self.semitones / 12)

    @property
    def phase(self) -> Signal:
        """The phase in radians of a tone that plays the melody, (samples,)."""
        return 2 * np.pi * np.cumsum(self.frequency_hz) / self.rate_hz

    @property
    def note_starts(self) -> list[int]:
        """The first sample of each note."""
        return [round(onset * self.rate_hz) for onset in self.onsets_seconds]


def draw_score(generator: np.random.Generator, duration_seconds: float, rate_hz: int) -> Score:
    """A random rhythm (a note every 0.25 to 0.6 s) with a random melody; the same ranges for all timbres."""
    num_samples = round(duration_seconds * rate_hz)
    num_possible = int(duration_seconds / 0.25) + 1
    onsets = np.cumsum(np.concatenate([generator.uniform(0.0, 0.3, 1), generator.uniform(0.25, 0.6, num_possible)]))
    onsets = onsets[onsets < max(duration_seconds - 0.05, 0.01)]
    if len(onsets) == 0:
        onsets = np.zeros(1)
    strengths = generator.uniform(0.45, 1.0, len(onsets))
    strengths /= strengths.max()
    attack_seconds, decay_seconds = generator.uniform(0.008, 0.05), generator.uniform(0.1, 0.3)
    seconds = np.arange(num_samples) / rate_hz
    envelope = np.zeros(num_samples)
    semitones = np.zeros(num_samples)
    for onset, strength in zip(onsets, strengths, strict=True):
        since = seconds - onset
        rising = np.clip(since / attack_seconds, 0, 1)
        falling = np.exp(-np.clip(since - attack_seconds, 0, None) / decay_seconds)
        envelope = np.maximum(envelope, strength * rising * falling)
        semitones[since >= 0] = generator.uniform(-MELODY_SEMITONES, MELODY_SEMITONES)
    first = max(round(onsets[0] * rate_hz), 0)
    semitones[:first] = semitones[min(first, num_samples - 1)]
    pitch_hz = float(np.exp(generator.uniform(np.log(LOWEST_PITCH_HZ), np.log(HIGHEST_PITCH_HZ))))
    return Score(rate_hz, pitch_hz, onsets, envelope, smooth(semitones, round(GLIDE_SECONDS * rate_hz)))


def smooth(signal: Signal, width_samples: int) -> Signal:
    """(samples,): the mean over `width_samples` around each sample; beyond its ends the signal is constant."""
    width = max(1, width_samples)
    padded = np.pad(signal, (width // 2 + 1, width - width // 2), mode="edge")
    total = np.cumsum(padded)
    return np.asarray((total[width:] - total[:-width]) / width)[: len(signal)]


def loudness(waveform: Signal, rate_hz: int, times_seconds: Signal, width_seconds: float) -> Signal:
    """Root mean square of a waveform (samples,) in a window around each of the given times: (times,)."""
    power = smooth(waveform**2, round(width_seconds * rate_hz))
    positions = np.clip(np.round(times_seconds * rate_hz).astype(int), 0, len(waveform) - 1)
    return np.asarray(np.sqrt(np.clip(power[positions], 0, None)))


def _harmonics(phase: Signal, weights: dict[float, float]) -> Signal:
    total = np.zeros_like(phase)
    for multiple, weight in weights.items():
        total += weight * np.sin(multiple * phase)
    return total


def _since_onset(score: Score) -> Signal:
    """Seconds since the current note began, (samples,)."""
    starts = np.zeros(len(score.envelope))
    for start in score.note_starts:
        starts[start:] = start
    return (np.arange(len(starts)) - starts) / score.rate_hz


def bell(score: Score, generator: np.random.Generator) -> Signal:
    """A sine with two inharmonic partials that decay within some hundredths of a second."""
    struck = np.exp(-_since_onset(score) / generator.uniform(0.03, 0.06))
    partials = _harmonics(score.phase, {2.76: 0.5, 5.4: 0.25})
    return np.asarray(np.sin(score.phase) + struck * partials)


def square(score: Score, generator: np.random.Generator) -> Signal:
    """Odd harmonics only: hollow, like a clarinet or an early computer game."""
    bend = generator.uniform(0.9, 1.1)
    return _harmonics(score.phase, {float(k): 1 / k**bend for k in range(1, 16, 2)})


def brass(score: Score, generator: np.random.Generator) -> Signal:
    """Nearly a sawtooth, whose overtones get stronger with loudness."""
    dull = _harmonics(score.phase, {1.0: 0.5, 2.0: 0.5, 3.0: 0.3})
    bend = generator.uniform(0.4, 0.6)
    bright = _harmonics(score.phase, {float(k): 1 / k**bend for k in range(2, 17)})
    return np.asarray(dull + score.envelope * bright)


def plucked(score: Score, generator: np.random.Generator) -> Signal:
    """A string by the method of Karplus and Strong: noise that goes round a loop with a weak low-pass filter."""
    output = np.zeros(len(score.envelope))
    ends = [*score.note_starts[1:], len(output)]
    for start, end in zip(score.note_starts, ends, strict=True):
        settled = min(start + round(GLIDE_SECONDS * score.rate_hz), len(output) - 1)
        period = max(2, round(score.rate_hz / score.frequency_hz[settled]))
        string = generator.uniform(-1, 1, period)
        string -= string.mean()
        for position in range(start, end, period):
            length = min(period, end - position)
            output[position : position + length] = string[:length]
            string = 0.998 * (0.5 * string + 0.5 * np.roll(string, 1))
    return output


def fm_bell(score: Score, generator: np.random.Generator) -> Signal:
    """Frequency modulation at an inharmonic ratio: metallic, and brighter when louder."""
    ratio, depth = generator.uniform(3.3, 3.7), generator.uniform(2.5, 4.0)
    return np.asarray(np.sin(2 * score.phase + depth * score.envelope * np.sin(ratio * score.phase)))


def hiss(score: Score, generator: np.random.Generator) -> Signal:
    """Noise in a band about an octave wide that moves with the melody, like a brush on a drum."""
    num_samples = len(score.envelope)
    spectrum = np.fft.rfft(generator.standard_normal(num_samples))
    frequencies = np.fft.rfftfreq(num_samples, 1 / score.rate_hz)
    low, high = (
        np.fft.irfft(spectrum * np.exp(-0.5 * ((frequencies - center) / (0.35 * center)) ** 2), num_samples)
        for center in (6 * score.pitch_hz, 14 * score.pitch_hz)
    )
    mix = (score.semitones + MELODY_SEMITONES) / (2 * MELODY_SEMITONES)
    return np.asarray((1 - mix) * low / low.std() + mix * high / high.std())


def flute(score: Score, generator: np.random.Generator) -> Signal:
    """Nearly a sine, with vibrato, a weak octave and noise of breath."""
    rate_hz, depth = generator.uniform(5, 7), generator.uniform(0.02, 0.04)
    seconds = np.arange(len(score.envelope)) / score.rate_hz
    vibrato = 2 * score.phase + depth * score.frequency_hz / rate_hz * 2 * np.sin(2 * np.pi * rate_hz * seconds)
    breath = np.diff(generator.standard_normal(len(seconds) + 1))
    return _harmonics(vibrato, {1.0: 1.0, 2.0: 0.12}) + 0.12 * breath


def bird(score: Score, generator: np.random.Generator) -> Signal:
    """Fast upward chirps, about ten per second, far above the pitch of the others."""
    chirps_hz, span = generator.uniform(9, 14), generator.uniform(1.6, 2.2)
    progress = (_since_onset(score) * chirps_hz) % 1.0
    frequency_hz = np.minimum(7 * score.frequency_hz * span**progress, 0.45 * score.rate_hz)
    gaps = np.sin(np.pi * progress) ** 0.5
    return np.asarray(gaps * np.sin(2 * np.pi * np.cumsum(frequency_hz) / score.rate_hz))


TIMBRES: dict[str, Callable[[Score, np.random.Generator], Signal]] = {
    "bell": bell,
    "square": square,
    "brass": brass,
    "plucked": plucked,
    "fm_bell": fm_bell,
    "hiss": hiss,
    "flute": flute,
    "bird": bird,
}


def synthesize(timbre: str, score: Score, generator: np.random.Generator) -> Signal:
    """The score played by a timbre (a key of TIMBRES), without noise: (samples,), peak 1."""
    played = TIMBRES[timbre](score, generator) * score.envelope
    return np.asarray(played / max(float(np.abs(played).max()), 1e-9))


def record(clean: Signal, generator: np.random.Generator) -> NDArray[np.float32]:
    """The audio as a microphone would record it: float32 (1, samples), peak -16 to -2 dB, noise 25 to 40 dB below."""
    gain = 10 ** (generator.uniform(-16, -2) / 20)
    noise = 10 ** (generator.uniform(-40, -25) / 20) / 3 * generator.standard_normal(len(clean))
    return np.asarray(np.clip(gain * (clean + noise), -1, 1), dtype=np.float32)[None]
