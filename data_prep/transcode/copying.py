"""A video stream that is stored as it is, because it already is what shards hold: h264 in an mp4, packet for packet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from avssl.media.info import VideoInfo
from avssl.media.readers import VideoReader, open_packets
from data_prep.transcode.encode import copy_video
from data_prep.transcode.members import Window
from data_prep.transcode.options import WriteOptions
from data_prep.transcode.screening import StillnessMeter

FORMATS_TO_COPY = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
# Matroska's times are whole milliseconds.
TIME_TOLERANCE_SECONDS = 0.0011


class DoesNotFitError(Exception):
    """The stream has to be encoded; says why."""


class CopiedVideo:
    """The mp4 of a whole stream, its packets as they were: of the source's frame rate, with its B-frames if any.

    It fits, else DoesNotFitError, if it is h264, yuv420p, progressive, upright, with square pixels, a short side within
    the limit, frames at even times, a keyframe at the beginning and at least every copy_keyframe_interval frames after
    it, and if every packet gives one frame. For this all of it is decoded: a stored stream is known to be whole.
    """

    name = "video"

    def __init__(self, path: str, stream: VideoReader, info: VideoInfo, window: Window, options: WriteOptions) -> None:
        _check_facts(stream.container_name, info, options)
        self.info, self.window = info, window
        with open_packets(path) as (source, every_packet):
            packets = [packet for packet in every_packet if packet.size]
            self.fps = Fraction(source.average_rate or 0)
            _check_packets(packets, self.fps, options.copy_keyframe_interval)
            self.stillness = StillnessMeter(options.still_levels) if options.on_still_video == "skip" else None
            self.num_frames = self._decode(stream)
            if self.num_frames != len(packets):
                raise DoesNotFitError(f"{len(packets)} packets give {self.num_frames} frames")
            self.content: bytes | None = copy_video(source, packets, self.fps)

    @property
    def seconds(self) -> float:
        """How long what is stored lasts."""
        return float(self.num_frames / self.fps)

    def store(self) -> Iterator[float]:
        """There is nothing left to do."""
        return iter(())

    def _decode(self, stream: VideoReader) -> int:
        """The number of frames."""
        num_frames, last = 0, None
        for picture in stream.play():
            if picture.frame.interlaced_frame:
                raise DoesNotFitError("interlaced")
            if (picture.frame.width, picture.frame.height) != (self.info.width, self.info.height):
                raise DoesNotFitError("its size changes on the way")
            if abs(picture.seconds - num_frames / self.fps) > TIME_TOLERANCE_SECONDS:
                raise DoesNotFitError("frames at uneven times")
            if last is not None and not picture.frame.pts > last:
                raise DoesNotFitError("stamps of the order of decoding")
            last = picture.frame.pts
            if self.stillness is not None:
                self.stillness.add(picture.frame)
            num_frames += 1
        return num_frames


def _check_facts(container: str, info: VideoInfo, options: WriteOptions) -> None:
    """DoesNotFitError for what the header and the first frame tell."""
    facts = {
        "container": container in FORMATS_TO_COPY,
        "codec": info.codec == "h264",
        "pixel format": info.pixel_format == "yuv420p",
        "rotation": info.rotation_degrees == 0 and not info.is_mirrored,
        "pixel aspect": info.pixel_aspect == 1,
        "short side": min(info.width, info.height) <= options.short_side_px,
    }
    for what, is_good in facts.items():
        if not is_good:
            raise DoesNotFitError(what)


def _check_packets(packets: Sequence[Any], fps: Fraction, most_between_keyframes: int) -> None:
    """DoesNotFitError for what packets tell without being decoded."""
    if not packets or fps <= 0:
        raise DoesNotFitError("no packets or no frame rate")
    if any(packet.pts is None or packet.is_discard or packet.is_corrupt for packet in packets):
        raise DoesNotFitError("packets without times, damaged, or cut off by an edit list")
    keyframes = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    gaps = [after - before for before, after in zip(keyframes, [*keyframes[1:], len(packets)], strict=True)]
    if keyframes[:1] != [0] or max(gaps) > most_between_keyframes:
        raise DoesNotFitError("keyframe interval")
    first = min(packet.pts for packet in packets)
    for number, packet in enumerate(sorted(packets, key=lambda packet: int(packet.pts))):
        if abs(float((packet.pts - first) * packet.time_base) - number / fps) > TIME_TOLERANCE_SECONDS:
            raise DoesNotFitError("frames at uneven times")
