"""FFmpeg through PyAV: opening files, and decoding packets to frames. Only this folder decodes with PyAV.

FFmpeg's log is off, because passing it on to Python can dead-lock. Only local files of known formats are opened, so
that a playlist renamed to .mp4 cannot fetch anything. Cut files are found in truncation.py, timestamps are mended in
timestamps.py, frames become arrays in frames.py.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import av
from av.stream import Disposition

from avssl.media.frames import audio_frame_of, use_native_layout
from avssl.media.info import MAX_BACKWARD_SECONDS, MAX_GAP_SECONDS, SkippedSamples
from avssl.media.placeholders import PatchedFile, Patches, length_patches
from avssl.media.sources import Source, label_of, open_source
from avssl.media.stream_info import GUESSED_KEY, is_length_guessed
from avssl.media.timestamps import FORMATS_WITH_BREAKS, PresentationClock, on_one_clock, without_unreliable_stamps
from avssl.media.truncation import FileBytes, is_mp4_in_order, known_format, missing_end, states_frame_count
from avssl.types import FailureReason, MediaError

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpegtsraw,mpeg,mpegvideo,m4v,flv,asf,rm,mxf,nut,gif,ivf,"
    "h264,hevc,obu,ogg,wav,w64,aiff,au,caf,flac,mp3,aac,ac3,eac3,dts,amr,amrnb,amrwb,ape,wv,tta,mpc,mpc8,dv,gxf,wtv,vob"
)
# For these the header gives the first frame's time exactly; for others a frame is decoded. (Audio in mp4 is not one of
# them: without an edit list the decoder drops AAC's first packet, and the stream begins 1,024 samples later than
# stated.)
EXACT_STARTS = (("mov,mp4,m4a,3gp,3g2,mj2", "video"), ("flac", "audio"), ("wav", "audio"))

# With these, opening reads one packet and decodes none. Decoders that are used afterwards have their own options.
DECODE_NOTHING = {"probesize": "32", "skip_frame": "all"}
# FFmpeg's errors for an Ogg file that consists of several different ones.
OTHER_LINK_ERRORS = (errno.EINVAL, int.from_bytes(b"PAWE", "little"))
CHAINED = "several Ogg files in a row, of which only one layout can be read: cut the file where they meet"
# A stream counts as damaged if its decoder refuses more than this fraction of its packets, or more in a row.
MAX_REFUSED_FRACTION = 0.05
MAX_REFUSED_IN_A_ROW = 25
# In all other formats a header states the length of a stream, and a caller that decodes all of it can compare.
# (mp3 is not listed: its decoder accepts half a frame, and what it refuses at the end is a tag.)
FORMATS_WITHOUT_LENGTH = ("mpegts", "mpeg", "aac", "ac3", "eac3", "dts", "amr", "h264", "hevc", "m4v", "mpegvideo")

LEAST_STATED_SECONDS = 0.1  # headers of empty tracks may state the length of one or two packets
SPOKEN_EXTRAS = (
    Disposition.comment
    | Disposition.visual_impaired
    | Disposition.hearing_impaired
    | Disposition.descriptions
    | Disposition.karaoke
)

av.logging.set_level(None)


# --- opening -------------------------------------------------------------------------------------------------------


@contextmanager
def open_container(source: Source, name: str, *, in_order: bool = False) -> Iterator[tuple[Any, str]]:
    """A context with (the open container, its name for messages), in which FFmpeg's errors become MediaErrors.

    in_order: the result of `holds_frames_in_order`. If it is true, opening decodes nothing. Otherwise FFmpeg decodes
    frames to find how many a decoder holds back, and their pixel format.
    """
    label = label_of(source, name)
    with media_errors(label), ExitStack() as stack:
        head, patches, states_length = _checked_head(source, label)
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"} | (DECODE_NOTHING if in_order else {})
        try:
            file = stack.enter_context(_patched_source(source, patches))
            container = av.open(file, options=options, metadata_errors="ignore")
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, MemoryError):
                raise
            if what := known_format(head):
                missing = "index (moov)" if what == "an mp4" else "header"
                message = f"{label}: {what} whose {missing} is missing, cut or damaged ({error})"
                raise MediaError("truncated", message) from error
            raise MediaError("not_media", f"{label}: no known media format ({error})") from error
        if is_length_guessed(container, states_length):
            container.metadata[GUESSED_KEY] = "yes"
        try:
            yield container, label
        finally:
            container.close()


@contextmanager
def _patched_source(source: Source, patches: Patches) -> Iterator[Any]:
    """The path, or a file object whose lengths are filled in, for FFmpeg to open."""
    if not patches and not isinstance(source, bytes):
        yield f"file:{os.fspath(source)}"
        return
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
        yield PatchedFile(file, patches) if patches else file


def holds_frames_in_order(source: Source) -> bool:
    """Whether this is an mp4 in memory whose frames are shown in the order in which they are stored, as in shards."""
    return isinstance(source, bytes) and is_mp4_in_order(FileBytes(io.BytesIO(source), len(source)))


def seek(container: Any, stream: Any, ticks: int) -> bool:
    """Seek to a keyframe at or before a time. False if it fails: the position is undefined, so open the file again.

    FFmpeg finds a position in FLAC by the beginnings of blocks, and fails if few of them are left before the end.
    """
    try:
        container.seek(ticks, stream=stream)
    except MemoryError:
        raise
    except av.FFmpegError:
        return False
    return True


@contextmanager
def media_errors(label: str) -> Iterator[None]:
    """A context in which FFmpeg's errors, and a lack of memory, become MediaErrors."""
    try:
        yield
    except MemoryError as error:
        raise MediaError("out_of_memory", f"{label}: reading it takes more memory than there is ({error})") from error
    except av.FFmpegError as error:
        raise MediaError("decode_error", f"{label}: {error}") from error


def _checked_head(source: Source, label: str) -> tuple[bytes, Patches, bool]:
    """(first bytes, lengths to fill in, whether an mp3 states its number of frames).

    Raises MediaError if the file is empty or much of its end is missing.
    """
    try:
        with open_source(source, label) as file:
            content = FileBytes(file, file.seek(0, os.SEEK_END))
            missing, patches, states_length = missing_end(content), length_patches(content), states_frame_count(content)
    except OSError as error:
        raise MediaError("missing_file", f"{label}: cannot be read ({error.strerror})") from error
    if missing is not None:
        raise MediaError("truncated", f"{label}: {missing}")
    return content.head, patches, states_length


def video_stream(container: Any) -> Any | None:
    """The video stream to read, by `preferred`; cover images are none. None if there is no other."""
    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & covers]
    return preferred(streams, Disposition.default, Disposition.dependent)


def audio_stream(container: Any) -> Any | None:
    """The audio stream to read, by `preferred`: comments and descriptions only if there is nothing else."""
    return preferred(container.streams.audio, Disposition.default, SPOKEN_EXTRAS)


def preferred(streams: Sequence[Any], default: Any, second_choice: Any) -> Any | None:
    """The stream to read of several; None if there are none.

    Streams that can be decoded come before others, then those that are no second choice, then the file's default.

    default, second_choice: flags of a stream's disposition.
    """
    return min(
        streams,
        key=lambda stream: (
            stream.codec_context is None,
            bool(stream.disposition & second_choice),
            not stream.disposition & default,
            stream.index,
        ),
        default=None,
    )


def require_decodable(stream: Any | None, reason: FailureReason, label: str) -> Any:
    """The stream. Raises MediaError(reason) if it is None, and unsupported_codec if it cannot be decoded."""
    if stream is None:
        raise MediaError(reason, f"{label}: has no {'video' if reason == 'no_video' else 'audio'} stream")
    if stream.codec_context is None:
        raise MediaError("unsupported_codec", f"{label}: no decoder for its {stream.type} stream")
    return stream


# --- packets to frames -----------------------------------------------------------------------------------------------


class DecodeErrors:
    """Counts the packets of one stream that its decoder refuses, and raises MediaError if there are too many.

    A few are left out: the previous frame stays on screen, and audio has a pause. The reason is decode_error, or
    truncated if only the last packets are refused.
    """

    def __init__(self, stream_type: str, container_format: str, label: str) -> None:
        self._type, self._label = stream_type, label
        self._has_length = container_format not in FORMATS_WITHOUT_LENGTH
        self._num_packets = self._num_refused = self._num_in_a_row = 0
        self._error: Exception | None = None

    def count_decoded(self) -> None:
        """Count a packet that was decoded or skipped."""
        self._num_packets += 1
        self._num_in_a_row = 0

    def count_refused(self, error: Exception) -> None:
        """Count a packet that could not be decoded. Raises MediaError."""
        self._num_packets += 1
        self._num_refused += 1
        self._num_in_a_row += 1
        self._error = error
        if self._num_in_a_row > MAX_REFUSED_IN_A_ROW:
            self._give_up("decode_error", f"{self._num_in_a_row} {self._type} packets in a row cannot be decoded")

    def check_end(self) -> None:
        """Check the counts after the last packet. Raises MediaError."""
        if not self._num_refused:
            return
        message = f"{self._num_refused} of {self._num_packets} {self._type} packets cannot be decoded"
        is_only_the_last = self._num_in_a_row == self._num_refused < self._num_packets
        if self._num_refused > MAX_REFUSED_FRACTION * self._num_packets:
            self._give_up("truncated" if is_only_the_last else "decode_error", message)
        if self._num_in_a_row and not self._has_length:
            self._give_up("truncated", f"the {self._type} ends inside a packet")

    def _give_up(self, reason: Any, what: str) -> None:
        raise MediaError(reason, f"{self._label}: {what} ({self._error})") from self._error


def decode_frames(container: Any, stream: Any, label: str, skipper: Any = None) -> Iterator[tuple[int, Any]]:
    """(timestamp in ticks, frame) from the current position of the container to its end, with the decoder flushed.

    Frames of a video stream are PyAV's, those of an audio stream are AudioFrames. Damaged packets are left out if they
    are few (DecodeErrors); breaks of the clock are repaired in formats that are known for them. skipper (a
    PacketSkipper of gapless_audio.py): decides which audio packets are counted instead of decoded; SkippedSamples stand
    for them.
    """
    if not stream.codec_context.is_open:
        stream.codec_context.thread_count = 1
        if stream.type == "audio":
            use_native_layout(stream)
    max_gap = int(MAX_GAP_SECONDS / stream.time_base)
    max_back = int(MAX_BACKWARD_SECONDS / stream.time_base)
    errors = DecodeErrors(stream.type, container.format.name, label)
    clock = PresentationClock(container.format.name, stream.codec_context) if stream.type == "video" else None
    last, length = None, 0  # ticks: the time of the previous frame, and its duration
    demuxed = container.demux(_streams_to_read(container, stream))
    try:
        for packet in _packets_of(demuxed, container, stream, label):
            if skipper is not None and packet.pts is not None and (num_samples := skipper.samples_to_skip(packet)):
                errors.count_decoded()
                last, length = packet.pts, packet.duration or length
                yield packet.pts, SkippedSamples(num_samples)
                continue
            decoded = _decoded(packet, errors)
            if clock is not None:
                clock.take(packet)
            if skipper is not None and (missing := skipper.learn(packet, sum(frame.samples for frame in decoded))):
                yield packet.pts, SkippedSamples(missing)
            for frame in decoded:
                if clock is not None:
                    ticks = clock.stamp(frame)
                else:
                    ticks = frame.pts if frame.pts is not None else frame.dts
                if ticks is None:  # as in bare h264: frames follow each other
                    ticks = (stream.start_time or 0) if last is None else last + length
                if last is not None and not -max_back <= ticks - last <= max_gap:
                    by = (ticks - last) * float(stream.time_base)
                    raise MediaError("decode_error", f"{label}: {stream.type} timestamps jump by {by:.3f} s")
                last, length = ticks, frame.duration or length or _nominal_frame_ticks(stream)
                yield ticks, frame if stream.type == "video" else audio_frame_of(frame, stream)
    finally:
        demuxed.close()  # PyAV 18.1 leaks the memory of a demuxer that is not closed
    errors.check_end()


def _decoded(packet: Any, errors: DecodeErrors) -> list[Any]:
    """The frames that a packet completes; none if the decoder refuses it, which is counted."""
    try:
        frames: list[Any] = packet.decode()
    except av.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        errors.count_refused(error)
        return []
    if packet.size:
        errors.count_decoded()
    return frames


def _streams_to_read(container: Any, stream: Any) -> Any:
    """The stream, or all streams whose packets are needed to notice a break of its clock."""
    if container.format.name not in FORMATS_WITH_BREAKS:
        return stream
    return [other for other in (video_stream(container), audio_stream(container)) if other is not None]


def _packets_of(demuxed: Iterator[Any], container: Any, stream: Any, label: str) -> Iterator[Any]:
    """The packets of the stream, on one clock."""
    if container.format.name not in FORMATS_WITH_BREAKS:
        yield from demuxed
        return
    try:
        yield from without_unreliable_stamps(on_one_clock(demuxed, stream), stream, from_beginning=True)
    except OverflowError as error:  # as in an Ogg file that was cut by copying its packets: stamps of below 0 wrapped
        raise MediaError("decode_error", f"{label}: {stream.type} timestamps of more than 64 bits") from error
    except av.FFmpegError as error:
        if container.format.name == "ogg" and error.errno in OTHER_LINK_ERRORS:
            message = f"{label}: its {stream.type} continues with other channels or another codec ({CHAINED})"
            raise MediaError("decode_error", message) from error
        raise


def _nominal_frame_ticks(stream: Any) -> int:
    """The duration of a video frame in ticks by the frame rate; 1 if none is stated, and for audio."""
    return round(1 / (stream.average_rate * stream.time_base)) if stream.type == "video" and stream.average_rate else 1


def first_frame(container: Any, stream: Any, label: str) -> tuple[int, Any] | None:
    """(timestamp in ticks, frame) of the first frame; None if there is none.

    MediaError("truncated") if there is none although the header states a length.
    """
    first = next(decode_frames(container, stream, label), None)
    if first is None:
        check_not_truncated(stream, label)
    return first


def check_not_truncated(stream: Any, label: str) -> None:
    """MediaError("truncated") for a stream without a decodable frame whose header states a length."""
    stated_seconds = float(stream.duration * stream.time_base) if stream.duration else 0.0
    if stated_seconds > LEAST_STATED_SECONDS:
        message = f"{label}: nothing of its {stream.type} is there; the header says {stated_seconds:.2f} s"
        raise MediaError("truncated", message)


def first_packet(source: Source, stream: Any) -> bytes:
    """The bytes of the first packet in the index of the stream."""
    entry = stream.index_entries[0]
    if isinstance(source, bytes):
        return source[entry.pos : entry.pos + entry.size]
    with Path(source).open("rb") as file:
        file.seek(entry.pos)
        return file.read(entry.size)


def exact_start(container: Any, stream: Any) -> int | None:
    """The first frame's timestamp if the header is reliable, else None."""
    if (container.format.name, stream.type) not in EXACT_STARTS or stream.start_time is None:
        return None
    entries = stream.index_entries
    if stream.type == "video" and (not len(entries) or not entries[0].is_keyframe):
        return None  # what precedes the first keyframe of a file that was cut there cannot be decoded
    return int(stream.start_time)


def missing_codecs(decoders: Iterable[str], encoders: Iterable[str]) -> list[str]:
    """Those of the named decoders and encoders that this build of FFmpeg lacks."""
    missing = []
    modes: tuple[tuple[Iterable[str], Literal["r", "w"]], ...] = ((decoders, "r"), (encoders, "w"))
    for names, mode in modes:
        for name in names:
            try:
                av.Codec(name, mode)
            except ValueError:  # PyAV's error for an unknown codec
                missing.append(name)
    return missing
