"""Clips per second and core of a worker of the loader, against AVID-CMA-style loading, and against decoding alone.

    python benchmarks/loader.py [--rounds 9] [--clips 12] [--torchcodec]

A clip is 8 frames at 16 per second, 224 px, and 2 s of audio at 24 kHz, from random seconds, as AVID draws them.
Measured is CPU time of one thread; the methods take turns in one process with the memory settings of our workers.

ours: from the shard file to a stacked batch in shared memory, sent and received as the training process receives it:
  uint8 frames, cropped and resized, and the waveform. Flip, colors, normalization and spectrogram follow on the device.
ours and the device's part: these too, on the same core.
AVID-CMA-style: benchmarks/loader_peer.py, from the original file to a stacked batch of float clips and spectrograms.
bare: the shortest PyAV program for the same frames and samples from the same bytes of a shard, already in memory;
  nothing is cropped, resized or sent. Frames are converted to RGB, or stay in YUV.
torchcodec (an environment of its own below .cache): the same frames and samples from the same bytes, in a process.
"""

# ruff: noqa: TID251 - the bare calls are what is compared with
from __future__ import annotations

import io
import pickle
import sys
import time
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import torch
from torch.utils.data import default_collate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from avssl.data.batch import Collate, RawBatch
from avssl.data.read_views import raw_views
from avssl.data.workers import keep_freed_memory
from avssl.shards.shard_set import Sample, ShardSet, spans
from avssl.transforms.config import ViewsConfig, clip_lengths
from avssl.transforms.time_sampling import random_clip_times, snap_to_frames
from avssl.transforms.view_maker import ViewMaker
from avssl.types import View
from benchmarks import loader_peer
from benchmarks.claims import Claim, command_line, machine, median_ratio, publish, take_turns
from benchmarks.loader_clips import prepared
from benchmarks.loader_torchcodec import TorchCodec

VIEWS = (View("video", "video"), View("audio", "audio"))
CONFIG = ViewsConfig()
SEED = 7


class Corpus:
    """The shards, the films of which they were made, and the clips of a round, which are the same for all methods."""

    def __init__(self, num_clips: int) -> None:
        films, folder = prepared()
        by_key = {film.name.replace(".", "_"): film for film in films}
        self.shards, self.num_clips, self.epoch = ShardSet(folder), num_clips, 0
        self.samples = [self.shards.read(index) for index in range(len(self.shards))]
        self.films = [by_key[sample.info.key] for sample in self.samples]
        self.maker = ViewMaker(CONFIG, ["audio", "video"])
        self.collate = Collate()

    def clips(self) -> list[tuple[int, int]]:
        """(epoch, index) of the clips of a round."""
        return [(self.epoch + k // len(self.shards), k % len(self.shards)) for k in range(self.num_clips)]

    def seconds(self) -> list[tuple[int, float, float]]:
        """(index, start of the video, start of the audio) of the same clips in seconds, drawn as the loader does."""
        starts = []
        for epoch, index in self.clips():
            video, audio = spans(self.samples[index])
            generator = np.random.default_rng((SEED, epoch, index))
            windows = random_clip_times(video, audio, clip_lengths(CONFIG), generator)
            assert video is not None
            snapped = snap_to_frames(windows, video, self.samples[index].info.video_fps)
            starts.append((index, float(snapped.video_start_seconds or 0), max(0.0, snapped.audio_start_seconds or 0)))
        return starts


def ours(corpus: Corpus) -> RawBatch:
    """A batch of a worker, as the training process receives it."""
    rows = [(index, raw_views(corpus.shards, index, VIEWS, CONFIG, SEED, epoch)) for epoch, index in corpus.clips()]
    return received(corpus.collate(rows))  # type: ignore[arg-type]


def received(batch: RawBatch) -> RawBatch:
    """The batch after the queue's pickler and unpickling, in this process."""
    return pickle.loads(ForkingPickler.dumps(batch))  # type: ignore[no-any-return]


def ours_with_device(corpus: Corpus) -> dict[str, torch.Tensor]:
    """The views that the device makes of a batch, here on the CPU."""
    views: dict[str, torch.Tensor] = corpus.maker(ours(corpus).views, torch.device("cpu"))
    return views


def peer(corpus: Corpus) -> Any:
    """A batch of AVID-CMA-style loading."""
    generator = np.random.default_rng(corpus.epoch)
    return default_collate([loader_peer.load(corpus.films[i], v, a, generator) for i, v, a in corpus.seconds()])


def bare(sample: Sample, video_start: float, audio_start: float, *, rgb: bool) -> None:
    """Decode a clip with the shortest program for PyAV."""
    frames: list[np.ndarray] = []
    with av.open(io.BytesIO(sample.video or b"")) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        container.seek(int(video_start / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if frame.time > video_start - 1e-3:
                frames.append((frame.reformat(format="rgb24", threads=1) if rgb else frame).to_ndarray())
                if len(frames) == CONFIG.video.num_frames:
                    break
    blocks: list[np.ndarray] = []
    with av.open(io.BytesIO(sample.audio or b"")) as container:
        audio = container.streams.audio[0]
        container.seek(int(audio_start / audio.time_base), stream=audio)
        end = audio_start + CONFIG.audio.seconds
        for block in container.decode(audio):
            blocks.append(block.to_ndarray())
            if block.time + block.samples / block.sample_rate >= end:
                break
    np.concatenate(blocks, axis=1)


def bare_round(corpus: Corpus, *, rgb: bool) -> None:
    """`bare` for the clips of a round."""
    for index, video_start, audio_start in corpus.seconds():
        bare(corpus.samples[index], video_start, audio_start, rgb=rgb)


def measured(corpus: Corpus, rounds: int) -> dict[str, list[float]]:
    """CPU seconds per clip of each method in each round."""
    methods: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(corpus),
        "device": lambda: ours_with_device(corpus),
        "peer": lambda: peer(corpus),
        "rgb": lambda: bare_round(corpus, rgb=True),
        "yuv": lambda: bare_round(corpus, rgb=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds):
        corpus.epoch = 100 * number
        for name, values in take_turns(methods, 1, time.process_time, warm_up_rounds=int(number == 0)).items():
            seconds[name] += [value / corpus.num_clips for value in values]
    return seconds


def claims_of(seconds: dict[str, list[float]]) -> list[Claim]:
    """The rows of the table."""
    speed = {name: 1 / median(values) for name, values in seconds.items()}

    def row(name: str, mine: str, other: str, against: str, goal: float | None) -> Claim:
        ratio = median_ratio(seconds[other], seconds[mine])
        return Claim(name, speed[mine], speed[other], "clips/s/core", against, ratio, goal=goal)

    clip = "loader: 8 frames 224 px + 2 s of audio"
    return [
        row(f"{clip}, ready for the device", "ours", "peer", "AVID-CMA-style: PyAV, PIL, STFT in the worker", 8.0),
        row(f"{clip}, with the device's part on the CPU", "device", "peer", "the same", None),
        row(f"{clip}, ready for the device", "ours", "rgb", "bare PyAV on the same bytes, to RGB", 0.85),
        row(f"{clip}, ready for the device", "ours", "yuv", "bare PyAV on the same bytes, in YUV", None),
    ]


def torchcodec_rows(corpus: Corpus, rounds: int) -> list[Claim]:
    """Decoding of the same clips by torchcodec and by bare PyAV in turn, each in CPU time of its process."""
    seconds: dict[str, list[float]] = {"torchcodec": [], "bare": []}
    with TorchCodec([(sample.video or b"", sample.audio or b"") for sample in corpus.samples]) as other:
        for number in range(-1, rounds):
            corpus.epoch = 100 * number + 5000
            theirs = other.decode(corpus.seconds())
            before = time.process_time()
            bare_round(corpus, rgb=True)
            mine = time.process_time() - before
            if number >= 0:
                seconds["torchcodec"].append(theirs)
                seconds["bare"].append(mine)
    per_clip = {name: corpus.num_clips / median(values) for name, values in seconds.items()}
    ratio = median_ratio(seconds["torchcodec"], seconds["bare"])
    return [Claim("decoding the loader's clips: bare PyAV to RGB", per_clip["bare"], per_clip["torchcodec"],
                  "clips/s/core", f"torchcodec {other.version}", ratio)]  # fmt: skip


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clips", type=int, default=12, help="in a round of a method")
    parser.add_argument("--torchcodec", action="store_true", help="install it below .cache and compare with it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    # As in a worker, where batches are stacked in shared memory.
    torch.utils.data._utils.worker._worker_info = SimpleNamespace()  # type: ignore[assignment]
    print(machine())
    corpus = Corpus(arguments.clips)
    rows = claims_of(measured(corpus, arguments.rounds))
    if arguments.torchcodec:
        rows += torchcodec_rows(corpus, arguments.rounds)
    publish(rows, arguments.json)


if __name__ == "__main__":
    main()
