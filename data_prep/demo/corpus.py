"""The command `demo-corpus`: makes a small labeled corpus of media files, in which shapes move to audio.

A clip shows one shape (the visual class) whose size follows the loudness of one timbre (the sound class) and whose
height follows its melody. Every clip has its own rhythm and melody, so that one can see and hear which audio and video
belong together; colors, position, size, rotation, pitch, loudness, noise and the file's codecs say nothing about the
classes. `agreement` is how often class i of the shapes comes with class i of the timbres, `difficulty` how well the
shape is hidden.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.files.plain_text import emit, say
from avssl.files.progress import track
from avssl.processes.limits import default_num_workers
from data_prep.demo.audio import MELODY_SEMITONES, TIMBRES, draw_score, loudness, record, synthesize
from data_prep.demo.frames import SHAPES, render
from data_prep.transcode.encode import write_media

FORMAT_VERSION = 1
VISUAL_CLASSES = tuple(SHAPES)
SOUND_CLASSES = tuple(TIMBRES)
SPLITS = ("train", "test")
GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Packaging:
    """A pair of codecs and their container, with encoder options that favor speed."""

    extension: str
    video_codec: str
    audio_codec: str
    video_options: dict[str, str]
    audio_options: dict[str, str] = field(default_factory=dict)


PACKAGINGS = (
    Packaging("mp4", "libx264", "aac", {"preset": "veryfast", "crf": "20"}, {"aac_coder": "fast"}),
    Packaging("webm", "libvpx-vp9", "libopus", {"deadline": "realtime", "cpu-used": "8", "crf": "28", "b": "0"}),
    Packaging("avi", "mpeg4", "libmp3lame", {"flags": "+qscale", "global_quality": "472"}, {"compression_level": "9"}),
    Packaging("mkv", "libx264", "flac", {"preset": "veryfast", "crf": "20"}),
)


@dataclass(frozen=True)
class CorpusSettings:
    """Everything that decides the bytes of the corpus. See make_demo_corpus for meanings and units."""

    num_train: int = 600
    num_test: int = 200
    seed: int = 0
    size_px: int = 64
    fps: float = 16.0
    duration_seconds: float = 2.0
    agreement: float = 0.8
    difficulty: float = 0.25
    num_classes: int = 8
    audio_rate_hz: int = 24_000

    def __post_init__(self) -> None:
        allowed = {
            "num_train": (self.num_train >= 1, "at least 1"),
            "num_test": (self.num_test >= 0, "0 or more"),
            "seed": (self.seed >= 0, "0 or more"),
            "size_px": (self.size_px >= 16 and self.size_px % 2 == 0, "even, 16 or more"),
            "fps": (self.fps > 0, "positive"),
            "duration_seconds": (self.duration_seconds >= 0.25, "0.25 or more"),
            "agreement": (0 <= self.agreement <= 1, "in [0, 1]"),
            "difficulty": (0 <= self.difficulty <= 1, "in [0, 1]"),
            "num_classes": (2 <= self.num_classes <= len(SHAPES), f"2 to {len(SHAPES)}"),
            "audio_rate_hz": (self.audio_rate_hz in (16_000, 24_000, 48_000), "16000, 24000 or 48000"),
        }
        for name, (is_right, range_text) in allowed.items():
            if not is_right:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {range_text}")


@dataclass(frozen=True)
class DemoClip:
    """What a clip will be: a function of the settings, the split and the clip's number."""

    split: str
    number: int
    visual: str
    sound: str
    packaging: Packaging

    @property
    def relative_path(self) -> str:
        """The path of the clip in the folder of its split."""
        return f"{self.visual}/{self.split}-{self.number:06d}.{self.packaging.extension}"


@dataclass(frozen=True)
class RenderedClip:
    """A synthesized clip. frames: uint8 (frames, size, size, 3). waveform: float32 (1, samples). loudness, heights:
    (frames,), as `render` takes them.
    """

    frames: NDArray[np.uint8]
    waveform: NDArray[np.float32]
    loudness: NDArray[np.floating[Any]]
    heights: NDArray[np.floating[Any]]


def plan_clip(settings: CorpusSettings, split: str, number: int) -> DemoClip:
    """Choose classes and packaging of a clip: classes in turn, packagings in turn within a class."""
    generator = _generator(settings, split, number, purpose=0)
    visual, round_number = number % settings.num_classes, number // settings.num_classes
    # Multiples of the golden ratio modulo 1 fill [0, 1) evenly: of any consecutive clips, nearly this share agrees.
    agrees = (round_number * GOLDEN_RATIO + visual / settings.num_classes + 0.5) % 1 < settings.agreement
    other = (visual + int(generator.integers(1, settings.num_classes))) % settings.num_classes
    packaging = PACKAGINGS[(round_number + visual) % len(PACKAGINGS)]
    return DemoClip(split, number, VISUAL_CLASSES[visual], SOUND_CLASSES[visual if agrees else other], packaging)


def render_clip(settings: CorpusSettings, plan: DemoClip) -> RenderedClip:
    """Synthesize the audio, then draw the frames that follow it."""
    generator = _generator(settings, plan.split, plan.number, purpose=1)
    score = draw_score(generator, settings.duration_seconds, settings.audio_rate_hz)
    clean = synthesize(plan.sound, score, generator)
    num_frames = max(1, round(settings.duration_seconds * settings.fps))
    # A frame is on screen from k / fps to (k + 1) / fps; it shows the loudness in the middle of that time.
    times_seconds = (np.arange(num_frames) + 0.5) / settings.fps
    loud = loudness(clean, settings.audio_rate_hz, times_seconds, 1 / settings.fps)
    loud = loud / max(float(loud.max()), 1e-9)
    positions = np.minimum((times_seconds * settings.audio_rate_hz).astype(int), len(clean) - 1)
    heights = score.semitones[positions] / MELODY_SEMITONES
    waveform = record(clean, generator)
    frames = render(plan.visual, loud, heights, generator, size_px=settings.size_px, difficulty=settings.difficulty)
    return RenderedClip(frames, waveform, loud, heights)


def make_demo_corpus(
    folder: str | os.PathLike[str],
    num_train: int = 600,
    num_test: int = 200,
    *,
    num_workers: int | None = None,
    progress: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Write folder/{train,test}/<visual class>/<clip>.<ext>, a labels.csv in each split, and folder/corpus.json.

    A file's bytes depend on the settings, the split and the clip's number, not on workers or on num_train, num_test.

    Args:
        folder: created if missing; refused if it holds anything but a corpus of the same settings.
        num_workers: processes, default one per core (a script then needs `if __name__ == "__main__":`); 1: in this one.
        settings: seed; size_px: width and height of frames; fps; duration_seconds;
            agreement: fraction in [0, 1] of clips whose sound class is that of the shape; the others have any other;
            difficulty: [0, 1], clutter, texture, noise, and how small the shapes may be;
            num_classes: 2 to 8; audio_rate_hz.

    Returns {"num_train", "num_test", "bytes", "agreement" (share as made), "packagings": {extension: count}, "folder"}.
    Raises ValueError for settings out of range, FileExistsError for a folder with other content.
    """
    chosen = CorpusSettings(num_train=num_train, num_test=num_test, **settings)
    root = Path(folder)
    _claim(root, chosen)
    plans = [
        plan_clip(chosen, split, number)
        for split, count in zip(SPLITS, (chosen.num_train, chosen.num_test), strict=True)
        for number in range(count)
    ]
    for plan in plans:
        (root / plan.split / plan.relative_path).parent.mkdir(parents=True, exist_ok=True)
    jobs = [(str(root), chosen, plan) for plan in plans]
    sizes = list(track(_run(jobs, num_workers), "demo corpus", len(jobs), "clip", shown=progress))
    for split in SPLITS:
        _write_labels(root / split / "labels.csv", [plan for plan in plans if plan.split == split])
    agreeing = [VISUAL_CLASSES.index(plan.visual) == SOUND_CLASSES.index(plan.sound) for plan in plans]
    return {
        "folder": str(root),
        "num_train": chosen.num_train,
        "num_test": chosen.num_test,
        "bytes": sum(sizes),
        "agreement": sum(agreeing) / len(agreeing),
        "packagings": dict(sorted(Counter(plan.packaging.extension for plan in plans).items())),
    }


def _generator(settings: CorpusSettings, split: str, number: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([settings.seed, SPLITS.index(split), number, purpose])


def _claim(root: Path, settings: CorpusSettings) -> None:
    """Mark the folder, which must be empty or hold a corpus of the same settings. FileExistsError otherwise."""
    identity = json.dumps({"format": "avssl-demo-corpus", "version": FORMAT_VERSION, **asdict(settings)}, indent=2)
    marker = root / "corpus.json"
    if root.is_dir() and any(root.iterdir()) and not (marker.is_file() and marker.read_text("utf-8") == identity):
        raise FileExistsError(
            f"{root} holds something else than a demo corpus with these settings: empty it or choose another"
        )
    root.mkdir(parents=True, exist_ok=True)
    marker.write_text(identity, encoding="utf-8")


def _write_clip(job: tuple[str, CorpusSettings, DemoClip]) -> int:
    """Write the file of a clip, and return its size in bytes."""
    root, settings, plan = job
    path = Path(root) / plan.split / plan.relative_path
    clip = render_clip(settings, plan)
    write_media(
        path,
        video=iter(clip.frames),
        video_fps=settings.fps,
        audio=clip.waveform,
        audio_rate_hz=settings.audio_rate_hz,
        video_codec=plan.packaging.video_codec,
        audio_codec=plan.packaging.audio_codec,
        video_options=plan.packaging.video_options,
        audio_options=plan.packaging.audio_options,
    )
    return path.stat().st_size


def _run(jobs: list[tuple[str, CorpusSettings, DemoClip]], num_workers: int | None) -> Iterator[int]:
    num_workers = min(num_workers or default_num_workers(), len(jobs))
    if num_workers <= 1:
        yield from map(_write_clip, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        yield from pool.map(_write_clip, jobs, chunksize=4)


def _write_labels(path: Path, plans: list[DemoClip]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "visual", "sound"])
        writer.writerows(sorted((plan.relative_path, plan.visual, plan.sound) for plan in plans))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `avssl prep demo-corpus`."""
    default = CorpusSettings()
    parser.add_argument("out", help="folder to make the corpus in")
    parser.add_argument("--num-train", type=int, default=default.num_train, help="clips to train on (%(default)s)")
    parser.add_argument("--num-test", type=int, default=default.num_test, help="clips to test on (%(default)s)")
    parser.add_argument("--seed", type=int, default=default.seed, help="another seed makes other clips (%(default)s)")
    parser.add_argument("--size-px", type=int, default=default.size_px, help="width and height (%(default)s)")
    parser.add_argument("--fps", type=float, default=default.fps, help="frames per second (%(default)s)")
    parser.add_argument(
        "--duration-seconds", type=float, default=default.duration_seconds, help="length of a clip (%(default)s)"
    )
    parser.add_argument(
        "--agreement",
        type=float,
        default=default.agreement,
        help="share of clips whose sound class is that of the shape (%(default)s)",
    )
    parser.add_argument(
        "--difficulty", type=float, default=default.difficulty, help="0 to 1: how well shapes are hidden (%(default)s)"
    )
    parser.add_argument("--num-classes", type=int, default=default.num_classes, help="2 to 8 (%(default)s)")
    parser.add_argument(
        "--audio-rate-hz", type=int, default=default.audio_rate_hz, help="samples per second (%(default)s)"
    )
    parser.add_argument("--num-workers", type=int, default=default_num_workers(), help="processes (default: all cores)")


def run(arguments: argparse.Namespace) -> int:
    """Make the corpus that the options describe and print a summary."""
    names = ("num_train", "num_test", "num_workers", *CorpusSettings.__dataclass_fields__)
    summary = make_demo_corpus(arguments.out, **{name: getattr(arguments, name) for name in names})
    say(json.dumps(summary))
    emit("result", **summary)
    return 0
