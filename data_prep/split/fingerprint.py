"""What a file looks and sounds like in its first seconds, and whether two files are copies of each other.

Frames: a perceptual hash of 64 bits every quarter of a second (measures/near_duplicates.py). Sound: 16 bits every
50 ms, the signs of how the energy of 17 bands changes from band to band and from time to time (Haitsma & Kalker 2002,
"A highly robust audio fingerprinting system"). Both stay nearly the same when a file is encoded anew, scaled or cropped
by a few pixels; a copy that begins later is found by comparing at every shift.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avssl.media.decode import probe, stream_audio, stream_frames
from avssl.media.images import read_image
from avssl.media.sources import Source
from avssl.shards.opened import opened
from avssl.shards.places import Sounding
from data_prep.measures.near_duplicates import NO_HASH, Hashes, distances, perceptual_hash, small_image

SECONDS = 20.0  # from the start of each stream
FRAME_STEP_SECONDS = 0.25
RATE_HZ, WINDOW, HOP = 8000, 3200, 400  # of the sound: windows of 0.4 s every 50 ms
BAND_EDGES_HZ = np.geomspace(300.0, 2000.0, 18)
AUDIBLE = 1 << 16  # is set in the code of a window that is not silent
SILENT_POWER = 1e-6  # mean square of a window: -60 dBFS
FRAME_BITS, IMAGE_BITS = 12, 6  # in which frames of copies, or whole images, may differ
FRAME_SHARE = 0.6  # of the frames that lie on each other must be so near
SOUND_ERRORS = 0.3  # share of bits of sound in which copies may differ
LEAST_OVERLAP = 0.5  # of the shorter file
LEAST_CODES = 20  # audible windows on each other, to say anything
NUM_FRAME_KEYS, NUM_SOUND_KEYS = 16, 8
KEY_STEPS = (0, 4, 8, 12)  # windows whose codes make a key of 64 bits
KEY_BITS = 6  # in which keys of copies may differ

Codes = NDArray[np.uint32]


@dataclass(frozen=True)
class Fingerprint:
    """frames: uint64 (n,), NO_HASH for a flat frame. sound: uint32 (m,). keys: uint64 (k,), by which copies are found.

    is_image: whether it is of one image.
    """

    frames: Hashes
    sound: Codes
    keys: Hashes
    is_image: bool = False


@dataclass(frozen=True)
class FileTask:
    """A file to take the fingerprint of. file: where it lies. source: hash of the source. is_image: by the list."""

    file: Sounding
    source: int
    is_image: bool


def fingerprint(task: FileTask) -> Fingerprint:
    """The fingerprint of a file. MediaError, OSError if it cannot be read. Runs in a worker."""
    with opened(task.file) as media:
        if task.is_image:
            red, green, blue = read_image(media.media, name=media.name).numpy().astype(np.float32)
            frames = _hashes([perceptual_hash(small_image(0.299 * red + 0.587 * green + 0.114 * blue))])
            return Fingerprint(frames, np.zeros(0, np.uint32), frames[frames != NO_HASH], is_image=True)
        info = probe(media.media, name=media.name)
        frames = _hashes([] if info.video is None else list(_frame_hashes(media.media, media.name)))
        apart = media.media if media.sound is None else media.sound
        has_audio = (info if media.sound is None else probe(apart, name=media.name)).audio is not None
        sound, strengths = _sound(_waveform(apart, media.name) if has_audio else np.zeros(0, np.float32))
    return Fingerprint(frames, sound, np.concatenate([frame_keys(frames), sound_keys(sound, strengths)]))


def _hashes(values: list[int]) -> Hashes:
    return np.array(values, np.uint64)


def _frame_hashes(source: Source, name: str) -> Iterator[int]:
    """The hash of the frame on screen at every quarter of a second."""
    due, last = 0.0, None
    for shown in stream_frames(source, name=name):
        while last is not None and due < shown.seconds - 1e-3:
            yield last
            due += FRAME_STEP_SECONDS
        if due >= SECONDS:
            return
        if due < shown.seconds + max(shown.duration_seconds, 1e-3) + 1e-3:
            last = perceptual_hash(small_image(shown.frame.to_ndarray(format="gray")))
    if last is not None:
        yield last


def _waveform(source: Source, name: str) -> NDArray[np.float32]:
    """The first seconds of the sound: float32 (n,)."""
    blocks, num_samples = [], 0
    for _, block in stream_audio(source, RATE_HZ, name=name):
        blocks.append(block[0].numpy())
        num_samples += block.shape[1]
        if num_samples >= SECONDS * RATE_HZ:
            break
    return np.concatenate(blocks)[: int(SECONDS * RATE_HZ)] if blocks else np.zeros(0, np.float32)


def _sound(waveform: NDArray[np.float32]) -> tuple[Codes, NDArray[np.float64]]:
    """(codes uint32 (m,), how clear each is float64 (m,)): the least of its 16 differences, relative to their mean."""
    num_windows = (len(waveform) - WINDOW) // HOP + 1
    if num_windows < 2:
        return np.zeros(0, np.uint32), np.zeros(0)
    windows = np.lib.stride_tricks.sliding_window_view(waveform, WINDOW)[::HOP]
    powers = np.abs(np.fft.rfft(windows * np.hanning(WINDOW), axis=1)) ** 2
    edges = np.searchsorted(np.fft.rfftfreq(WINDOW, 1 / RATE_HZ), BAND_EDGES_HZ)
    energies = np.log(np.add.reduceat(powers, edges[:-1], axis=1)[:, : len(edges) - 1] + 1e-9)
    changes = np.diff(np.diff(energies, axis=1), axis=0)
    bits = (changes > 0).astype(np.uint32) @ (1 << np.arange(16, dtype=np.uint32))
    audible = (windows**2).mean(axis=1)[1:] > SILENT_POWER
    return bits.astype(np.uint32) | np.where(audible, AUDIBLE, 0).astype(np.uint32), np.abs(changes).mean(axis=1)


def frame_keys(frames: Hashes) -> Hashes:
    """The first frames that differ from the last key: uint64 (k,), at most NUM_FRAME_KEYS."""
    keys: list[int] = []
    for value in frames[frames != NO_HASH].tolist():
        if not keys or (value ^ keys[-1]).bit_count() > KEY_BITS:
            keys.append(value)
        if len(keys) == NUM_FRAME_KEYS:
            break
    return _hashes(keys)


def sound_keys(sound: Codes, strengths: NDArray[np.float64]) -> Hashes:
    """Four codes in one, where the sound changes most: uint64 (k,), at most NUM_SOUND_KEYS."""
    span = KEY_STEPS[-1]
    if len(sound) <= span:
        return np.zeros(0, np.uint64)
    columns = [slice(step, len(sound) - span + step) for step in KEY_STEPS]
    strength = np.min([np.where(sound[column] & AUDIBLE, strengths[column], 0) for column in columns], axis=0)
    keys = sum(
        (sound[column] & 0xFFFF).astype(np.uint64) << np.uint64(16 * place) for place, column in enumerate(columns)
    )
    chosen: list[int] = []
    for place in np.argsort(-strength, kind="stable").tolist():
        if strength[place] == 0 or len(chosen) == NUM_SOUND_KEYS:
            break
        if all(abs(place - other) > KEY_STEPS[1] for other in chosen):
            chosen.append(place)
    return np.asarray(keys)[chosen].astype(np.uint64)


def are_copies(first: Fingerprint, second: Fingerprint) -> bool:
    """Whether two files look and sound alike: what both have agrees, pictures, sound or both, and there is some."""
    if first.is_image or second.is_image:
        both = first.is_image and second.is_image and len(first.keys) and len(second.keys)
        return bool(both) and int(distances(first.frames, second.frames)[0]) <= IMAGE_BITS
    verdicts = [_same_frames(first.frames, second.frames), _same_sound(first.sound, second.sound)]
    known = [verdict for verdict in verdicts if verdict is not None]
    return bool(known) and all(known)


def _same_frames(first: Hashes, second: Hashes) -> bool | None:
    """Whether enough frames are near at some shift; None if there are none in one of them."""
    shown = (first != NO_HASH)[:, None] & (second != NO_HASH)
    if not shown.any():
        return None
    rows, columns = np.repeat(first, len(second)), np.tile(second, len(first))
    near = distances(rows, columns).reshape(len(first), len(second)) <= FRAME_BITS
    return _best_share(near, shown, least=1) >= FRAME_SHARE


def _same_sound(first: Codes, second: Codes) -> bool | None:
    """Whether enough bits are equal at some shift; None if one of them is silent or too short."""
    audible = (first & AUDIBLE > 0)[:, None] & (second & AUDIBLE > 0)
    if min((first & AUDIBLE > 0).sum(), (second & AUDIBLE > 0).sum()) < LEAST_CODES:
        return None
    different = np.bitwise_count((first[:, None] ^ second) & np.uint32(0xFFFF))
    return _best_share(1 - different / 16, audible, least=LEAST_CODES) >= 1 - SOUND_ERRORS


def _best_share(values: NDArray[np.generic], counted: NDArray[np.bool_], least: int) -> float:
    """The best mean of the counted values on a diagonal that covers enough of the shorter side, 0 if there is none."""
    num_rows, num_columns = values.shape
    needed = max(1, int(np.ceil(LEAST_OVERLAP * min(num_rows, num_columns))))
    best = 0.0
    for shift in range(needed - num_rows, num_columns - needed + 1):
        chosen = np.diagonal(counted, shift)
        if (count := int(chosen.sum())) >= max(least, needed // 2):
            best = max(best, float(np.diagonal(values, shift)[chosen].sum()) / count)
    return best
