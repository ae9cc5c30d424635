"""FFmpeg through PyAV: opening files, packets to frames, frames to arrays. The lower half of decode.py, for it alone.

FFmpeg's log stays off (routing it through Python can dead-lock), and only local files of known formats are opened, so
that a play list renamed to .mp4 can make nobody fetch anything.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.filter import Graph
from av.stream import Disposition
from numpy.typing import NDArray

from avssl.data.timeline import MAX_GAP_SECONDS, AudioBlock
from avssl.types import FailureReason, MediaError

Source = str | os.PathLike[str] | bytes

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpegtsraw,mpeg,mpegvideo,m4v,flv,asf,rm,mxf,nut,gif,ivf,"
    "h264,hevc,obu,ogg,wav,w64,aiff,au,caf,flac,mp3,aac,ac3,eac3,dts,amr,amrnb,amrwb,ape,wv,tta,mpc,mpc8,dv,gxf,wtv,vob"
)
# Where the header gives the first frame's time exactly; elsewhere it is decoded to know it. (Not audio in mp4: without
# an edit list the decoder swallows AAC's first packet, and the stream begins 1,024 samples later than the header says.)
EXACT_STARTS = (("mov,mp4,m4a,3gp,3g2,mj2", "video"), ("flac", "audio"), ("wav", "audio"))

av.logging.set_level(None)


# --- opening -------------------------------------------------------------------------------------------------------


@contextmanager
def opened(source: Source, name: str) -> Iterator[tuple[Any, str]]:
    """The open container and the name for messages; closes it, and turns FFmpeg's errors into MediaErrors."""
    label = name or ("<bytes>" if isinstance(source, bytes) else os.fspath(source))
    head = _checked_head(source, label)
    try:
        container = av.open(
            io.BytesIO(source) if isinstance(source, bytes) else f"file:{os.fspath(source)}",
            options={"format_whitelist": FORMATS, "protocol_whitelist": "file"},
            metadata_errors="ignore",
        )
    except (av.FFmpegError, ValueError) as error:
        if head[4:8] == b"ftyp":
            raise MediaError(
                "truncated", f"{label}: an mp4 whose index (moov) is missing or damaged ({error})"
            ) from error
        raise MediaError("not_media", f"{label}: no known media format ({error})") from error
    try:
        with translated(label):
            yield container, label
    finally:
        container.close()


@contextmanager
def translated(label: str) -> Iterator[None]:
    """FFmpeg's errors inside it become MediaErrors."""
    try:
        yield
    except av.FFmpegError as error:
        raise MediaError("decode_error", f"{label}: {error}") from error


def _checked_head(source: Source, label: str) -> bytes:
    """The first bytes; MediaError if there are none."""
    if isinstance(source, bytes):
        head = source[:16]
    else:
        try:
            with Path(source).open("rb") as file:
                head = file.read(16)
        except OSError as error:
            raise MediaError("missing_file", f"{label}: cannot be opened ({error.strerror})") from error
    if not head:
        raise MediaError("empty_file", f"{label}: has zero bytes")
    return head


def video_stream(container: Any) -> Any | None:
    """The first video stream that is not a cover picture."""
    streams = (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
    return next(streams, None)


def audio_stream(container: Any) -> Any | None:
    """The first audio stream."""
    return next(iter(container.streams.audio), None)


def require(stream: Any | None, reason: FailureReason, label: str) -> Any:
    """The stream, if it is there and can be decoded; MediaError(reason) or unsupported_codec if not."""
    if stream is None:
        raise MediaError(reason, f"{label}: has no {'video' if reason == 'no_video' else 'audio'} stream")
    if stream.codec_context is None:
        raise MediaError("unsupported_codec", f"{label}: no decoder for its {stream.type} stream")
    return stream


# --- packets to frames -----------------------------------------------------------------------------------------------


def frames_from_here(container: Any, stream: Any, label: str) -> Iterator[tuple[int, Any]]:
    """(time stamp in ticks, frame) from where the container stands to its end, the decoder flushed."""
    if not stream.codec_context.is_open:
        stream.codec_context.thread_count = 1
    max_gap = int(MAX_GAP_SECONDS / stream.time_base)
    last = None
    packets = container.demux(stream)
    for packet in packets:
        try:
            decoded = packet.decode()
        except av.FFmpegError as error:
            is_last = not any(later.size for later in itertools.islice(packets, 2))
            what = "the data ends inside a packet" if is_last else f"a {stream.type} packet cannot be decoded"
            raise MediaError("truncated" if is_last else "decode_error", f"{label}: {what} ({error})") from error
        for frame in decoded:
            ticks = frame.pts if frame.pts is not None else frame.dts
            if ticks is None:
                raise MediaError("decode_error", f"{label}: a {stream.type} frame carries no time stamp")
            if last is not None and abs(ticks - last) > max_gap:
                raise MediaError("decode_error", f"{label}: {stream.type} time stamps jump by more than an hour")
            last = ticks
            yield ticks, frame


def first_frame(container: Any, stream: Any, label: str) -> tuple[int, Any] | None:
    """(time stamp in ticks, frame) of the first one, None if there is none."""
    return next(frames_from_here(container, stream, label), None)


def exact_start(container: Any, stream: Any) -> int | None:
    """The first frame's stamp where the header can be trusted with it, else None."""
    if (container.format.name, stream.type) in EXACT_STARTS and stream.start_time is not None:
        return int(stream.start_time)
    return None


# --- pictures ------------------------------------------------------------------------------------------------------


def to_array(frame: Any, rgb: bool, turns: int) -> NDArray[np.uint8]:
    """(H, W, 3) RGB or (H * 3 / 2, W) yuv420p, turned clockwise by turns * 90 degrees. Newly allocated."""
    if rgb:
        image = frame.reformat(format="rgb24", threads=1).to_ndarray()
        return np.ascontiguousarray(np.rot90(image, -turns)) if turns else image
    upright = Upright(turns, None)(frame)
    return np.asarray(upright.reformat(format="yuv420p", threads=1).to_ndarray(), dtype=np.uint8)


class Upright:
    """Scales a stream's frames and turns them clockwise by turns * 90 degrees, without leaving YUV.

    size: (width, height) after turning; None leaves size and pixel format alone.
    """

    def __init__(self, turns: int, size: tuple[int, int] | None) -> None:
        self._turns = turns
        self._size = size if size is None or turns % 2 == 0 else (size[1], size[0])
        self._graph: Any = None

    def __call__(self, frame: Any) -> Any:
        if self._size is not None:
            frame = _scaled(frame, *self._size)
        if self._turns == 0:
            return frame
        if self._graph is None:
            self._graph = _turning_graph(frame, self._turns)
        self._graph.push(frame)
        return self._graph.pull()


def _scaled(frame: Any, width: int, height: int) -> Any:
    """yuv420p, BT.601, limited range: one meaning of colours for every shard, whatever the source."""
    return frame.reformat(
        width, height, "yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG", interpolation="AREA", threads=1
    )


def _turning_graph(frame: Any, turns: int) -> Graph:
    """A filter that turns pictures clockwise by turns * 90 degrees."""
    steps = {1: [("transpose", "clock")], 2: [("hflip", ""), ("vflip", "")], 3: [("transpose", "cclock")]}[turns]
    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    nodes = [graph.add(name, arguments) for name, arguments in steps]
    graph.link_nodes(source, *nodes, graph.add("buffersink")).configure()
    return graph


# --- sound ---------------------------------------------------------------------------------------------------------


class Resampler:
    """Mono float32 blocks from one rate to another; None flushes. Equal rates pass through."""

    def __init__(self, source_rate_hz: int, rate_hz: int) -> None:
        self.source_rate_hz, self.rate_hz = source_rate_hz, rate_hz
        self._inner = AudioResampler(format="flt", layout="mono", rate=rate_hz)

    def __call__(self, block: AudioBlock | None) -> AudioBlock:
        if self.source_rate_hz == self.rate_hz:
            return np.empty(0, np.float32) if block is None else block
        frame = None
        if block is not None:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block)[None], format="flt", layout="mono")
            frame.sample_rate = self.source_rate_hz
        ready = [np.clip(piece.to_ndarray()[0], -1, 1) for piece in self._inner.resample(frame) if piece is not None]
        return np.concatenate(ready) if ready else np.empty(0, np.float32)
