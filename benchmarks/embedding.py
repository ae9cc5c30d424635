"""Claim: embedding long media takes little longer than decoding, if the encoder is not the bottleneck.

    python benchmarks/embedding.py [--films 6] [--film-seconds 60] [--size 640x360] [--rounds 3]

The videos are synthetic: 30 frames per second with stereo audio, consecutive windows of 2 s, and a network so small
that it is not the bottleneck. Decoding alone is this project's decoder over every frame, with the pixels of the frames
that embedding uses and all audio, but without crops, clips or messages between processes. The methods take turns:

- CPU time of reading windows (decoding, crops, audio clips) against that decoding; against the same decoder when it
  skips unused frames, as reading does; and against PyAV alone in a plain loop over every frame.
- The whole job (FolderJob: decoding in a process of its own, the network in this one, batches across files, Parquet
  files): the time that all videos but two add to a job of two, so that the start of processes is not counted. Measured
  in CPU time of the slower of its two processes, the limit if each has a core; and in wall time, which is comparable
  only while nothing else runs.
"""

from __future__ import annotations

import argparse
import os
import statistics

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import av  # noqa: TID251  (PyAV alone is what is measured)
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from avssl import config, losses
from avssl.embedding.embedder import Embedder
from avssl.embedding.folder import FolderJob
from avssl.embedding.media import WindowBatch, open_media
from avssl.embedding.sources import Sources
from avssl.embedding.windows import WindowReader, clip_starts
from avssl.media.readers import AudioReader, VideoReader
from avssl.models import create_encoder
from avssl.processes.worker import Message
from avssl.transforms.time_sampling import frame_times_seconds, window_grid
from avssl.transforms.view_maker import ViewMaker
from benchmarks.claims import Claim, command_line, cpu_seconds, median_ratio, publish, take_turns
from benchmarks.made_files import make_file

WINDOW_SECONDS = 2.0
SETTINGS = (
    "run=made", "data.shards=made", "loss.name=avid", "views.video.size_px=112",
    "encoders.video={name: avid_video, depth: 10, width: 1}",
    "encoders.audio={name: avid_audio, width: 1}", "loss.projector_hidden_dims=[16]", "loss.num_negatives=8",
)  # fmt: skip


class TimedReader(WindowReader):
    """A reader with `decoding_seconds`: CPU time that its only process has taken since it began to read."""

    began_seconds: float | None = None
    decoding_seconds = 0.0

    def begin(self, number: int) -> Any:
        """As WindowReader.begin, in the decoding process."""
        if self.began_seconds is None:
            self.began_seconds = time.process_time()
        return super().begin(number)

    def messages(self, begun: Any) -> Iterator[Message]:
        """As WindowReader.messages, in the decoding process; sending a message is counted with the next one."""
        for message in super().messages(begun):
            assert self.began_seconds is not None
            seconds = time.process_time() - self.began_seconds
            yield message._replace(values=message.values | {"decoding_seconds": seconds})

    def read(self, message: Message) -> WindowBatch:
        """As WindowReader.read, in the process of the network."""
        self.decoding_seconds = message.values["decoding_seconds"]
        return super().read(message)


class TimedEmbedder(Embedder):
    """Keeps the reader of the last job."""

    def window_reader(
        self, sources: Sources, settings: dict[str, Any], blocks: Sequence[range] | None = None
    ) -> TimedReader:
        """As Embedder.window_reader."""
        grid = settings["window_seconds"], settings["stride_seconds"]
        self.last_reader = TimedReader(sources, self.config.views, settings["modalities"], *grid, blocks)
        return self.last_reader


def tiny_embedder() -> TimedEmbedder:
    """An embedder with random weights and networks that need hardly any time."""
    made = config.parse(config.RunConfig, list(SETTINGS))
    torch.manual_seed(0)
    loss_class = losses.get(made.loss.name)
    modalities = loss_class.modalities(made.loss)
    encoders = {name: create_encoder(**made.encoders[name]) for name in modalities}
    views = ViewMaker(made.views, modalities)
    views.normalize_audio.mean.fill_(-40.0)
    views.normalize_audio.std.fill_(20.0)
    return TimedEmbedder(made, loss_class(made.loss, encoders, 40), views, "cpu", "made")


class Reading:
    """Several ways to read the same seconds of the same videos."""

    def __init__(self, embedder: TimedEmbedder, videos: list[Path]) -> None:
        self.views, self.videos = embedder.config.views, videos
        settings = embedder.settings(WINDOW_SECONDS, WINDOW_SECONDS, None)
        self.reader: WindowReader = embedder.window_reader(
            [(video_path, video_path.name) for video_path in videos], settings
        )
        self.times = [self.frame_times(video_path) for video_path in videos]

    def frame_times(self, video_path: Path) -> list[float]:
        """Seconds, from the video's first frame, of all frames of all windows."""
        media = open_media(video_path, video_path.name, ("video", "audio"))
        media.close()
        span, video = media.spans["video"], self.views.video
        end = max(span.end_seconds for span in media.spans.values())
        grid = window_grid(0.0, end, WINDOW_SECONDS, WINDOW_SECONDS)
        last = span.end_seconds - video.num_frames / video.fps
        starts = [min(start, last) for window in grid for start in clip_starts(window, video.num_frames / video.fps)]
        times = [frame_times_seconds(start, video.num_frames, video.fps, span) for start in starts]
        return sorted({float(seconds) - span.start_seconds for clip in times for seconds in clip})

    def windows(self) -> int:
        """Read the windows as embedding does; return their number."""
        return sum(len(batch.grid) for _, batch in self.reader)

    def decoding(self, *, expects: bool = False) -> None:
        """The project's decoder alone: every frame, pixels of the used frames, all audio at the rate of the views.

        expects: the decoder is told which frames are used, and skips the others where it can.
        """
        for video_path, times in zip(self.videos, self.times, strict=True):
            with VideoReader(video_path) as frames:
                if expects:
                    frames.expect(times)
                for seconds in times:
                    frame = frames.on_screen(seconds)
                    assert frame is not None
                    frames.pixels(frame)
            with AudioReader(video_path) as audio:
                for _ in audio.play(self.views.audio.rate_hz):
                    pass

    def bare(self) -> None:
        """PyAV alone, with the same frames and audio."""
        for video_path, times in zip(self.videos, self.times, strict=True):
            with av.open(str(video_path)) as container:
                stream = container.streams.video[0]
                stream.codec_context.thread_count = 1
                decoded = container.decode(stream)
                frame, following = next(decoded), next(decoded)
                first = float(frame.pts * stream.time_base)
                for seconds in times:
                    while following is not None and float(following.pts * stream.time_base) - first <= seconds + 6e-4:
                        frame, following = following, next(decoded, None)
                    frame.reformat(format="rgb24", threads=1).to_ndarray()
            with av.open(str(video_path)) as container:
                resample = av.AudioResampler("flt", "mono", self.views.audio.rate_hz)
                for block in container.decode(container.streams.audio[0]):
                    for resampled in resample.resample(block):
                        resampled.to_ndarray()


class Job(NamedTuple):
    """Seconds of a job: wall time, and CPU time of the decoding process and of this process."""

    wall: float
    decoding: float
    embedding: float

    def minus(self, other: Job) -> Job:
        """The seconds by which it takes longer than another job."""
        return Job(*(seconds - less for seconds, less in zip(self, other, strict=True)))


def job_seconds(embedder: TimedEmbedder, videos: list[Path]) -> Job:
    """Seconds of a job with one decoding process, from the start of processes to the finished folder."""
    with tempfile.TemporaryDirectory() as out:
        began, began_cpu = time.perf_counter(), time.process_time()
        job = FolderJob.begin(embedder, videos, out, window_seconds=WINDOW_SECONDS)
        index = job.run(embedder, num_workers=1)
        assert index is not None
        assert index.num_embedded == len(videos)
        wall = time.perf_counter() - began
        return Job(wall, embedder.last_reader.decoding_seconds, time.process_time() - began_cpu)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--films", type=int, default=6, help="at least 3")
    parser.add_argument("--film-seconds", type=float, default=60.0)
    parser.add_argument("--size", default="640x360")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    width, height = map(int, arguments.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        made = scratch / "0.mp4"
        make_file(made, arguments.film_seconds, width, height)
        videos = [made, *(scratch / f"{number}.mp4" for number in range(1, arguments.films))]
        for video_path in videos[1:]:
            video_path.hardlink_to(made)
        embedder = tiny_embedder()
        claims = [*reading_claims(embedder, videos[:1], arguments), *job_claims(embedder, videos, arguments)]
    publish(claims, arguments.json)


def reading_claims(embedder: TimedEmbedder, videos: list[Path], arguments: argparse.Namespace) -> list[Claim]:
    reading = Reading(embedder, videos)
    methods = {
        "windows": reading.windows,
        "decoding": reading.decoding,
        "skipping": partial(reading.decoding, expects=True),
        "bare": reading.bare,
    }
    seconds = take_turns(methods, 3 * arguments.rounds, cpu_seconds)  # more turns, because they are short
    what = f"a video of {arguments.film_seconds:g} s, {arguments.size}, one core"
    minutes = len(videos) * arguments.film_seconds / 60
    claims = []
    for name, against in (
        ("decoding", "our decoder alone, the same frames and audio"),
        ("skipping", "our decoder alone, the same, without unused frames"),
        ("bare", "PyAV alone, the same as the first"),
    ):
        ours, other = (minutes / sorted(seconds[method])[len(seconds[method]) // 2] for method in ("windows", name))
        ratio = median_ratio(seconds[name], seconds["windows"])
        row = (f"reading windows to embed, {what}", ours, other, "minutes of video/s", against, ratio, "at least", 0.9)
        claims.append(Claim(*row))
    return claims


def job_claims(embedder: TimedEmbedder, videos: list[Path], arguments: argparse.Namespace) -> list[Claim]:
    """The whole job against decoding: the time that all videos but the first two add to a job of these two."""
    further = videos[2:]
    reading = Reading(embedder, further)
    jobs, alone = [], []
    for number in range(arguments.rounds):
        for method in ("job", "decoding") if number % 2 else ("decoding", "job"):
            if method == "job":
                jobs.append(job_seconds(embedder, videos).minus(job_seconds(embedder, videos[:2])))
            else:
                before, cpu = time.perf_counter(), time.process_time()
                reading.decoding()
                alone.append((time.perf_counter() - before, time.process_time() - cpu))
    minutes = len(further) * arguments.film_seconds / 60
    decoding, embedding = (statistics.median(seconds) / minutes for seconds in list(zip(*jobs, strict=True))[1:])
    what = f"embedding {len(further)} videos of {arguments.film_seconds:g} s, {arguments.size}, tiny network"
    note = f"CPU time of the slower process: decoding {decoding:.2f} s per minute of video, rest {embedding:.2f} s"
    measured = {
        note: ([max(job.decoding, job.embedding) for job in jobs], [cpu for _, cpu in alone]),
        "wall time, two otherwise idle cores": ([job.wall for job in jobs], [wall for wall, _ in alone]),
    }
    claims = []
    for name, (ours, other) in measured.items():
        rates = (minutes / statistics.median(seconds) for seconds in (ours, other))
        ratio = median_ratio(other, ours)
        row = (what, *rates, "minutes of video/s", "our decoder alone in one process", ratio, "at least", 0.9, name)
        claims.append(Claim(*row))
    return claims


if __name__ == "__main__":
    main()
