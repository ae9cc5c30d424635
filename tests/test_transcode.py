"""data_prep/transcode.py: segments, policies, copies; against decoding the whole file with PyAV alone."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from avssl.data.decode import Picture, PictureStream, SoundStream
from avssl.types import MediaError
from data_prep.encode import write_media
from data_prep.members import Window, on_grid
from data_prep.options import WriteOptions
from data_prep.transcode import transcode

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


def stored_sound(result):
    with av.open(io.BytesIO(result.audio)) as container:
        return np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)]).astype(np.float64) / 32768


# --- segments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("begin", [0.0, 0.3, 2.0, 5.01, 12.7])
def test_pictures_from_a_time_on_are_those_of_a_decode_from_the_beginning(sources, suffix, begin):
    with PictureStream(str(sources[suffix])) as whole:
        everything = [(picture.seconds, picture.frame.to_ndarray()) for picture in whole.play()]
    assert len(everything) == 350
    last_before = max(k for k, (seconds, _) in enumerate(everything) if seconds <= begin + 0.0006)
    with PictureStream(str(sources[suffix])) as stream:
        found = [(picture.seconds, picture.frame.to_ndarray()) for picture in stream.play(begin)]
    assert len(found) == 350 - last_before
    for (seconds, frame), (wanted_seconds, wanted) in zip(found, everything[last_before:], strict=True):
        assert seconds == wanted_seconds
        assert np.array_equal(frame, wanted)


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_sound_from_a_sample_on_is_that_of_a_decode_from_the_beginning(sources, suffix):
    with SoundStream(str(sources[suffix])) as stream:
        whole = np.concatenate(list(stream.play(24000)))
    for first in (1, 24000, 100_001, 240_000):
        with SoundStream(str(sources[suffix])) as stream:
            part = np.concatenate(list(stream.play(24000, first)))
        wanted = whole[first:]
        if suffix == ".webm":  # its times are milliseconds: a place is known to half of one
            assert abs(len(part) - len(wanted)) <= 12
            shifts = [np.roll(wanted, shift)[100:-100] for shift in range(-12, 13)]
            assert min(np.abs(part[100 : len(wanted) - 100][: len(one)] - one).max() for one in shifts) < 0.02
        else:
            assert len(part) == len(wanted)
            assert np.abs(part - wanted).max() < 0.01


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("segment", [(0.0, 2.0), (2.0, 4.5), (7.3, 8.0), (13.0, 20.0)])
def test_a_segment_holds_the_frames_of_its_seconds(sources, suffix, segment):
    result = transcode(str(sources[suffix]), OPTIONS, segment)
    begin, end = segment
    with av.open(str(sources[suffix])) as container:
        frames = [(f.pts if f.pts is not None else f.dts, f) for f in container.decode(video=0)]
        tick = float(container.streams.video[0].time_base)
    starts = np.array([(ticks - frames[0][0]) * tick for ticks, _ in frames])
    late = result.info.video.start_seconds - clock_of(result)  # the sound of the .ts begins first
    times = max(0.0, begin - late) + np.arange(1000) / 16
    wanted = [int(np.flatnonzero(starts <= t + 0.0006)[-1]) for t in times if t + 0.0006 < min(end - late, 14.0)]
    assert stored_numbers(result) == wanted
    assert result.num_frames == len(wanted)
    assert abs(result.num_audio_samples / 24000 - (min(end, 14.0) - begin)) < 0.06
    assert result.segment == segment
    assert result.source["segment_seconds"] == list(segment)
    assert result.source["video"]["duration_seconds"] in (None, pytest.approx(14.0, abs=0.1))


def clock_of(result):
    return min(result.info.video.start_seconds, result.info.audio.start_seconds)


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
    waveform = stored_sound(result)
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
    path = tmp_path / "short sound.mp4"
    write_media(path, video=counting_video(50), video_fps=25, audio=chirp(1), audio_rate_hz=48000)
    with pytest.raises(MediaError, match=r"no_audio.*1.500 to 2.000 s: has no audio"):
        transcode(str(path), OPTIONS, (1.5, 2.0))
    kept = transcode(str(path), WriteOptions(on_missing_audio="keep"), (1.5, 2.0))
    assert (kept.num_frames, kept.audio, kept.num_audio_samples, kept.audio_rate_hz) == (8, None, 0, 0)
    assert kept.info.audio is not None


def test_frames_come_on_a_grid_and_the_last_one_stays_for_its_duration():
    pictures = [Picture(0.0, 0.1, "a"), Picture(0.1, 0.5, "b"), Picture(0.6, 0.1, "c")]

    def grid(start=0.0, length=float("inf"), chosen=pictures):
        return "".join(on_grid(iter(chosen), Fraction(10), Window(start, length, 0.0)))

    assert grid() == "abbbbbc"
    assert grid(0.25, chosen=pictures[1:]) == "bbbbc"
    assert grid(0.25, 0.2, pictures[1:]) == "bb"
    assert grid(0.9, chosen=pictures[2:]) == ""
    assert grid(chosen=[Picture(0.0, 0.0, "a")]) == "a"
