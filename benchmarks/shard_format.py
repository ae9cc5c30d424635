"""What the choices of the shard format cost: bytes per clip, and clips per second that the shard reader reads.

    python benchmarks/shard_format.py [--files clip.mp4 ...] [--rounds 5] [--variants "with CABAC" ...]

One choice at a time is changed from the default. A clip is ten seconds (or less) of a file. Reading is what training
does: parsing a sample's tar members, then 8 frames at 16 per second from a random time, to RGB, and 2 s of audio.
Speed is in CPU time of one thread; all variants take turns, and the median over the rounds is printed. PSNR is of luma
against the scaled frames before encoding, so that codecs can be compared at equal quality.
"""

from __future__ import annotations

import argparse
import io
import itertools
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from avssl.data.read_views import read_clip
from avssl.media.decode import stream_frames
from avssl.media.frames import UprightFilter
from avssl.media.info import fitted_size
from avssl.media.readers import AudioReader, VideoReader
from avssl.shards.format import SampleInfo
from avssl.shards.shard_set import Sample, parse_members, write_tar
from avssl.transforms.config import ViewsConfig
from benchmarks.claims import median_ratio
from benchmarks.made_files import make_file
from data_prep.transcode.encode import MediaWriter
from data_prep.transcode.encode_settings import AudioSettings, VideoSettings
from data_prep.transcode.members import Window, on_grid
from data_prep.transcode.options import WriteOptions

CLIP_SECONDS, FPS, RATE_HZ = 10.0, 16, 24_000
READS_PER_ROUND = 8
H264 = {"preset": "veryfast", "bf": "0", "sc_threshold": "0", "coder": WriteOptions.entropy_coder}
ENCODERS = {
    "h264": ("libx264", H264),
    "h264, CABAC": ("libx264", H264 | {"coder": "cabac"}),
    "h264, no deblocking": ("libx264", H264 | {"x264-params": "no-deblock=1"}),
    "h264, B-frames": ("libx264", H264 | {"bf": "2"}),
    "hevc": (
        "libx265",
        {"preset": "veryfast", "x265-params": "pools=1:frame-threads=1:bframes=0:scenecut=0:log-level=0"},
    ),
    "vp9": ("libvpx-vp9", {"b": "0", "cpu-used": "4", "deadline": "good", "lag-in-frames": "0"}),
    "av1": ("libsvtav1", {"preset": "8", "svtav1-params": "lp=1:scd=0"}),
}
AUDIO_ENCODERS = {
    "flac": ("flac", "flac", {}),
    "opus": ("libopus", "ogg", {"b": "64000"}),
    "aac": ("aac", "mp4", {"b": "96000"}),
}


@dataclass(frozen=True)
class Variant:
    """One way to store a clip. crf: on the scale of the codec."""

    codec: str = "h264"
    keyframe_interval: int = WriteOptions.keyframe_interval
    crf: int = WriteOptions.crf
    short_side_px: int = WriteOptions.short_side_px
    audio: str = "flac"


DEFAULT = Variant()
VARIANTS = {
    "default": DEFAULT,
    "with CABAC": replace(DEFAULT, codec="h264, CABAC"),
    "with CABAC, keyframe every 16": replace(DEFAULT, codec="h264, CABAC", keyframe_interval=16),
    "without deblocking": replace(DEFAULT, codec="h264, no deblocking"),
    **{f"keyframe every {k}": replace(DEFAULT, keyframe_interval=k) for k in (1, 4, 12, 16, 32, 160)},
    **{f"crf {crf}": replace(DEFAULT, crf=crf) for crf in (18, 20, 26, 28)},
    **{f"short side {side} px": replace(DEFAULT, short_side_px=side) for side in (128, 192, 320)},
    "h264 with B-frames": replace(DEFAULT, codec="h264, B-frames"),
    "hevc, crf 25": replace(DEFAULT, codec="hevc", crf=25),
    "vp9, crf 30": replace(DEFAULT, codec="vp9", crf=30),
    "vp9, crf 30, keyframe every 16": replace(DEFAULT, codec="vp9", crf=30, keyframe_interval=16),
    "av1, crf 32": replace(DEFAULT, codec="av1", crf=32),
    "av1, crf 32, keyframe every 16": replace(DEFAULT, codec="av1", crf=32, keyframe_interval=16),
    "opus, 64 kb/s": replace(DEFAULT, audio="opus"),
    "aac, 96 kb/s": replace(DEFAULT, audio="aac"),
}


def scaled_frames(path: Path, short_side_px: int) -> list[Any]:
    """PyAV frames of the clip, 16 per second, scaled as an encoder gets them."""
    with VideoReader(str(path)) as stream:
        info = stream.info
        assert info is not None
        size = fitted_size(info.width, info.height, info.pixel_aspect, short_side_px)
        frames: list[Any] = []
        for frame in on_grid(stream.play(), Fraction(FPS), Window(0.0, CLIP_SECONDS, 0.0)):
            if not frames:
                turns, is_mirrored = stream.orientation
                upright = UprightFilter(turns, size, is_mirrored)
            frames.append(upright(frame))
    return frames


def waveform_of(path: Path) -> np.ndarray:
    """The audio of the clip: float32 (1, samples)."""
    with AudioReader(str(path)) as stream:
        return np.concatenate(list(stream.play(RATE_HZ)))[None, : round(CLIP_SECONDS * RATE_HZ)]


def stored(path: Path, variant: Variant, frames: list[Any], waveform: np.ndarray) -> Sample:
    """The clip, encoded as the variant says."""
    codec, options = ENCODERS[variant.codec]
    video, audio = io.BytesIO(), io.BytesIO()
    key = {"x265-params": f"{options['x265-params']}:keyint={variant.keyframe_interval}"} if codec == "libx265" else {}
    settings = VideoSettings(
        frames[0].width, frames[0].height, FPS, codec, keyframe_interval=variant.keyframe_interval,
        options={**options, **key, "crf": str(variant.crf)},
    )  # fmt: skip
    with MediaWriter(video, video=settings, container_format="mp4") as writer:
        for frame in frames:
            writer.write_video(frame)
    encoder, container, audio_options = AUDIO_ENCODERS[variant.audio]
    with MediaWriter(
        audio, audio=AudioSettings(RATE_HZ, 1, encoder, options=audio_options), container_format=container
    ) as writer:
        for begin in range(0, waveform.shape[1], 4096):
            writer.write_audio(waveform[:, begin : begin + 4096])
    info = SampleInfo(0, path.stem.replace(" ", "_"), len(frames) / FPS, float(FPS), len(frames), 0.0, RATE_HZ,
                      waveform.shape[1], {}, {})  # fmt: skip
    return Sample(info, video.getvalue(), audio.getvalue())


def psnr_db(sample: Sample, frames: list[Any]) -> float:
    """PSNR in dB of the luma of all stored frames against the frames before encoding, of which there are as many."""

    def luma(frame: Any) -> np.ndarray:
        return frame.to_ndarray(format="yuv420p")[: frame.height].astype(np.float32)

    assert sample.video is not None
    decoded = (luma(shown.frame) for shown in stream_frames(sample.video))
    errors = [np.square(stored - luma(frame)).mean() for stored, frame in zip(decoded, frames, strict=True)]
    return float(10 * np.log10(255**2 / max(1e-9, np.mean(errors))))


def clips_per_second(tar_members: list[bytes], seed: int) -> float:
    """Clips per CPU second when every sample is read several times, from random times."""
    config = ViewsConfig()
    generator = np.random.default_rng(seed)
    begin = time.process_time()
    for content in itertools.chain.from_iterable(itertools.repeat(tar_members, READS_PER_ROUND)):
        clip = read_clip(parse_members(content, "benchmark"), config, {"video", "audio"}, generator)
        assert clip.video is not None
        assert clip.audio is not None
    return READS_PER_ROUND * len(tar_members) / (time.process_time() - begin)


def as_members(sample: Sample) -> bytes:
    """The sample as the bytes of its tar members."""
    file = io.BytesIO()
    size = list(write_tar(file, [sample]))[-1]
    return file.getvalue()[:size]


def rows(files: list[Path], rounds: int, variants: dict[str, Variant]) -> Iterator[str]:
    """The lines of the table, in Markdown."""
    facts: dict[str, tuple[float, float, float, float]] = {}
    members: dict[str, list[bytes]] = {}
    sides = {variant.short_side_px for variant in variants.values()}
    frames = {(path, side): scaled_frames(path, side) for path in files for side in sides}
    waveforms = {path: waveform_of(path) for path in files}
    for name, variant in variants.items():
        side, before = variant.short_side_px, time.process_time()
        samples = [stored(path, variant, frames[path, side], waveforms[path]) for path in files]
        seconds = (time.process_time() - before) / len(files)
        video, audio = (np.mean([len(content) for content in contents]) / 1e3 for contents in zip(
            *((sample.video or b"", sample.audio or b"") for sample in samples), strict=True))  # fmt: skip
        quality = np.mean([psnr_db(sample, frames[path, side]) for sample, path in zip(samples, files, strict=True)])
        facts[name] = video, audio, float(quality), seconds
        members[name] = [as_members(sample) for sample in samples]
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in list(variants)[:: 1 if number % 2 else -1]:
            speeds[name].append(clips_per_second(members[name], number))
    yield "| variant | video kB | audio kB | PSNR dB | encoding s | clips/s | of the default |"
    yield "|---|---|---|---|---|---|---|"
    for name, (video, audio, quality, seconds) in facts.items():
        ratio = median_ratio(speeds[name], speeds["default"])
        yield (f"| {name} | {video:.0f} | {audio:.0f} | {quality:.1f} | {seconds:.2f} | "
               f"{statistics.median(speeds[name]):.0f} | {ratio:.2f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--files", type=Path, nargs="*", default=[], help="files with audio (default: two synthetic ones)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--variants", nargs="*", choices=VARIANTS, metavar="VARIANT", help="beside the default (default: all)"
    )
    arguments = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, {WriteOptions().to_json()['pyav_version']=}")
    with tempfile.TemporaryDirectory() as folder:
        made = [Path(folder) / "10 s 640x480.mp4", Path(folder) / "10 s 1280x720.mp4"]
        make_file(made[0], CLIP_SECONDS, 640, 480)
        make_file(made[1], CLIP_SECONDS, 1280, 720)
        chosen = ["default", *(arguments.variants if arguments.variants is not None else VARIANTS)]
        for row in rows([*made, *arguments.files], arguments.rounds, {name: VARIANTS[name] for name in chosen}):
            print(row, flush=True)


if __name__ == "__main__":
    main()
