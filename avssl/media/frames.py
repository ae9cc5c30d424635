"""Decoded frames to arrays: upright, without fields, in known colors; sound with its channels named, at a wanted rate.

Beside ffmpeg.py the only file that reads with PyAV; for decode.py and playing.py alone.
"""

from __future__ import annotations

import re
from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.filter import Graph
from av.video.reformatter import Colorspace, VideoReformatter
from numpy.typing import NDArray

from avssl.media.info import AudioBlock, AudioFrame

LEAST_INTERLACED_HEIGHT = 4
# Where FFmpeg makes RGB of each square of 2 x 2 pixels by itself, so that a part is the same bits as in the whole.
CUT_BEFORE_RGB = ("yuv420p", "yuvj420p")
TURNING: tuple[list[tuple[str, str]], ...] = (
    [],
    [("transpose", "clock")],
    [("hflip", ""), ("vflip", "")],
    [("transpose", "cclock")],
)
UNSAFE_PLANES = 8
UNKNOWN_TO_NUMPY = {"s64": "dbl", "s64p": "dbl"}
MONO = ("FC",)
NUMPY_KINDS = {"u8": "u1", "s16": "i2", "s32": "i4", "flt": "f4", "dbl": "f8"}
NUMPY_KINDS |= {f"{name}p": kind for name, kind in NUMPY_KINDS.items()}  # planes of which there is one
CHANNELS_KEY = "avssl channels"
OWN_ORDER = re.compile(r"\d+ channels \(|ambisonic")
NATIVE_LAYOUTS = {
    1: "mono",
    2: "stereo",
    3: "3.0",
    4: "4.0",
    5: "5.0",
    6: "5.1",
    7: "6.1",
    8: "7.1",
    16: "hexadecagonal",
}

# --- pictures ------------------------------------------------------------------------------------------------------


def to_array(frame: Any, rgb: bool, turns: int, is_mirrored: bool = False) -> NDArray[np.uint8]:
    """(H, W, 3) RGB or (H * 3 / 2, W) yuv420p, mirrored left to right if asked for, then turned clockwise by turns * 90
    degrees. It may be the frame's memory.

    Rows may lie apart. Of yuv420p an odd H or W is scaled to one less.
    """
    height = frame.height
    frame = progressive(frame)
    if rgb:
        image = _rgb_pixels(frame.reformat(height=height, format="rgb24", threads=1))
        image = image[:, ::-1] if is_mirrored else image
        return np.ascontiguousarray(np.rot90(image, -turns)) if turns or is_mirrored else image
    upright = Upright(turns, None, is_mirrored)(_scaled_back(frame, height))
    even = upright.width - upright.width % 2, upright.height - upright.height % 2
    return np.asarray(upright.reformat(*even, format="yuv420p", threads=1).to_ndarray(), dtype=np.uint8)


def _rgb_pixels(frame: Any) -> NDArray[np.uint8]:
    """(H, W, 3) of a frame in rgb24, where it lies: its rows may be longer than they need to be."""
    plane = frame.planes[0]
    if plane.line_size < 3 * frame.width:  # stored from bottom to top
        return frame.to_ndarray()  # type: ignore[no-any-return]
    rows = np.frombuffer(plane, np.uint8).reshape(frame.height, plane.line_size)
    return rows[:, : 3 * frame.width].reshape(frame.height, frame.width, 3)


class Cutter:
    """A part of each frame of a stream in RGB: what lies around it is not converted where that makes no difference."""

    def __init__(self) -> None:
        self._graph: Any = None
        self._made_for: tuple[Any, ...] = ()
        self._reformatter = VideoReformatter()  # as in Upright

    def __call__(
        self, frame: Any, turns: int, box: tuple[int, int, int, int], is_mirrored: bool = False
    ) -> NDArray[np.uint8]:
        """uint8 (height, width, 3): box is (top, left, height, width) of the upright frame, inside it.

        In memory of its own; rows may lie apart.
        """
        top, left, height, width = box
        size = frame.width, frame.height
        is_stored_so = not turns and not is_mirrored and not frame.interlaced_frame
        if not is_stored_so or frame.format.name not in CUT_BEFORE_RGB or size[0] % 2 or size[1] % 2:
            whole = to_array(frame, rgb=True, turns=turns, is_mirrored=is_mirrored)
            return whole[top : top + height, left : left + width].copy()  # it may be the decoder's memory
        above, before = top % 2, left % 2
        wide, tall = before + width + (before + width) % 2, above + height + (above + height) % 2
        part = f"{wide}:{tall}:{left - before}:{top - above}:exact=1"
        if self._made_for != (*size, frame.format.name, part):
            self._graph = _graph(frame, [("crop", part)])
            self._made_for = (*size, frame.format.name, part)
        self._graph.push(frame)
        pixels = _rgb_pixels(self._reformatter.reformat(self._graph.pull(), format="rgb24", threads=1))
        return pixels[above : above + height, before : before + width]


def progressive(frame: Any) -> Any:
    """The frame, or of an interlaced one its first field: half its height, all of it from the frame's own instant."""
    if not frame.interlaced_frame or frame.height < LEAST_INTERLACED_HEIGHT:
        return frame
    graph = _graph(frame, [("separatefields", "")])
    graph.push(frame)
    return graph.pull()


def _scaled_back(frame: Any, height: int) -> Any:
    """A field at the height of its frame."""
    return frame if frame.height == height else frame.reformat(height=height, interpolation="BILINEAR", threads=1)


class Upright:
    """Scales a stream's frames, mirrors them left to right if asked for, and turns them clockwise by turns * 90
    degrees, without leaving YUV.

    size: (width, height) after turning; None leaves size and pixel format alone.
    """

    def __init__(self, turns: int, size: tuple[int, int] | None, is_mirrored: bool = False) -> None:
        self._steps = [("hflip", "")] * is_mirrored + TURNING[turns]
        self._size = size if size is None or turns % 2 == 0 else (size[1], size[0])
        self._graph: Any = None
        self._reformatter = VideoReformatter()  # one for all: a frame's own would be set up anew for each frame

    def __call__(self, frame: Any) -> Any:
        height = frame.height
        frame = progressive(frame)
        frame = _scaled_back(frame, height) if self._size is None else self._scaled(frame, *self._size)
        if not self._steps:
            return frame
        if self._graph is None:
            self._graph = _graph(frame, self._steps)
        self._graph.push(frame)
        return self._graph.pull()

    def _scaled(self, frame: Any, width: int, height: int) -> Any:
        """yuv420p, BT.601, limited range: one meaning of colors for every shard, whatever the source."""
        return self._reformatter.reformat(
            frame,
            width,
            height,
            "yuv420p",
            dst_colorspace=Colorspace.ITU601,
            dst_color_range="MPEG",
            interpolation="AREA",
            threads=1,
        )


def _graph(frame: Any, steps: list[tuple[str, str]]) -> Graph:
    """Filters, one after the other, for frames like this one."""
    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    nodes = [graph.add(name, arguments) for name, arguments in steps]
    graph.link_nodes(source, *nodes, graph.add("buffersink")).configure()
    return graph


# --- sound ---------------------------------------------------------------------------------------------------------


def use_native_layout(stream: Any) -> None:
    """Tell the decoder to speak of a usual order of channels where the file has one of its own.

    PyAV 18.1 frees such an order twice, once for each frame, which ends the process. The true names stay in the
    stream's metadata, for sound_of.
    """
    context = stream.codec_context
    layout = context.layout
    if OWN_ORDER.match(layout.name):
        names = [channel.name for channel in layout.channels]
        stream.metadata[CHANNELS_KEY] = " ".join(names)
        context.layout = NATIVE_LAYOUTS.get(len(names), f"{len(names)}c")


def audio_frame_of(frame: Any, stream: Any) -> AudioFrame:
    """The samples of a decoded block."""
    rate, layout = frame.sample_rate, frame.layout
    if layout.nb_channels == 1 and (kind := NUMPY_KINDS.get(frame.format.name)):  # without PyAV's copy
        return AudioFrame(rate, MONO, np.frombuffer(frame.planes[0], kind, frame.samples)[None], True)
    names = stream.metadata.get(CHANNELS_KEY, "").split()
    if len(names) != layout.nb_channels:
        names = [channel.name for channel in layout.channels]
    is_planar = frame.format.is_planar
    if frame.format.name in UNKNOWN_TO_NUMPY or (is_planar and layout.nb_channels >= UNSAFE_PLANES):
        # PyAV 18.1 looks for the end of the list of planes, runs past eight of them, and crashes: one plane for all.
        wanted = UNKNOWN_TO_NUMPY.get(frame.format.name, frame.format.packed)
        frame, is_planar = AudioResampler(format=wanted, layout=layout, rate=rate).resample(frame)[0], False
    return AudioFrame(rate, tuple(names), frame.to_ndarray(), is_planar)


class Resampler:
    """Mono float32 blocks from one rate to another; None flushes. Equal rates pass through."""

    def __init__(self, source_rate_hz: int, rate_hz: int) -> None:
        self.source_rate_hz, self.rate_hz = source_rate_hz, rate_hz
        self._inner = AudioResampler(format="flt", layout="mono", rate=rate_hz)

    def __call__(self, block: AudioBlock | None) -> AudioBlock:
        if self.source_rate_hz == self.rate_hz:
            return np.empty(0, np.float32) if block is None else np.clip(block, -1, 1)
        frame = None
        if block is not None:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block)[None], format="flt", layout="mono")
            frame.sample_rate = self.source_rate_hz
        ready = [np.clip(piece.to_ndarray()[0], -1, 1) for piece in self._inner.resample(frame) if piece is not None]
        return np.concatenate(ready) if ready else np.empty(0, np.float32)
