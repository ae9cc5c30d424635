"""Facts of a stream: its orientation, size and rate from one decoded frame, its length from the header.

Every container states lengths in its own way. Works on PyAV's objects without importing PyAV; see decode.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from avssl.media.info import (
    LATE_SECONDS,
    UPRIGHT,
    AudioFrame,
    AudioInfo,
    Orientation,
    VideoInfo,
    is_clear_length,
    parse_clock,
)

AVI_UNLISTED_FRACTION = 0.1  # of the file, after the last chunk that the index lists
AVI_INDEX_ENTRY_BYTES = 16
AVI_UNKNOWN_COUNTS = (0, 1 << 30, (1 << 31) - 1, (1 << 32) - 1, -1)  # what writers put if they do not know the number
LEAST_INDEXED_FRACTION = 0.8  # of the bytes of a fragmented file, for its index to count as complete
MAX_LENGTH_RATIO = 2.0  # of the length in the header to that of all listed fragments
GUESSED_KEY = "avssl guessed length"  # in a container's metadata: its length is guessed from the first packets
FORMATS_OF_BYTE_RATES = ("wav", "w64")  # in these the length is a number of bytes divided by the header's rate
CODECS_WITHOUT_BYTE_RATE = ("flac", "mp3", "aac", "opus", "vorbis", "wmav1", "wmav2")


def orientation_of(frame: Any) -> Orientation:
    """How to make a stored frame upright. The first frame of a stream decides for all: others may not state it."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return UPRIGHT if matrix is None else orientation(np.frombuffer(matrix, np.int32).tolist())


def orientation(matrix: Sequence[int]) -> Orientation:
    """The orientation of a display matrix (a, b, u, c, d, v, ...), which maps point (x, y) to (ax + cy, bx + dy).

    It is rounded to a quarter turn; a singular matrix counts as upright.
    """
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if a * d == b * c:
        return UPRIGHT
    is_mirrored = a * d < b * c
    degrees = math.degrees(math.atan2(-b, -a) if is_mirrored else math.atan2(b, a))
    return Orientation(round(degrees / 90) % 4, is_mirrored)


def video_info(stream: Any, ticks: int, frame: Any) -> VideoInfo:
    """Facts of a video stream. ticks, frame: the time and the pixels of its first decoded frame."""
    turns, is_mirrored = orientation_of(frame)
    rotation = 90 * turns
    width, height = (frame.height, frame.width) if rotation % 180 else (frame.width, frame.height)
    aspect = float(stream.sample_aspect_ratio or 1) or 1.0
    return VideoInfo(
        codec=stream.codec_context.name,
        width=width,
        height=height,
        fps=float(stream.average_rate or stream.guessed_rate or 0),
        rotation_degrees=rotation,
        start_seconds=float(ticks * stream.time_base),
        duration_seconds=header_seconds(stream, ticks),
        pixel_format=frame.format.name,
        pixel_aspect=1 / aspect if rotation % 180 else aspect,
        stream_index=stream.index,
        num_streams=_num_alike(stream),
        is_mirrored=is_mirrored,
    )


def audio_info(stream: Any, ticks: int, frame: AudioFrame) -> AudioInfo:
    """Facts of an audio stream. ticks, frame: the time and the samples of its first decoded block."""
    return AudioInfo(
        codec=stream.codec_context.name,
        rate_hz=frame.sample_rate,
        channels=len(frame.channel_names),
        start_seconds=float(ticks * stream.time_base),
        duration_seconds=header_seconds(stream, ticks),
        stream_index=stream.index,
        num_streams=_num_alike(stream),
    )


def _num_alike(stream: Any) -> int:
    """The number of streams of the same type in the file."""
    return sum(other.type == stream.type for other in stream.container.streams)


def is_length_guessed(container: Any, states_length: bool) -> bool:
    """Whether FFmpeg divides the number of bytes by a rate that need not be that of the whole file.

    states_length: the file is an mp3 with a header that states the number of frames.
    """
    name = container.format.name
    if name in FORMATS_OF_BYTE_RATES:
        contexts = [stream.codec_context for stream in container.streams.audio]
        return any(context and context.codec.canonical_name in CODECS_WITHOUT_BYTE_RATE for context in contexts)
    return name == "aac" or (name == "mp3" and not states_length)


def file_seconds(container: Any) -> float | None:
    """The length of the file by its header; None if it states none.

    The lengths of streams are preferred to that of the file, which programs that cut or join files leave unchanged. In
    FORMATS_OF_UNCLEAR_LENGTHS it may be the time of the end.
    """
    if GUESSED_KEY in container.metadata:
        return None
    file_length: float | None = None if container.duration is None else container.duration / 1e6
    if container.format.name == "avi":
        if all(_avi_index_seconds(stream) is None and _is_without_count(stream) for stream in container.streams):
            return None
        lengths = [_avi_index_seconds(stream) for stream in container.streams.video[:1]]
    elif container.format.name == "matroska,webm":
        lengths = [parse_clock(stream.metadata.get("DURATION", "")) for stream in container.streams]
    elif any(map(_is_fragmented, container.streams)):
        return _fragmented_seconds(container)
    elif any(map(_is_flac_in_ogg, container.streams)):
        return None
    else:
        return file_length
    stated = [length for length in lengths if length is not None]
    if file_length is not None and stated and len(stated) == len(lengths):
        file_length = min(file_length, max(stated))
    return file_length


def _is_fragmented(stream: Any) -> bool:
    """Whether it is a track of an mp4 whose header lists no frames. Its duration is then the time of its end."""
    return bool("mp4" in stream.container.format.name and not stream.frames and stream.duration)


def _is_flac_in_ogg(stream: Any) -> bool:
    """Whether it is FLAC in Ogg: FFmpeg counts its frames from 0, wherever they begin, but not its end."""
    context = stream.codec_context
    return bool(stream.container.format.name == "ogg" and context is not None and context.name == "flac")


def _fragmented_seconds(container: Any) -> float | None:
    """The seconds from the start of the first stream to the end of the last one."""
    streams = [stream for stream in container.streams if None not in (stream.start_time, stream.duration)]
    starts = [float(stream.start_time * stream.time_base) for stream in streams]
    lengths = [header_seconds(stream, stream.start_time) for stream in streams]
    if not streams or any(length is None for length in lengths):
        return None
    return max(start + (length or 0.0) for start, length in zip(starts, lengths, strict=True)) - min(starts)


def header_seconds(stream: Any, start_ticks: int) -> float | None:
    """The length of the stream by the header, from its first decodable frame on; None if it states none."""
    start_seconds = float(start_ticks * stream.time_base)
    container = stream.container.format.name
    file_start = (stream.container.start_time or 0) / 1e6
    if _is_flac_in_ogg(stream) or GUESSED_KEY in stream.container.metadata:
        return None
    if _is_fragmented(stream):
        return _seconds_to_end(stream, start_ticks, is_late=file_start > LATE_SECONDS)
    if stream.duration is None:
        return _tagged_seconds(stream, start_seconds, container, file_start)
    seconds = float(stream.duration * stream.time_base)
    in_index = _avi_index_seconds(stream) if container == "avi" else None
    if in_index is not None:
        seconds = min(seconds, in_index)
    elif not is_clear_length(seconds, container, file_start) or (container == "avi" and _is_without_count(stream)):
        return None
    if stream.type == "video" and stream.start_time is not None:  # audio may begin with priming, which is no loss
        seconds -= max(0.0, start_seconds - float(stream.start_time * stream.time_base))
    return max(0.0, seconds)


def _tagged_seconds(stream: Any, start_seconds: float, container: str, file_start: float) -> float | None:
    """The length by Matroska's DURATION tag, which is the time of the stream's end, or its length."""
    end_seconds = parse_clock(stream.metadata.get("DURATION", ""))
    if end_seconds is None or not is_clear_length(end_seconds, container, file_start):
        return None
    is_length = file_start > LATE_SECONDS  # by is_clear_length
    return end_seconds if is_length else max(0.0, end_seconds - start_seconds)


def _seconds_to_end(stream: Any, start_ticks: int, *, is_late: bool) -> float | None:
    """The seconds from start_ticks to the end of a fragmented track. None if it ends before, by a clock of its own.

    The header of a file that begins late may describe the whole film, of which the file holds some fragments. Then the
    fragments count, if FFmpeg has listed them; with an index of fragments (sidx) it lists only the first one.
    """
    entries = stream.index_entries
    begin = entries[0].timestamp if len(entries) else stream.start_time  # ends are counted as frames are stored
    length = int(stream.duration) - begin
    if is_late and len(entries) > 1:
        last, before = entries[len(entries) - 1].timestamp, entries[len(entries) - 2].timestamp
        listed = 2 * last - before - begin
        is_all = entries[len(entries) - 1].pos > LEAST_INDEXED_FRACTION * stream.container.size
        length = listed if is_all and length > MAX_LENGTH_RATIO * listed else length
    length -= max(0, start_ticks - stream.start_time)
    return float(length * stream.time_base) if length > 0 else None


def _is_without_count(stream: Any) -> bool:
    """Whether the header of an AVI states no length of a stream. FFmpeg then guesses it from the number of bytes."""
    return stream.frames in AVI_UNKNOWN_COUNTS


def _avi_index_seconds(stream: Any) -> float | None:
    """The end of a stream of an AVI file by its index, because the length in the header is not always true.

    None if the index is incomplete: it is at the end of the file, and FFmpeg builds a missing one while reading.
    """
    entries, size = stream.index_entries, stream.container.size
    if len(entries) < 2:
        return None
    last, before = entries[len(entries) - 1], entries[len(entries) - 2]
    if size - last.pos - last.size > AVI_UNLISTED_FRACTION * size + 2 * AVI_INDEX_ENTRY_BYTES * len(entries):
        return None
    return float((2 * last.timestamp - before.timestamp) * stream.time_base)
