"""The lengths of streams and files by their headers, which every container counts in its own way.

Works on PyAV's objects without importing PyAV; see streams.py.
"""

from __future__ import annotations

from typing import Any

from avssl.media.info import LATE_SECONDS, is_clear_length, parse_clock

AVI_LEAST_UNLISTED_SHARE = 0.1  # of the file, after the last chunk that the index lists
AVI_INDEX_ENTRY_BYTES = 16
AVI_UNKNOWN_COUNTS = (
    0,
    1 << 30,
    (1 << 31) - 1,
    (1 << 32) - 1,
    -1,
)  # what writers put if they do not know it
LEAST_INDEXED_SHARE = 0.8  # of the bytes of a fragmented file, for its index to count as complete
MOST_UNLISTED_SHARE = 2.0
GUESSED_KEY = "avssl guessed length"  # in a container's metadata: its length is guessed from the first packets
FORMATS_OF_BYTE_RATES = ("wav", "w64")  # in these the length is a number of bytes divided by the header's rate
CODECS_WITHOUT_BYTE_RATE = ("flac", "mp3", "aac", "opus", "vorbis", "wmav1", "wmav2")


def is_guessed(container: Any, says_length: bool) -> bool:
    """Whether FFmpeg divides the number of bytes by a rate that need not be that of the whole file.

    says_length: the file is an mp3 with a header that states the number of frames.
    """
    name = container.format.name
    if name in FORMATS_OF_BYTE_RATES:
        contexts = [stream.codec_context for stream in container.streams.audio]
        return any(each is not None and each.codec.canonical_name in CODECS_WITHOUT_BYTE_RATE for each in contexts)
    return name == "aac" or (name == "mp3" and not says_length)


def file_seconds(container: Any) -> float | None:
    """The length of the file by its header; None if it states none.

    The lengths of streams are preferred to that of the file, which programs that cut or join files leave unchanged. In
    FORMATS_COUNTED_FROM_ANYWHERE it may be the time of the end.
    """
    if GUESSED_KEY in container.metadata:
        return None
    whole = None if container.duration is None else container.duration / 1e6
    if container.format.name == "avi":
        if all(_avi_index_seconds(stream) is None and _is_without_count(stream) for stream in container.streams):
            return None
        ends = [_avi_index_seconds(stream) for stream in container.streams.video[:1]]
    elif container.format.name == "matroska,webm":
        ends = [parse_clock(stream.metadata.get("DURATION", "")) for stream in container.streams]
    elif any(map(_is_fragmented, container.streams)):
        return _fragmented_seconds(container)
    elif any(map(_is_flac_in_ogg, container.streams)):
        return None
    else:
        return whole
    stated = [end for end in ends if end is not None]
    return min(whole, max(stated)) if whole is not None and stated and len(stated) == len(ends) else whole


def _is_fragmented(stream: Any) -> bool:
    """Whether it is a track of an mp4 whose header lists no frames. Its duration is then the time of its end."""
    return bool("mp4" in stream.container.format.name and not stream.frames and stream.duration)


def _is_flac_in_ogg(stream: Any) -> bool:
    """Whether it is FLAC in Ogg: FFmpeg counts its frames from 0, wherever they begin, but not its end."""
    context = stream.codec_context
    return bool(stream.container.format.name == "ogg" and context is not None and context.name == "flac")


def _fragmented_seconds(container: Any) -> float | None:
    """From the first stream's start to the last one's end."""
    streams = [each for each in container.streams if each.start_time is not None and each.duration is not None]
    starts = [float(each.start_time * each.time_base) for each in streams]
    lengths = [header_seconds(each, each.start_time) for each in streams]
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
    is_length = file_start > LATE_SECONDS  # else it would be unclear
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
        is_all = entries[len(entries) - 1].pos > LEAST_INDEXED_SHARE * stream.container.size
        length = listed if is_all and length > MOST_UNLISTED_SHARE * listed else length
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
    if size - last.pos - last.size > AVI_LEAST_UNLISTED_SHARE * size + 2 * AVI_INDEX_ENTRY_BYTES * len(entries):
        return None
    return float((2 * last.timestamp - before.timestamp) * stream.time_base)
