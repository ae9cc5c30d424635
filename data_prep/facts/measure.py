"""The facts of one sample: of a file or some seconds of it, of an image, or of the members of a shard."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from avssl.media.frames import to_array
from avssl.media.info import AudioInfo, MediaInfo, VideoInfo
from avssl.media.readers import AudioReader, Frame, VideoReader, on_one_clock
from avssl.media.sources import Source
from avssl.shards.keys import Segment
from avssl.types import MediaError
from data_prep.facts.table import Row
from data_prep.measures.audio import AudioMeter
from data_prep.measures.frames import GRID_FPS, FrameFacts, FrameMeter, image_facts
from data_prep.measures.sound_hash import SoundHasher
from data_prep.transcode.encode_settings import as_rational_fps
from data_prep.transcode.file import WHOLE, check_complete
from data_prep.transcode.members import Window, on_grid

SILENCE_DBFS, STILL_LEVELS = -60.0, 2.0  # as `stats` has them


class PlayedVideo:
    """The frames of a window of a stream, measured. seconds: that could be decoded; 0: none."""

    name = "video"

    def __init__(self, stream: VideoReader, info: VideoInfo, window: Window) -> None:
        self.info, self.window = info, window
        self.seconds = 0.0
        self._stream = stream

    def measure(self) -> Row:
        """The columns about pictures; {} if there is no frame."""
        meter, last, planes = FrameMeter(STILL_LEVELS), None, None
        count = 0
        for frame in on_grid(self._frames(), as_rational_fps(GRID_FPS), self.window):
            if frame is not last or planes is None:
                planes, last = to_array(frame, False, *self._stream.orientation), frame
            meter.add(planes)
            count += 1
        if not count:
            return {}
        fps = round(self.info.fps, 6) if self.info.fps else None
        return {"width_px": self.info.width, "height_px": self.info.height, "fps": fps} | frame_columns(meter.facts())

    def _frames(self) -> Iterator[Frame]:
        """The frames of the stream; their seconds within the window are counted."""
        for frame in self._stream.play(self.window.start):
            end = frame.seconds + max(frame.duration_seconds, 0.0) - self.window.start
            self.seconds = max(self.seconds, min(end, self.window.length))
            yield frame


class PlayedAudio:
    """The samples of a window of a stream, measured. seconds: that could be decoded; 0: none."""

    name = "audio"

    def __init__(self, stream: AudioReader, info: AudioInfo, window: Window) -> None:
        self.info, self.window = info, window
        self.num_samples = 0
        self._stream = stream

    @property
    def seconds(self) -> float:
        """Seconds that were decoded so far."""
        return self.num_samples / self.info.rate_hz

    def measure(self) -> Row:
        """The columns about sound; {} if there is no sample."""
        rate_hz, length = self.info.rate_hz, self.window.length
        most = None if np.isinf(length) else round(length * rate_hz)
        meter, hasher = AudioMeter(rate_hz, SILENCE_DBFS), SoundHasher(rate_hz)
        for block in self._stream.play(rate_hz, round(self.window.start * rate_hz)):
            samples = block if most is None else block[: most - self.num_samples]
            if not len(samples):
                break
            meter.add(samples)
            hasher.add(samples)
            self.num_samples += len(samples)
        if not self.num_samples:
            return {}
        facts = meter.facts()
        return {
            "rate_hz": rate_hz,
            "channels": self.info.channels,
            "loudness_lufs": facts.loudness_lufs,
            "silent_share": facts.silent_share,
            "peak_dbfs": facts.peak_dbfs,
            "sound_hash": hasher.hash(),
        }


def media_facts(video: Source, audio: Source, name: str, segment: Segment | None = None) -> Row:
    """The columns about pictures and sound, and duration_seconds.

    Args:
        video, audio: where either stream is read if it is there: the same file twice, or one each.
        name: for messages. segment: the seconds that are the sample; None: all.

    Raises MediaError: why it cannot be read; too_short if the file ends before the segment.
    """
    with VideoReader(video, name) as video_reader, AudioReader(audio, name) as audio_reader:
        is_apart = audio is not video
        seen, heard = on_one_clock(video_reader, audio_reader) if is_apart else (video_reader.info, audio_reader.info)
        info = MediaInfo(video_reader.container_name, seen, heard, video_reader.container_seconds)
        if seen is None and heard is None:
            raise MediaError("no_video", f"{name}: neither its video nor its audio holds anything decodable")
        clock = min(stream.start_seconds for stream in (seen, heard) if stream is not None)
        played: list[PlayedVideo | PlayedAudio] = []
        if seen is not None:
            played.append(PlayedVideo(video_reader, seen, Window.of(seen.start_seconds - clock, segment or WHOLE)))
        if heard is not None:
            played.append(PlayedAudio(audio_reader, heard, Window.of(heard.start_seconds - clock, segment or WHOLE)))
        columns: Row = {}
        for stream in played:
            columns |= stream.measure()
    check_complete(name, info, segment or WHOLE, played)
    played = [stream for stream in played if stream.seconds]
    if not played:
        raise MediaError("too_short", f"{name}: ends before the segment, which begins at {(segment or WHOLE)[0]:.3f} s")
    ends = [stream.window.late + stream.seconds for stream in played]
    duration_seconds = max(ends) - min(stream.window.late for stream in played)
    return columns | {"duration_seconds": round(duration_seconds, 6)}


def picture_facts(pixels: NDArray[np.uint8]) -> Row:
    """The columns of an image: uint8 (3, H, W), RGB, or (H, W), gray."""
    columns = frame_columns(image_facts(pixels))
    names = ("brightness", "entropy_bits")
    sizes = {"width_px": pixels.shape[-1], "height_px": pixels.shape[-2], "image_hash": columns["middle_hash"]}
    return sizes | {name: columns[name] for name in names}


def frame_columns(facts: FrameFacts) -> Row:
    """The columns of what was measured of frames."""
    return dict(vars(facts))
