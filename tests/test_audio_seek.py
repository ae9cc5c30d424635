"""Audio from the middle of a file is that of those seconds, whatever container and codec."""

import io
import struct
from types import SimpleNamespace

import numpy as np
import pytest

from avssl.media import decode, gapless_audio
from avssl.media.decode import read_audio
from avssl.media.readers import AudioReader
from avssl.types import MediaError
from data_prep.transcode.encode import write_media
from tests.audio_files import chirp, whole_of, worst_difference, write_audio

STARTS = (0.9, 2.37, 4.61, 5.4, 5.9)  # the last one lies in a last packet that is shorter than the others
SECONDS = 6.0
BIT_RATES = {"libmp3lame": 32_000, "libopencore_amrnb": 12_200, "wmav2": 64_000, "wmav1": 64_000}
RATES = {"libopus": 48_000, "libopencore_amrnb": 8_000, "nellymoser": 22_050, "g722": 16_000, "g726": 8_000,
         "pcm_alaw": 8_000, "pcm_mulaw": 8_000}  # fmt: skip
CASES = {
    "wav": "pcm_s16le pcm_s24le pcm_f32le pcm_alaw adpcm_ima_wav adpcm_ms adpcm_yamaha g722 g726 libmp3lame wmav2",
    "w64": "pcm_s16le pcm_mulaw adpcm_ms",
    "aiff": "pcm_s16be pcm_alaw adpcm_ima_qt",
    "au": "pcm_s16be pcm_mulaw g722",
    "caf": "pcm_s16le adpcm_ima_wav adpcm_ima_qt alac libmp3lame libopencore_amrnb",
    "avi": "pcm_s16le adpcm_ms libmp3lame aac ac3 eac3 g726",
    "matroska": "pcm_s16le aac libmp3lame ac3 flac libopus alac tta wavpack",
    "flv": "aac libmp3lame nellymoser adpcm_swf",
    "mpegts": "aac mp2 libmp3lame ac3 libopus",
    "mpeg": "mp2 libmp3lame ac3",
    "asf": "wmav1 wmav2 libmp3lame",
    "ogg": "libopus flac",
    "mp4": "aac libmp3lame ac3 alac flac libopus",
    "mov": "pcm_s16le adpcm_ima_qt nellymoser",
    "3gp": "libopencore_amrnb",
    "adts": "aac", "mp3": "libmp3lame", "ac3": "ac3", "eac3": "eac3", "amr": "libopencore_amrnb", "tta": "tta",
    "wv": "wavpack", "flac": "flac",
}  # fmt: skip


@pytest.mark.grid(24)
@pytest.mark.quick(4)
@pytest.mark.parametrize(("container", "codec"), [(name, codec) for name in CASES for codec in CASES[name].split()])
def test_an_excerpt_is_that_piece_of_the_whole(tmp_path, container, codec):
    path, rate = tmp_path / "audio", RATES.get(codec, 44_100)
    options = {"aac_pns": "0"} if codec == "aac" else {}  # such noise is the decoder's own, another one each time
    write_audio(path, codec, rate, chirp(rate, SECONDS), container, BIT_RATES.get(codec), options=options)
    assert abs(len(whole_of(path)) / rate - SECONDS) < 0.15
    assert worst_difference(path, rate, STARTS) < 2e-3  # what opus remembers of before


@pytest.mark.quick(3)
@pytest.mark.parametrize("share", [0.4, 3.0])
@pytest.mark.parametrize("codec", ["pcm_s16le", "adpcm_ima_wav", "adpcm_ms", "libmp3lame"])
def test_a_wav_whose_bytes_a_second_are_not_true_is_heard_at_its_own_pace(tmp_path, codec, share):
    path = tmp_path / "untrue.wav"
    write_audio(path, codec, 44_100, chirp(44_100, SECONDS), bit_rate=BIT_RATES.get(codec))
    right = whole_of(path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, 28, round(struct.unpack_from("<I", content, 28)[0] * share))
    path.write_bytes(content)
    assert np.array_equal(whole_of(path), right)
    assert worst_difference(path, 44_100, STARTS) < 1e-4


def test_a_transport_stream_whose_clock_begins_anew_is_cut_in_the_right_place(tmp_path):
    path, parts = tmp_path / "joined.ts", b""
    for seed in (0, 1):
        write_audio(path, "mp2", 48_000, chirp(48_000, 4.0, seed), "mpegts")
        parts += path.read_bytes()
    path.write_bytes(parts)
    assert len(whole_of(path)) == pytest.approx(8 * 48_000, abs=4_000)
    assert worst_difference(path, 48_000, (1.0, 3.0, 5.0, 7.0)) < 1e-3


def test_unknown_codecs_are_decoded_from_the_beginning():
    assert gapless_audio.preroll_of("adpcm_yamaha") is None
    assert gapless_audio.preroll_of("pcm_s16le_planar") == gapless_audio.NO_PREROLL
    assert gapless_audio.preroll_of("pcm_bluray") is None


def skipped_packets(durations, lengths, first, codec="aac"):
    """(how many of these packets are not decoded, how often the decoder was flushed)."""
    flushed = []
    context = SimpleNamespace(codec=SimpleNamespace(canonical_name=codec), flush_buffers=lambda: flushed.append(1))
    skipper = gapless_audio.PacketSkipper(SimpleNamespace(codec_context=context))
    skipper.first, skipper.position, count = first, 0, 0
    for duration, length in zip(durations, lengths, strict=True):
        packet = SimpleNamespace(duration=duration, size=100)
        if num_samples := skipper.samples_to_skip(packet):
            assert num_samples == length
            count += 1
        else:
            skipper.learn(packet, length)
        skipper.position += length
    return count, len(flushed)


def test_packets_are_skipped_once_two_alike_were_decoded():
    assert skipped_packets([23] * 100, [1024] * 100, 99 * 1024) == (93, 1)  # two, the 4 frames of pre-roll, the last
    assert skipped_packets([23] * 100, [47] + [1024] * 99, 98 * 1024)[0] == 91
    assert skipped_packets([23] * 100, [1024] * 100, 0) == (0, 0)
    assert skipped_packets([23] * 100, [1024] * 100, 99 * 1024, "vorbis") == (0, 0)


def test_an_ogg_that_goes_on_in_the_same_layout_is_one_stream(tmp_path):
    path, content = tmp_path / "chained.ogg", b""
    for seed in (0, 1):
        write_audio(path, "libopus", 48_000, chirp(48_000, 3.0, seed))
        content += path.read_bytes()
    path.write_bytes(content)
    assert len(whole_of(path)) == 6 * 48_000
    assert worst_difference(path, 48_000, (1.0, 2.9, 4.0)) < 2e-3


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("name", "first", "second", "words"),
    [
        ("a.ogg", ("libopus", 48_000, "mono"), ("libopus", 48_000, "stereo"), "other channels or another codec"),
        ("b.ogg", ("libopus", 48_000, "mono"), ("flac", 44_100, "mono"), "other channels or another codec"),
        (
            "c.ogg",
            ("flac", 44_100, "mono"),
            ("flac", 22_050, "mono"),
            "after 3.00 s the sample rate changes from 44100",
        ),
        ("d.ts", ("aac", 44_100, "mono"), ("aac", 48_000, "mono"), "sample rate changes from 44100 to 48000 Hz"),
        ("e.aac", ("aac", 44_100, "mono"), ("aac", 48_000, "mono"), "sample rate changes from 44100 to 48000 Hz"),
        ("f.mp3", ("libmp3lame", 44_100, "mono"), ("libmp3lame", 48_000, "mono"), "sample rate changes from 44100"),
    ],
)
def test_what_changes_on_the_way_is_named(tmp_path, name, first, second, words):
    path, content = tmp_path / name, b""
    for codec, rate, layout in (first, second):
        write_audio(path, codec, rate, chirp(rate, 3.0), layout=layout)
        content += path.read_bytes()
    path.write_bytes(content)
    for read in (whole_of, lambda file: read_audio(file, 4.0, 100, first[1]), lambda file: played(file, first[1])):
        with pytest.raises(MediaError, match=words) as raised:
            read(path)
        assert raised.value.reason == "decode_error"


def played(path, rate):
    with AudioReader(path) as stream:
        return list(stream.play(rate, 4 * rate))


@pytest.mark.parametrize("suffix", ["ts", "aac"])
def test_channels_that_change_on_the_way_are_one_mono_signal(tmp_path, suffix):
    path, content = tmp_path / f"channels.{suffix}", b""
    for layout in ("mono", "stereo"):
        write_audio(path, "aac", 44_100, chirp(44_100, 3.0), layout=layout, bit_rate=96_000, options={"aac_pns": "0"})
        content += path.read_bytes()
    path.write_bytes(content)
    whole = whole_of(path)
    half = len(whole) // 2
    assert abs(half - 3 * 44_100) < 2048
    assert np.corrcoef(whole[4096:half], whole[half + 4096 : 2 * half])[0, 1] > 0.9
    assert worst_difference(path, 44_100, (1.0, 4.0)) < 1e-3


def test_a_last_packet_that_is_shorter_than_it_says_lacks_nothing_at_its_beginning():
    context = SimpleNamespace(codec=SimpleNamespace(canonical_name="tta"), flush_buffers=lambda: None)
    skipper = gapless_audio.PacketSkipper(SimpleNamespace(codec_context=context))
    packet = SimpleNamespace(duration=40, size=1)
    for _ in range(3):
        assert skipper.learn(packet, 1000) == 0
    skipper.first, skipper.position = 4500, 3000
    assert skipper.samples_to_skip(packet) == 1000
    skipper.position = 4000
    assert skipper.samples_to_skip(packet) == 0
    assert skipper.learn(packet, 700) == 0


def flac(num_samples, rate_hz=24_000, channels=1, **options):
    """Noise as the bytes of a FLAC file."""
    noise = 0.3 * np.random.default_rng(1).standard_normal((channels, num_samples)).astype(np.float32)
    file = io.BytesIO()
    write_media(
        file, audio=noise, audio_rate_hz=rate_hz, audio_codec="flac", container_format="flac", audio_options=options
    )
    return file.getvalue()


def as_any_format(source, first, count, rate_hz):
    """What the reader of all formats gives."""
    found = decode._read_excerpt(source, first, count, rate_hz, "x", may_seek=True)
    return decode._read_excerpt(source, first, count, rate_hz, "x", may_seek=False) if found is None else found


@pytest.mark.parametrize(("source_rate", "block"), [(24_000, "0"), (24_000, "4608"), (44_100, "0")])
def test_the_flac_of_shards_is_read_in_fewer_steps_to_the_same_samples(source_rate, block):
    source = flac(30_000, source_rate, **({} if block == "0" else {"frame_size": block}))
    num_plain = 0
    for rate_hz in (24_000, 16_000):
        for first in (0, 1, 2303, 2304, 9001, 13_000, 19_000, 29_999, 60_000):
            found = decode._read_plain_flac(source, first, 8000, rate_hz, "x")
            if found is not None:
                num_plain += 1
                assert np.array_equal(found, as_any_format(source, first, 8000, rate_hz)), (rate_hz, first)
    assert num_plain >= 10


def test_flac_that_is_not_plain_is_left_to_the_reader_of_all_formats():
    mono, stereo = flac(30_000), flac(30_000, channels=2)
    assert decode._read_plain_flac(stereo, 100, 500, 24_000, "x") is None
    assert read_audio(stereo, 0.1, 500, 24_000).shape == (1, 500)
    generator = np.random.default_rng(0)
    for number in range(12):
        damaged = bytearray(mono[: len(mono) // 2] if number % 3 == 0 else mono)
        for at in generator.integers(0, len(damaged), 3):
            damaged[at] ^= 255
        found = decode._read_plain_flac(bytes(damaged), 9000, 4000, 24_000, "x")
        if found is not None:
            assert np.array_equal(found, as_any_format(bytes(damaged), 9000, 4000, 24_000))
