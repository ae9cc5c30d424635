"""How much is decoded before a sample counts, codec by codec; and what is not decoded at all."""

from collections import Counter

import numpy as np
import pytest

from avssl.media import gapless_audio
from avssl.media.decode import read_audio
from data_prep.transcode.file import transcode
from data_prep.transcode.options import WriteOptions
from tests.audio_files import chirp, whole_of, worst_difference, write_audio

SECONDS = 7.0
STARTS = (3.1, 4.3, 5.77, 6.2)
# (codec, rate, bit rate, layout): the lowest rates keep the most of a frame in those before it.
MP3 = [(44_100, 32_000, "mono"), (48_000, 32_000, "stereo"), (22_050, 8_000, "mono"), (24_000, 8_000, "mono"),
       (24_000, 8_000, "stereo"), (11_025, 8_000, "mono"), (8_000, 8_000, "mono")]  # fmt: skip
OTHERS = [("mp2", "mp2", 44_100, 64_000), ("aac", "mp4", 44_100, 24_000), ("aac", "mp4", 8_000, 12_000),
          ("aac", "matroska", 96_000, 128_000), ("libopus", "matroska", 48_000, 6_000),
          ("libopus", "mp4", 48_000, 12_000), ("libopus", "ogg", 48_000, 96_000),
          ("flac", "flac", 44_100, None), ("alac", "mp4", 44_100, None),
          ("tta", "tta", 44_100, None), ("wavpack", "matroska", 44_100, None), ("adpcm_ima_wav", "wav", 22_050, None),
          ("adpcm_ms", "wav", 8_000, None), ("adpcm_swf", "flv", 22_050, None)]  # fmt: skip


@pytest.mark.grid(12)
@pytest.mark.quick(2)
@pytest.mark.parametrize("container", ["mp3", "mp4", "matroska", "avi", "wav"])
@pytest.mark.parametrize(("rate", "bit_rate", "layout"), MP3)
def test_mp3_from_the_middle_begins_right_at_any_bit_rate(tmp_path, container, rate, bit_rate, layout):
    if container == "mp4" and rate < 16_000:
        container = "mov"  # mp4 has no such mp3
    path = tmp_path / "audio"
    write_audio(path, "libmp3lame", rate, chirp(rate, SECONDS), container, bit_rate, layout)
    assert worst_difference(path, rate, STARTS) < 1e-5


@pytest.mark.quick(3)
@pytest.mark.parametrize(("codec", "container", "rate", "bit_rate"), OTHERS)
def test_an_excerpt_begins_as_the_whole_goes_on(tmp_path, codec, container, rate, bit_rate):
    path = tmp_path / "audio"
    options = {"aac_pns": "0"} if codec == "aac" else {}
    write_audio(path, codec, rate, chirp(rate, SECONDS), container, bit_rate, options=options)
    # Opus forgets what was before by a factor per frame, and never wholly: -46 dB of the peak at 6 kb/s.
    assert worst_difference(path, rate, STARTS) < {"libopus": 2.5e-3, "mp2": 1e-4}.get(codec, 1e-5)


def test_a_segment_of_a_corpus_begins_right_too(tmp_path):
    path = tmp_path / "talk.mp3"
    write_audio(path, "libmp3lame", 24_000, chirp(24_000, SECONDS), bit_rate=8_000)
    options = WriteOptions(audio_rate_hz=24_000, on_missing_video="keep")
    stored = transcode(str(path), options, (4.0, 5.5)).audio
    found = read_audio(stored, 0.0, 36_000, 24_000)[0].numpy()
    assert np.abs(found - whole_of(path)[4 * 24_000 :][:36_000]).max() < 1e-4  # 16 bits


@pytest.fixture
def decoded(monkeypatch):
    """{samples of a block: how many of them were decoded}."""
    found, decode_frames = Counter(), gapless_audio.decode_frames

    def counting(*arguments):
        for ticks, block in decode_frames(*arguments):
            if isinstance(block, gapless_audio.AudioFrame):
                found[block.num_samples] += 1
            yield ticks, block

    monkeypatch.setattr(gapless_audio, "decode_frames", counting)
    return found


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "adts"])
def test_only_the_pre_roll_and_the_excerpt_are_decoded(tmp_path, decoded, container):
    path = tmp_path / "audio"
    write_audio(path, "aac", 44_100, chirp(44_100, SECONDS), container)
    read_audio(path, 6.0, 2_205, 44_100)
    # some at the beginning to learn their length, four of pre-roll, 2,205 samples, and the one that jumping lands on
    assert sum(decoded.values()) <= 4 + 4 + 4 + 1


def test_flac_needs_no_pre_roll(tmp_path, decoded):
    path = tmp_path / "audio.flac"
    write_audio(path, "flac", 24_000, chirp(24_000, SECONDS))
    read_audio(path, 3.0, 24_000, 24_000)
    assert sum(decoded.values()) <= 24_000 // next(iter(decoded)) + 2
