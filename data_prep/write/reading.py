"""Turns the files of a manifest into samples, in processes of the sandbox: the workers of `write`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from avssl.processes.limits import Limits
from avssl.processes.pool import Sandbox
from avssl.shards.format import SampleInfo
from avssl.shards.manifest import Entry
from avssl.shards.opened import Opened, opened, unreadable
from avssl.shards.shard_set import Sample
from avssl.types import MediaError
from data_prep.index.mnist import IdxFile
from data_prep.transcode.file import Transcoded, transcode
from data_prep.transcode.images import store_file, store_item
from data_prep.transcode.options import PolicyError, WriteOptions

IMAGES_PER_TASK = 64

Transcode = Callable[..., Transcoded]  # as data_prep.transcode.file.transcode
Outcome = Sample | MediaError | PolicyError


@dataclass(frozen=True)
class FileOptions:
    """How files become samples.

    root: the folder (or URL) that the manifest's paths are relative to. limits: of one file. transcode: makes the media
    of a sample.
    """

    root: str
    options: WriteOptions
    limits: Limits = field(default_factory=Limits)
    transcode: Transcode = transcode


@dataclass(frozen=True)
class FileTask:
    """Files that one process reads one after the other: a video or audio file, or several images."""

    entries: tuple[Entry, ...]
    file_options: FileOptions

    @property
    def name(self) -> str:
        """The location of the first file, for messages."""
        return str(self.entries[0].place.at(self.file_options.root))


def read_files(task: FileTask) -> list[Outcome]:
    """The sample of each file, without an index, or the error. Runs in a worker."""
    return [_read_file(entry, task.file_options) for entry in task.entries]


def _read_file(entry: Entry, file_options: FileOptions) -> Outcome:
    try:
        place = entry.place.at(file_options.root)
    except ValueError as error:  # of a manifest from afar
        return MediaError("missing_file", str(error))
    try:
        with opened(entry, file_options.root) as media:
            content = media.content
            check_unchanged(entry, media, content)
            if entry.is_image:
                return _image_sample(media, entry, content, file_options.options)
            return _media_sample(media, entry, content, file_options)
    except (MediaError, PolicyError) as error:
        return error
    except OSError as error:
        return unreadable(place.path, error)
    except ValueError as error:  # FFmpeg or the encoder refuses it in a way that has no reason of its own
        return MediaError("decode_error", f"{place}: cannot be transcoded ({type(error).__name__}: {error})")


def check_unchanged(entry: Entry, media: Opened, content: str) -> None:
    """MediaError if the file is not the one that was listed, because the facts in the manifest may be wrong then.

    Size and content decide, because copying changes modification times. A manifest without both is not checked.
    """
    if entry.item is None and entry.num_bytes and media.num_bytes != entry.num_bytes:
        raise MediaError(
            "changed_file",
            f"{media.name}: has {media.num_bytes} bytes; when it was listed it had {entry.num_bytes}. Make the "
            "manifest anew with `avssl prep index`",
        )
    if entry.content and content != entry.content:
        raise MediaError(
            "changed_file",
            f"{media.name}: has the size, but not the content that it had when it was listed. Make the manifest anew "
            "with `avssl prep index`",
        )


def _media_sample(media: Opened, entry: Entry, content: str, file_options: FileOptions) -> Sample:
    # A file of its own is given as before, also to functions of the user's own that know no sound apart.
    apart: dict[str, Any] = {} if media.sound is None else {"sound": media.sound}
    apart |= {"name": media.name} if isinstance(media.media, bytes) else {}
    source = media.media if isinstance(media.media, bytes) else str(media.media)
    result = file_options.transcode(source, file_options.options, entry.segment, **apart)
    info = SampleInfo(
        index=0,
        key=entry.key,
        duration_seconds=round(result.duration_seconds, 9),
        video_fps=result.video_fps,
        num_frames=result.num_frames,
        av_offset_seconds=result.av_offset_seconds,
        audio_rate_hz=result.audio_rate_hz,
        num_audio_samples=result.num_audio_samples,
        labels=entry.labels,
        source=_source(entry, content) | result.source,
        caption=entry.caption,
    )
    return Sample(info, result.video, result.audio)


def _image_sample(media: Opened, entry: Entry, content: str, options: WriteOptions) -> Sample:
    if entry.item is None:
        stored = store_file(media.media, options, name=media.name)
    else:
        assert not isinstance(media.media, bytes)
        stored = store_item(IdxFile(str(media.media)), entry.item, options)
    info = SampleInfo(
        index=0,
        key=entry.key,
        duration_seconds=0.0,
        video_fps=0.0,
        num_frames=0,
        av_offset_seconds=0.0,
        audio_rate_hz=0,
        num_audio_samples=0,
        labels=entry.labels,
        source=_source(entry, content) | stored.source,
        image_height_px=stored.height_px,
        image_width_px=stored.width_px,
        caption=entry.caption,
    )
    return Sample(info, None, None, stored.content)


def _source(entry: Entry, content: str) -> dict[str, Any]:
    """The facts by which evaluations recognize a source file, whatever its name and the seconds taken from it."""
    facts: dict[str, Any] = {"path": entry.path, "bytes": entry.num_bytes, "content": content}
    facts |= {} if entry.within is None else {"within": entry.within.to_json()}
    return facts | ({} if entry.sound is None else {"sound": entry.sound.to_json()})


def read_all(sandbox: Sandbox, file_options: FileOptions, entries: Iterable[Entry]) -> Iterator[Outcome]:
    """The outcome of each entry, in the order of the entries."""
    for task, outcomes in sandbox.run(read_files, _file_tasks(file_options, entries), lambda task: task.name):
        if not isinstance(outcomes, MediaError):
            yield from outcomes
        elif len(task.entries) == 1:
            yield outcomes
        else:  # one of several images made the process fail: each is read alone
            yield from (outcome for entry in task.entries for outcome in read_all(sandbox, file_options, [entry]))


def _file_tasks(file_options: FileOptions, entries: Iterable[Entry]) -> Iterator[FileTask]:
    batch: list[Entry] = []
    for entry in entries:
        batch.append(entry)
        if not entry.is_image or len(batch) == IMAGES_PER_TASK:
            yield FileTask(tuple(batch), file_options)
            batch = []
    if batch:
        yield FileTask(tuple(batch), file_options)
