"""FFmpeg through PyAV: opening files, and packets to frames. Only the files of this folder use it for decoding.

FFmpeg's log is off, because routing it through Python can dead-lock. Only local files of known formats are opened, so
that a play list renamed to .mp4 cannot fetch anything. Damaged and cut files are judged in packets.py and
truncation.py; frames become arrays in frames.py.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition

from avssl.media.frames import audio_frame_of, use_native_layout
from avssl.media.info import MAX_BACKWARD_SECONDS, MAX_GAP_SECONDS, Passed
from avssl.media.lengths import GUESSED_KEY, is_guessed
from avssl.media.packets import FORMATS_WITH_BREAKS, Refused, on_one_clock, preferred, trusted
from avssl.media.placeholders import Patches, filled_in, readable
from avssl.media.presentation import PresentationClock
from avssl.media.truncation import Content, counts_frames, is_mp4_in_order, known_format, missing_end
from avssl.types import FailureReason, MediaError

Source = str | os.PathLike[str] | bytes

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpegtsraw,mpeg,mpegvideo,m4v,flv,asf,rm,mxf,nut,gif,ivf,"
    "h264,hevc,obu,ogg,wav,w64,aiff,au,caf,flac,mp3,aac,ac3,eac3,dts,amr,amrnb,amrwb,ape,wv,tta,mpc,mpc8,dv,gxf,wtv,vob"
)
# For these the header gives the first frame's time exactly; for others a frame is decoded. (Audio in mp4 is not one of
# them: without an edit list the decoder drops AAC's first packet, and the stream begins 1,024 samples later than
# stated.)
EXACT_STARTS = (("mov,mp4,m4a,3gp,3g2,mj2", "video"), ("flac", "audio"), ("wav", "audio"))

# With these, opening reads one packet and decodes none. Decoders that are used afterwards have their own options.
UNDECODED = {"probesize": "32", "skip_frame": "all"}
# FFmpeg's errors for an Ogg file that consists of several different ones.
OTHER_LINK_ERRORS = (errno.EINVAL, int.from_bytes(b"PAWE", "little"))
CHAINED = "several Ogg files in a row, of which only one layout can be read: cut the file where they meet"
LEAST_PROMISE_SECONDS = 0.1  # empty tracks may claim the length of one or two packets
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
def opened(source: Source, name: str, *, in_order: bool = False) -> Iterator[tuple[Any, str]]:
    """The open container and its name for messages; closes it, and turns FFmpeg's errors into MediaErrors.

    in_order: it is an mp4 whose frames are shown in the order in which they are stored (holds_frames_in_order). Then
    opening decodes nothing. Otherwise FFmpeg decodes frames to find how many a decoder holds back, and their pixel
    format.
    """
    label = name or ("<bytes>" if isinstance(source, bytes) else os.fspath(source))
    label = os.fsencode(label).decode(errors="backslashreplace")  # file names need not be Unicode
    with translated(label), ExitStack() as stack:
        head, patches, says_length = _checked_head(source, label)
        try:
            container = av.open(
                stack.enter_context(readable(source, patches)),
                options={"format_whitelist": FORMATS, "protocol_whitelist": "file"} | (UNDECODED if in_order else {}),
                metadata_errors="ignore",
            )
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, MemoryError):
                raise
            if what := known_format(head):
                missing = "index (moov)" if what == "an mp4" else "header"
                message = f"{label}: {what} whose {missing} is missing, cut or damaged ({error})"
                raise MediaError("truncated", message) from error
            raise MediaError("not_media", f"{label}: no known media format ({error})") from error
        if is_guessed(container, says_length):
            container.metadata[GUESSED_KEY] = "yes"
        try:
            yield container, label
        finally:
            container.close()


def holds_frames_in_order(source: Source) -> bool:
    """Whether this is an mp4 in memory whose frames are shown in the order in which they are stored, as in shards."""
    return isinstance(source, bytes) and is_mp4_in_order(Content(io.BytesIO(source), len(source)))


def seek(container: Any, stream: Any, ticks: int) -> bool:
    """Seek to before that time. False if this fails: the position is then undefined, so open the container again.

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
def translated(label: str) -> Iterator[None]:
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
    if isinstance(source, bytes):
        content = Content(io.BytesIO(source), len(source))
        missing, patches, says_length = missing_end(content), filled_in(content), counts_frames(content)
    else:
        path = Path(source)
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for a writer
                raise MediaError("missing_file", f"{label}: is no regular file")
            with path.open("rb") as file:
                content = Content(file, os.fstat(file.fileno()).st_size)
                missing, patches, says_length = missing_end(content), filled_in(content), counts_frames(content)
        except OSError as error:
            raise MediaError("missing_file", f"{label}: cannot be opened ({error.strerror})") from error
    if not content.head:
        raise MediaError("empty_file", f"{label}: has zero bytes")
    if missing is not None:
        raise MediaError("truncated", f"{label}: {missing}")
    return content.head, patches, says_length


def video_stream(container: Any) -> Any | None:
    """The default video stream that is no cover image; the first one of several."""
    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & covers]
    return preferred(streams, Disposition.default, Disposition.dependent)


def audio_stream(container: Any) -> Any | None:
    """The default audio stream, the first one of several; comments and descriptions only if there is nothing else."""
    return preferred(container.streams.audio, Disposition.default, SPOKEN_EXTRAS)


def require(stream: Any | None, reason: FailureReason, label: str) -> Any:
    """The stream. Raises MediaError(reason) if it is None, and unsupported_codec if it cannot be decoded."""
    if stream is None:
        raise MediaError(reason, f"{label}: has no {'video' if reason == 'no_video' else 'audio'} stream")
    if stream.codec_context is None:
        raise MediaError("unsupported_codec", f"{label}: no decoder for its {stream.type} stream")
    return stream


# --- packets to frames -----------------------------------------------------------------------------------------------


def frames_from_here(container: Any, stream: Any, label: str, passing: Any = None) -> Iterator[tuple[int, Any]]:
    """(time stamp in ticks, frame) from the current position of the container to its end, with the decoder flushed.

    Frames of a video stream are PyAV's, those of an audio stream are AudioFrames. Damaged packets are left out if they
    are few (see packets.py); breaks of the clock are repaired in formats that are known for them. passing
    (gapless_audio.Passing): decides which audio packets are counted (info.Passed) instead of decoded.
    """
    if not stream.codec_context.is_open:
        stream.codec_context.thread_count = 1
        if stream.type == "audio":
            use_native_layout(stream)
    max_gap = int(MAX_GAP_SECONDS / stream.time_base)
    max_back = int(MAX_BACKWARD_SECONDS / stream.time_base)
    refused = Refused(stream.type, container.format.name, label)
    clock = PresentationClock(container.format.name, stream.codec_context) if stream.type == "video" else None
    last, length = None, 0
    demuxed = container.demux(_together(container, stream))
    try:
        for packet in _of_stream(demuxed, container, stream, label):
            if passing is not None and packet.pts is not None and (num_samples := passing.count(packet)):
                refused.took()
                last, length = packet.pts, packet.duration or length
                yield packet.pts, Passed(num_samples)
                continue
            decoded = _decoded(packet, refused)
            if clock is not None:
                clock.take(packet)
            if passing is not None and (missing := passing.learn(packet, sum(frame.samples for frame in decoded))):
                yield packet.pts, Passed(missing)
            for frame in decoded:
                if clock is not None:
                    ticks = clock.stamp(frame)
                else:
                    ticks = frame.pts if frame.pts is not None else frame.dts
                if ticks is None:  # as in bare h264: frames follow each other
                    ticks = (stream.start_time or 0) if last is None else last + length
                if last is not None and not -max_back <= ticks - last <= max_gap:
                    by = (ticks - last) * float(stream.time_base)
                    raise MediaError("decode_error", f"{label}: {stream.type} time stamps jump by {by:.3f} s")
                last, length = ticks, frame.duration or length or _nominal_ticks(stream)
                yield ticks, frame if stream.type == "video" else audio_frame_of(frame, stream)
    finally:
        demuxed.close()  # PyAV 18.1 leaks the memory of a demuxer that is not closed
    refused.ended()


def _decoded(packet: Any, refused: Refused) -> list[Any]:
    """The frames that a packet completes; none if the decoder refuses it, which is counted."""
    try:
        frames: list[Any] = packet.decode()
    except av.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        refused.refused(error)
        return []
    if packet.size:
        refused.took()
    return frames


def _together(container: Any, stream: Any) -> Any:
    """The streams whose packets must be read to read `stream`."""
    if container.format.name not in FORMATS_WITH_BREAKS:
        return stream
    return [each for each in (video_stream(container), audio_stream(container)) if each is not None]


def _of_stream(demuxed: Iterator[Any], container: Any, stream: Any, label: str) -> Iterator[Any]:
    """The stream's packets, on one clock."""
    if container.format.name not in FORMATS_WITH_BREAKS:
        yield from demuxed
        return
    try:
        yield from trusted(on_one_clock(demuxed, stream), stream)
    except av.FFmpegError as error:
        if container.format.name == "ogg" and error.errno in OTHER_LINK_ERRORS:
            message = f"{label}: its {stream.type} continues with other channels or another codec ({CHAINED})"
            raise MediaError("decode_error", message) from error
        raise


def _nominal_ticks(stream: Any) -> int:
    """The length of a frame in ticks by the frame rate; 1 if there is none."""
    return round(1 / (stream.average_rate * stream.time_base)) if stream.type == "video" and stream.average_rate else 1


def first_frame(container: Any, stream: Any, label: str) -> tuple[int, Any] | None:
    """(time stamp in ticks, frame) of the first frame; None if there is none.

    MediaError("truncated") if the header promises some.
    """
    first = next(frames_from_here(container, stream, label), None)
    if first is None:
        check_empty(stream, label)
    return first


def check_empty(stream: Any, label: str) -> None:
    """MediaError("truncated") for a stream without a decodable frame whose header states a length."""
    promised = float(stream.duration * stream.time_base) if stream.duration else 0.0
    if promised > LEAST_PROMISE_SECONDS:
        raise MediaError(
            "truncated", f"{label}: nothing of its {stream.type} is there; the header says {promised:.2f} s"
        )


def first_packet(source: Source, stream: Any) -> bytes:
    """The bytes of the first packet in the index of the stream."""
    entry = stream.index_entries[0]
    if isinstance(source, bytes):
        return source[entry.pos : entry.pos + entry.size]
    with Path(source).open("rb") as file:
        file.seek(entry.pos)
        return file.read(entry.size)


def exact_start(container: Any, stream: Any) -> int | None:
    """The first frame's time stamp if the header is reliable, else None."""
    if (container.format.name, stream.type) not in EXACT_STARTS or stream.start_time is None:
        return None
    entries = stream.index_entries
    if stream.type == "video" and (not len(entries) or not entries[0].is_keyframe):
        return None  # cut carelessly: what precedes the first keyframe cannot be decoded
    return int(stream.start_time)
