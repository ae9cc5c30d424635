"""The rules for damaged packets (ffmpeg.py), broken clocks (timestamps.py) and cut files (truncation.py), each."""

import io
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest

from avssl.media import ffmpeg
from avssl.media.decode import probe, read_video, stream_video
from avssl.media.ffmpeg import MAX_REFUSED_IN_A_ROW, DecodeErrors, preferred
from avssl.media.timestamps import on_one_clock
from avssl.media.truncation import FileBytes, known_format, missing_end, stated_bytes
from avssl.types import MediaError
from tests.odd_media import audio_file, clip
from tests.odd_surgery import cut, damage_packets


def verdict(packets, container_format="matroska,webm"):
    """The reason that is found for a stream of packets: "." is decoded, "x" refused."""
    errors = DecodeErrors("audio", container_format, "file")
    try:
        for packet in packets:
            errors.count_decoded() if packet == "." else errors.count_refused(ValueError("no"))
        errors.check_end()
    except MediaError as error:
        return error.reason
    return None


@pytest.mark.parametrize(
    ("packets", "wanted"),
    [
        ("." * 40, None),
        ("." * 30 + "xx" + "." * 30, None),  # one in twenty may be lost
        ("." * 30 + "xxxx" + "." * 30, "decode_error"),
        ("xxxx" + "." * 30, "decode_error"),
        ("." * 30 + "xxxx", "truncated"),
        ("xxx", "decode_error"),
        ("." * 9000 + "x" * MAX_REFUSED_IN_A_ROW + "." * 9000, None),
        ("." * 9000 + "x" * (MAX_REFUSED_IN_A_ROW + 1) + "." * 9000, "decode_error"),
        ("", None),
    ],
)
def test_few_damaged_packets_are_left_out_and_many_are_an_error(packets, wanted):
    assert verdict(packets) == wanted


def test_a_broken_last_packet_means_a_cut_file_where_no_header_tells_the_length():
    assert verdict("." * 99 + "x", "aac") == "truncated"
    assert verdict("." * 99 + "x", "mov,mp4,m4a,3gp,3g2,mj2") is None  # there, the lengths are compared
    assert verdict("." * 99 + "x", "mp3") is None  # a tag
    assert verdict("." * 50 + "x" + "." * 49, "aac") is None


def test_the_frame_before_a_damaged_one_stays_on_screen(tmp_path):
    path = tmp_path / "damaged.mov"
    clip(path, video_codec="mjpeg", pixel_format="yuvj420p")
    damage_packets(path, "video", [10])  # the first white one
    times = [round(seconds, 3) for seconds, _ in stream_video(path)]
    assert 0.5 not in times
    assert len(times) == 19
    before, damaged, after = read_video(path, [0.45, 0.5, 0.55]).float()
    assert (before - damaged).abs().max() == 0
    assert after[:, :, 40:].mean() > 200


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("a.mp4", "aac", "mp4"), ("a.mkv", "flac", "matroska"), ("a.webm", "libopus", "webm"),
        ("a.wav", "pcm_s16le", "wav"), ("a.avi", "libmp3lame", "avi"), ("a.mp3", "libmp3lame", "mp3"),
        ("a.aiff", "pcm_s16be", "aiff"),
        ("a.au", "pcm_s16be", "au"), ("a.caf", "pcm_s16le", "caf"), ("a.w64", "pcm_s16le", "w64"),
    ],
)  # fmt: skip
def test_a_file_promises_as_many_bytes_as_it_has(tmp_path, name, codec, container):
    path = tmp_path / name
    audio_file(path, codec, container_format=container)
    size = path.stat().st_size
    with path.open("rb") as file:
        stated = stated_bytes(FileBytes(file, size))
        assert 0.95 * size <= stated <= size
        assert missing_end(FileBytes(file, size)) is None
    cut(path, 0.85)
    with path.open("rb") as file:
        assert "by its own header" in missing_end(FileBytes(file, path.stat().st_size))


def test_a_file_written_to_a_pipe_promises_nothing():
    for head in (b"RIFF\xff\xff\xff\xffWAVE", b"RIFF\0\0\0\0WAVE", b".snd\0\0\0\x20\xff\xff\xff\xff",
                 b"\x1a\x45\xdf\xa3\x84abcd\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff"):  # fmt: skip
        content = head + bytes(1000)
        assert stated_bytes(FileBytes(io.BytesIO(content), len(content))) is None


def test_any_beginning_of_a_file_is_looked_at_without_an_error(tmp_path):
    for name, codec, container in (
        ("a.mp4", "aac", "mp4"),
        ("a.mkv", "flac", "matroska"),
        ("a.mp3", "libmp3lame", "mp3"),
    ):
        audio_file(tmp_path / name, codec, container_format=container)
        whole = (tmp_path / name).read_bytes()
        for length in [*range(60), len(whole) // 2]:
            content = FileBytes(io.BytesIO(whole[:length]), length)
            missing_end(content)
            known_format(content.head)
        rng = np.random.default_rng(0)
        for _ in range(300):
            changed = bytearray(whole[:100])
            changed[int(rng.integers(4, 100))] = int(rng.integers(256))
            missing_end(FileBytes(io.BytesIO(changed), 100))


@pytest.mark.parametrize("where", ["open", "decode", "scale"])
def test_a_lack_of_memory_has_its_own_reason(tmp_path, monkeypatch, where):
    path = tmp_path / "clip.mp4"
    clip(path)
    if where == "open":

        def fail(*_, **__):
            raise av.error.MemoryError(12, "Cannot allocate memory")

        monkeypatch.setattr(ffmpeg.av, "open", fail)
    elif where == "decode":

        class Packet:
            size = 9

            def decode(self):
                raise av.error.MemoryError(12, "Cannot allocate memory")

        monkeypatch.setattr(ffmpeg, "_packets_of", lambda *_: iter([Packet()]))
    else:

        def refuse(*_):
            raise MemoryError("Unable to allocate 9 GiB")

        monkeypatch.setattr("avssl.media.decode.to_array", refuse)
    with pytest.raises(MediaError, match=r"out_of_memory: .*clip\.mp4"):
        read_video(path, [0.0])


def test_a_pipe_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match="missing_file"):
        probe(tmp_path / "pipe.mp4")


def packets(*stamps, index=0):
    stream, tick = SimpleNamespace(index=index), Fraction(1, 100)
    return [SimpleNamespace(dts=one, pts=one, duration=10, time_base=tick, stream=stream) for one in stamps]


def on_clock(given, index=0):
    return [packet.pts for packet in on_one_clock(iter(given), SimpleNamespace(index=index))]


def test_a_clock_that_is_set_anew_goes_on_where_it_was():
    assert on_clock(packets(0, 10, 20, 30)) == [0, 10, 20, 30]
    assert on_clock(packets(0, 10, 500, 510)) == [0, 10, 500, 510]  # a pause of less than ten seconds is one
    assert on_clock(packets(0, 10, 90_000, 90_010)) == [0, 10, 20, 30]
    assert on_clock(packets(90_000, 90_010, 0, 10)) == [90_000, 90_010, 90_020, 90_030]
    assert on_clock(packets(0, 20, 10, 30)) == [0, 20, 10, 30]


def test_one_break_moves_all_streams_by_the_same_time():
    film, voice = packets(0, 10, 50_000, 50_010), packets(3, 13, 50_003, 50_013, index=1)
    mixed = [packet for pair in zip(film, voice, strict=True) for packet in pair]
    assert on_clock(mixed, 1) == [3, 13, 23, 33]


def test_of_several_streams_the_default_one_that_can_be_decoded_is_taken():
    def stream(index, disposition=0, context=""):
        return SimpleNamespace(index=index, disposition=disposition, codec_context=context)

    def chosen(*streams):
        return preferred(streams, default=1, second_choice=2).index

    assert chosen(stream(4), stream(7)) == 4
    assert chosen(stream(4), stream(7, 1)) == 7
    assert chosen(stream(4, 1 | 2), stream(7)) == 7
    assert chosen(stream(4, 1, None), stream(7, 2)) == 7
    assert preferred([], 1, 2) is None
