"""One source file -> one sample's media: h264 at a constant frame rate with frequent keyframes, and mono FLAC.

Pictures stay in YUV all the way. All times are measured on what was decoded, not read from headers.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from avssl.data.decode import (
    FRAME_TIME_TOLERANCE_SECONDS,
    MediaInfo,
    VideoInfo,
    fitted_size,
    probe,
    stream_audio,
    stream_pictures,
)
from avssl.types import MediaError
from data_prep.encode import AudioSettings, MediaWriter, VideoSettings
from data_prep.encode_settings import as_rational_fps
from data_prep.options import WriteOptions

# These headers state a duration that was written by whoever made the file; elsewhere FFmpeg estimates it.
FORMATS_THAT_KNOW_THEIR_DURATION = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "flac", "ogg", "asf")
LEAST_DECODED_SHARE = 0.9


@dataclass(frozen=True)
class Transcoded:
    """Encoded media of one sample; absent streams are None with counts of 0. See SampleInfo for the numbers."""

    info: MediaInfo
    video: bytes | None
    num_frames: int
    video_fps: float
    audio: bytes | None
    num_audio_samples: int
    audio_rate_hz: int
    av_offset_seconds: float

    @property
    def duration_seconds(self) -> float:
        """End of the later stream, from the start of the earlier one."""
        video_seconds = self.num_frames / self.video_fps if self.video else 0.0
        audio_seconds = self.num_audio_samples / self.audio_rate_hz if self.audio else 0.0
        return max(video_seconds + max(0.0, -self.av_offset_seconds), audio_seconds + max(0.0, self.av_offset_seconds))


def transcode(path: str, options: WriteOptions) -> Transcoded:
    """Read one file and encode its streams anew. MediaError says why a file is to be skipped."""
    info = probe(path)
    if info.video is None and options.on_missing_video == "skip":
        raise MediaError("no_video", f"{path}: has no video; --on-missing-video keep would keep its sound")
    if info.audio is None and options.on_missing_audio == "skip":
        raise MediaError("no_audio", f"{path}: has no audio; --on-missing-audio keep would keep its pictures")
    if info.video is None and info.audio is None:
        raise MediaError("no_video", f"{path}: neither its video nor its audio holds anything decodable")
    video, num_frames, video_seconds = _transcode_video(path, info.video, options) if info.video else (None, 0, 0.0)
    audio, num_audio_samples = _transcode_audio(path, options) if info.audio else (None, 0)
    audio_seconds = num_audio_samples / options.audio_rate_hz
    _check_complete(path, info, video_seconds, audio_seconds)
    offset = info.audio.start_seconds - info.video.start_seconds if info.audio and info.video else 0.0
    result = Transcoded(
        info=info,
        video=video,
        num_frames=num_frames,
        video_fps=float(as_rational_fps(options.fps)) if video else 0.0,
        audio=audio,
        num_audio_samples=num_audio_samples,
        audio_rate_hz=options.audio_rate_hz if audio else 0,
        av_offset_seconds=round(offset, 9),
    )
    if result.duration_seconds < options.min_duration_seconds:
        raise MediaError(
            "too_short",
            f"{path}: lasts {result.duration_seconds:.3f} s; --min-duration-seconds is {options.min_duration_seconds}",
        )
    return result


def _transcode_video(path: str, info: VideoInfo, options: WriteOptions) -> tuple[bytes, int, float]:
    """(mp4 bytes, number of frames, how many seconds the source's pictures last).

    Frame k is what the source shows at k / fps, also where its frames come at uneven times.
    """
    width, height = fitted_size(info.width, info.height, info.pixel_aspect, options.short_side_px)
    fps = as_rational_fps(options.fps)
    settings = VideoSettings(
        width, height, fps, keyframe_interval=options.keyframe_interval, options=options.encoder_options()
    )
    output = io.BytesIO()
    num_frames, end_seconds = 0, 0.0
    shown: Any = None
    with MediaWriter(output, video=settings, container_format="mp4") as writer:
        for picture in stream_pictures(path, (width, height)):
            while shown is not None and num_frames / fps + FRAME_TIME_TOLERANCE_SECONDS < picture.seconds:
                writer.write_video(shown)
                num_frames += 1
            shown, end_seconds = picture.frame, max(end_seconds, picture.seconds + picture.duration_seconds)
        while num_frames == 0 or num_frames / fps + FRAME_TIME_TOLERANCE_SECONDS < end_seconds:
            writer.write_video(shown)
            num_frames += 1
    return output.getvalue(), num_frames, end_seconds


def _transcode_audio(path: str, options: WriteOptions) -> tuple[bytes, int]:
    """(FLAC bytes, number of samples)."""
    output = io.BytesIO()
    num_samples = 0
    settings = AudioSettings(options.audio_rate_hz, num_channels=1, codec="flac")
    with MediaWriter(output, audio=settings, container_format="flac") as writer:
        for _, block in stream_audio(path, options.audio_rate_hz):
            samples = np.asarray(block.numpy())
            writer.write_audio(samples)
            num_samples += samples.shape[1]
    return output.getvalue(), num_samples


def _check_complete(path: str, info: MediaInfo, video_seconds: float, audio_seconds: float) -> None:
    """MediaError("truncated") if much less could be decoded than the header promises."""
    if info.container not in FORMATS_THAT_KNOW_THEIR_DURATION:
        return
    start = min(one.start_seconds for one in (info.video, info.audio) if one is not None)
    ends = [0.0]
    claims: list[tuple[str, float, float | None]] = []
    for name, stream, seconds in (("video", info.video, video_seconds), ("audio", info.audio, audio_seconds)):
        if stream is not None:
            ends.append(stream.start_seconds - start + seconds)
            claims.append((name, seconds, stream.duration_seconds))
    # Matroska and others count a file's duration from 0, others from its first stream: the smaller claim is meant.
    whole = None if info.duration_seconds is None else info.duration_seconds - max(0.0, start)
    claims.append(("file", max(ends), whole))
    for name, seconds, promised in claims:
        if promised is not None and seconds < LEAST_DECODED_SHARE * promised:
            message = f"{path}: {seconds:.2f} s of its {name} can be decoded; the header says {promised:.2f} s"
            raise MediaError("truncated", message)
