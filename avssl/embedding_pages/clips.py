"""Short playable clips of media for a page: an mp4 with picture and sound, a still, and a picture of the sound.

All of it is made anew, small and in formats that every browser plays, whatever the source is. Nothing here depends on
the time or the machine's load: the same media give the same bytes.
"""

from __future__ import annotations

import io
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.embedding.media import Media
from avssl.media.decode import read_audio
from avssl.media.images import read_image
from avssl.media.readers import VideoReader
from avssl.pages.media import ClipMedia
from avssl.types import MediaError, Span
from data_prep.transcode.encode import write_media

LEAST_SECONDS, MOST_SECONDS = 3.0, 6.0  # of a clip: a shorter window is shown with what is around it
VIDEO_FPS, SHORT_SIDE_PX, LONG_SIDE_PX = 15, 240, 426
TINY_PX = 120  # frames with a shorter side are enlarged without smoothing: made media look as the network gets them
AUDIO_RATE_HZ = 24_000
NUM_COLUMNS, NUM_BANDS = 288, 72  # of the picture of the sound
FLOOR_DB = -75.0  # below the loudest band: drawn as silence
# From silence to the loudest: deep blue, violet, red, orange, pale yellow. Its lightness grows evenly.
COLORS = ((13, 13, 40), (60, 22, 98), (125, 37, 112), (190, 55, 90), (236, 104, 58), (252, 176, 60), (252, 246, 190))


@dataclass(frozen=True)
class Clip:
    """What a page shows of some seconds of media; each part is None or empty where the media has none.

    movie: mp4 with h264, AAC or both. has_video, has_audio: what it plays. still: JPEG of a frame, or of the image.
    sound: JPEG, a spectrogram of the clip's seconds: time to the right, pitch upwards, on a logarithmic scale.
    span: the seconds of the source that the movie shows. aspect: width over height of the picture.
    """

    movie: bytes | None
    has_video: bool
    has_audio: bool
    still: bytes | None
    sound: bytes | None
    span: Span
    aspect: float = 1.0


def clip_of(media: Media, window: Span, *, from_start: bool = False) -> Clip:
    """The clip of a window of media, both in seconds on the clock of the rows.

    from_start: of a window that is longer than a clip take the beginning, not the middle. MediaError if nothing of it
    can be read.
    """
    if "image" in media.files:
        pixels = read_image(media.files["image"], name=media.key).permute(1, 2, 0).numpy()
        pixels = _fitted(pixels)
        return Clip(None, False, False, _jpeg(pixels), None, Span(0.0, 0.0), pixels.shape[1] / pixels.shape[0])
    span = clip_span(window, max(own.end_seconds for own in media.spans.values()), from_start=from_start)
    frames = _frames(media, span) if _is_in(media, "video", span) else None
    waveform = _waveform(media, span) if _is_in(media, "audio", span) else None
    if frames is None and waveform is None:
        raise MediaError(
            "no_video", f"{media.key}: has neither picture nor sound from {span[0]:.1f} to {span[1]:.1f} s"
        )
    stream = io.BytesIO()
    write_media(
        stream,
        video=None if frames is None else list(frames),
        video_fps=VIDEO_FPS,
        audio=waveform,
        audio_rate_hz=AUDIO_RATE_HZ,
        container_format="mp4",
        video_options={"crf": "27", "preset": "veryfast"},
        audio_options={"b": "64000"},
    )
    still = None if frames is None else _still(frames, window, span)
    return Clip(
        stream.getvalue(),
        frames is not None,
        waveform is not None,
        still,
        None if waveform is None else spectrogram(waveform[0], AUDIO_RATE_HZ),
        span,
        1.0 if frames is None else frames.shape[2] / frames.shape[1],
    )


def members_of(media: Media, window: Span) -> ClipMedia:
    """The beginning of a window as a video and an audio file of their own, or its image: what reports play.

    MediaError if nothing of it can be read.
    """
    if "image" in media.files:
        pixels = _fitted(read_image(media.files["image"], name=media.key).permute(1, 2, 0).numpy())
        return ClipMedia(image=_jpeg(pixels))
    span = clip_span(window, max(own.end_seconds for own in media.spans.values()), from_start=True)
    video, audio = io.BytesIO(), io.BytesIO()
    if _is_in(media, "video", span):
        frames, options = list(_frames(media, span)), {"crf": "27", "preset": "veryfast"}
        write_media(video, video=frames, video_fps=VIDEO_FPS, container_format="mp4", video_options=options)
    if _is_in(media, "audio", span):
        waveform = _waveform(media, span)
        write_media(audio, audio=waveform, audio_rate_hz=AUDIO_RATE_HZ, audio_codec="flac", container_format="flac")
    return ClipMedia(video.getvalue() or None, audio.getvalue() or None)


def clip_span(window: Span, duration_seconds: float, *, from_start: bool = False) -> Span:
    """The seconds to show of a window: all of it, with what is around a short one, and a part of a long one."""
    start, end = max(0.0, window.start_seconds), min(window.end_seconds, duration_seconds)
    length = min(max(end - start, LEAST_SECONDS), MOST_SECONDS, duration_seconds)
    begin = start if from_start and end - start > length else (start + end - length) / 2
    begin = min(max(0.0, begin), max(0.0, duration_seconds - length))
    return Span(begin, begin + length)


def _is_in(media: Media, modality: str, span: Span) -> bool:
    """Whether a stream of the media overlaps some seconds by more than rounding."""
    own = media.spans.get(modality)
    return (
        own is not None and own.start_seconds < span.end_seconds - 1e-3 and own.end_seconds > span.start_seconds + 1e-3
    )


def _frames(media: Media, span: Span) -> NDArray[np.uint8]:
    """uint8 (n, H, W, 3): the frames on screen at an even rate, of even sides that fit a page.

    One frame at a time is in memory as large as it is stored.
    """
    count = max(1, round((span.end_seconds - span.start_seconds) * VIDEO_FPS))
    times = np.maximum(span.start_seconds + np.arange(count) / VIDEO_FPS - media.stream_start("video"), 0.0).tolist()
    frames: list[NDArray[np.uint8]] = []
    opened = media.streams.get("video")
    with ExitStack() as stack:
        reader = stack.enter_context(VideoReader(media.files["video"], media.key)) if opened is None else opened
        assert isinstance(reader, VideoReader)  # streams are stored by modality
        reader.expect(times)
        last: float | None = None
        for seconds in times:
            frame = reader.on_screen(seconds)
            if frame is None:
                raise MediaError("no_video", f"{media.key}: the video stream holds no decodable frame")
            if frame.seconds != last:
                frames.append(_fitted(reader.pixels(frame)))
                last = frame.seconds
            else:
                frames.append(frames[-1])
    return np.stack(frames)


def _fitted(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (H, W, 3) made smaller, or a very small one larger, to even sides."""
    from PIL import Image

    height, width = pixels.shape[:2]
    short, long = min(height, width), max(height, width)
    scale = min(1.0, SHORT_SIDE_PX / short, LONG_SIDE_PX / long)
    if short < TINY_PX:
        scale = max(scale, min(SHORT_SIDE_PX // short, LONG_SIDE_PX // long))
    size = max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    return np.array(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, how))


def _waveform(media: Media, span: Span) -> NDArray[np.float32]:
    """float32 (1, n) in [-1, 1]: the sound of some seconds, silent where the stream has not begun or has ended."""
    count = max(1, round((span.end_seconds - span.start_seconds) * AUDIO_RATE_HZ))
    start = span.start_seconds - media.stream_start("audio")
    samples = read_audio(media.files["audio"], start, count, AUDIO_RATE_HZ, name=media.key)
    waveform: NDArray[np.float32] = samples.numpy().clip(-1, 1)
    return waveform


def _still(frames: NDArray[np.uint8], window: Span, span: Span) -> bytes:
    """The frame in the middle of the window as JPEG."""
    middle = (max(window.start_seconds, span.start_seconds) + min(window.end_seconds, span.end_seconds)) / 2
    number = int((middle - span.start_seconds) * VIDEO_FPS)
    return _jpeg(frames[min(max(number, 0), len(frames) - 1)])


def _jpeg(pixels: NDArray[np.uint8], quality: int = 80) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "JPEG", quality=quality, optimize=True)
    return stream.getvalue()


def spectrogram(waveform: NDArray[np.floating[Any]], rate_hz: int) -> bytes:
    """A picture of the loudness of each pitch over time as JPEG, 288 x 72 pixels: (n,) samples -> bytes.

    Bands lie evenly on a logarithmic scale from 60 Hz to half the rate; a level is in dB below the loudest of the clip.
    """
    size = 1024
    padded = np.pad(np.asarray(waveform, np.float64), size // 2)
    starts = np.linspace(0, max(0, len(padded) - size), NUM_COLUMNS).astype(int)
    pieces = np.stack([np.pad(padded[start : start + size], (0, max(0, size - len(padded)))) for start in starts])
    power = np.abs(np.fft.rfft(pieces * np.hanning(size), axis=1)) ** 2
    edges = np.geomspace(60.0, rate_hz / 2, NUM_BANDS + 1) * size / rate_hz
    pairs = [(int(low), max(int(low) + 1, int(high))) for low, high in pairwise(edges)]
    bands = np.stack([power[:, low:high].mean(axis=1) for low, high in pairs])
    level = 10 * np.log10(bands + 1e-12)
    shade = np.clip(1 - (level - max(level.max(), -20.0)) / FLOOR_DB, 0, 1)[::-1]
    places = np.linspace(0, 1, len(COLORS))
    pixels = np.stack([np.interp(shade, places, [color[part] for color in COLORS]) for part in range(3)], axis=-1)
    return _jpeg(pixels.round().astype(np.uint8), quality=82)
