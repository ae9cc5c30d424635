"""data_prep/transcode/file.py: segments and policies; against decoding the whole file with PyAV alone."""

import io
import os
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from avssl.media.decode import read_video
from avssl.media.readers import AudioReader, Frame, VideoReader
from avssl.types import MediaError
from data_prep.transcode import encode_streams, members
from data_prep.transcode.encode import write_media
from data_prep.transcode.file import check_encoder, transcode
from data_prep.transcode.members import Window, on_grid
from data_prep.transcode.options import PolicyError, WriteOptions

OPTIONS = WriteOptions(short_side_px=48, crf=10)
CONTAINERS = {
    ".mp4": {"video_codec": "libx264", "audio_codec": "aac"},
    ".mkv": {"video_codec": "libx264", "audio_codec": "flac"},
    ".webm": {"video_codec": "libvpx-vp9", "audio_codec": "libopus"},
    ".avi": {"video_codec": "mpeg4", "audio_codec": "libmp3lame"},
    ".ts": {"video_codec": "libx264", "audio_codec": "aac", "container_format": "mpegts"},
}


def counting_video(num_frames, height=48, width=64):
    """Frame k shows k as eight black or white blocks, above a ramp that moves."""
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    ramp = np.arange(width)[None, :, None]
    for k in range(num_frames):
        frames[k] = (ramp * 3 + 5 * k) % 200
        for bit in range(12):
            frames[k, :16, bit * 5 : bit * 5 + 5] = 255 * (k >> bit & 1)
    return frames


def number_of(luma):
    """The k of a frame of counting_video: (H, W) luma."""
    return sum(int(luma[2:12, bit * 5 + 1 : bit * 5 + 4].mean() > 128) << bit for bit in range(12))


def chirp(seconds, rate_hz=48000):
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * (200 + 40 * t) * t)).astype(np.float32)[None]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Fourteen seconds at 25 frames a second in every container, a keyframe every 50 frames, with B-frames."""
    folder = tmp_path_factory.mktemp("sources")
    paths = {}
    for suffix, codecs in CONTAINERS.items():
        paths[suffix] = folder / f"long{suffix}"
        write_media(
            paths[suffix], video=counting_video(350), video_fps=25, audio=chirp(14), audio_rate_hz=48000,
            keyframe_interval=50, **codecs,
        )  # fmt: skip
    return paths


def stored_numbers(result):
    with av.open(io.BytesIO(result.video)) as container:
        return [number_of(frame.to_ndarray(format="gray")) for frame in container.decode(video=0)]


def stored_audio(result):
    with av.open(io.BytesIO(result.audio)) as container:
        return np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)]).astype(np.float64) / 32768


# --- segments ------------------------------------------------------------------------------------------------------


@pytest.mark.quick(1)
@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("begin", [0.0, 0.3, 2.0, 5.01, 12.7])
def test_frames_from_a_time_on_are_those_of_a_decode_from_the_beginning(sources, suffix, begin):
    with VideoReader(str(sources[suffix])) as whole:
        everything = [(shown.seconds, shown.frame.to_ndarray()) for shown in whole.play()]
    assert len(everything) == 350
    last_before = max(k for k, (seconds, _) in enumerate(everything) if seconds <= begin + 0.0006)
    with VideoReader(str(sources[suffix])) as stream:
        found = [(shown.seconds, shown.frame.to_ndarray()) for shown in stream.play(begin)]
    assert len(found) == 350 - last_before
    for (seconds, frame), (wanted_seconds, wanted) in zip(found, everything[last_before:], strict=True):
        assert seconds == wanted_seconds
        assert np.array_equal(frame, wanted)


@pytest.mark.quick(2)
@pytest.mark.parametrize("suffix", CONTAINERS)
def test_audio_from_a_sample_on_is_that_of_a_decode_from_the_beginning(sources, suffix):
    with AudioReader(str(sources[suffix])) as stream:
        whole = np.concatenate(list(stream.play(24000)))
    for first in (1, 24000, 100_001, 240_000):
        with AudioReader(str(sources[suffix])) as stream:
            part = np.concatenate(list(stream.play(24000, first)))
        wanted = whole[first:]
        if suffix == ".webm":  # its times are milliseconds: a place is known to half of one
            assert abs(len(part) - len(wanted)) <= 12
            shifts = [np.roll(wanted, shift)[100:-100] for shift in range(-12, 13)]
            assert min(np.abs(part[100 : len(wanted) - 100][: len(one)] - one).max() for one in shifts) < 0.02
        else:
            assert len(part) == len(wanted)
            assert np.abs(part - wanted).max() < 0.01


@pytest.mark.quick(2)
@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("segment", [(0.0, 2.0), (2.0, 4.5), (7.3, 8.0), (13.0, 20.0)])
def test_a_segment_holds_the_frames_of_its_seconds(sources, suffix, segment):
    result = transcode(str(sources[suffix]), OPTIONS, segment)
    begin, end = segment
    with av.open(str(sources[suffix])) as container:
        frames = [(f.pts if f.pts is not None else f.dts, f) for f in container.decode(video=0)]
        tick = float(container.streams.video[0].time_base)
    starts = np.array([(ticks - frames[0][0]) * tick for ticks, _ in frames])
    late = result.info.video.start_seconds - clock_of(result)  # the audio of the .ts begins first
    times = max(0.0, begin - late) + np.arange(1000) / 16
    wanted = [int(np.flatnonzero(starts <= t + 0.0006)[-1]) for t in times if t + 0.0006 < min(end - late, 14.0)]
    assert stored_numbers(result) == wanted
    assert result.num_frames == len(wanted)
    assert abs(result.num_audio_samples / 24000 - (min(end, 14.0) - begin)) < 0.06
    assert result.segment == segment
    assert result.source["segment"] == list(segment)
    assert result.source["video"]["duration_seconds"] in (None, pytest.approx(14.0, abs=0.1))


def clock_of(result):
    return min(result.info.video.start_seconds, result.info.audio.start_seconds)


@pytest.mark.quick(1)
@pytest.mark.parametrize("segment", [None, (0.0, 3.0), (0.2, 3.0), (0.37, 2.5), (1.03, 2.0), (0.9, 1.4)])
@pytest.mark.parametrize(("video_start", "audio_start"), [(0.0, 0.0), (0.37, 0.0), (0.0, 0.81), (1.2, 0.3)])
def test_flash_and_beep_stay_together_in_a_segment(tmp_path, segment, video_start, audio_start):
    """Both are at 1.3 s of the file's clock, whenever the streams begin and wherever the segment does."""
    fps, rate = 50, 48000
    frames = np.zeros((130, 48, 64, 3), np.uint8)
    flash = round((1.3 - video_start) * fps)
    frames[flash:] = 255
    audio = np.zeros((1, 2 * rate), np.float32)
    audio[0, round((video_start + flash / fps - audio_start) * rate) :][:20000] = chirp(1)[0, :20000]
    path = tmp_path / "clap.mkv"
    write_media(
        path, video=frames, video_fps=fps, audio=audio, audio_rate_hz=rate, video_start_seconds=video_start,
        audio_start_seconds=audio_start, audio_codec="flac",
    )  # fmt: skip
    result = transcode(str(path), WriteOptions(fps=50), segment)
    with av.open(io.BytesIO(result.video)) as container:
        bright = [frame.to_ndarray(format="gray").mean() > 128 for frame in container.decode(video=0)]
    waveform = stored_audio(result)
    seen = max(0.0, -result.av_offset_seconds) + np.flatnonzero(bright)[0] / 50
    heard = max(0.0, result.av_offset_seconds) + np.flatnonzero(np.abs(waveform) > 0.05)[0] / 24000
    assert abs(seen - heard) < 1 / 50 + 0.001
    begin = min(video_start, audio_start) + (segment[0] if segment else 0.0)
    assert abs(begin + heard - max(begin, 1.3)) < 0.012


def test_a_segment_past_the_end_is_too_short_and_one_without_a_stream_misses_it(sources, tmp_path):
    with pytest.raises(MediaError, match=r"too_short.*ends before the segment, which begins at 14.5"):
        transcode(str(sources[".mp4"]), OPTIONS, (14.5, 16.0))
    for bad in ((-1.0, 2.0), (3.0, 3.0), (float("nan"), 2.0)):
        with pytest.raises(ValueError, match="the segment is"):
            transcode(str(sources[".mp4"]), OPTIONS, bad)
    path = tmp_path / "short audio.mp4"
    write_media(path, video=counting_video(50), video_fps=25, audio=chirp(1), audio_rate_hz=48000)
    with pytest.raises(MediaError, match=r"no_audio.*1.500 to 2.000 s: has no audio"):
        transcode(str(path), OPTIONS, (1.5, 2.0))
    kept = transcode(str(path), WriteOptions(on_missing_audio="keep"), (1.5, 2.0))
    assert (kept.num_frames, kept.audio, kept.num_audio_samples, kept.audio_rate_hz) == (8, None, 0, 0)
    assert kept.info.audio is not None


def test_frames_come_on_a_grid_and_the_last_one_stays_for_its_duration():
    frames = [Frame(0.0, 0.1, "a"), Frame(0.1, 0.5, "b"), Frame(0.6, 0.1, "c")]

    def grid(start=0.0, length=float("inf"), chosen=frames):
        return "".join(on_grid(iter(chosen), Fraction(10), Window(start, length, 0.0)))

    assert grid() == "abbbbbc"
    assert grid(0.25, chosen=frames[1:]) == "bbbbc"
    assert grid(0.25, 0.2, frames[1:]) == "bb"
    assert grid(0.9, chosen=frames[2:]) == ""
    assert grid(chosen=[Frame(0.0, 0.0, "a")]) == "a"


# --- what is left out ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_sided(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one sided")
    write_media(folder / "mute.mp4", video=counting_video(20), video_fps=20)
    write_media(folder / "dark.m4a", audio=chirp(1), audio_rate_hz=48000)
    return folder


@pytest.mark.parametrize(("file", "missing", "has"), [("mute.mp4", "audio", "video"), ("dark.m4a", "video", "audio")])
def test_a_missing_stream_skips_the_file_is_let_be_or_stops_the_run(one_sided, file, missing, has):
    path = str(one_sided / file)
    with pytest.raises(MediaError) as skipped:
        transcode(path, WriteOptions())
    assert skipped.value.reason == f"no_{missing}"
    kept = transcode(path, WriteOptions(**{f"on_missing_{missing}": "keep"}))
    assert getattr(kept, missing) is None
    assert getattr(kept, has)
    with pytest.raises(PolicyError, match=rf"{file}: has no {missing}, and --on-missing-{missing} is error") as error:
        transcode(path, WriteOptions(**{f"on_missing_{missing}": "error"}))
    assert not isinstance(error.value, MediaError)


def with_audio(path, audio):
    write_media(path, video=counting_video(20), video_fps=20, audio=audio, audio_rate_hz=48000, audio_codec="flac")
    return str(path)


def test_silence_is_what_never_reaches_the_threshold(tmp_path):
    """A sine of amplitude a has 20 log10(a) - 3.01 dBFS."""
    t = np.arange(48000) / 48000
    amplitude = 10 ** ((-50 + 3.0103) / 20)
    path = with_audio(tmp_path / "faint.mkv", (amplitude * np.sin(2 * np.pi * 440 * t)).astype(np.float32)[None])
    with pytest.raises(MediaError, match=r"silent_audio.*never reaches -49 dBFS"):
        transcode(path, WriteOptions(on_silent_audio="skip", silence_dbfs=-49))
    assert transcode(path, WriteOptions(on_silent_audio="skip", silence_dbfs=-51)).audio
    assert transcode(path, WriteOptions(silence_dbfs=0)).audio  # kept is the default
    late = np.zeros((1, 48000), np.float32)
    late[0, -3000:] = 0.3 * np.sin(2 * np.pi * 440 * t[:3000])
    assert transcode(with_audio(tmp_path / "late.mkv", late), WriteOptions(on_silent_audio="skip")).audio
    click = np.zeros((1, 48000), np.float32)
    click[0, 24000] = 0.1
    with pytest.raises(MediaError, match="silent_audio"):
        transcode(with_audio(tmp_path / "click.mkv", click), WriteOptions(on_silent_audio="skip", silence_dbfs=-50))
    with pytest.raises(MediaError, match=r"silent_audio.*0.000 to 0.800 s"):
        transcode(str(tmp_path / "late.mkv"), WriteOptions(on_silent_audio="skip"), (0.0, 0.8))


@pytest.mark.quick(1)
@pytest.mark.parametrize("size", [(240, 320), (48, 64)])
def test_a_still_video_is_one_in_which_no_part_changes(tmp_path, size):
    height, width = size
    rng = np.random.default_rng(0)
    still = np.clip(rng.normal(120, 40, (height // 8, width // 8, 3)), 0, 255).astype(np.uint8)
    still = still.repeat(8, axis=0).repeat(8, axis=1)
    grain = [np.clip(still + rng.normal(0, 2, (height, width, 3)), 0, 255).astype(np.uint8) for _ in range(30)]
    mouth = [frame.copy() for frame in grain]
    for k in range(15, 30):
        mouth[k][height // 2 :][: height // 8, width // 2 :][:, : width // 8] = 30 if k % 4 < 2 else 220
    fade = [np.clip(still * (1 - k / 300), 0, 255).astype(np.uint8) for k in range(30)]
    options = WriteOptions(on_still_video="skip", on_missing_audio="keep")
    for name, frames in (("grain", grain), ("mouth", mouth), ("fade", fade)):
        write_media(tmp_path / f"{name}.mp4", video=np.stack(frames), video_fps=15, video_options={"crf": "28"})
    with pytest.raises(MediaError, match=r"still_video.*no square of its frames changes by 4 levels"):
        transcode(str(tmp_path / "grain.mp4"), options)
    assert transcode(str(tmp_path / "mouth.mp4"), options).video
    assert transcode(str(tmp_path / "fade.mp4"), options).video
    with pytest.raises(MediaError, match=r"still_video.*0.000 to 0.900 s"):
        transcode(str(tmp_path / "mouth.mp4"), options, (0.0, 0.9))
    assert transcode(str(tmp_path / "grain.mp4"), WriteOptions(on_missing_audio="keep")).video


# --- the encoder, and one pass over the file --------------------------------------------------------------------------


def test_an_encoder_that_this_machine_lacks_stops_the_run(sources, monkeypatch):
    monkeypatch.setitem(encode_streams.ENCODER_ALIASES, "libsvtav1", "libsvtav1_that_is_not_there")
    check_encoder.cache_clear()
    with pytest.raises(PolicyError, match=r"--video-codec libsvtav1 does not work on this machine: .*Use libx264"):
        transcode(str(sources[".mp4"]), WriteOptions(video_codec="libsvtav1"))


@pytest.mark.parametrize(("coder", "is_cabac"), [("cavlc", False), ("cabac", True)])
def test_the_entropy_coder_is_the_one_asked_for(sources, coder, is_cabac):
    result = transcode(str(sources[".mp4"]), replace(OPTIONS, entropy_coder=coder), (0.0, 1.0))
    with av.open(io.BytesIO(result.video)) as container:
        extradata = container.streams.video[0].codec_context.extradata
    parameters = extradata[extradata.index(b"\x68") + 1]  # of the picture set: two ids that are 0, then who codes
    assert bool(parameters & 0b0010_0000) == is_cabac
    assert stored_numbers(result) == stored_numbers(transcode(str(sources[".mp4"]), OPTIONS, (0.0, 1.0)))


def test_the_encoder_of_av1_makes_no_thread_of_the_process_a_real_time_one(sources):
    before = os.sched_getscheduler(0)
    transcode(str(sources[".mp4"]), WriteOptions(video_codec="libsvtav1", crf=20), (0.0, 0.5))
    assert {os.sched_getscheduler(int(thread.name)) for thread in Path("/proc/self/task").iterdir()} == {before}


def test_av1_has_the_same_frames_and_keyframes_each_time(sources, capfd):
    options = WriteOptions(video_codec="libsvtav1", crf=20)
    result = transcode(str(sources[".mp4"]), options, (0.0, 3.0))
    with av.open(io.BytesIO(result.video)) as container:
        assert container.streams.video[0].codec_context.codec.canonical_name == "av1"
        frames = list(container.decode(video=0))
        assert [frame.key_frame for frame in frames] == [k % 8 == 0 for k in range(48)]
    wanted = stored_numbers(transcode(str(sources[".mp4"]), OPTIONS, (0.0, 3.0)))
    assert stored_numbers(result) == wanted
    for k in (0, 9, 31, 47):  # as the shard reader does it
        assert number_of(read_video(result.video, [k / 16], rgb=False)[0].numpy()) == wanted[k]
    assert transcode(str(sources[".mp4"]), options, (0.0, 3.0)).video == result.video
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"on_missing_audio": "ignore"}, "--on-missing-audio is 'ignore'; allowed: skip, keep, error"),
        ({"video_codec": "hevc"}, "--video-codec is 'hevc'; allowed: libx264, libsvtav1"),
        ({"silence_dbfs": 3.0}, "at most --silence-dbfs 0"),
        ({"still_levels": -1.0}, "--still-levels is -1.0; it must be at least 0"),
    ],
)
def test_options_say_what_is_allowed(change, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        WriteOptions(**change)


def test_frames_that_are_not_stored_are_not_scaled(sources, monkeypatch):
    scaled = []
    real = members.UprightFilter.__call__
    monkeypatch.setattr(members.UprightFilter, "__call__", lambda self, frame: scaled.append(1) or real(self, frame))
    assert transcode(str(sources[".mp4"]), WriteOptions(fps=5)).num_frames == len(scaled) == 70


def test_a_stream_that_is_not_the_first_gives_its_last_frames_too(tmp_path):
    """Frames that the decoder holds back until the end, of a transport stream whose audio is its first stream."""
    path = tmp_path / "audio first.ts"
    buffer = io.BytesIO()
    write_media(buffer, video=counting_video(50), video_fps=25, audio=chirp(2), audio_rate_hz=48000,
                container_format="mpegts", video_options={"bf": "3"})  # fmt: skip
    buffer.seek(0)
    with av.open(buffer) as source, av.open(str(path), "w", format="mpegts") as target:
        order = [source.streams.audio[0], source.streams.video[0]]
        copies = {one.index: target.add_stream_from_template(one) for one in order}
        for packet in source.demux(order):
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                target.mux(packet)
    with VideoReader(str(path)) as stream:
        assert stream.info.stream_index == 1
        assert [number_of(shown.frame.to_ndarray(format="gray")) for shown in stream.play()] == list(range(50))


def test_a_damaged_shape_is_a_decode_error(tmp_path, monkeypatch):
    path = tmp_path / "wide.mp4"
    write_media(path, video=counting_video(5), video_fps=25, audio=chirp(1), audio_rate_hz=48000)
    monkeypatch.setattr("data_prep.transcode.members.MAX_SIDE_PX", 60)
    with pytest.raises(MediaError, match=r"decode_error: .*wide.mp4: its frames have 64x48 pixels .* may have 60"):
        transcode(str(path), OPTIONS)
