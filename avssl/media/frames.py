"""Decoded frames to arrays: video upright, deinterlaced and in known colors; audio with named channels, resampled.

Apart from ffmpeg.py this is the only file of this folder that imports PyAV.
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

from avssl.media.info import AudioBlock, AudioFrame, AudioSpan

LEAST_INTERLACED_HEIGHT = 4
# FFmpeg's filters (name, arguments) for 0, 1, 2 and 3 quarter turns clockwise.
TURNING: tuple[list[tuple[str, str]], ...] = (
    [],
    [("transpose", "clock")],
    [("hflip", ""), ("vflip", "")],
    [("transpose", "cclock")],
)
UNSAFE_PLANES = 8  # audio of so many planes crashes PyAV 18.1
UNKNOWN_TO_NUMPY = {"s64": "dbl", "s64p": "dbl"}
MONO = ("FC",)  # the channel names of mono
NUMPY_KINDS = {"u8": "u1", "s16": "i2", "s32": "i4", "flt": "f4", "dbl": "f8"}
NUMPY_KINDS |= {f"{name}p": kind for name, kind in NUMPY_KINDS.items()}  # a planar format of one channel has one plane
CHANNELS_KEY = "avssl channels"
CUSTOM_LAYOUT = re.compile(r"\d+ channels \(|ambisonic")
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

# --- video ---------------------------------------------------------------------------------------------------------


def to_array(frame: Any, rgb: bool, turns: int, is_mirrored: bool = False) -> NDArray[np.uint8]:
    """The pixels of a frame, made upright: uint8 (H, W, 3) RGB or (H * 3 / 2, W) yuv420p.

    The frame is first mirrored left to right if is_mirrored, then turned clockwise by turns * 90 degrees. The result
    may share the frame's memory, and its rows may have gaps between them. For yuv420p an odd H or W is scaled to one
    less.
    """
    height = frame.height
    frame = deinterlaced(frame)
    if rgb:
        image = _rgb_pixels(frame.reformat(height=height, format="rgb24", threads=1))
        image = image[:, ::-1] if is_mirrored else image
        return np.ascontiguousarray(np.rot90(image, -turns)) if turns or is_mirrored else image
    upright = UprightFilter(turns, None, is_mirrored)(_scaled_back(frame, height))
    even = upright.width - upright.width % 2, upright.height - upright.height % 2
    return np.asarray(upright.reformat(*even, format="yuv420p", threads=1).to_ndarray(), dtype=np.uint8)


def _rgb_pixels(frame: Any) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) of a frame in rgb24, in the frame's own memory, whose rows may be padded."""
    plane = frame.planes[0]
    if plane.line_size < 3 * frame.width:  # stored from bottom to top
        return frame.to_ndarray()  # type: ignore[no-any-return]
    rows = np.frombuffer(plane, np.uint8).reshape(frame.height, plane.line_size)
    return rows[:, : 3 * frame.width].reshape(frame.height, frame.width, 3)


def deinterlaced(frame: Any) -> Any:
    """The frame; of an interlaced one the first field, which has half the height and is from one instant."""
    if not frame.interlaced_frame or frame.height < LEAST_INTERLACED_HEIGHT:
        return frame
    graph = _graph(frame, [("separatefields", "")])
    graph.push(frame)
    return graph.pull()


def _scaled_back(frame: Any, height: int) -> Any:
    """The frame; a field is scaled to this height, that of its frame."""
    return frame if frame.height == height else frame.reformat(height=height, interpolation="BILINEAR", threads=1)


class UprightFilter:
    """Makes the frames of a stream upright in YUV.

    Each frame is scaled, mirrored left to right if is_mirrored, and turned clockwise by turns * 90 degrees. size:
    (width, height) after turning; None leaves size and pixel format as they are.
    """

    def __init__(self, turns: int, size: tuple[int, int] | None, is_mirrored: bool = False) -> None:
        self._steps = [("hflip", "")] * is_mirrored + TURNING[turns]
        self._size = size if size is None or turns % 2 == 0 else (size[1], size[0])
        self._graph: Any = None
        self._reformatter = VideoReformatter()  # one for all frames: frame.reformat would set up a new one each time

    def __call__(self, frame: Any) -> Any:
        """The PyAV frame, upright and scaled; of an interlaced one the first field."""
        height = frame.height
        frame = deinterlaced(frame)
        frame = _scaled_back(frame, height) if self._size is None else self._scaled(frame, *self._size)
        if not self._steps:
            return frame
        if self._graph is None:
            self._graph = _graph(frame, self._steps)
        self._graph.push(frame)
        return self._graph.pull()

    def _scaled(self, frame: Any, width: int, height: int) -> Any:
        """The frame in yuv420p, BT.601, limited range, so that colors mean the same in all shards."""
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
    """FFmpeg's graph of these filters in a row, for frames of the size and format of this one."""
    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    nodes = [graph.add(name, arguments) for name, arguments in steps]
    graph.link_nodes(source, *nodes, graph.add("buffersink")).configure()
    return graph


# --- audio ---------------------------------------------------------------------------------------------------------


def use_native_layout(stream: Any) -> None:
    """Give the decoder a standard channel layout if the file has a custom one.

    PyAV 18.1 frees a custom layout twice for each frame, which crashes the process. The true channel names stay in the
    stream's metadata, for audio_frame_of.
    """
    context = stream.codec_context
    layout = context.layout
    if CUSTOM_LAYOUT.match(layout.name):
        names = [channel.name for channel in layout.channels]
        stream.metadata[CHANNELS_KEY] = " ".join(names)
        context.layout = NATIVE_LAYOUTS.get(len(names), f"{len(names)}c")


def audio_frame_of(frame: Any, stream: Any) -> AudioFrame:
    """The samples of a decoded audio block of PyAV, with the true names of its channels."""
    rate, layout = frame.sample_rate, frame.layout
    if layout.nb_channels == 1 and (kind := NUMPY_KINDS.get(frame.format.name)):  # avoids PyAV's copy
        return AudioFrame(rate, MONO, np.frombuffer(frame.planes[0], kind, frame.samples)[None], True)
    names = stream.metadata.get(CHANNELS_KEY, "").split()
    if len(names) != layout.nb_channels:
        names = [channel.name for channel in layout.channels]
    is_planar = frame.format.is_planar
    if frame.format.name in UNKNOWN_TO_NUMPY or (is_planar and layout.nb_channels >= UNSAFE_PLANES):
        # PyAV 18.1 searches the end of the list of planes, runs past eight of them and crashes: so use a single plane.
        packed = UNKNOWN_TO_NUMPY.get(frame.format.name, frame.format.packed)
        frame, is_planar = AudioResampler(format=packed, layout=layout, rate=rate).resample(frame)[0], False
    return AudioFrame(rate, tuple(names), frame.to_ndarray(), is_planar)


class Resampler:
    """Resamples mono float32 blocks; None flushes. With equal rates blocks are only clipped to [-1, 1]."""

    def __init__(self, source_rate_hz: int, rate_hz: int) -> None:
        self.source_rate_hz, self.rate_hz = source_rate_hz, rate_hz
        self._inner = AudioResampler(format="flt", layout="mono", rate=rate_hz)

    def __call__(self, block: AudioBlock | None) -> AudioBlock:
        """float32 (n,) -> the samples that are ready by now, float32 (m,) in [-1, 1]."""
        if self.source_rate_hz == self.rate_hz:
            return np.empty(0, np.float32) if block is None else np.clip(block, -1, 1)
        frame = None
        if block is not None:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block)[None], format="flt", layout="mono")
            frame.sample_rate = self.source_rate_hz
        ready = [np.clip(output.to_ndarray()[0], -1, 1) for output in self._inner.resample(frame) if output is not None]
        return np.concatenate(ready) if ready else np.empty(0, np.float32)


def resampled(samples: AudioBlock, span: AudioSpan, source_rate_hz: int, rate_hz: int, num_samples: int) -> AudioBlock:
    """At most num_samples from the source samples of their span (info.audio_span); none from no samples."""
    if not len(samples):
        return samples
    resample = Resampler(source_rate_hz, rate_hz)
    ready = np.concatenate([resample(samples), resample(None)])
    return ready[span.skip : span.skip + num_samples]
