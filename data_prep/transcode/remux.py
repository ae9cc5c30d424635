"""Puts the members of a sample into one playable file: packets are copied as they are, nothing is encoded anew."""

from __future__ import annotations

import io
from collections.abc import Iterator
from heapq import merge
from typing import Any

import av

from avssl.types import MediaError

# FFmpeg's name of the container, and its options. By default mp4 stores starts of streams in units of 1/1000 s.
CONTAINERS: dict[str, tuple[str, dict[str, str]]] = {
    ".mp4": ("mp4", {"movie_timescale": "192000"}),
    ".m4a": ("mp4", {"movie_timescale": "192000"}),
    ".mkv": ("matroska", {}),
    ".mka": ("matroska", {}),
}


def remux(
    video: bytes | None,
    audio: bytes | None,
    suffix: str,
    *,
    video_start_seconds: float = 0.0,
    audio_start_seconds: float = 0.0,
    name: str = "sample",
) -> bytes:
    """The bytes of one file with both streams.

    Args:
        video: an mp4 file, audio: a FLAC file, of which the first video and audio stream are taken; None: no stream.
        suffix: of the new file, one of CONTAINERS. mp4 keeps times to a tick of the streams' own clocks, Matroska
            to a millisecond.
        video_start_seconds, audio_start_seconds: when the first frame and the first sample are played, from the
            file's time 0; at least 0.
        name: of the sample, for error messages.

    Raises:
        ValueError: another suffix, a negative start, or nothing to write.
        MediaError: decode_error, if a member is no mp4 or FLAC file with packets to copy.
    """
    if suffix not in CONTAINERS:
        raise ValueError(f"{name}: cannot be written as {suffix or 'a file without suffix'}; "
                         f"allowed: {', '.join(CONTAINERS)}")  # fmt: skip
    if min(video_start_seconds, audio_start_seconds) < 0:
        raise ValueError(
            f"{name}: starts are {video_start_seconds} and {audio_start_seconds} s; they must be at least 0"
        )
    members = [
        (content, kind, container_format, start_seconds)
        for content, kind, container_format, start_seconds in (
            (video, "video", "mp4", video_start_seconds),
            (audio, "audio", "flac", audio_start_seconds),
        )
        if content is not None
    ]
    if not members:
        raise ValueError(f"{name}: has neither video nor audio to write")
    output = io.BytesIO()
    container_format, options = CONTAINERS[suffix]
    try:
        with av.open(
            output, "w", format=container_format, options=options, container_options={"fflags": "+bitexact"}
        ) as target:
            # A list, not a generator: all streams must be added before the first packet is written.
            streams = [_packets(content, kind, source, start, target) for content, kind, source, start in members]
            for _, packet in merge(*streams, key=lambda timed: timed[0]):
                target.mux(packet)
    except (av.FFmpegError, IndexError) as error:
        raise MediaError("decode_error", f"{name}: its streams cannot be copied ({error})") from error
    return output.getvalue()


def _packets(
    content: bytes, kind: str, source_format: str, start_seconds: float, target: Any
) -> Iterator[tuple[float, Any]]:
    """Add the stream to the target. Yields (decoding time in seconds, packet), both shifted to the start."""
    source: Any = av.open(io.BytesIO(content), format=source_format, metadata_errors="ignore")
    stream = source.streams.get(**{kind: 0})[0]
    copy = target.add_stream_from_template(stream)

    def moved() -> Iterator[tuple[float, Any]]:
        shift = round(start_seconds / stream.time_base) - (stream.start_time or 0)
        with source:
            for packet in source.demux(stream):
                if packet.dts is None:  # the empty packet at the end
                    continue
                packet.dts += shift
                packet.pts += shift
                packet.stream = copy
                yield float(packet.dts * packet.time_base), packet

    return moved()
