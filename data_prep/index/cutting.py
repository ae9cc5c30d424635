"""Cuts long files into samples: clips of one length, or scenes. probing.py measures the files.

Times are seconds from the start of the stream that starts first. PySceneDetect (extra avssl[scenes], used only here)
finds scenes on frames that avssl/media decoded: it opens no files, so avssl/media decides what may be read, how a frame
is rotated and when it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from avssl.media.decode import stream_frames
from avssl.media.info import VideoInfo, fitted_size, is_clear_length, least_length
from avssl.media.sources import Source
from avssl.shards.keys import Segment

LEAST_CLIP_SECONDS = 0.1
ROUNDING_SECONDS = 1e-3  # keys say milliseconds; headers are not more exact
SHORT_SIDE_PX = 144  # of the frames in which PySceneDetect looks for cuts


@dataclass(frozen=True)
class Cutting:
    """How files are cut.

    clip_seconds: length of a clip; None: no clips. stride_seconds: from the start of one clip to the start of the next;
    None: the clip's length. min_seconds: a shorter last clip is left out; None: half a clip. scenes: cut where the
    scene changes; with clip_seconds, scenes are cut into clips. scene_threshold: of PySceneDetect's content detector.
    min_scene_seconds: shorter scenes join the one before.
    """

    clip_seconds: float | None = None
    stride_seconds: float | None = None
    min_seconds: float | None = None
    scenes: bool = False
    scene_threshold: float = 27.0
    min_scene_seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.clip_seconds is None and (self.stride_seconds is not None or self.min_seconds is not None):
            raise ValueError("--clip-stride and --min-clip-seconds are for clips; give --clip-seconds, too")
        for name, value in (("--clip-seconds", self.clip_seconds), ("--clip-stride", self.stride_seconds)):
            if value is not None and not LEAST_CLIP_SECONDS <= value < 1e6:
                raise ValueError(f"{name} is {value}; it must be at least {LEAST_CLIP_SECONDS}")
        if self.min_seconds is not None and not 0 <= self.min_seconds <= (self.clip_seconds or 0.0):
            raise ValueError(f"--min-clip-seconds is {self.min_seconds}; it must be 0 to {self.clip_seconds}")
        if not self.min_scene_seconds >= LEAST_CLIP_SECONDS or not self.scene_threshold > 0:
            raise ValueError(
                f"--min-scene-seconds is {self.min_scene_seconds} and --scene-threshold {self.scene_threshold}; they "
                f"must be at least {LEAST_CLIP_SECONDS} and more than 0"
            )

    @property
    def is_used(self) -> bool:
        """Whether files are cut at all."""
        return self.scenes or self.clip_seconds is not None

    def segments(self, whole: Segment, cuts: Sequence[float]) -> Iterator[Segment]:
        """The segments into which `whole` is cut, in order. cuts: seconds at which scenes change."""
        for scene in scenes(whole, cuts, self.min_scene_seconds) if self.scenes else [whole]:
            if self.clip_seconds is None:
                yield scene
            else:
                least = self.clip_seconds / 2 if self.min_seconds is None else self.min_seconds
                yield from clips(scene, self.clip_seconds, self.stride_seconds or self.clip_seconds, least)


def clips(whole: Segment, clip_seconds: float, stride_seconds: float, min_seconds: float) -> Iterator[Segment]:
    """Clips that begin every stride_seconds and last clip_seconds.

    The first clip that would go beyond the end is cut off there and is the last one. It is left out if it is shorter
    than min_seconds, or if the clip before it already reaches the end.
    """
    begin, end = whole
    number, clip_end = 0, begin
    while clip_end < end - ROUNDING_SECONDS:
        clip_begin = begin + number * stride_seconds
        clip_end = min(clip_begin + clip_seconds, end)
        is_whole = clip_begin + clip_seconds <= end + ROUNDING_SECONDS
        if not is_whole and clip_end - clip_begin < max(min_seconds, ROUNDING_SECONDS):
            return
        yield round(clip_begin, 6), round(clip_end, 6)
        number += 1


def scenes(whole: Segment, cuts: Sequence[float], min_seconds: float) -> list[Segment]:
    """The scenes between the cuts: together they are the whole segment.

    A cut less than min_seconds after the one before, or before the end, is ignored.
    """
    begin, end = whole
    bounds = [begin]
    for cut in sorted(cuts):
        if cut - bounds[-1] >= min_seconds and end - cut >= min_seconds:
            bounds.append(round(cut, 6))
    return list(zip(bounds, [*bounds[1:], end], strict=True))


def claimed_seconds(media: dict[str, Any]) -> float | None:
    """Seconds that a file lasts according to its header (MediaInfo.to_json); None if the header does not say.

    They are counted from the start of the stream that starts first to the end of the stream that ends last.
    """
    streams = [stream for stream in (media.get("video"), media.get("audio")) if stream]
    if not streams:
        return None
    start = min(stream["start_seconds"] for stream in streams)
    ends = [
        stream["start_seconds"] + stream["duration_seconds"] - start for stream in streams if stream["duration_seconds"]
    ]
    if len(ends) == len(streams):
        return float(max(ends))
    whole = media.get("duration_seconds")
    if whole:  # some containers count from their first stream, others from 0: the smaller claim is taken if it is clear
        is_clear = is_clear_length(whole, str(media.get("container")), start)
        return max([*ends, least_length(whole, start)]) if is_clear else None
    return max(ends) if ends else None


def require_scenedetect() -> None:
    """ValueError that says what to install, if PySceneDetect is missing."""
    if find_spec("scenedetect") is None or find_spec("cv2") is None:
        raise ValueError("--scenes needs PySceneDetect, which is not installed; pip install 'avssl[scenes]'")


def find_cuts(source: Source, info: VideoInfo, threshold: float) -> list[float]:
    """Seconds from the video's first frame to the first frame of each further scene.

    threshold: mean change of hue, saturation and brightness (0 to 255) from frame to frame that makes a cut.
    """
    from scenedetect import FrameTimecode
    from scenedetect.detectors import ContentDetector

    detector = ContentDetector(threshold=threshold, min_scene_len=0)  # `scenes` applies the least length, in seconds
    size = fitted_size(info.width, info.height, info.pixel_aspect, SHORT_SIDE_PX)
    cuts = []
    for number, frame in enumerate(stream_frames(source, size)):
        # The detector compares frames and counts them; times are those of the decoder.
        if detector.process_frame(FrameTimecode(number, 25.0), frame.frame.to_ndarray(format="bgr24")):
            cuts.append(frame.seconds)
    return cuts
