"""What preparing a file costs: `transcode` beside bare calls of the same libraries, and beside the ffmpeg command.

    python benchmarks/prepare.py [--files clip.mp4 ...] [--rounds 7] [--ffmpeg /usr/bin/ffmpeg]

All three make the same from the same file: every frame that a rate of 16 a second shows, scaled by area to a short side
of 256, x264 with a keyframe every 8 frames, and mono FLAC at 24 kHz. One thread each. What counts is CPU time, children
included, for the machine may be shared; the methods take turns and each ratio is a median over the rounds.
"""

# ruff: noqa: TID251 - the bare calls are what is compared with
from __future__ import annotations

import argparse
import io
import math
import multiprocessing
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from avssl.data.decode import fitted_size, probe
from data_prep.encode import AudioSettings, MediaWriter, VideoSettings
from data_prep.options import WriteOptions
from data_prep.transcode import transcode

OPTIONS = WriteOptions(on_missing_audio="keep")
RATE_HZ = 30


# --- files ---------------------------------------------------------------------------------------------------------


def natural_frames(num_frames: int, width: int, height: int, seed: int = 0) -> Iterator[np.ndarray]:
    """A panned landscape of 1/f noise, two things that move before it, and grain: uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    tall, wide = height + 64, width + 256
    scale = 1 / np.maximum(
        1, np.hypot(*np.meshgrid(np.fft.fftfreq(tall) * tall, np.fft.rfftfreq(wide) * wide, indexing="ij"))
    )
    planes = [np.fft.irfft2(np.fft.rfft2(rng.standard_normal((tall, wide))) * scale, (tall, wide)) for _ in range(3)]
    land = np.stack([128 + 45 * plane / plane.std() for plane in planes], axis=-1).astype(np.float32)
    grain = rng.standard_normal((8, height, width, 1)).astype(np.float32) * 3
    rows, columns = np.mgrid[:height, :width]
    for k in range(num_frames):
        x, y = int(128 + 120 * math.sin(k / 60)), int(32 + 30 * math.cos(k / 45))
        frame = land[y : y + height, x : x + width].copy()
        for number in range(2):
            centre = (
                height * (0.5 + 0.3 * math.sin(k / 20 + number)),
                width * (0.5 + 0.3 * math.cos(k / 25 + 2 * number)),
            )
            inside = np.hypot(rows - centre[0], columns - centre[1]) < height / 8
            frame[inside] = frame[inside] * 0.3 + np.array([200, 60, 40] if number else [40, 90, 210], np.float32)
        yield np.clip(frame + grain[k % 8], 0, 255).astype(np.uint8)


def make_file(path: Path, seconds: float, width: int, height: int) -> None:
    """h264 with B-frames and a keyframe every 250 frames, and stereo AAC at 48 kHz, as videos come from the web."""
    rng = np.random.default_rng(1)
    video = VideoSettings(width, height, RATE_HZ, keyframe_interval=250, options={"crf": "23", "preset": "veryfast"})
    audio = AudioSettings(48_000, num_channels=2, options={"b": "128000"})
    period = 300  # after this many frames the pictures come again, for a long file
    cache: list[np.ndarray] = list(natural_frames(min(period, round(seconds * RATE_HZ)), width, height))
    with MediaWriter(path, video=video, audio=audio) as writer:
        for k in range(round(seconds * RATE_HZ)):
            writer.write_video(cache[k % period])
            t = (k * 1600 + np.arange(1600)) / 48_000
            tone = 0.2 * np.sin(2 * np.pi * (300 + 200 * np.sin(t)) * t) + 0.03 * rng.standard_normal((2, 1600))
            writer.write_audio(tone.astype(np.float32))


# --- the three ways ------------------------------------------------------------------------------------------------


def with_transcode(path: str) -> tuple[int, int]:
    """The project's own; (bytes of video, bytes of audio)."""
    result = transcode(path, OPTIONS)
    return len(result.video or b""), len(result.audio or b"")


def with_bare_calls(path: str) -> tuple[int, int]:
    """The least that PyAV needs: one pass, no checks, no odd files."""
    outputs = io.BytesIO(), io.BytesIO()
    with (
        av.open(path) as source,
        av.open(outputs[0], "w", format="mp4") as mp4,
        av.open(outputs[1], "w", format="flac") as flac,
    ):
        wanted = [source.streams.video[0], *source.streams.audio[:1]]
        size = fitted_size(
            wanted[0].width, wanted[0].height, float(wanted[0].sample_aspect_ratio or 1), OPTIONS.short_side_px
        )
        video = mp4.add_stream("libx264", rate=Fraction(16), options={**OPTIONS.encoder_options(), "mbtree": "0"})
        video.width, video.height = size
        video.codec_context.gop_size = OPTIONS.keyframe_interval
        audio = flac.add_stream("flac", rate=OPTIONS.audio_rate_hz)
        audio.codec_context.layout = "mono"
        for stream in (*wanted, video, audio):
            stream.codec_context.thread_count = 1
        reformatter = VideoReformatter()
        resampler = AudioResampler(format="s16", layout="mono", rate=OPTIONS.audio_rate_hz)
        num_frames, held, first, end = 0, None, None, 0.0

        def emit(until: float) -> None:
            nonlocal num_frames
            scaled = None
            while num_frames / 16 + 0.0006 < until:
                if scaled is None:
                    scaled = reformatter.reformat(held, *size, "yuv420p", interpolation="AREA", threads=1)
                scaled.pts, scaled.time_base, scaled.pict_type = num_frames, Fraction(1, 16), PictureType.NONE
                mp4.mux(video.encode(scaled))
                num_frames += 1

        for packet in source.demux(*wanted):
            if packet.stream.type == "video":
                for frame in packet.decode():
                    first = frame.time if first is None else first
                    if held is not None:
                        emit(frame.time - first)
                    held, end = frame, frame.time - first + float(frame.duration * frame.time_base)
            else:
                for frame in packet.decode():
                    for piece in resampler.resample(frame):
                        flac.mux(audio.encode(piece))
        emit(end)
        mp4.mux(video.encode(None))
        if len(wanted) > 1:
            for piece in resampler.resample(None):
                flac.mux(audio.encode(piece))
            flac.mux(audio.encode(None))
    return len(outputs[0].getvalue()), len(outputs[1].getvalue())


def with_ffmpeg(path: str, program: str, folder: Path) -> tuple[int, int]:
    """The command, both outputs in one run."""
    info = probe(path)
    assert info.video is not None
    width, height = fitted_size(info.video.width, info.video.height, info.video.pixel_aspect, OPTIONS.short_side_px)
    outputs = folder / "out.mp4", folder / "out.flac"
    command = [program, "-v", "error", "-nostdin", "-y", "-threads", "1", "-filter_threads", "1", "-i", path]
    command += ["-map", "0:v:0", "-vf", f"fps=16:round=up,scale={width}:{height}:flags=area,format=yuv420p"]
    command += ["-c:v", "libx264", "-threads", "1", "-g", str(OPTIONS.keyframe_interval), "-mbtree", "0"]
    command += [text for name, value in OPTIONS.encoder_options().items() for text in (f"-{name}", value)]
    command += [str(outputs[0])]
    if info.audio is not None:
        command += [
            "-map",
            "0:a:0",
            "-ac",
            "1",
            "-ar",
            str(OPTIONS.audio_rate_hz),
            "-sample_fmt",
            "s16",
            "-c:a",
            "flac",
            str(outputs[1]),
        ]
    subprocess.run(command, check=True)
    return outputs[0].stat().st_size, outputs[1].stat().st_size if info.audio else 0


# --- measuring -----------------------------------------------------------------------------------------------------


def cpu_seconds() -> float:
    """CPU time of this process and of its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def compare(path: str, methods: dict[str, Callable[[str], tuple[int, int]]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each method, once a round, in turn; the first round warms up and does not count."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        order = list(methods)[:: 1 if number % 2 else -1]
        for name in order:
            before = cpu_seconds()
            methods[name](path)
            if number:
                times[name].append(cpu_seconds() - before)
    return times


def ratio(above: list[float], below: list[float]) -> float:
    """The median over the rounds."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def print_comparison(paths: list[Path], rounds: int, program: str | None) -> None:
    """One line a file."""
    with tempfile.TemporaryDirectory() as folder:
        methods: dict[str, Callable[[str], tuple[int, int]]] = {"bare": with_bare_calls, "ours": with_transcode}
        if program is not None:
            methods["ffmpeg"] = lambda path: with_ffmpeg(path, program, Path(folder))
        print(
            f"{'file':28s}" + "".join(f"{name + ' s':>10s}{'kB':>14s}" for name in methods) + "  ours/bare  ours/ffmpeg"
        )
        for path in paths:
            times = compare(str(path), methods, rounds)
            line = f"{path.name:28s}"
            for name, method in methods.items():
                video, audio = method(str(path))
                line += f"{statistics.median(times[name]):10.3f}{f'{video / 1e3:.0f}+{audio / 1e3:.0f}':>14s}"
            line += f"{ratio(times['ours'], times['bare']):11.3f}"
            print(line + (f"{ratio(times['ours'], times['ffmpeg']):13.3f}" if program else ""), flush=True)


def run_alone(path: str) -> float:
    """Peak resident memory of a new process that transcodes one file, less what it stores: MiB."""
    code = (
        "import resource, sys; from benchmarks.prepare import OPTIONS; from data_prep.transcode import transcode\n"
        "result = transcode(sys.argv[1], OPTIONS)\n"
        "stored = len(result.video or b'') + len(result.audio or b'')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, stored / 2**20)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, path], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    peak, stored = map(float, output.split())
    print(f"  {Path(path).name}: peak {peak:.0f} MiB, of it stored media {stored:.1f} MiB")
    return peak - stored


def files_a_second(path: str, num_workers: int, num_files: int) -> float:
    """Files a second of so many processes, by the clock on the wall."""
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        pool.map(with_transcode, [path] * num_workers)
        begin = time.perf_counter()
        pool.map(with_transcode, [path] * num_files, chunksize=1)
        return num_files / (time.perf_counter() - begin)


def main() -> None:
    """All tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, nargs="*", default=[], help="real files, measured too")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ffmpeg", default=shutil.which("ffmpeg"), help="the command; default: the one on the path")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the long file for memory; 0 leaves it out")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, PyAV {av.__version__}")
    if arguments.ffmpeg:
        print(
            subprocess.run([arguments.ffmpeg, "-version"], check=True, capture_output=True, text=True).stdout.split(
                "\n"
            )[0]
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = {(640, 480): folder / "10 s 640x480.mp4", (1280, 720): folder / "10 s 1280x720.mp4"}
        for (width, height), path in made.items():
            make_file(path, 10.0, width, height)
        print_comparison([*made.values(), *arguments.files], arguments.rounds, arguments.ffmpeg)
        small = str(made[640, 480])
        one, two = (files_a_second(small, workers, 8 * workers) for workers in (1, 2))
        print(f"workers: 1 does {one:.2f} files/s, 2 do {two:.2f}: {two / one:.2f} times as many")
        if arguments.minutes:
            long = folder / f"{arguments.minutes:g} min 1280x720.mp4"
            make_file(long, 60 * arguments.minutes, 1280, 720)
            print("memory:")
            short_mib, long_mib = run_alone(str(made[1280, 720])), run_alone(str(long))
            print(f"  without the stored media: {short_mib:.0f} MiB and {long_mib:.0f} MiB")


if __name__ == "__main__":
    main()
