"""Blocks of audio follow each other: rounded timestamps neither cut audio out nor put silence in."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from avssl.media.gapless_audio import mono_blocks
from avssl.media.info import AudioFrame, SkippedSamples
from tests.audio_files import whole_of, write_audio


def stream_of(name="mpegts", tick=Fraction(1, 90_000), entries=()):
    """What mono_blocks looks at."""
    entries = [SimpleNamespace(timestamp=stamp) for stamp in entries]
    return SimpleNamespace(
        time_base=tick, container=SimpleNamespace(format=SimpleNamespace(name=name)), index_entries=entries
    )


def block(num_samples, rate=44_100):
    return AudioFrame(rate, ("FC",), np.ones((1, num_samples), np.float32), True)


def mono(stamps, length, stream):
    """float32 (samples,) of blocks of ones with these stamps."""
    blocks = list(mono_blocks(((stamp, block(length)) for stamp in stamps), stream, None, "test"))
    position = blocks[0][1]
    for _, begin, samples in blocks:
        assert begin == position
        position += len(samples)
    return np.concatenate([samples for _, _, samples in blocks])


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("name", "tick", "length", "step"),
    [
        ("ac3", Fraction(1, 90_000), 1536, 3134),  # 3134.69: rounded down, as bare AC-3 and E-AC-3 are
        ("dts", Fraction(1, 90_000), 512, 1044),  # 1044.90
        ("mpegts", Fraction(1, 90_000), 1024, 2089),  # 2089.80
        ("mpeg", Fraction(1, 90_000), 1152, 2352),  # 2351.02
        ("flv", Fraction(1, 1000), 1024, 23),  # 23.22
        ("matroska,webm", Fraction(1, 1000), 1152, 26),  # 26.12
        ("asf", Fraction(1, 1000), 2048, 46),  # 46.44
    ],
)
def test_rounded_durations_add_up_to_no_gap(name, tick, length, step):
    stream, stamps = stream_of(name, tick), [number * step for number in range(20_000)]
    assert len(mono(stamps, length, stream)) == 20_000 * length
    skipped = ((stamp, SkippedSamples(length) if stamp else block(length)) for stamp in stamps)
    assert [len(samples) for _, _, samples in mono_blocks(skipped, stream, None, "test")] == [length]


@pytest.mark.parametrize(("late", "wanted"), [(900, 882), (90, 0)])  # ms, ticks of a pause; 90 ms of jitter that ends
def test_a_true_gap_is_a_pause_and_jitter_is_none(late, wanted):
    stamps = [number * 20 for number in range(50)]
    if wanted:
        stamps = [stamp + (late if number >= 25 else 0) for number, stamp in enumerate(stamps)]
    else:
        stamps = [stamp + 40 * (number % 10 == 5) for number, stamp in enumerate(stamps)]
    found = mono(stamps, 882, stream_of("flv", Fraction(1, 1000)))
    silent = (found == 0).sum()
    assert silent == (late * 44.1 if wanted else 0)
    assert len(found) - silent == 50 * 882


def test_blocks_that_are_missing_one_by_one_are_made_up_for():
    """20 ms are lost every second: less than counts as a gap, but not all of them together."""
    stamps = [number * 20 for number in range(3000) if number % 50 != 10]
    found = mono(stamps, 882, stream_of("flv", Fraction(1, 1000)))
    assert abs(len(found) - 3000 * 882) <= 0.1 * 44_100


def test_an_overlap_is_heard_once():
    stamps = [number * 20 for number in range(50)] + [number * 20 for number in range(40, 100)]
    assert len(mono(stamps, 882, stream_of("flv", Fraction(1, 1000)))) == 100 * 882


@pytest.mark.parametrize("name", ["wav", "aiff", "au", "caf", "w64", "avi"])
def test_formats_without_stamps_are_counted(name):
    found = mono([number * 5000 for number in range(50)], 2041, stream_of(name, Fraction(1, 44_100)))
    assert len(found) == 50 * 2041


def test_an_avi_of_one_chunk_a_tick_has_pauses():
    stream = stream_of("avi", Fraction(1024, 44_100), entries=(0, 1, 2))
    stamps = [number + (5 if number >= 10 else 0) for number in range(20)]
    assert len(mono(stamps, 1024, stream)) == 25 * 1024
    assert len(mono([208 * stamp for stamp in stamps], 1024, stream_of("avi", Fraction(1024, 44_100)))) == 20 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["ac3", "eac3"])
def test_minutes_of_bare_ac3_at_44100_hz_lose_no_sample(tmp_path, codec):
    path, seconds = tmp_path / f"tone.{codec}", 300
    wave = (0.3 * np.sin(2 * np.pi * 441 * np.arange(seconds * 44_100) / 44_100)).astype(np.float32)
    write_audio(path, codec, 44_100, wave, bit_rate=96_000)
    found = whole_of(path)
    assert len(found) == -(-len(wave) // 1536) * 1536
    assert (np.abs(np.diff(found)) < 0.05).all()  # the tone has no step
