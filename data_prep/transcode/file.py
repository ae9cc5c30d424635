"""Turns a source file, or some seconds of it, into the media of a sample: h264 with frequent keyframes, and mono FLAC.

Frames stay in YUV, and only those that are stored are scaled. Each stream is decoded once. All times are measured on
decoded media, not read from headers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from avssl.media.info import AudioInfo, MediaInfo, VideoInfo, least_length
from avssl.media.readers import AudioReader, VideoReader, on_one_clock
from avssl.media.sources import Source, label_of
from avssl.shards.keys import Segment
from avssl.types import MediaError
from data_prep.transcode.encode import why_not_encode
from data_prep.transcode.encode_settings import VideoSettings
from data_prep.transcode.members import AudioMember, VideoMember, Window, store_in_turn
from data_prep.transcode.options import PolicyError, WriteOptions

# Formats whose headers state the duration; for others FFmpeg estimates it.
FORMATS_THAT_KNOW_THEIR_DURATION = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "flac", "ogg", "asf")
LEAST_DECODED_SHARE = 0.9
WHOLE = (0.0, math.inf)

Member = VideoMember | AudioMember


class Decoded(Protocol):
    """A stream that was read."""

    @property
    def name(self) -> str:
        """ "video" or "audio"."""

    @property
    def info(self) -> VideoInfo | AudioInfo:
        """What probing says of the stream."""

    @property
    def window(self) -> Window:
        """The seconds of the stream that become its member."""

    @property
    def seconds(self) -> float:
        """How many seconds of the window could be decoded."""


@dataclass(frozen=True)
class Transcoded:
    """Encoded media of one sample; a stream that is absent is None, and its counts are 0. The numbers are those of
    SampleInfo.

    info: of the whole file. segment: the requested seconds, counted from the start of the stream that starts first in
    the file; None for the whole file.
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
        """Seconds from the start of the stream that starts first to the end of the stream that ends last."""
        video_seconds = self.num_frames / self.video_fps if self.video else 0.0
        audio_seconds = self.num_audio_samples / self.audio_rate_hz if self.audio else 0.0
        return max(video_seconds + max(0.0, -self.av_offset_seconds), audio_seconds + max(0.0, self.av_offset_seconds))

    @property
    def source(self) -> dict[str, Any]:
        """The source of the sample's json: the facts of the file, and the segment if there is one."""
        return self.info.to_json() | ({} if self.segment is None else {"segment": list(self.segment)})


def transcode(
    source: Source,
    options: WriteOptions,
    segment: Segment | None = None,
    *,
    sound: Source | None = None,
    name: str = "",
) -> Transcoded:
    """Read one file and encode its streams for a shard.

    Args:
        source: path, or the file's bytes. sound: of the audio if it lies apart from the video: then the audio of
            `source` is left out, and both are played from their own time 0. name: for messages, default the path.
        options: how streams are encoded and which files are skipped.
        segment: (begin, end) in seconds from the start of the stream that starts first in the file; it may end after
            the file. None: the whole file.

    Raises:
        MediaError: why the file or segment is to be skipped; too_short if the file ends before the segment.
        PolicyError: an option says that the run stops, or names an encoder that this machine does not have.
        ValueError: the segment does not end after it begins, or begins before 0.
    """
    name = label_of(source, name)
    if segment is not None and not 0 <= segment[0] < segment[1]:
        raise ValueError(f"{name}: the segment is {segment}; it must begin at 0 s or later and end after it begins")
    check_encoder(options)
    with VideoReader(source, name) as video, AudioReader(source if sound is None else sound, name) as audio:
        streams = (video.info, audio.info) if sound is None else on_one_clock(video, audio)
        info = MediaInfo(video.container_name, *streams, video.container_seconds)
        return _transcode(name, info, video, audio, options, segment)


@lru_cache
def check_encoder(options: WriteOptions) -> None:
    """PolicyError if this machine cannot encode as the options say."""
    if options.video_codec != "libx264":
        settings = VideoSettings(320, 256, options.fps, codec=options.video_codec, options=options.encoder_options())
        if why := why_not_encode(settings):
            given = f"--video-codec {options.video_codec} does not work on this machine"
            raise PolicyError(f"{given}: {why}. Use libx264, or a PyAV that was built with this encoder")


def _transcode(
    path: str,
    info: MediaInfo,
    video_reader: VideoReader,
    audio_reader: AudioReader,
    options: WriteOptions,
    segment: Segment | None,
) -> Transcoded:
    """`transcode` without its checks, of open streams. path: for messages."""
    _check_streams(path, info, options)
    clock = min(stream.start_seconds for stream in (info.video, info.audio) if stream is not None)
    video: VideoMember | None = None
    audio: AudioMember | None = None
    if info.video is not None:
        window = Window.of(info.video.start_seconds - clock, segment or WHOLE)
        video = VideoMember(video_reader, info.video, window, options)
    if info.audio is not None:
        window = Window.of(info.audio.start_seconds - clock, segment or WHOLE)
        audio = AudioMember(audio_reader, info.audio, window, options)
    members: list[Member] = [member for member in (video, audio) if member is not None]
    store_in_turn(members)
    check_complete(path, info, segment or WHOLE, members)
    video = video if video is not None and video.content is not None else None
    audio = audio if audio is not None and audio.content is not None else None
    if video is None and audio is None:
        raise MediaError("too_short", f"{path}: ends before the segment, which begins at {(segment or WHOLE)[0]:.3f} s")
    where = path if segment is None else f"{path}, {segment[0]:.3f} to {segment[1]:.3f} s"
    _check_policies(where, video, audio, options)
    offset = audio.window.late + audio.grid_seconds - video.window.late if video and audio else 0.0
    result = Transcoded(
        info=info,
        video=video.content if video else None,
        num_frames=video.num_frames if video else 0,
        video_fps=float(video.fps) if video else 0.0,
        audio=audio.content if audio else None,
        num_audio_samples=audio.num_samples if audio else 0,
        audio_rate_hz=audio.rate_hz if audio else 0,
        av_offset_seconds=round(offset, 9),
        segment=segment,
    )
    if result.duration_seconds < options.min_duration_seconds:
        seconds, least = result.duration_seconds, options.min_duration_seconds
        raise MediaError("too_short", f"{where}: lasts {seconds:.3f} s; --min-duration-seconds is {least}")
    return result


def _check_streams(path: str, info: MediaInfo, options: WriteOptions) -> None:
    """MediaError or PolicyError if the file lacks a stream that the options require."""
    if info.video is None:
        _check_missing(path, "video", "its audio", options)
    if info.audio is None:
        _check_missing(path, "audio", "its video", options)
    if info.video is None and info.audio is None:
        raise MediaError("no_video", f"{path}: neither its video nor its audio holds anything decodable")


def _check_missing(where: str, name: str, rest: str, options: WriteOptions) -> None:
    """MediaError or PolicyError for a file without the stream `name`, unless the options keep `rest` of it."""
    policy, option = getattr(options, f"on_missing_{name}"), f"--on-missing-{name}"
    if policy == "error":
        raise PolicyError(
            f"{where}: has no {name}, and {option} is error. Take it out of the manifest, or use {option} skip "
            f"(leaves such files out and lists them) or {option} keep (stores {rest})"
        )
    if policy == "skip":
        reason: Any = f"no_{name}"
        raise MediaError(reason, f"{where}: has no {name}; {option} keep would keep {rest}")


def _check_policies(where: str, video: VideoMember | None, audio: AudioMember | None, options: WriteOptions) -> None:
    """MediaError or PolicyError for a sample that the options exclude."""
    if video is None and audio is not None:
        _check_missing(where, "video", "its audio", options)
    if audio is None and video is not None:
        _check_missing(where, "audio", "its video", options)
    if audio is not None and audio.silence is not None and audio.silence.is_silent:
        raise MediaError("silent_audio", f"{where}: its audio never reaches {options.silence_dbfs:g} dBFS")
    if video is not None and video.stillness is not None and video.stillness.is_still:
        raise MediaError("still_video", f"{where}: no square of its frames changes by {options.still_levels:g} levels")


def check_complete(path: str, info: MediaInfo, segment: Segment, members: Sequence[Decoded]) -> None:
    """MediaError("truncated") if less than LEAST_DECODED_SHARE of what the header claims could be decoded.

    path: for messages. members: the streams that were read, at least one.
    """
    if info.container not in FORMATS_THAT_KNOW_THEIR_DURATION:
        return
    claims: list[tuple[str, float, float]] = []  # (what, seconds decoded, seconds according to the header)
    for member in members:
        if member.info.duration_seconds is not None:
            claimed = min(member.window.length, member.info.duration_seconds - member.window.start)
            claims.append((member.name, member.seconds, claimed))
    if info.duration_seconds is not None:
        # Some formats count a file's duration from 0, others from its first stream: the smaller claim is checked.
        start = min(member.info.start_seconds for member in members)
        end = min(segment[1], least_length(info.duration_seconds, start))
        decoded = max(member.window.late + member.seconds for member in members)
        claims.append(("file", decoded, end - segment[0]))
    for name, decoded, claimed in claims:
        if decoded < LEAST_DECODED_SHARE * claimed:
            message = f"{path}: {decoded:.2f} s of its {name} can be decoded; the header says {claimed:.2f} s"
            raise MediaError("truncated", message)
