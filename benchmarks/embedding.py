"""Claim: embedding long media takes little longer than decoding them, when the encoder is not the bound.

    python benchmarks/embedding.py [--films 6] [--film-seconds 60] [--size 640x360] [--rounds 2]

Made films of 30 frames a second with stereo sound, windows of 2 s side by side, a network so small that it is not the
bound. Three comparisons, the methods in turn:

- Wall time that all films but two add to the whole job of two (FolderJob: decoding in one process, the network in this
  one, Parquet files), so that the start of processes is no part of it, against this project's decoder alone in one
  process that reads the same frames and the same sound of these films but crops, cuts and sends nothing.
- CPU time of reading windows (decoding, crops, cutting the sound), against the same decoding alone.
- CPU time of reading windows, against PyAV alone in a bare loop over the same frames and the same sound.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import tempfile
import time
from pathlib import Path

import av  # noqa: TID251  (PyAV alone is what is measured)
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from avssl import config, losses
from avssl.data.clips import frame_times_seconds
from avssl.data.decode import PictureStream, SoundStream
from avssl.data.media import open_media
from avssl.data.views import ViewMaker
from avssl.data.windows import WindowStream, clip_starts, window_grid
from avssl.embed import Embedder
from avssl.embed_folder import FolderJob
from avssl.models import create_encoder
from benchmarks.claims import Claim, command_line, cpu_seconds, median_ratio, publish, take_turns
from benchmarks.made_files import make_file

WINDOW_SECONDS = 2.0
SETTINGS = (
    "run=made", "data.shards=made", "loss.name=avid", "views.video.size_px=112",
    "encoders.video={name: avid_video, depth: 10, width: 1}",
    "encoders.audio={name: avid_audio, width: 1}", "loss.projector_hidden_dims=[16]", "loss.num_negatives=8",
)  # fmt: skip


def tiny_embedder() -> Embedder:
    """Random weights, hardly any work."""
    made = config.parse(config.RunConfig, list(SETTINGS))
    torch.manual_seed(0)
    loss_class = losses.get(made.loss.name)
    modalities = loss_class.modalities(made.loss)
    encoders = {name: create_encoder(**made.encoders[name]) for name in modalities}
    views = ViewMaker(made.views, modalities)
    views.normalize_audio.mean.fill_(-40.0)
    views.normalize_audio.std.fill_(20.0)
    return Embedder(made, loss_class(made.loss, encoders, 40), views, "cpu", "made")


class Reading:
    """The same seconds of the same films, read in three ways."""

    def __init__(self, embedder: Embedder, films: list[Path]) -> None:
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

    def decoding(self) -> None:
        """The project's decoder alone: pixels of those frames, all the sound at the views' rate."""
        for film, times in zip(self.films, self.times, strict=True):
            with PictureStream(film) as pictures:
                for seconds in times:
                    picture = pictures.on_screen(seconds)
                    assert picture is not None
                    pictures.pixels(picture)
            with SoundStream(film) as sound:
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


def job_seconds(embedder: Embedder, films: list[Path]) -> float:
    """A job with one decoding process, from the start of processes to the finished folder."""
    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        job = FolderJob.begin(embedder, films, out, window_seconds=WINDOW_SECONDS)
        index = job.run(embedder, num_workers=1)
        assert index is not None
        assert index.num_embedded == len(films)
        return time.perf_counter() - began


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--films", type=int, default=6, help="at least 3")
    parser.add_argument("--film-seconds", type=float, default=60.0)
    parser.add_argument("--size", default="640x360")
    parser.add_argument("--rounds", type=int, default=2)
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
        claims = [*reading_claims(embedder, films[:2], arguments), job_claim(embedder, films, arguments)]
    publish(claims, arguments.json)


def reading_claims(embedder: Embedder, films: list[Path], arguments: argparse.Namespace) -> list[Claim]:
    reading = Reading(embedder, films)
    methods = {"windows": reading.windows, "decoding": reading.decoding, "bare": reading.bare}
    seconds = take_turns(methods, arguments.rounds + 1, cpu_seconds)
    what = f"{len(films)} films of {arguments.film_seconds:g} s, {arguments.size}, one core"
    minutes = len(films) * arguments.film_seconds / 60
    claims = []
    for name, against in (
        ("decoding", "our decoder alone, the same frames and sound"),
        ("bare", "PyAV alone, the same"),
    ):
        ours, other = (minutes / sorted(seconds[which])[len(seconds[which]) // 2] for which in ("windows", name))
        ratio = median_ratio(seconds[name], seconds["windows"])
        row = (f"reading windows to embed, {what}", ours, other, "minutes of film/s", against, ratio, "at least", 0.9)
        claims.append(Claim(*row))
    return claims


def job_claim(embedder: Embedder, films: list[Path], arguments: argparse.Namespace) -> Claim:
    """The whole job against decoding, in wall time: what the films beyond the first two add to a job of these."""
    further = films[2:]
    reading = Reading(embedder, further)
    ours, other = [], []
    for number in range(arguments.rounds):
        for which in ("job", "decoding") if number % 2 else ("decoding", "job"):
            if which == "job":
                ours.append(job_seconds(embedder, films) - job_seconds(embedder, films[:2]))
            else:
                before = time.perf_counter()
                reading.decoding()
                other.append(time.perf_counter() - before)
    films = further
    minutes, size = len(films) * arguments.film_seconds / 60, arguments.size
    return Claim(
        f"embedding {len(films)} films of {arguments.film_seconds:g} s, {size}, tiny network, one decoding process",
        minutes / min(ours),
        minutes / min(other),
        "minutes of film/s",
        "our decoder alone in one process",
        median_ratio(other, ours),
        "at least",
        0.9,
        "wall time, two cores",
    )


if __name__ == "__main__":
    main()
