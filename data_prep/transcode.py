"""One source file, or some seconds of it -> one sample's media: h264 with frequent keyframes, and mono FLAC.

Pictures stay in YUV all the way, and only those that are stored are scaled. All times are measured on what was decoded,
not read from headers.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from avssl.data.decode import (
    FRAME_TIME_TOLERANCE_SECONDS,
    MediaInfo,
    Picture,
    PictureStream,
    SoundStream,
    Upright,
    fitted_size,
    quarter_turns,
)
from avssl.types import MediaError
from data_prep.encode import AudioSettings, MediaWriter, VideoSettings
from data_prep.encode_settings import as_rational_fps
from data_prep.options import WriteOptions

# These headers state a duration that was written by whoever made the file; elsewhere FFmpeg estimates it.
FORMATS_THAT_KNOW_THEIR_DURATION = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "flac", "ogg", "asf")
LEAST_DECODED_SHARE = 0.9
WHOLE = (0.0, math.inf)

Segment = tuple[float, float]


@dataclass(frozen=True)
class Transcoded:
    """Encoded media of one sample; absent streams are None with counts of 0. See SampleInfo for the numbers.

    info: of the whole file. segment: the seconds that were asked for, from the start of the stream that starts first in
    the file; None for all of them.
    """

    info: MediaInfo
    video: bytes | None
    num_frames: int
    video_fps: float
    audio: bytes | None
    num_audio_samples: int
    audio_rate_hz: int
    av_offset_seconds: float
    segment: Segment | None = None

    @property
    def duration_seconds(self) -> float:
        """End of the later stream, from the start of the earlier one."""
        video_seconds = self.num_frames / self.video_fps if self.video else 0.0
        audio_seconds = self.num_audio_samples / self.audio_rate_hz if self.audio else 0.0
        return max(video_seconds + max(0.0, -self.av_offset_seconds), audio_seconds + max(0.0, self.av_offset_seconds))

    @property
    def source(self) -> dict[str, Any]:
        """What the sample's json says of the file: its facts, and the segment where it is not the whole file."""
        segment = {} if self.segment is None else {"segment_seconds": list(self.segment)}
        return self.info.to_json() | segment


@dataclass(frozen=True)
class _Window:
    """Which seconds of a stream become its member. All are counted from the stream's own first frame or sample.

    start: where the member begins; length: at most so long; late: how long after the segment's beginning that is.
    """

    start: float
    length: float
    late: float

    @classmethod
    def of(cls, stream_start: float, segment: Segment) -> _Window:
        """stream_start: after the start of the stream that starts first."""
        begin, end = segment
        late = max(0.0, stream_start - begin)
        return cls(max(0.0, begin - stream_start), max(0.0, end - begin - late), late)


def transcode(path: str, options: WriteOptions, segment: Segment | None = None) -> Transcoded:
    """Read one file and encode its streams anew.

    Args:
        path: of the file.
        options: what is wanted.
        segment: (begin, end) in seconds from the start of the stream that starts first in the file; what lies past the
            file's end is left out. None: the whole file.

    Raises:
        MediaError: says why the file, or the segment, is to be skipped; too_short where the file ends before it.
        ValueError: the segment does not end after it begins, or begins before 0.
    """
    if segment is not None and not 0 <= segment[0] < segment[1]:
        raise ValueError(f"{path}: the segment is {segment}; it must begin at 0 s or later and end after it begins")
    with PictureStream(path) as pictures, SoundStream(path) as sound:
        info = MediaInfo(pictures.container_name, pictures.info, sound.info, pictures.container_seconds)
        _check_streams(path, info, options)
        clock = min(one.start_seconds for one in (info.video, info.audio) if one is not None)
        video, audio, windows = None, None, {}
        num_frames = num_samples = 0
        if info.video is not None:
            windows["video"] = _Window.of(info.video.start_seconds - clock, segment or WHOLE)
            video, num_frames = _store_video(pictures, windows["video"], options)
        if info.audio is not None:
            windows["audio"] = _Window.of(info.audio.start_seconds - clock, segment or WHOLE)
            audio, num_samples = _store_audio(sound, windows["audio"], options)
    fps = as_rational_fps(options.fps)
    seconds = {"video": float(num_frames / fps), "audio": num_samples / options.audio_rate_hz}
    _check_complete(path, info, segment or WHOLE, windows, seconds)
    if video is None and audio is None:
        raise MediaError("too_short", f"{path}: ends before the segment, which begins at {(segment or WHOLE)[0]:.3f} s")
    offset = 0.0
    if video is not None and audio is not None:
        # Sound begins on the grid of its samples, up to half a sample beside the wanted second.
        first_sample = round(windows["audio"].start * options.audio_rate_hz) / options.audio_rate_hz
        offset = windows["audio"].late - windows["video"].late + first_sample - windows["audio"].start
    result = Transcoded(
        info=info,
        video=video,
        num_frames=num_frames,
        video_fps=float(fps) if video else 0.0,
        audio=audio,
        num_audio_samples=num_samples,
        audio_rate_hz=options.audio_rate_hz if audio else 0,
        av_offset_seconds=round(offset, 9),
        segment=segment,
    )
    _check_members(path, result, options)
    return result


def on_grid(pictures: Iterable[Picture], fps: Fraction, window_start: float, window_length: float) -> Iterator[Any]:
    """The frame on screen at window_start + k / fps, k = 0, 1, ..., until the pictures or the window end.

    pictures: from the one on screen at window_start on. One frame may come several times. A stream's last frame ends
    with its duration; a stream with a single frame of no duration gives it once.
    """
    shown: Any = None
    num_frames, end_seconds = 0, 0.0
    for picture in pictures:
        seconds = picture.seconds - window_start
        while shown is not None and num_frames / fps + FRAME_TIME_TOLERANCE_SECONDS < min(seconds, window_length):
            yield shown
            num_frames += 1
        if num_frames and num_frames / fps + FRAME_TIME_TOLERANCE_SECONDS >= window_length:
            return
        shown, end_seconds = picture.frame, max(end_seconds, seconds + picture.duration_seconds)
    end_seconds = min(end_seconds, window_length)
    while shown is not None and (
        (num_frames == 0 and window_start == 0 and window_length > 0)
        or num_frames / fps + FRAME_TIME_TOLERANCE_SECONDS < end_seconds
    ):
        yield shown
        num_frames += 1


def _store_video(stream: PictureStream, window: _Window, options: WriteOptions) -> tuple[bytes | None, int]:
    """(mp4 bytes, number of frames); (None, 0) if none of its pictures is in the window."""
    info = stream.info
    assert info is not None  # the caller has looked
    size = fitted_size(info.width, info.height, info.pixel_aspect, options.short_side_px)
    fps = as_rational_fps(options.fps)
    settings = VideoSettings(*size, fps, keyframe_interval=options.keyframe_interval, options=options.encoder_options())
    output = io.BytesIO()
    num_frames = 0
    last: Any = None
    with MediaWriter(output, video=settings, container_format="mp4") as writer:
        for frame in on_grid(stream.play(window.start), fps, window.start, window.length):
            if num_frames == 0:
                upright = Upright(quarter_turns(frame), size)
            if frame is not last:
                picture, last = upright(frame), frame
            writer.write_video(picture)
            num_frames += 1
    return (output.getvalue(), num_frames) if num_frames else (None, 0)


def _store_audio(stream: SoundStream, window: _Window, options: WriteOptions) -> tuple[bytes | None, int]:
    """(FLAC bytes, number of samples); (None, 0) if none of its sound is in the window."""
    rate = options.audio_rate_hz
    output = io.BytesIO()
    num_samples = 0
    with MediaWriter(
        output, audio=AudioSettings(rate, num_channels=1, codec="flac"), container_format="flac"
    ) as writer:
        for block in stream.play(rate, round(window.start * rate)):
            most = len(block) if math.isinf(window.length) else round(window.length * rate) - num_samples
            if most <= 0:
                break
            writer.write_audio(block[None, :most])
            num_samples += min(most, len(block))
    return (output.getvalue(), num_samples) if num_samples else (None, 0)


def _check_streams(path: str, info: MediaInfo, options: WriteOptions) -> None:
    """MediaError if a stream is missing that must not be."""
    if info.video is None and options.on_missing_video == "skip":
        raise MediaError("no_video", f"{path}: has no video; --on-missing-video keep would keep its sound")
    if info.audio is None and options.on_missing_audio == "skip":
        raise MediaError("no_audio", f"{path}: has no audio; --on-missing-audio keep would keep its pictures")
    if info.video is None and info.audio is None:
        raise MediaError("no_video", f"{path}: neither its video nor its audio holds anything decodable")


def _check_members(path: str, result: Transcoded, options: WriteOptions) -> None:
    """MediaError if a segment misses one of the streams, or the sample is too short."""
    where = path if result.segment is None else f"{path}, {result.segment[0]:.3f} to {result.segment[1]:.3f} s"
    for name, member in (("video", result.video), ("audio", result.audio)):
        if member is None and getattr(options, f"on_missing_{name}") == "skip":
            raise MediaError(f"no_{name}", f"{where}: has no {name} there")  # type: ignore[arg-type]
    if result.duration_seconds < options.min_duration_seconds:
        raise MediaError(
            "too_short",
            f"{where}: lasts {result.duration_seconds:.3f} s; --min-duration-seconds is {options.min_duration_seconds}",
        )


def _check_complete(
    path: str, info: MediaInfo, segment: Segment, windows: dict[str, _Window], seconds: dict[str, float]
) -> None:
    """MediaError("truncated") if much less could be decoded than the header promises for the segment."""
    if info.container not in FORMATS_THAT_KNOW_THEIR_DURATION:
        return
    streams = {"video": info.video, "audio": info.audio}
    claims: list[tuple[str, float, float]] = []
    for name, window in windows.items():
        stream = streams[name]
        if stream is not None and stream.duration_seconds is not None:
            claims.append((name, seconds[name], min(window.length, stream.duration_seconds - window.start)))
    if info.duration_seconds is not None:
        # Matroska and others count a file's duration from 0, others from its first stream: the smaller claim is meant.
        start = min(stream.start_seconds for stream in streams.values() if stream is not None)
        end = min(segment[1], info.duration_seconds - max(0.0, start))
        claims.append(("file", max(windows[name].late + seconds[name] for name in windows), end - segment[0]))
    for name, found, promised in claims:
        if found < LEAST_DECODED_SHARE * promised:
            message = f"{path}: {found:.2f} s of its {name} can be decoded; the header says {promised:.2f} s"
            raise MediaError("truncated", message)
