"""Claim: embedding long media takes little longer than decoding them, when the encoder is not the bound.

    python benchmarks/embedding.py [--films 6] [--film-seconds 60] [--size 640x360] [--rounds 3]

Made films of 30 frames a second with stereo sound, windows of 2 s side by side, a network so small that it is not the
bound. What decoding them takes: this project's decoder over every frame, with the pixels of those frames that embedding
looks at and all the sound, but no crops, no cutting, nothing sent. The methods take turns:

- CPU time of reading windows (decoding, crops, cutting the sound) against that decoding; against the same decoder where
  it leaves out frames that nobody looks at, as reading does; and against PyAV alone in a bare loop over every frame.
- The whole job (FolderJob: decoding in a process of its own, the network in this one, batches across files, Parquet
  files): what all films but two add to a job of two, so that the start of processes is no part of it. In CPU time of
  the slower one of its two processes, the bound where each has a core; and in wall time, which says the same only while
  nothing else runs.
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
from avssl.embedding.media import WindowBatch
from avssl.embedding.sources import Sources, open_media
from avssl.embedding.windows import WindowStream, clip_starts
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


class TimedWindows(WindowStream):
    """A stream of which `decoding_seconds` says how much CPU time its one process has taken since it began to read."""

    began_seconds: float | None = None
    decoding_seconds = 0.0

    def begin(self, number: int) -> Any:
        """In the process that decodes."""
        if self.began_seconds is None:
            self.began_seconds = time.process_time()
        return super().begin(number)

    def pieces(self, begun: Any) -> Iterator[Message]:
        """In the process that decodes; of a piece the sending is counted with the next one."""
        for piece in super().pieces(begun):
            assert self.began_seconds is not None
            seconds = time.process_time() - self.began_seconds
            yield piece._replace(values=piece.values | {"decoding_seconds": seconds})

    def read(self, piece: Message) -> WindowBatch:
        """In the process of the network."""
        self.decoding_seconds = piece.values["decoding_seconds"]
        return super().read(piece)


class TimedEmbedder(Embedder):
    """Keeps the stream of the last job."""

    def stream(self, sources: Sources, settings: dict[str, Any], blocks: Sequence[range] | None = None) -> TimedWindows:
        """As Embedder.stream."""
        grid = settings["window_seconds"], settings["stride_seconds"]
        self.last_stream = TimedWindows(sources, self.config.views, settings["modalities"], *grid, blocks)
        return self.last_stream


def tiny_embedder() -> TimedEmbedder:
    """Random weights, hardly any work."""
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
    """The same seconds of the same films, read in several ways."""

    def __init__(self, embedder: TimedEmbedder, films: list[Path]) -> None:
        self.views, self.films = embedder.config.views, films
        settings = embedder.settings(WINDOW_SECONDS, WINDOW_SECONDS, None)[1]
        self.stream: WindowStream = embedder.stream([(film, film.name) for film in films], settings)
        self.times = [self.frame_times(film) for film in films]

    def frame_times(self, film: Path) -> list[float]:
        """Seconds, from the video's first frame, of all frames of all windows."""
        media = open_media(film, film.name, ("video", "audio"))
        media.close()
        span, video = media.spans["video"], self.views.video
        grid = window_grid(0.0, max(one.end_seconds for one in media.spans.values()), WINDOW_SECONDS, WINDOW_SECONDS)
        last = span.end_seconds - video.num_frames / video.fps
        starts = [min(start, last) for window in grid for start in clip_starts(window, video.num_frames / video.fps)]
        times = [frame_times_seconds(start, video.num_frames, video.fps, span) for start in starts]
        return sorted({float(one) - span.start_seconds for clip in times for one in clip})

    def windows(self) -> int:
        """As embedding does; how many there are."""
        return sum(len(windows.grid) for _, windows in self.stream)

    def decoding(self, *, expects: bool = False) -> None:
        """The project's decoder alone: every frame, pixels of those frames, all the sound at the views' rate.

        expects: it is told which frames are looked at, and leaves out what it can of the others.
        """
        for film, times in zip(self.films, self.times, strict=True):
            with VideoReader(film) as pictures:
                if expects:
                    pictures.expect(times)
                for seconds in times:
                    picture = pictures.on_screen(seconds)
                    assert picture is not None
                    pictures.pixels(picture)
            with AudioReader(film) as sound:
                for _ in sound.play(self.views.audio.rate_hz):
                    pass

    def bare(self) -> None:
        """PyAV alone: the same."""
        for film, times in zip(self.films, self.times, strict=True):
            with av.open(str(film)) as container:
                stream = container.streams.video[0]
                stream.codec_context.thread_count = 1
                wanted, coming = iter(times), container.decode(stream)
                frame, first, following = next(coming), None, next(coming)
                first = float(frame.pts * stream.time_base)
                for seconds in wanted:
                    while following is not None and float(following.pts * stream.time_base) - first <= seconds + 6e-4:
                        frame, following = following, next(coming, None)
                    frame.reformat(format="rgb24", threads=1).to_ndarray()
            with av.open(str(film)) as container:
                resample = av.AudioResampler("flt", "mono", self.views.audio.rate_hz)
                for block in container.decode(container.streams.audio[0]):
                    for ready in resample.resample(block):
                        ready.to_ndarray()


class Job(NamedTuple):
    """Seconds of a job: on the wall clock, and of CPU time of the process that decodes and of this one."""

    wall: float
    decoding: float
    own: float

    def beyond(self, other: Job) -> Job:
        """What it takes longer than another one."""
        return Job(*(ours - theirs for ours, theirs in zip(self, other, strict=True)))


def job_seconds(embedder: TimedEmbedder, films: list[Path]) -> Job:
    """A job with one decoding process, from the start of processes to the finished folder."""
    with tempfile.TemporaryDirectory() as out:
        began, own = time.perf_counter(), time.process_time()
        job = FolderJob.begin(embedder, films, out, window_seconds=WINDOW_SECONDS)
        index = job.run(embedder, num_workers=1)
        assert index is not None
        assert index.num_embedded == len(films)
        seconds = time.perf_counter() - began, embedder.last_stream.decoding_seconds, time.process_time() - own
        return Job(*seconds)


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
        films = [made, *(scratch / f"{number}.mp4" for number in range(1, arguments.films))]
        for film in films[1:]:
            film.hardlink_to(made)
        embedder = tiny_embedder()
        claims = [*reading_claims(embedder, films[:1], arguments), *job_claims(embedder, films, arguments)]
    publish(claims, arguments.json)


def reading_claims(embedder: TimedEmbedder, films: list[Path], arguments: argparse.Namespace) -> list[Claim]:
    reading = Reading(embedder, films)
    methods = {
        "windows": reading.windows,
        "decoding": reading.decoding,
        "skipping": partial(reading.decoding, expects=True),
        "bare": reading.bare,
    }
    seconds = take_turns(methods, 3 * arguments.rounds, cpu_seconds)  # the quicker, the more often
    what = f"a film of {arguments.film_seconds:g} s, {arguments.size}, one core"
    minutes = len(films) * arguments.film_seconds / 60
    claims = []
    for name, against in (
        ("decoding", "our decoder alone, the same frames and sound"),
        ("skipping", "our decoder alone, the same, without the frames that nobody looks at"),
        ("bare", "PyAV alone, the same as the first"),
    ):
        ours, other = (minutes / sorted(seconds[which])[len(seconds[which]) // 2] for which in ("windows", name))
        ratio = median_ratio(seconds[name], seconds["windows"])
        row = (f"reading windows to embed, {what}", ours, other, "minutes of film/s", against, ratio, "at least", 0.9)
        claims.append(Claim(*row))
    return claims


def job_claims(embedder: TimedEmbedder, films: list[Path], arguments: argparse.Namespace) -> list[Claim]:
    """The whole job against decoding: what the films beyond the first two add to a job of these."""
    further = films[2:]
    reading = Reading(embedder, further)
    jobs, alone = [], []
    for number in range(arguments.rounds):
        for which in ("job", "decoding") if number % 2 else ("decoding", "job"):
            if which == "job":
                jobs.append(job_seconds(embedder, films).beyond(job_seconds(embedder, films[:2])))
            else:
                before, cpu = time.perf_counter(), time.process_time()
                reading.decoding()
                alone.append((time.perf_counter() - before, time.process_time() - cpu))
    minutes = len(further) * arguments.film_seconds / 60
    decoding, own = (statistics.median(seconds) / minutes for seconds in list(zip(*jobs, strict=True))[1:])
    what = f"embedding {len(further)} films of {arguments.film_seconds:g} s, {arguments.size}, tiny network"
    bound = f"CPU time of the slower process: decoding {decoding:.2f} s a minute of film, network and rows {own:.2f} s"
    measured = {
        bound: ([max(job.decoding, job.own) for job in jobs], [cpu for _, cpu in alone]),
        "wall time, two cores with nothing else on them": ([job.wall for job in jobs], [wall for wall, _ in alone]),
    }
    claims = []
    for note, (ours, other) in measured.items():
        rates = (minutes / statistics.median(seconds) for seconds in (ours, other))
        ratio = median_ratio(other, ours)
        row = (what, *rates, "minutes of film/s", "our decoder alone in one process", ratio, "at least", 0.9, note)
        claims.append(Claim(*row))
    return claims


if __name__ == "__main__":
    main()
