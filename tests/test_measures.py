"""What is measured frame by frame: shots, entropy, and a hash of sounds, against what was made and other programs."""

import numpy as np
import pytest
import scipy.signal
import scipy.stats

from data_prep.measures.frames import GRID_FPS, MAX_SAMPLES, FrameMeter, entropy_bits, image_facts, num_cuts
from data_prep.measures.near_duplicates import NO_HASH, distances
from data_prep.measures.sound_hash import SoundHasher
from tests.clips import landscape, panning


def planes(rgb):
    """yuv420p planes of an image, limited range, BT.601: uint8 (H * 3 / 2, W)."""
    red, green, blue = (rgb[..., number].astype(np.float64) for number in range(3))
    luma = 16 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255
    chroma = [
        128 + (-37.797 * red - 74.203 * green + 112 * blue) / 255,
        128 + (112 * red - 93.786 * green - 18.214 * blue) / 255,
    ]
    small = [plane.reshape(plane.shape[0] // 2, 2, plane.shape[1] // 2, 2).mean(axis=(1, 3)) for plane in chroma]
    whole = np.concatenate([luma.reshape(-1), *(plane.reshape(-1) for plane in small)])
    return np.rint(whole).astype(np.uint8).reshape(-1, rgb.shape[1])


def facts(images, still_levels=2.0):
    meter = FrameMeter(still_levels)
    for image in images:
        meter.add(planes(image))
    return meter.facts()


def shots(lengths, step=3):
    """Panning pictures, a different one in each shot."""
    return [frame for seed, length in enumerate(lengths) for frame in panning(seed, length, step)]


@pytest.mark.parametrize("lengths", [[24], [8, 16], [8, 5, 24], [6, 6, 6, 6]])
def test_hard_cuts_are_counted_and_pans_are_not(lengths):
    assert facts(shots(lengths)).num_shots == len(lengths)


def test_a_fade_and_noise_are_no_cuts_and_a_cut_within_half_a_second_is_one():
    first, second = landscape(1).astype(np.float64), landscape(2).astype(np.float64)
    fade = [(first * (1 - t) + second * t).astype(np.uint8) for t in np.linspace(0, 1, 17)]
    assert facts(fade).num_shots == 1
    noise = np.random.default_rng(0).integers(0, 256, (16, 96, 128, 3), dtype=np.uint8)
    assert facts(noise).num_shots == 1
    flash = [landscape(1)] * 8 + [np.full((96, 128, 3), 255, np.uint8)] + [landscape(1)] * 8
    assert facts(flash).num_shots == 2
    assert num_cuts(np.zeros(0)) == 0


def test_a_picture_that_is_repeated_is_still_and_a_moving_one_is_not():
    assert facts([landscape(3)] * 16).still_share == 1
    assert facts([landscape(3)] * 16).motion == 0
    assert facts(panning(3, 16)).still_share == 0
    assert facts([landscape(3)]).still_share == 1
    assert facts([landscape(3)]).motion is None
    assert facts([np.full((96, 128, 3), 70, np.uint8)] * 3).middle_hash is None


def test_brightness_and_entropy_are_those_of_the_pixels():
    black, white = np.zeros((96, 128, 3), np.uint8), np.full((96, 128, 3), 255, np.uint8)
    assert (facts([black]).brightness, facts([white]).brightness) == (0, 1)
    assert facts([white]).entropy_bits == 0
    pixels = landscape(4)[..., 1]
    expected = scipy.stats.entropy(np.unique(pixels, return_counts=True)[1], base=2)
    assert entropy_bits(pixels) == pytest.approx(expected, abs=1e-9)
    assert image_facts(pixels).entropy_bits == pytest.approx(expected, abs=1e-9)
    assert image_facts(pixels).brightness == pytest.approx(pixels.mean() / 255)


def test_the_frames_that_are_kept_do_not_grow_with_the_video():
    meter = FrameMeter(2.0)
    pictures = [planes(landscape(seed)) for seed in range(4)]
    for number in range(GRID_FPS * 1000):
        meter.add(pictures[number // 450 % 4])
        assert len(meter._sampled) <= MAX_SAMPLES
    found = meter.facts()
    assert found.num_shots == 18
    assert found.middle_hash == facts([landscape(0)]).first_hash  # frame 3968 of 8000


# --- sounds ---------------------------------------------------------------------------------------------------------


def chirps(seed, seconds=5.0, rate_hz=48000):
    """Some tones that come and go."""
    generator, time = np.random.default_rng(seed), np.arange(int(seconds * rate_hz)) / rate_hz
    sound = np.zeros_like(time)
    for _ in range(12):
        begin, hz = generator.uniform(0, 0.8 * seconds), generator.uniform(150, 3000)
        level, width = generator.uniform(0.05, 0.3), generator.uniform(0.05, 0.5)
        sound += level * np.exp(-(((time - begin) / width) ** 2)) * np.sin(2 * np.pi * hz * time)
    return sound


def sound_hash(samples, rate_hz=48000, piece=4096):
    hasher = SoundHasher(rate_hz)
    for begin in range(0, len(samples), piece):
        hasher.add(samples[begin : begin + piece].astype(np.float32))
    return hasher.hash()


def bits(first, second):
    return int(distances(np.array([first], np.uint64), np.array([second], np.uint64))[0])


@pytest.mark.slow
def test_a_sound_at_another_rate_and_loudness_keeps_its_hash_and_others_have_another():
    hashes = [sound_hash(chirps(seed)) for seed in range(6)]
    for seed in range(3):
        copy = np.rint(scipy.signal.resample_poly(chirps(seed), 1, 3) * 0.2 * 32767) / 32767
        assert bits(hashes[seed], sound_hash(copy, 16000)) <= 4
        assert sound_hash(chirps(seed), piece=1000) == hashes[seed]
    assert min(bits(hashes[a], hashes[b]) for a in range(6) for b in range(a)) > 12


def test_silence_has_no_hash():
    assert sound_hash(np.zeros(48000)) is None
    assert sound_hash(1e-4 * np.random.default_rng(0).standard_normal(48000)) is None
    assert sound_hash(np.zeros(10)) is None
    assert NO_HASH == 0
