"""Audio whose length FFmpeg guesses from its first packets lasts as long as what is in it."""

from contextlib import closing

import numpy as np
import pytest

from avssl.embedding.media import open_media
from avssl.media.decode import probe
from avssl.shards.manifest import stream_manifest
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.index.cutting import Cutting
from tests.audio_files import write_audio

RATE_HZ, SECONDS = 44_100, 8
VARIABLE = {"flags": "+qscale", "global_quality": str(118 * 4)}
FILES = {  # suffix, container, codec, the encoder's options
    "mp3": ("mp3", "libmp3lame", VARIABLE),
    "aac": ("adts", "aac", {}),
    "wav": ("wav", "flac", {}),
}


def half_silent(path, container_format, codec, options):
    """Silence takes few bytes, noise many."""
    wave = 0.3 * np.random.default_rng(0).standard_normal(SECONDS * RATE_HZ).astype(np.float32)
    wave[: len(wave) // 2] = 0
    write_audio(path, codec, RATE_HZ, wave, container_format, options=options)
    if container_format == "mp3":  # without the frame that counts the others
        content = path.read_bytes()
        begin = 10 + sum((content[6 + k] & 0x7F) << 21 - 7 * k for k in range(4)) if content[:3] == b"ID3" else 0
        following = content.index(content[begin : begin + 2], begin + 100)
        path.write_bytes(content[following:])


@pytest.mark.quick(1)
@pytest.mark.parametrize("suffix", FILES)
def test_a_length_that_is_guessed_is_no_claim(tmp_path, suffix):
    path = tmp_path / f"audio.{suffix}"
    half_silent(path, *FILES[suffix])
    info = probe(path)
    assert info.duration_seconds is None
    assert info.audio.duration_seconds is None
    with closing(open_media(path, "audio", ("audio",))) as media:
        assert media.spans["audio"].end_seconds == pytest.approx(SECONDS, abs=0.1)
    build_manifest(tmp_path, tmp_path / "clips.jsonl", IndexOptions(cutting=Cutting(clip_seconds=2)))
    entries = list(stream_manifest(tmp_path / "clips.jsonl"))
    assert [entry.segment for entry in entries] == [(0, 2), (2, 4), (4, 6), (6, 8)]


def test_a_header_that_counts_the_frames_is_believed(tmp_path):
    path = tmp_path / "audio.mp3"
    write_audio(path, "libmp3lame", RATE_HZ, np.zeros(SECONDS * RATE_HZ, np.float32), "mp3", options=VARIABLE)
    assert probe(path).audio.duration_seconds == pytest.approx(SECONDS, abs=0.1)
