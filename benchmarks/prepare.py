"""What preparing a file costs: `transcode` beside bare calls of the same libraries, and beside the ffmpeg command.

    python benchmarks/prepare.py [--files clip.mp4 ...] [--rounds 7] [--ffmpeg /usr/bin/ffmpeg]

All three make the same from the same file: the frames on screen 16 times per second, scaled by area to a short side of
256, x264 with a keyframe every 8 frames, and mono FLAC at 24 kHz; one thread each. Measured is CPU time with that of
child processes, because the machine may be shared; the methods take turns, and each ratio is a median over the rounds.
"""

# ruff: noqa: TID251 - the bare calls are what is compared with
from __future__ import annotations

import argparse
import io
import multiprocessing
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
from av.audio.resampler import AudioResampler
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from avssl.media.decode import probe
from avssl.media.info import fitted_size
from benchmarks.claims import ROOT, cpu_seconds, median_ratio, take_turns
from benchmarks.made_files import make_file
from data_prep.transcode.file import transcode
from data_prep.transcode.options import WriteOptions

OPTIONS = WriteOptions(on_missing_audio="keep")


# --- the three methods ------------------------------------------------------------------------------------------------


def with_transcode(path: str) -> tuple[int, int]:
    """Transcode a file as the project does; (bytes of video, bytes of audio)."""
    result = transcode(path, OPTIONS)
    return len(result.video or b""), len(result.audio or b"")


class BareVideo:
    """Stores the frames on screen 16 times per second in an mp4, by bare calls of PyAV."""

    def __init__(self, source: Any, output: Any) -> None:
        aspect = float(source.sample_aspect_ratio or 1)
        self._size = fitted_size(source.width, source.height, aspect, OPTIONS.short_side_px)
        options = {**OPTIONS.encoder_options(), "mbtree": "0"}
        self._output, self._stream = output, output.add_stream("libx264", rate=Fraction(16), options=options)
        self._stream.width, self._stream.height = self._size
        self._stream.codec_context.gop_size = OPTIONS.keyframe_interval
        self._stream.codec_context.thread_count = 1
        self._reformatter = VideoReformatter()
        self._num_frames, self._shown, self._first, self._end = 0, None, None, 0.0

    def add(self, frame: Any) -> None:
        """Store the frame before this one as often as it was on screen."""
        self._first = frame.time if self._first is None else self._first
        if self._shown is not None:
            self._store_until(frame.time - self._first)
        self._shown, self._end = frame, frame.time - self._first + float(frame.duration * frame.time_base)

    def close(self) -> None:
        """Store the last frame and flush the encoder."""
        self._store_until(self._end)
        self._output.mux(self._stream.encode(None))

    def _store_until(self, seconds: float) -> None:
        scaled = None
        while self._num_frames / 16 + 0.0006 < seconds:
            if scaled is None:
                scaled = self._reformatter.reformat(
                    self._shown, *self._size, "yuv420p", interpolation="AREA", threads=1
                )
            scaled.pts, scaled.time_base, scaled.pict_type = self._num_frames, Fraction(1, 16), PictureType.NONE
            self._output.mux(self._stream.encode(scaled))
            self._num_frames += 1


def with_bare_calls(path: str) -> tuple[int, int]:
    """Transcode a file with as little as PyAV needs: one pass, no checks, no odd files."""
    outputs = io.BytesIO(), io.BytesIO()
    with (
        av.open(path) as source,
        av.open(outputs[0], "w", format="mp4") as mp4,
        av.open(outputs[1], "w", format="flac") as flac,
    ):
        streams = [source.streams.video[0], *source.streams.audio[:1]]
        video = BareVideo(streams[0], mp4)
        audio = flac.add_stream("flac", rate=OPTIONS.audio_rate_hz)
        audio.codec_context.layout = "mono"
        for stream in (*streams, audio):
            stream.codec_context.thread_count = 1
        resampler = AudioResampler(format="s16", layout="mono", rate=OPTIONS.audio_rate_hz)
        for packet in source.demux(*streams):
            for frame in packet.decode():
                if packet.stream.type == "video":
                    video.add(frame)
                else:
                    for resampled in resampler.resample(frame):
                        flac.mux(audio.encode(resampled))
        video.close()
        if len(streams) > 1:
            for resampled in resampler.resample(None):
                flac.mux(audio.encode(resampled))
            flac.mux(audio.encode(None))
    return len(outputs[0].getvalue()), len(outputs[1].getvalue())


def with_ffmpeg(path: str, program: str, folder: Path) -> tuple[int, int]:
    """Transcode a file by the ffmpeg command, with both outputs in one run."""
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
        command += ["-map", "0:a:0", "-ac", "1", "-ar", str(OPTIONS.audio_rate_hz), "-sample_fmt", "s16"]
        command += ["-c:a", "flac", str(outputs[1])]
    subprocess.run(command, check=True)
    return outputs[0].stat().st_size, outputs[1].stat().st_size if info.audio else 0


# --- measuring -----------------------------------------------------------------------------------------------------


def print_comparison(paths: list[Path], rounds: int, program: str | None) -> None:
    """Print a line per file: CPU seconds and bytes of each method, and the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        methods: dict[str, Callable[[str], tuple[int, int]]] = {"bare": with_bare_calls, "ours": with_transcode}
        if program is not None:
            methods["ffmpeg"] = lambda path: with_ffmpeg(path, program, Path(folder))
        print(
            f"{'file':28s}" + "".join(f"{name + ' s':>10s}{'kB':>14s}" for name in methods) + "  ours/bare  ours/ffmpeg"
        )
        for path in paths:
            calls = {name: partial(method, str(path)) for name, method in methods.items()}
            times = take_turns(calls, rounds, cpu_seconds)
            line = f"{path.name:28s}"
            for name, call in calls.items():
                video, audio = call()
                line += f"{statistics.median(times[name]):10.3f}{f'{video / 1e3:.0f}+{audio / 1e3:.0f}':>14s}"
            line += f"{median_ratio(times['ours'], times['bare']):11.3f}"
            print(line + (f"{median_ratio(times['ours'], times['ffmpeg']):13.3f}" if program else ""), flush=True)


def run_alone(path: str) -> float:
    """Peak resident memory in MiB of a new process that transcodes one file, without the media that it stores."""
    code = (
        "import sys; from pathlib import Path; from benchmarks.prepare import OPTIONS\n"
        "from data_prep.transcode.file import transcode\n"
        "result = transcode(sys.argv[1], OPTIONS)\n"
        "stored = len(result.video or b'') + len(result.audio or b'')\n"
        # not ru_maxrss, which a process inherits from the process that starts it
        "status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())\n"
        "print(int(status['VmHWM'].split()[0]) / 1024, stored / 2**20)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, path], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    peak, stored = map(float, output.split())
    print(f"  {Path(path).name}: peak {peak:.0f} MiB, of it stored media {stored:.1f} MiB")
    return peak - stored


def print_video2dataset(path: str, python: str, rounds: int) -> None:
    """Print the CPU time of video2dataset's steps beside ours; they take turns."""
    options = [f"{value:.0f}" for value in (OPTIONS.fps, OPTIONS.short_side_px, OPTIONS.audio_rate_hz)]
    command = [python, str(ROOT / "benchmarks" / "video2dataset_run.py"), path, "1", *options]
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        times["ours"].append(cpu_of(path))
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        times["theirs"].append(float(output.split()[-1]))
    print(f"video2dataset's steps: {statistics.median(times['theirs']):.3f} s for {Path(path).name}, "
          f"ours/video2dataset {median_ratio(times['ours'], times['theirs']):.3f}")  # fmt: skip


def cpu_of(path: str) -> float:
    """CPU seconds of one transcoding."""
    before = time.process_time()
    with_transcode(path)
    return time.process_time() - before


def print_scaling(path: str, rounds: int) -> None:
    """Print how many more files per second two processes do than one (wall time), and how much more CPU time each
    takes.
    """
    files, context = 4, multiprocessing.get_context("spawn")
    speeds: dict[int, list[float]] = {1: [], 2: []}
    costs: dict[int, list[float]] = {1: [], 2: []}
    with context.Pool(1) as single, context.Pool(2) as double:
        for number, pool in [(1, single), (2, double)] * (rounds + 1):
            begin = time.perf_counter()
            cpu = pool.map(cpu_of, [path] * files * number, chunksize=1)
            speeds[number].append(files * number / (time.perf_counter() - begin))
            costs[number].append(statistics.mean(cpu))
    wall, cost = median_ratio(speeds[2][1:], speeds[1][1:]), median_ratio(costs[2][1:], costs[1][1:])
    print(f"2 workers: {wall:.2f} times the files per second of 1 (wall time), {cost:.2f} times the CPU time per file")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, nargs="*", default=[], help="real files, measured too")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ffmpeg", default=shutil.which("ffmpeg"), help="the command (default: the one in PATH)")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="of the long file whose memory is measured; 0: none"
    )
    parser.add_argument("--video2dataset", help="a Python that has video2dataset 1.3, in an environment of its own")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, PyAV {av.__version__}")
    if arguments.ffmpeg:
        version = subprocess.run([arguments.ffmpeg, "-version"], check=True, capture_output=True, text=True).stdout
        print(version.splitlines()[0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = {(640, 480): folder / "10 s 640x480.mp4", (1280, 720): folder / "10 s 1280x720.mp4"}
        for (width, height), path in made.items():
            make_file(path, 10.0, width, height)
        print_comparison([*made.values(), *arguments.files], arguments.rounds, arguments.ffmpeg)
        if arguments.video2dataset:
            print_video2dataset(str(made[640, 480]), arguments.video2dataset, arguments.rounds)
        print_scaling(str(made[640, 480]), arguments.rounds)
        if arguments.minutes:
            long = folder / f"{arguments.minutes:g} min 1280x720.mp4"
            make_file(long, 60 * arguments.minutes, 1280, 720)
            print("memory:")
            short_mib, long_mib = run_alone(str(made[1280, 720])), run_alone(str(long))
            print(f"  without the stored media: {short_mib:.0f} MiB and {long_mib:.0f} MiB")


if __name__ == "__main__":
    main()
