"""Probes files in processes that may be killed, so that a file that hangs or crashes a process harms no other file."""

from __future__ import annotations

import os
import stat
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from avssl.files.location import is_remote
from avssl.media.decode import probe, stream_audio, stream_frames
from avssl.media.images import probe_image
from avssl.media.info import MediaInfo
from avssl.media.readers import AudioReader, VideoReader, on_one_clock
from avssl.media.sources import Source
from avssl.processes.limits import Limits
from avssl.processes.pool import Sandbox
from avssl.shards.opened import Opened, opened, unreadable
from avssl.shards.places import Place, Range, Sounding
from avssl.types import MediaError
from data_prep.index.cutting import Cutting, claimed_seconds, find_cuts
from data_prep.index.spool import Pending

FILES_PER_TASK = {"media": 8, "images": 128}
NUM_RECENT = 1024  # files whose facts are kept for rows further down the list
MAX_TRUSTED_SECONDS = 86_400.0  # if a header claims more than a day, a file that is cut is decoded to measure it
MEASURE_RATE_HZ = 8000


@dataclass(frozen=True)
class ProbedFile:
    """What probing a file found.

    media: as `Entry.media`. error: {"reason", "message"} or None. num_bytes: file size. seconds: how long the file
    lasts; None: unknown. cuts: seconds at which scenes change, if scenes are cut. content: files.content_digest.
    """

    media: dict[str, Any]
    error: dict[str, str] | None = None
    num_bytes: int = 0
    seconds: float | None = None
    cuts: tuple[float, ...] = ()
    content: str = ""


@dataclass(frozen=True)
class Prober:
    """Probes one file. kind: "media" or "images". cutting: whether lengths and scenes have to be measured."""

    kind: str = "media"
    cutting: Cutting = field(default_factory=Cutting)

    @property
    def nothing(self) -> dict[str, Any]:
        """`Entry.media` of a file that cannot be read, or was not opened."""
        return {"image": None} if self.kind == "images" else {}

    def __call__(self, source: str | Sounding) -> ProbedFile:
        """Probe a file by its path, or what lies within one. MediaError or ValueError if it cannot be read."""
        with opened(Sounding(Place(source)) if isinstance(source, str) else source) as media:
            if self.kind == "images":
                facts = {"image": probe_image(media.media, name=media.name).to_json()}
                return ProbedFile(facts, None, media.num_bytes, content=media.content)
            info = probe(media.media, name=media.name)
            if media.sound is not None:
                info = _with_sound(info, media)
            facts = info.to_json()
            seconds, cuts = claimed_seconds(facts), tuple[float, ...]()
            if self.cutting.is_used and (info.video or info.audio):
                seconds, cuts = self._measure(media, info, seconds)
            return ProbedFile(facts, None, media.num_bytes, seconds, cuts, media.content)

    def _measure(self, media: Opened, info: MediaInfo, seconds: float | None) -> tuple[float, tuple[float, ...]]:
        """(seconds that the file lasts, measured by decoding if its header does not say; seconds at which scenes
        change).
        """
        starts = [stream.start_seconds for stream in (info.video, info.audio) if stream is not None]
        lead = info.video.start_seconds - min(starts) if info.video is not None else 0.0
        if seconds is None or seconds > MAX_TRUSTED_SECONDS:
            late = info.audio.start_seconds - min(starts) if info.audio is not None else 0.0
            seconds = max(
                _video_seconds(media.media) + lead if info.video is not None else 0.0,
                _audio_seconds(media.sound or media.media) + late if info.audio is not None else 0.0,
            )
        if not self.cutting.scenes or info.video is None:
            return seconds, ()
        return seconds, tuple(cut + lead for cut in find_cuts(media.media, info.video, self.cutting.scene_threshold))


def _with_sound(info: MediaInfo, media: Opened) -> MediaInfo:
    """The facts of a video with those of the sound that lies apart. MediaError if one of them has no such stream."""
    assert media.sound is not None
    with VideoReader(media.media, media.name) as video, AudioReader(media.sound, media.name) as audio:
        seen, heard = on_one_clock(video, audio)
        sound_seconds = audio.container_seconds
    if seen is None or heard is None:
        kind: Any = "no_video" if seen is None else "no_audio"
        raise MediaError(kind, f"{media.name}: its video has no frame, or its sound no samples")
    lengths = [length for length in (info.duration_seconds, sound_seconds) if length is not None]
    return replace(info, video=seen, audio=heard, duration_seconds=max(lengths, default=None))


def _video_seconds(source: Source) -> float:
    return max((frame.seconds + frame.duration_seconds for frame in stream_frames(source)), default=0.0)


def _audio_seconds(source: Source) -> float:
    return sum(block.shape[1] for _, block in stream_audio(source, MEASURE_RATE_HZ)) / MEASURE_RATE_HZ


@dataclass(frozen=True)
class ProbeTask:
    """Media that one process probes, one after the other."""

    prober: Callable[[Any], ProbedFile]
    sources: tuple[Sounding, ...]


def probe_all(task: ProbeTask) -> list[ProbedFile]:
    """The result for each file, or the reason why there is none. Runs in a worker."""
    return [_probed_or_failed(task.prober, source) for source in task.sources]


def _probed_or_failed(prober: Callable[[Any], ProbedFile], source: Sounding) -> ProbedFile:
    is_plain = source.place.within is None and source.sound is None
    try:
        return prober(source.place.path if is_plain else source)
    except MediaError as error:
        reason, message = error.reason, error.message
    except OSError as error:
        reason, message = (refused := unreadable(source.place.path, error)).reason, refused.message
    except ValueError as error:  # FFmpeg refuses it in a way that has no reason of its own
        reason, message = "decode_error", f"{source.place}: cannot be probed ({type(error).__name__}: {error})"
    return failed(reason, message, _num_bytes(source))


def failed(reason: str, message: str, num_bytes: int = 0) -> ProbedFile:
    """The result for a file that cannot be read."""
    return ProbedFile({}, {"reason": reason, "message": message}, num_bytes)


def _num_bytes(source: Sounding) -> int:
    """Bytes of the media without opening it; 0 if that is not known."""
    places = [source.place] if source.sound is None else [source.place, source.sound]
    try:
        return sum(map(_stated_bytes, places))
    except OSError:
        return 0


def _stated_bytes(place: Place) -> int:
    if isinstance(place.within, Range):
        return place.within.num_bytes
    return 0 if is_remote(place.path) or place.within is not None else os.stat(place.path).st_size  # noqa: PTH116


def without_opening(rows: Iterable[Pending], folder: Path) -> Iterator[tuple[Pending, ProbedFile]]:
    """Each row with the size of its file, or the error that the file is missing."""
    for row in rows:
        source = _source(row, folder)
        if row.missing is not None:
            yield row, failed(row.reason, row.missing)
        elif is_remote(source.place.path):
            yield row, ProbedFile({}, None, _num_bytes(source) if source.place.within else 0)
        else:
            yield row, _not_opened(source)


def _not_opened(source: Sounding) -> ProbedFile:
    """The size of a file as its only fact, or the error that there is no such file."""
    for place in (source.place, source.sound):
        if place is None or is_remote(place.path):
            continue
        try:
            facts = os.stat(place.path)  # noqa: PTH116  (paths are text here)
        except OSError as error:
            return failed("missing_file", f"{place.path}: cannot be opened ({error.strerror})")
        if not stat.S_ISREG(facts.st_mode):
            return failed("missing_file", f"{place.path}: is no regular file")
    return ProbedFile({}, None, _num_bytes(source))


def probe_rows(
    rows: Iterable[Pending],
    folder: Path,
    prober: Callable[[Any], ProbedFile],
    files_per_task: int,
    num_workers: int,
    limits: Limits,
) -> Iterator[tuple[Pending, ProbedFile]]:
    """Each row with what is in its file, in the order of the rows. A file that several rows list close to each other is
    opened once. prober: importable by name, because it runs in another process.
    """
    recent: OrderedDict[Sounding, ProbedFile] = OrderedDict()
    batches: deque[list[tuple[Sounding, list[Pending], ProbedFile | None]]] = deque()

    def tasks() -> Iterator[ProbeTask]:
        for batch in _batches(rows, folder, files_per_task):
            batches.append([(source, rows, _without_probing(rows, recent.get(source))) for source, rows in batch])
            yield ProbeTask(prober, tuple(source for source, _, facts in batches[-1] if facts is None))

    with Sandbox(num_workers, limits) as sandbox:
        for task, outcome in sandbox.run(probe_all, tasks(), _name):
            probed = iter(_settled(sandbox, task, outcome))
            for source, rows_of_file, facts in batches.popleft():
                found = facts if facts is not None else next(probed)
                yield from ((row, found) for row in rows_of_file)
                if rows_of_file[0].missing is not None:
                    continue
                recent[source] = found
                recent.move_to_end(source)
                if len(recent) > NUM_RECENT:
                    recent.popitem(last=False)


def _source(row: Pending, folder: Path) -> Sounding:
    """Where the media of a row lie. folder: of the manifest."""
    return Sounding(Place(row.path, row.within).at(folder), None if row.sound is None else row.sound.at(folder))


def _batches(rows: Iterable[Pending], folder: Path, size: int) -> Iterator[list[tuple[Sounding, list[Pending]]]]:
    """Batches of (source, its rows): `size` local files per batch, because they are probed quickly, or a single URL."""
    batch: list[tuple[Sounding, list[Pending]]] = []
    # Rows of an archive that have no media to open have the same path, and reasons of their own.
    for (source, _), rows_of_file in groupby(rows, key=lambda row: (_source(row, folder), row.missing)):
        batch.append((source, list(rows_of_file)))
        if len(batch) == size or is_remote(source.place.path):
            yield batch
            batch = []
    if batch:
        yield batch


def _without_probing(rows: list[Pending], recent: ProbedFile | None) -> ProbedFile | None:
    """What is known of the rows' file without opening it: that it is missing, or recent facts; None: nothing."""
    missing = rows[0].missing
    return failed(rows[0].reason, missing) if missing is not None else recent


def _settled(sandbox: Sandbox, task: ProbeTask, outcome: list[ProbedFile] | MediaError) -> Iterator[ProbedFile]:
    """The result for each file of the task. If the process failed at the task, each file is probed alone."""
    if not isinstance(outcome, MediaError):
        yield from outcome
    elif len(task.sources) == 1:
        yield failed(outcome.reason, outcome.message, _num_bytes(task.sources[0]))
    else:
        alone = (ProbeTask(task.prober, (source,)) for source in task.sources)
        for single, single_outcome in sandbox.run(probe_all, alone, _name):
            yield from _settled(sandbox, single, single_outcome)


def _name(task: ProbeTask) -> str:
    return str(task.sources[0].place) if task.sources else "nothing"
