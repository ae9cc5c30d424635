"""Frames and waveforms at given seconds, from a path or the bytes of a file.

Times are seconds from the stream's own first frame or sample. Numbers in headers are only hints: the decoded timestamps
decide. Every failure is a MediaError with a typed reason. Each call uses one FFmpeg thread, because workers are
processes. The other files: info.py (facts and arithmetic), stream_info.py (facts of a stream), cursor.py (seeking),
readers.py (one stream from a time on), ffmpeg.py (PyAV).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from avssl.media.cursor import FrameCursor, SeekError
from avssl.media.ffmpeg import (
    audio_stream,
    decode_frames,
    exact_start,
    first_frame,
    first_packet,
    holds_frames_in_order,
    open_container,
    require_decodable,
    video_stream,
)
from avssl.media.frames import Resampler, UprightFilter, resampled, to_array
from avssl.media.gapless_audio import GaplessAudio, mono_blocks, plain_flac
from avssl.media.info import (
    FRAME_TIME_TOLERANCE_SECONDS,
    UPRIGHT,
    AudioBlock,
    MediaInfo,
    Orientation,
    audio_span,
    collect,
    placed_excerpt,
)
from avssl.media.random_access import RandomAccessContainer, states_orientation
from avssl.media.readers import Frame
from avssl.media.sources import Source
from avssl.media.stream_info import audio_info, file_seconds, orientation_of, video_info
from avssl.types import MediaError

if TYPE_CHECKING:
    import torch


def probe(source: Source, *, name: str = "") -> MediaInfo:
    """The facts of a file: from its header, and from one decoded frame and audio block where headers may be wrong.

    A stream of which nothing can be decoded counts as absent. A cover image is no video.

    Args:
        source: path, or the file's bytes; name: for error messages, default the path.

    Raises:
        MediaError: missing_file, empty_file, not_media, truncated (no index), unsupported_codec, decode_error.

    >>> info = probe(clip)
    >>> info.video.width, info.video.height, info.audio.rate_hz
    (64, 48, 48000)
    """
    with open_container(source, name) as (container, label):
        video, audio = video_stream(container), audio_stream(container)
        if video is None and audio is None:
            raise MediaError("not_media", f"{label}: a {container.format.name} file without video or audio streams")
        first = None if video is None else first_frame(container, require_decodable(video, "no_video", label), label)
        video_facts = None if first is None else video_info(video, *first)
        duration = file_seconds(container)
        container_name = container.format.name
    audio_facts = None
    if audio is not None:
        with open_container(source, name) as (container, label):  # opened again, because not every container can rewind
            audio = audio_stream(container)
            first = first_frame(container, require_decodable(audio, "no_audio", label), label)
            audio_facts = None if first is None else audio_info(audio, *first)
    return MediaInfo(container_name, video_facts, audio_facts, duration)


def read_video(source: Source, times_seconds: Sequence[float], *, rgb: bool = True, name: str = "") -> torch.Tensor:
    """The frames on screen at the given times.

    Args:
        source: path, or the file's bytes; name: for error messages.
        times_seconds: (T,) in any order, from the stream's first frame. At each time the latest frame is shown that
            begins at or before it; before the first frame the first one, after the last frame the last one.
        rgb: False returns the colors as stored, in yuv420p planes.

    Returns:
        uint8 (T, 3, H, W) in [0, 255], upright, in channels-last memory; with rgb=False uint8 (T, H * 3 / 2, W):
        the Y plane, then the quarter-size U and V planes; an odd H or W is scaled to one less.

    Raises:
        MediaError: as `probe`, and no_video.
        ValueError: times_seconds is empty.

    >>> read_video(clip, [0.0, 0.5]).shape
    torch.Size([2, 3, 48, 64])
    """
    if len(times_seconds) == 0:
        raise ValueError("times_seconds is empty; give at least one time")
    in_order = holds_frames_in_order(source)
    try:
        images = _read_frames(source, times_seconds, rgb, name, may_seek=True, in_order=in_order)
    except SeekError:
        images = _read_frames(source, times_seconds, rgb, name, may_seek=False, in_order=False)
    stacked = _tensor(images)
    return stacked.permute(0, 3, 1, 2) if rgb else stacked


def read_audio(
    source: Source, start_seconds: float, num_samples: int, rate_hz: int, *, name: str = "", padding: float = 0.0
) -> torch.Tensor:
    """An excerpt of the waveform, mixed to mono and resampled.

    Args:
        source: path, or the file's bytes; name: for error messages.
        start_seconds: from the stream's first sample; may lie outside the stream.
        num_samples: of the result; rate_hz: samples per second of the result.
        padding: value of the samples after the end of the stream.

    Returns:
        float32 (1, num_samples) in [-1, 1]; zeros outside the stream. Sample k is at start_seconds + k / rate_hz. The
        samples lie on the same grid as those of the whole resampled stream (start is rounded to a whole sample).

    Raises:
        MediaError: as `probe`, and no_audio.
        ValueError: num_samples or rate_hz is not positive.

    >>> read_audio(clip, start_seconds=0.25, num_samples=8000, rate_hz=16000).shape
    torch.Size([1, 8000])
    """
    if num_samples <= 0 or rate_hz <= 0:
        raise ValueError(f"num_samples is {num_samples} and rate_hz {rate_hz}; both must be positive")

    def read(first_output: int, count: int) -> AudioBlock:
        arguments = (source, first_output, count, rate_hz, name)
        excerpt = _read_plain_flac(*arguments) if isinstance(source, bytes) and source[:4] == b"fLaC" else None
        if excerpt is None:
            excerpt = _read_excerpt(*arguments, may_seek=True)
        if excerpt is None:
            excerpt = _read_excerpt(*arguments, may_seek=False)
        return np.empty(0, np.float32) if excerpt is None else excerpt

    output = placed_excerpt(read, start_seconds, num_samples, rate_hz, padding)
    if round(start_seconds * rate_hz) + num_samples <= 0:  # nothing was read
        with open_container(source, name) as (container, label):
            require_decodable(audio_stream(container), "no_audio", label)
    return _tensor(output)[None]


def stream_video(source: Source, *, name: str = "") -> Iterator[tuple[float, torch.Tensor]]:
    """All frames in order, in constant memory: (seconds, uint8 (3, H, W) RGB, upright). Raises as read_video.

    >>> sum(1 for seconds, frame in stream_video(clip))
    20
    """
    for shown in stream_frames(source, name=name):
        pixels = to_array(shown.frame, rgb=True, turns=0).copy()  # the decoder may still need the frame's memory
        yield shown.seconds, _tensor(pixels).permute(2, 0, 1)


def stream_frames(source: Source, size: tuple[int, int] | None = None, *, name: str = "") -> Iterator[Frame]:
    """All frames in order as PyAV frames, upright; for transcoding.

    size: (width, height) of the upright frame to scale to, in yuv420p, BT.601, limited range; None leaves the frame as
    stored but upright. Raises as read_video.

    >>> next(stream_frames(clip, size=(32, 24))).frame.width
    32
    """
    with open_container(source, name) as (container, label):
        stream = require_decodable(video_stream(container), "no_video", label)
        tick = float(stream.time_base)
        frame_seconds = 1 / float(stream.average_rate) if stream.average_rate else 0.0
        start, turn = None, None
        for ticks, frame in decode_frames(container, stream, label):
            if turn is None:
                turns, is_mirrored = orientation_of(frame)
                start, turn = ticks, UprightFilter(turns, size, is_mirrored)
            duration = frame.duration * tick if frame.duration else frame_seconds
            yield Frame((ticks - (start or 0)) * tick, duration, turn(frame))
        if turn is None:
            raise MediaError("no_video", f"{label}: the video stream holds no decodable frame")


def stream_audio(source: Source, rate_hz: int | None = None, *, name: str = "") -> Iterator[tuple[float, torch.Tensor]]:
    """The whole waveform in blocks, mono, in constant memory: (seconds, float32 (1, samples) in [-1, 1]).

    Blocks follow each other without gaps; pauses in the stream are zeros. rate_hz: None keeps the stream's rate.
    Raises as read_audio.

    >>> sum(block.shape[1] for seconds, block in stream_audio(clip, 16000)) >= 15_990
    True
    """
    with open_container(source, name) as (container, label):
        stream = require_decodable(audio_stream(container), "no_audio", label)
        resample: Resampler | None = None
        num_samples = 0
        for rate, _, block in mono_blocks(decode_frames(container, stream, label), stream, None, label):
            resample = resample or Resampler(rate, rate_hz or rate)
            if len(ready := resample(block)):
                yield num_samples / resample.rate_hz, _tensor(ready)[None]
                num_samples += len(ready)
        if resample is None:
            raise MediaError("no_audio", f"{label}: the audio stream holds no decodable sample")
        if len(ready := resample(None)):
            yield num_samples / resample.rate_hz, _tensor(ready)[None]


# --- excerpts -----------------------------------------------------------------------------------------------------


def _read_frames(
    source: Source, times_seconds: Sequence[float], rgb: bool, name: str, *, may_seek: bool, in_order: bool
) -> NDArray[np.uint8]:
    with open_container(source, name, in_order=in_order) as (container, label):
        stream = require_decodable(video_stream(container), "no_video", label)
        seekable = RandomAccessContainer(container, stream)
        cursor = FrameCursor(
            seekable,
            stream,
            exact_start(container, stream),
            may_seek,
            lambda: decode_frames(seekable, stream, label),
            in_order=in_order,
        )
        tick = float(stream.time_base)
        targets = [cursor.start_ticks + int((t + FRAME_TIME_TOLERANCE_SECONDS) // tick) for t in times_seconds]
        images: NDArray[np.uint8] | None = None
        last_frame: Any = None
        orientation = None if cursor.first is None else orientation_of(cursor.first[1])
        for position in sorted(range(len(targets)), key=targets.__getitem__):
            frame = cursor.on_screen(targets[position])
            if frame is None:
                raise MediaError("no_video", f"{label}: the video stream holds no decodable frame")
            if frame is not last_frame:
                orientation = orientation or _orientation(source, label, stream, frame)
                image, last_frame = to_array(frame, rgb, *orientation), frame
            if images is None:
                images = np.empty((len(targets), *image.shape), np.uint8)
            if images.shape[1:] != image.shape:
                raise MediaError("decode_error", f"{label}: the size of its frames changes in the middle")
            images[position] = image
    assert images is not None  # times_seconds is not empty
    return images


def _orientation(source: Source, label: str, stream: Any, frame: Any) -> Orientation:
    """The orientation of a stream of an mp4, from a frame that need not be the first one.

    The container's orientation is attached to every frame, that of the stream itself only to some. If neither states
    one, the first frame need not be decoded.
    """
    result = orientation_of(frame)
    if result == UPRIGHT and not states_orientation(first_packet(source, stream), stream.codec_context):
        return result
    with open_container(source, label) as (container, _):
        first = first_frame(container, require_decodable(video_stream(container), "no_video", label), label)
        return result if first is None else orientation_of(first[1])


def _read_plain_flac(source: Source, first_output: int, num_samples: int, rate_hz: int, name: str) -> AudioBlock | None:
    """As _read_excerpt, for the FLAC of shards; None if that has to read it, as anything unusual or damaged."""
    try:
        with open_container(source, name) as (container, label):
            stream = require_decodable(audio_stream(container), "no_audio", label)
            source_rate = int(stream.codec_context.sample_rate)
            span = audio_span(first_output, num_samples, source_rate, rate_hz)
            buffer = plain_flac(container, stream, span.first, span.last)
    except MediaError:
        return None
    return None if buffer is None else resampled(buffer, span, source_rate, rate_hz, num_samples)


def _read_excerpt(
    source: Source, first_output: int, num_samples: int, rate_hz: int, name: str, *, may_seek: bool
) -> AudioBlock | None:
    """At most num_samples of the resampled stream from sample first_output >= 0; fewer where the stream ends.

    None if a seek failed or led to a wrong position.
    """
    with open_container(source, name) as (container, label):
        stream = require_decodable(audio_stream(container), "no_audio", label)
        reader = GaplessAudio(container, stream, label)
        if reader.start_ticks is None and reader.find_first() is None:
            raise MediaError("no_audio", f"{label}: the audio stream holds no decodable sample")
        source_rate = reader.rate_hz
        span = audio_span(first_output, num_samples, source_rate, rate_hz)
        blocks = reader.blocks(span.first, may_seek=may_seek)
        if blocks is None:
            return None
        buffer = collect(blocks, span.first, span.last)
    return resampled(buffer, span, source_rate, rate_hz, num_samples)


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    import torch  # here: listing files and writing shards need no tensors, and PyTorch takes seconds

    return torch.from_numpy(array)
