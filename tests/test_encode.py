"""Written media, read back with PyAV alone: what was written when must come out then, in every container."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data_prep.transcode.encode import MediaWriter, write_media
from data_prep.transcode.encode_settings import AudioSettings, VideoSettings, as_rational_fps

FPS = 16
RATE_HZ = 24_000
NUM_FRAMES = 32
EVENT_FRAME = 16  # the frame turns bright and a click is heard, both at 1 s
VP9_OPTIONS = {"deadline": "realtime", "cpu-used": "8"}
PAIRS = [
    ("mp4", "libx264", "aac"),
    ("mov", "libx264", "aac"),
    ("webm", "libvpx-vp9", "libopus"),
    ("avi", "mpeg4", "libmp3lame"),
    ("mkv", "libx264", "flac"),
    ("mkv", "mpeg4", "mp3"),
    ("mp4", "libx264", "libopus"),
]
TIMED_PAIRS = [pair for pair in PAIRS if pair[0] != "avi"]


def flash(size: tuple[int, int] = (48, 64)) -> Iterator[np.ndarray]:
    for number in range(NUM_FRAMES):
        yield np.full((*size, 3), 220 if number == EVENT_FRAME else 30, np.uint8)


def click() -> np.ndarray:
    seconds = np.arange(2 * RATE_HZ) / RATE_HZ
    waveform = 0.01 * np.sin(2 * np.pi * 300 * seconds)
    waveform[RATE_HZ : RATE_HZ + 240] += 0.8 * np.sin(2 * np.pi * 1000 * seconds[:240])
    return waveform[None].astype(np.float32)


def read_video(source: Any) -> tuple[list[float], list[float], list[int]]:
    """(seconds, mean brightness, rotation) of every frame."""
    with av.open(source) as container:
        frames = list(container.decode(video=0))
    return (
        [f.time for f in frames],
        [float(f.to_ndarray(format="gray").mean()) for f in frames],
        [f.rotation for f in frames],
    )


def read_audio(source: Any) -> tuple[float, np.ndarray, int]:
    """(seconds of the first sample, (samples,) in [-1, 1], rate)."""
    with av.open(source) as container:
        frames = list(container.decode(audio=0))
    resampler = av.AudioResampler(format="fltp", layout="mono")
    blocks = [out.to_ndarray()[0] for frame in [*frames, None] for out in resampler.resample(frame) if out is not None]
    assert frames[0].time is not None
    return frames[0].time, np.concatenate(blocks), frames[0].sample_rate


def click_seconds(source: Any) -> float:
    start, waveform, rate_hz = read_audio(source)
    return start + float(np.argmax(np.abs(waveform) > 0.3)) / rate_hz


def flash_seconds(source: Any) -> float:
    times, brightness, _ = read_video(source)
    return times[int(np.argmax(brightness))]


def options_for(video_codec: str) -> dict[str, str]:
    return VP9_OPTIONS if "vp9" in video_codec else {}


def write_event(path: Any, pair: tuple[str, str, str], **kwargs: Any) -> None:
    write_media(
        path,
        video=flash(),
        video_fps=FPS,
        audio=click(),
        audio_rate_hz=RATE_HZ,
        video_codec=pair[1],
        audio_codec=pair[2],
        video_options=options_for(pair[1]),
        **kwargs,
    )


@pytest.mark.quick(1)
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_flash_and_click_come_out_when_they_went_in(pair: tuple[str, str, str], tmp_path: Path) -> None:
    path = tmp_path / f"event.{pair[0]}"
    write_event(path, pair)
    times, _, _ = read_video(str(path))
    np.testing.assert_allclose(times, np.arange(NUM_FRAMES) / FPS, atol=1e-3)
    assert flash_seconds(str(path)) == pytest.approx(1.0, abs=1e-3)
    assert click_seconds(str(path)) == pytest.approx(1.0, abs=2e-3)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.quick(2)
@pytest.mark.parametrize("pair", TIMED_PAIRS, ids=str)
@pytest.mark.parametrize(("video_start", "audio_start"), [(0.2, 0.0), (0.0, 0.3), (0.25, 0.11)])
def test_start_offsets_are_kept(
    pair: tuple[str, str, str], video_start: float, audio_start: float, tmp_path: Path
) -> None:
    path = str(tmp_path / f"offset.{pair[0]}")
    write_event(path, pair, video_start_seconds=video_start, audio_start_seconds=audio_start)
    assert flash_seconds(path) - video_start == pytest.approx(1.0, abs=2e-3)
    assert click_seconds(path) - audio_start == pytest.approx(1.0, abs=3e-3)


@pytest.mark.quick(1)
@pytest.mark.parametrize("pair", TIMED_PAIRS, ids=str)
def test_variable_frame_times_are_kept(pair: tuple[str, str, str], tmp_path: Path) -> None:
    wanted = np.cumsum(np.random.default_rng(3).uniform(0.02, 0.2, NUM_FRAMES))
    wanted -= wanted[0]
    path = str(tmp_path / f"vfr.{pair[0]}")
    write_event(path, pair, frame_times_seconds=wanted.tolist())
    times, brightness, _ = read_video(path)
    np.testing.assert_allclose(times, wanted, atol=2e-3)
    assert int(np.argmax(brightness)) == EVENT_FRAME
    assert click_seconds(path) == pytest.approx(1.0, abs=2e-3)


@pytest.mark.quick(2)
@pytest.mark.parametrize("pair", [PAIRS[0], PAIRS[2], PAIRS[3], PAIRS[4]], ids=str)
def test_same_input_gives_same_bytes(pair: tuple[str, str, str]) -> None:
    name = "matroska" if pair[0] == "mkv" else pair[0]
    copies = [io.BytesIO(), io.BytesIO()]
    for copy in copies:
        write_event(copy, pair, container_format=name)
    assert copies[0].getvalue() == copies[1].getvalue()
    assert len(copies[0].getvalue()) > 1000


@pytest.mark.slow
def test_bytes_do_not_depend_on_what_memory_held_before() -> None:
    # glibc fills memory with this byte when it is handed out: an encoder that reads before it writes is found out.
    program = """
import hashlib, io, numpy as np
from data_prep.transcode.encode import write_media
noise = np.random.default_rng(1).normal(0, 8, (182, 324, 3))
x, y = np.meshgrid(np.arange(324), np.arange(182))
waves = [128 + 60 * np.sin(x / 13 + k / 3)[..., None] + 50 * np.cos(y / 17 - k / 5)[..., None] for k in range(40)]
frames = [np.clip(wave + noise, 0, 255).astype(np.uint8) for wave in waves]
fast = {"preset": "veryfast"}, {}, {"deadline": "realtime", "cpu-used": "8"}
for codec, container, options in zip(("libx264", "mpeg4", "libvpx-vp9"), ("mp4", "avi", "webm"), fast):
    target = io.BytesIO()
    write_media(target, video=frames, video_codec=codec, container_format=container, video_options=options)
    print(hashlib.sha256(target.getvalue()).hexdigest())
"""
    runs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "MALLOC_PERTURB_": fill},
            cwd=Path(__file__).parent.parent,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for fill in ("0", "85", "255")
    }
    assert len(runs) == 1
    assert len(next(iter(runs)).split()) == 3


@pytest.mark.quick(1)
@pytest.mark.parametrize("extension", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize(("clockwise", "counter_clockwise"), [(0, 0), (90, -90), (180, -180), (270, 90)])
def test_rotation_is_stored_clockwise(extension: str, clockwise: int, counter_clockwise: int, tmp_path: Path) -> None:
    path = tmp_path / f"turned.{extension}"
    write_media(path, video=flash(), rotation_degrees=clockwise)
    assert set(read_video(str(path))[2]) == {counter_clockwise}


def test_flac_keeps_every_sample(tmp_path: Path) -> None:
    samples = np.round(np.random.default_rng(0).uniform(-1, 1, (2, 10_001)) * 32767).astype(np.float32) / 32768
    path = tmp_path / "noise.flac"
    write_media(path, audio=samples, audio_codec="flac", audio_rate_hz=44_100)
    with av.open(str(path)) as container:
        got = np.concatenate([frame.to_ndarray().reshape(-1, 2) for frame in container.decode(audio=0)])
        assert container.streams.audio[0].rate == 44_100
    np.testing.assert_array_equal(got.T, np.round(samples * 32768).astype(np.int16))


@pytest.mark.parametrize("extension", ["mp4", "mkv", "mp3", "wav", "ogg", "webm"])
def test_audio_only_files_have_no_video(extension: str, tmp_path: Path) -> None:
    codecs = {"mp3": "mp3", "wav": "pcm_s16le", "ogg": "libopus", "webm": "libopus"}
    path = tmp_path / f"audio.{extension}"
    write_media(path, audio=click(), audio_codec=codecs.get(extension, "aac"))
    with av.open(str(path)) as container:
        assert [stream.type for stream in container.streams] == ["audio"]
    first_sample_seconds = read_audio(str(path))[0]  # an mp3 file's clock runs on during the priming, 46 ms here
    assert click_seconds(str(path)) - first_sample_seconds == pytest.approx(1.0, abs=2e-3)


def test_video_only_files_have_no_audio_and_true_colors(tmp_path: Path) -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, :32], image[:, 32:64], image[:, 64:] = (200, 30, 40), (20, 180, 60), (50, 60, 210)
    path = tmp_path / "silent.mp4"
    write_media(path, video=[image] * 4, video_options={"crf": "5"})
    with av.open(str(path)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        shown = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert np.abs(shown[8:-8, [16, 48, 80]] - image[8:-8, [16, 48, 80]]).max() <= 6


def test_keyframe_interval_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "short.mp4"
    write_media(path, video=flash(), keyframe_interval=8, video_options={"sc_threshold": "0"})
    with av.open(str(path)) as container:
        keyframes = [frame.time for frame in container.decode(video=0) if frame.key_frame]
    assert keyframes == [0.0, 0.5, 1.0, 1.5]


def test_writer_takes_decoded_frames_scales_and_resamples(tmp_path: Path) -> None:
    source, copy = tmp_path / "source.mp4", tmp_path / "copy.mkv"
    write_event(source, PAIRS[0])
    with (
        av.open(str(source)) as container,
        MediaWriter(
            copy,
            video=VideoSettings(width=32, height=24, fps=FPS, variable_rate=True),
            audio=AudioSettings(rate_hz=16_000, codec="flac"),
        ) as writer,
    ):
        for frame in container.decode():
            if isinstance(frame, av.VideoFrame):
                writer.write_video(frame, frame.time)
            else:
                writer.write_audio(frame)
    with av.open(str(copy)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, container.streams.audio[0].rate) == (32, 24, 16_000)
    assert flash_seconds(str(copy)) == pytest.approx(1.0, abs=1e-3)
    assert click_seconds(str(copy)) == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(16, Fraction(16)), (29.97, Fraction(30000, 1001)), (23.976, Fraction(24000, 1001)), (12.5, Fraction(25, 2))],
)
def test_frame_rates_become_exact(given: float, wanted: Fraction) -> None:
    assert as_rational_fps(given) == wanted


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("a.mp4", {}, "nothing to write"),
        ("a.mp4", {"video": []}, "no frames"),
        ("a.mp4", {"video": flash((63, 64))}, "even sizes"),
        ("a.mp4", {"video": [np.zeros((4, 4), np.uint8)]}, "uint8"),
        ("a.mp4", {"video": [np.zeros((32, 32, 3), np.uint8), np.zeros((32, 34, 3), np.uint8)]}, "32x32"),
        ("a.xyz", {"video": flash()}, "no container is known"),
        ("a.webm", {"video": flash()}, "pairs that work"),
        ("a.avi", {"video": flash(), "video_codec": "mpeg4", "video_start_seconds": 0.1}, "AVI"),
        ("a.avi", {"video": flash(), "video_codec": "mpeg4", "rotation_degrees": 90}, "rotation"),
        ("a.mp4", {"video": flash(), "rotation_degrees": 45}, "0, 90, 180, 270"),
        ("a.mp4", {"video": flash(), "video_start_seconds": -1.0}, "0 or later"),
        ("a.mp4", {"video": flash(), "video_options": {"crff": "3"}}, "knows no option crff"),
        ("a.mp4", {"video": flash(), "frame_times_seconds": [0.0, 1.0]}, "2 entries"),
        ("a.mp4", {"video": flash(), "frame_times_seconds": np.arange(40.0).tolist()}, "40 entries"),
        ("a.mp4", {"video": flash(), "frame_times_seconds": [0.0] * NUM_FRAMES}, "not after"),
        ("a.mp4", {"audio": np.zeros(100, np.float32)}, "channels, samples"),
        ("a.mp4", {"audio": np.zeros((1, 100), np.float32), "audio_rate_hz": 12_345}, "allowed: "),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_no_file(
    name: str, kwargs: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        write_media(tmp_path / name, **kwargs)
    assert list(tmp_path.iterdir()) == []


def test_file_object_needs_a_format() -> None:
    with pytest.raises(ValueError, match="container_format"):
        write_media(io.BytesIO(), video=flash())
