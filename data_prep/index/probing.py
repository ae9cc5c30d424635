"""Probes files in processes that may be killed, so that a file that hangs or crashes a process harms no other file."""

from __future__ import annotations

import os
import stat
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from avssl.files.storage import local_copy
from avssl.files.whole import content_digest
from avssl.media.decode import probe, stream_audio, stream_frames
from avssl.media.images import probe_image
from avssl.media.info import MediaInfo
from avssl.processes.limits import Limits
from avssl.processes.pool import Sandbox
from avssl.types import MediaError
from data_prep.index.cutting import Cutting, claimed_seconds, find_cuts
from data_prep.index.lists.row import is_url
from data_prep.index.spool import Pending
from data_prep.index.walk import num_bytes

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

    def __call__(self, path: str) -> ProbedFile:
        """Probe a file. MediaError or ValueError if it cannot be read."""
        with readable(path) as local:
            if self.kind == "images":
                facts = {"image": probe_image(local, name=path).to_json()}
                return ProbedFile(facts, None, num_bytes(local), content=content_digest(local))
            info = probe(local, name=path)
            media = info.to_json()
            seconds, cuts = claimed_seconds(media), tuple[float, ...]()
            if self.cutting.is_used and (info.video or info.audio):
                seconds, cuts = self._measure(local, info, seconds)
            return ProbedFile(media, None, num_bytes(local), seconds, cuts, content_digest(local))

    def _measure(self, path: str, info: MediaInfo, seconds: float | None) -> tuple[float, tuple[float, ...]]:
        """(seconds that the file lasts, measured by decoding if its header does not say; seconds at which scenes
        change).
        """
        starts = [stream.start_seconds for stream in (info.video, info.audio) if stream is not None]
        lead = info.video.start_seconds - min(starts) if info.video is not None else 0.0
        if seconds is None or seconds > MAX_TRUSTED_SECONDS:
            late = info.audio.start_seconds - min(starts) if info.audio is not None else 0.0
            seconds = max(
                _video_seconds(path) + lead if info.video is not None else 0.0,
                _audio_seconds(path) + late if info.audio is not None else 0.0,
            )
        if not self.cutting.scenes or info.video is None:
            return seconds, ()
        return seconds, tuple(cut + lead for cut in find_cuts(path, info.video, self.cutting.scene_threshold))


@contextmanager
def readable(path: str) -> Iterator[str]:
    """A local path to the bytes of a listed file or URL. OSError if they cannot be fetched."""
    with local_copy(path) if is_url(path) else nullcontext(path) as local:
        yield os.fspath(local)


def openable_path(stored: str, manifest_folder: Path) -> str:
    """The path or URL to open for a path as the manifest states it."""
    return stored if is_url(stored) or stored.startswith("/") else f"{manifest_folder}/{stored}"


def _video_seconds(path: str) -> float:
    return max((frame.seconds + frame.duration_seconds for frame in stream_frames(path)), default=0.0)


def _audio_seconds(path: str) -> float:
    return sum(block.shape[1] for _, block in stream_audio(path, MEASURE_RATE_HZ)) / MEASURE_RATE_HZ


@dataclass(frozen=True)
class ProbeTask:
    """Files that one process probes, one after the other."""

    prober: Callable[[str], ProbedFile]
    paths: tuple[str, ...]


def probe_all(task: ProbeTask) -> list[ProbedFile]:
    """The result for each file, or the reason why there is none. Runs in a worker."""
    return [_probed_or_failed(task.prober, path) for path in task.paths]


def _probed_or_failed(prober: Callable[[str], ProbedFile], path: str) -> ProbedFile:
    try:
        return prober(path)
    except MediaError as error:
        reason, message = error.reason, error.message
    except OSError as error:
        is_far = is_url(path) and not isinstance(error, FileNotFoundError)
        reason, message = "unreachable" if is_far else "missing_file", f"{path}: {error}"
    except ValueError as error:  # FFmpeg refuses it in a way that has no reason of its own
        reason, message = "decode_error", f"{path}: cannot be probed ({type(error).__name__}: {error})"
    return failed(reason, message, _num_bytes(path))


def failed(reason: str, message: str, num_bytes: int = 0) -> ProbedFile:
    """The result for a file that cannot be read."""
    return ProbedFile({}, {"reason": reason, "message": message}, num_bytes)


def _num_bytes(path: str) -> int:
    try:
        return 0 if is_url(path) else num_bytes(path)
    except OSError:
        return 0


def without_opening(rows: Iterable[Pending], folder: Path) -> Iterator[tuple[Pending, ProbedFile]]:
    """Each row with the size of its file, or the error that the file is missing."""
    for row in rows:
        path = openable_path(row.path, folder)
        if row.missing is not None:
            yield row, failed("missing_file", row.missing)
        elif is_url(path):
            yield row, ProbedFile({})
        else:
            yield row, _not_opened(path)


def _not_opened(path: str) -> ProbedFile:
    """The size of a file as its only fact, or the error that there is no such file."""
    try:
        facts = os.stat(path)  # noqa: PTH116  (paths are text here)
    except OSError as error:
        return failed("missing_file", f"{path}: cannot be opened ({error.strerror})")
    if not stat.S_ISREG(facts.st_mode):
        return failed("missing_file", f"{path}: is no regular file")
    return ProbedFile({}, None, facts.st_size)


def probe_rows(
    rows: Iterable[Pending],
    folder: Path,
    prober: Callable[[str], ProbedFile],
    files_per_task: int,
    num_workers: int,
    limits: Limits,
) -> Iterator[tuple[Pending, ProbedFile]]:
    """Each row with what is in its file, in the order of the rows. A file that several rows list close to each other is
    opened once. prober: importable by name, because it runs in another process.
    """
    recent: OrderedDict[str, ProbedFile] = OrderedDict()
    batches: deque[list[tuple[str, list[Pending], ProbedFile | None]]] = deque()

    def tasks() -> Iterator[ProbeTask]:
        for batch in _batches(rows, folder, files_per_task):
            batches.append([(path, rows, _without_probing(rows, recent.get(path))) for path, rows in batch])
            yield ProbeTask(prober, tuple(path for path, _, facts in batches[-1] if facts is None))

    with Sandbox(num_workers, limits) as sandbox:
        for task, outcome in sandbox.run(probe_all, tasks(), _name):
            probed = iter(_settled(sandbox, task, outcome))
            for path, rows_of_file, facts in batches.popleft():
                recent[path] = facts if facts is not None else next(probed)
                yield from ((row, recent[path]) for row in rows_of_file)
                recent.move_to_end(path)
                if len(recent) > NUM_RECENT:
                    recent.popitem(last=False)


def _batches(rows: Iterable[Pending], folder: Path, size: int) -> Iterator[list[tuple[str, list[Pending]]]]:
    """Batches of (path, its rows): `size` local files per batch, because they are probed quickly, or a single URL."""
    batch: list[tuple[str, list[Pending]]] = []
    for path, rows_of_file in groupby(rows, key=lambda row: openable_path(row.path, folder)):
        batch.append((path, list(rows_of_file)))
        if len(batch) == size or is_url(path):
            yield batch
            batch = []
    if batch:
        yield batch


def _without_probing(rows: list[Pending], recent: ProbedFile | None) -> ProbedFile | None:
    """What is known of the rows' file without opening it: that it is missing, or recent facts; None: nothing."""
    missing = rows[0].missing
    return failed("missing_file", missing) if missing is not None else recent


def _settled(sandbox: Sandbox, task: ProbeTask, outcome: list[ProbedFile] | MediaError) -> Iterator[ProbedFile]:
    """The result for each file of the task. If the process failed at the task, each file is probed alone."""
    if not isinstance(outcome, MediaError):
        yield from outcome
    elif len(task.paths) == 1:
        yield failed(outcome.reason, outcome.message, _num_bytes(task.paths[0]))
    else:
        alone = (ProbeTask(task.prober, (path,)) for path in task.paths)
        for single, single_outcome in sandbox.run(probe_all, alone, _name):
            yield from _settled(sandbox, single, single_outcome)


def _name(task: ProbeTask) -> str:
    return task.paths[0] if task.paths else "nothing"
