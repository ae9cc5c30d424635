"""An open source (a media file, or a sample of a shard folder), and windows of it that were decoded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from avssl.media.decode import probe, stream_audio, stream_video
from avssl.media.images import IMAGE_SUFFIXES, probe_image
from avssl.media.info import AudioInfo, VideoInfo
from avssl.media.readers import AudioReader, VideoReader, on_one_clock
from avssl.media.sources import Source, label_of
from avssl.shards.manifest import FileSource
from avssl.shards.opened import opened
from avssl.shards.shard_set import Sample, spans
from avssl.transforms.raw_view import RawView
from avssl.types import MediaError, Span


@dataclass(frozen=True)
class Media:
    """An open source.

    key, index: its name, and its number in the shard folder (-1 for a plain file).
    files: {modality: path or bytes}.
    spans: {"video", "audio": seconds}, on a clock that begins with the first of the two streams, or with the segment.
    stream_starts: {"video", "audio": seconds}, where a stream begins if that is before its span.
    labels: {field: names} of a sample. caption: its text, "" for none; None where no sample of the folder has one.
    frame_seconds: duration of a video frame if all have the same, as in shards; otherwise 0.
    streams: the open readers of a plain file; the caller that reads them closes them.
    held: what must live as long, such as the copy of a remote file.
    """

    key: str
    index: int
    files: dict[str, Source] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)
    frame_seconds: float = 0.0
    stream_starts: dict[str, float] = field(default_factory=dict)
    streams: dict[str, VideoReader | AudioReader] = field(default_factory=dict, compare=False)
    held: ExitStack = field(default_factory=ExitStack, compare=False, repr=False)
    caption: str | None = None

    def close(self) -> None:
        """Close the readers, if there are any."""
        for stream in self.streams.values():
            stream.close()
        self.held.close()

    def stream_start(self, modality: str) -> float:
        """The time of the first frame or sample of a stream, on the clock of the spans."""
        return self.stream_starts.get(modality, self.spans[modality].start_seconds)


@dataclass
class WindowBatch:
    """Consecutive windows of one source, decoded.

    grid: float64 (n, 2), start and end of each window in seconds.
    has: {modality: bool (n,)}, which windows hold a clip of the modality.
    clips: {modality: raw view (n_clips, ...), or None}; a clip that several windows share is stored once.
    owners: {modality: for each clip the windows that hold it}; where the media ends within a window, the window holds
        the same clip several times and is listed as often.
    is_last: no windows of this source follow.
    """

    media: Media
    grid: np.ndarray
    has: dict[str, np.ndarray]
    clips: dict[str, RawView | None]
    owners: dict[str, list[list[int]]]
    is_last: bool = True


def open_media(
    source: Source,
    key: str,
    modalities: Sequence[str],
    *,
    sound: Source | None = None,
    name: str = "",
    suffix: str = "",
) -> Media:
    """Open a plain file: an image if only images are embedded or its suffix says so, otherwise video and audio.

    source: path, or the file's bytes; then `name` is for messages, and `suffix` of the file. sound: of the audio if it
    lies apart. MediaError if it cannot be opened or holds none of them. The pixels of an image are not decoded here.
    """
    name = label_of(source, name)
    suffix = suffix or ("" if isinstance(source, bytes) else Path(source).suffix.lower())
    if "image" in modalities and (len(modalities) == 1 or suffix in IMAGE_SUFFIXES):
        probe_image(source, name=name)
        return Media(key, -1, {"image": source})
    files = {"video": source, "audio": source if sound is None else sound}
    with ExitStack() as stack:
        video = stack.enter_context(VideoReader(files["video"], name))
        audio = stack.enter_context(AudioReader(files["audio"], name))
        seen, heard = (video.info, audio.info) if sound is None else on_one_clock(video, audio)
        found: dict[str, VideoInfo | AudioInfo | None] = {"video": seen, "audio": heard}
        streams: dict[str, VideoReader | AudioReader] = {"video": video, "audio": audio}
        infos = {kind: info for kind, info in found.items() if info is not None}
        if not infos:
            probe(source, name=name)  # raises a more precise error if it can
            raise MediaError("no_video", f"{name}: has neither video nor audio")
        first_seconds = min(info.start_seconds for info in infos.values())
        media_spans = {kind: _span(files[kind], info, first_seconds) for kind, info in infos.items()}
        stack.pop_all()
    return Media(key, -1, {kind: files[kind] for kind in infos}, media_spans, streams=streams)


def open_file(source: FileSource, modalities: Sequence[str]) -> Media:
    """Open a listed file as `open_media` does, with its labels, and of a segment only these seconds: 0 is its begin.

    A URL is fetched, and the copy removed when the media is closed.
    """
    if source.error is not None:
        raise MediaError(*source.error)
    with ExitStack() as held:
        found = held.enter_context(opened(source))
        path = found.media if isinstance(found.media, bytes) else str(found.media)
        sound = found.sound if found.sound is None or isinstance(found.sound, bytes) else str(found.sound)
        named = {"name": found.name} if isinstance(path, bytes) else {}
        media = open_media(path, source.key, modalities, sound=sound, suffix=found.suffix, **named)
        media = replace(media, labels=source.labels, caption=source.caption)
        if source.segment is not None and media.spans:
            try:
                media = _of_segment(media, source)
            except MediaError:
                media.close()
                raise
        return replace(media, held=held.pop_all())


def _of_segment(media: Media, source: FileSource) -> Media:
    """The media of a segment: its clock begins with the segment, and streams that lie outside are left out."""
    assert source.segment is not None
    begin, end = source.segment
    lasts = max(span.end_seconds for span in media.spans.values())
    if begin >= lasts:
        message = f"{source.place}: lasts {lasts:.3f} s; its segment begins at {begin:.3f} s"
        raise MediaError("too_short", message)
    inside = {
        name: Span(max(span.start_seconds, begin) - begin, min(span.end_seconds, end) - begin)
        for name, span in media.spans.items()
    }
    inside = {name: span for name, span in inside.items() if span.end_seconds > span.start_seconds}
    starts = {name: media.spans[name].start_seconds - begin for name in inside}
    return replace(media, spans=inside, files={name: media.files[name] for name in inside}, stream_starts=starts)


def _span(source: Source, info: VideoInfo | AudioInfo, first_seconds: float) -> Span:
    """Start and end of a stream on the clock that begins at `first_seconds`."""
    start = info.start_seconds - first_seconds
    duration = info.duration_seconds
    if not duration:  # the header does not say it: decode the whole stream
        duration = 0.0
        if isinstance(info, VideoInfo):
            for seconds, _ in stream_video(source):
                duration = seconds + (1 / info.fps if info.fps else 0.0)
        else:
            for seconds, block in stream_audio(source, info.rate_hz):
                duration = seconds + block.shape[1] / info.rate_hz
    return Span(start, start + duration)


def media_of_sample(sample: Sample) -> Media:
    """A sample of a shard, with its files in memory."""
    members = {"video": sample.video, "audio": sample.audio, "image": sample.image}
    files: dict[str, Source] = {name: content for name, content in members.items() if content is not None}
    media_spans = {name: span for name, span in zip(("video", "audio"), spans(sample), strict=True) if span is not None}
    frame_seconds = 1 / sample.info.video_fps if "video" in media_spans else 0.0
    facts = sample.info.labels, frame_seconds
    caption = sample.info.caption or None
    return Media(sample.info.key, sample.info.index, files, media_spans, *facts, caption=caption)
