"""Thumbnails, waveforms and playable media of clips, inside the page as data URIs."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avssl.pages.markup import Html, join, tag
from avssl.types import MediaError


class ClipMedia(NamedTuple):
    """Encoded files of one clip: video.mp4, audio.flac, and an image (JPEG, PNG, ...); None if absent."""

    video: bytes | None = None
    audio: bytes | None = None
    image: bytes | None = None


MediaSource = Callable[[str], tuple[bytes | None, ...]] | Mapping[str, tuple[bytes | None, ...]]

THUMBNAIL_HEIGHT_PX = 96
WAVE_COLUMNS = 120
WAVE_RATE_HZ = 8000
WAVE_MAX_SECONDS = 30.0
EXCERPT_SECONDS, EXCERPT_RATE_HZ = 1.5, 12_000
MIME_TYPES = {"video": "video/mp4", "audio": "audio/flac", "excerpt": "audio/wav", "picture": "image/jpeg"}


def data_uri(content: bytes, mime_type: str) -> str:
    """The bytes as a data: URI."""
    return f"data:{mime_type};base64,{base64.b64encode(content).decode('ascii')}"


def video_thumbnails(video: bytes, num_thumbnails: int, name: str = "video") -> list[bytes]:
    """JPEG thumbnails, 96 px high, evenly spaced over the video. MediaError if it cannot be decoded."""
    from avssl.media.decode import probe, read_video

    info = probe(video, name=name)
    duration = (info.video.duration_seconds if info.video else None) or info.duration_seconds or 0.0
    times = [(number + 0.5) * duration / num_thumbnails for number in range(num_thumbnails)]
    return [thumbnail(frame.permute(1, 2, 0).numpy()) for frame in read_video(video, times, name=name)]


def image_thumbnail(image: bytes, name: str = "image") -> bytes:
    """A thumbnail of the image as JPEG, 96 px high. MediaError if it cannot be decoded."""
    from avssl.media.images import read_image

    return thumbnail(read_image(image, name=name).permute(1, 2, 0).numpy())


def thumbnail(pixels: NDArray[np.uint8]) -> bytes:
    """uint8 (H, W, 3) -> JPEG, 96 px high."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    width = max(1, round(image.width * THUMBNAIL_HEIGHT_PX / image.height))
    # Synthetic clips are tiny: without interpolation they look as the network gets them.
    resampling = Image.Resampling.NEAREST if image.height < THUMBNAIL_HEIGHT_PX else Image.Resampling.LANCZOS
    stream = io.BytesIO()
    image.resize((width, THUMBNAIL_HEIGHT_PX), resampling).save(stream, "JPEG", quality=80, optimize=True)
    return stream.getvalue()


def audio_outline(audio: bytes, name: str = "audio") -> tuple[Any, Any, float]:
    """(low, high, seconds): extremes float32 (120,) in [-1, 1] in equal intervals of at most the first 30 s."""
    from avssl.media.decode import probe, read_audio

    info = probe(audio, name=name)
    duration = (info.audio.duration_seconds if info.audio else None) or info.duration_seconds or 0.0
    seconds = min(duration, WAVE_MAX_SECONDS)
    samples = read_audio(audio, 0.0, max(WAVE_COLUMNS, round(seconds * WAVE_RATE_HZ)), WAVE_RATE_HZ, name=name)
    values = samples.reshape(-1).numpy()
    columns = np.array_split(values, WAVE_COLUMNS)
    low = np.array([column.min() for column in columns], np.float32)
    high = np.array([column.max() for column in columns], np.float32)
    return low, high, seconds


def waveform(low: NDArray[np.float32], high: NDArray[np.float32], label: str) -> Html:
    """The outline of a waveform: low and high (n,) in [-1, 1] are the extremes in n equal intervals of time."""
    count = len(low)
    peak = max(float(np.abs(low).max(initial=0)), float(np.abs(high).max(initial=0)), 1e-4)
    top = [f"{position},{20 - 18 * float(value) / peak - 0.4:.1f}" for position, value in enumerate(high)]
    bottom = [f"{position},{20 - 18 * float(value) / peak + 0.4:.1f}" for position, value in enumerate(low)]
    shape = tag("polygon", points=" ".join(top + bottom[::-1]))
    box = f"0 0 {max(1, count - 1)} 40"
    return tag("svg", shape, viewBox=box, preserveAspectRatio="none", role="img", aria_label=label, class_="wave")


def sound_excerpt(audio: bytes, name: str = "audio") -> bytes:
    """The first EXCERPT_SECONDS of the audio as a small WAV: mono, 12 kHz, 8 bits by the mu-law of ITU-T G.711, which
    every browser plays. MediaError if it cannot be decoded.
    """
    from avssl.media.decode import probe, read_audio

    info = probe(audio, name=name)
    duration = (info.audio.duration_seconds if info.audio else None) or info.duration_seconds or EXCERPT_SECONDS
    count = max(1, round(min(duration, EXCERPT_SECONDS) * EXCERPT_RATE_HZ))
    values = read_audio(audio, 0.0, count, EXCERPT_RATE_HZ, name=name).reshape(-1).numpy()
    codes = mu_law(values)
    chunks = struct.pack("<4sIHHIIHH", b"fmt ", 18, 7, 1, EXCERPT_RATE_HZ, EXCERPT_RATE_HZ, 1, 8) + b"\0\0"
    chunks += struct.pack("<4sII", b"fact", 4, count) + struct.pack("<4sI", b"data", count) + codes.tobytes()
    chunks += b"\0" * (count % 2)
    return struct.pack("<4sI4s", b"RIFF", 4 + len(chunks), b"WAVE") + chunks


def mu_law(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Samples in [-1, 1] -> the bytes of ITU-T G.711: sign, three bits of exponent, four of mantissa, inverted."""
    level = np.minimum(np.abs(values) * 32768, 32635).astype(np.int64) + 132
    exponent = np.floor(np.log2(level)).astype(np.int64) - 7
    mantissa = (level >> (exponent + 3)) & 15
    sign = np.where(values < 0, 128, 0)
    return np.asarray(~(sign | (exponent << 4) | mantissa) & 255, dtype=np.uint8)


class MediaLibrary:
    """The markup of clips by key; each file is embedded in the page once, up to a budget of bytes.

    Args:
        source: key -> the bytes of ClipMedia, in its order, as function or mapping; the image may be left out.
        max_bytes: of base64 text that may be embedded; files beyond it are shown but cannot be played.
        prefix: of the ids, so that a page may have several libraries.
    """

    def __init__(self, source: MediaSource | None, max_bytes: int, prefix: str = "") -> None:
        self._source = source
        self._room = max_bytes
        self._prefix = prefix
        self.embedded: dict[str, str] = {}
        self.num_left_out = 0
        self._numbers: dict[tuple[str, str], str | None] = {}
        self.clip = cache(self._clip)
        self.frames = cache(self._frames)
        self.thumbnails = cache(self._thumbnails)
        self.wave = cache(self._wave)
        self.image = cache(self._image)

    @property
    def available(self) -> bool:
        """Whether a source of media was given."""
        return self._source is not None

    def _clip(self, key: str) -> ClipMedia:
        """The files of a clip; all None for a mapping without the key."""
        if self._source is None:
            return ClipMedia()
        return ClipMedia(*(self._source.get(key, ()) if isinstance(self._source, Mapping) else self._source(key)))

    def _frames(self, key: str, count: int) -> list[str] | Html:
        """data: URIs of thumbnails of frames, or markup that says why there are none."""
        video = self.clip(key).video
        if video is None:
            return tag("span", "no video", class_="missing")
        try:
            return [data_uri(frame, "image/jpeg") for frame in video_thumbnails(video, count, key)]
        except MediaError as error:
            return tag("span", f"cannot be shown: {error}", class_="missing")

    def _thumbnails(self, key: str, count: int) -> Html:
        """Thumbnails of frames in a row, or markup that says why there are none."""
        frames = self.frames(key, count)
        if isinstance(frames, Html):
            return frames
        images = [
            tag("img", src=frame, alt=f"Frame {number} of {count} of {key}")
            for number, frame in enumerate(frames, start=1)
        ]
        return tag("span", *images, class_="strip")

    def _wave(self, key: str) -> Html:
        """The waveform of the audio, or markup that says why there is none."""
        audio = self.clip(key).audio
        if audio is None:
            return tag("span", "no audio", class_="missing")
        try:
            low, high, seconds = audio_outline(audio, key)
        except MediaError as error:
            return tag("span", f"cannot be shown: {error}", class_="missing")
        return waveform(low, high, f"Waveform of {key}, {seconds:.1f} seconds")

    def _image(self, key: str) -> Html:
        """A thumbnail of the image, or markup that says why there is none."""
        image = self.clip(key).image
        if image is None:
            return tag("span", "no image", class_="missing")
        try:
            uri = data_uri(image_thumbnail(image, key), "image/jpeg")
        except MediaError as error:
            return tag("span", f"cannot be shown: {error}", class_="missing")
        return tag("span", tag("img", src=uri, alt=f"Image {key}"), class_="image")

    @property
    def room(self) -> int:
        """How many bytes of base64 text may still be embedded."""
        return self._room

    @room.setter
    def room(self, num_bytes: int) -> None:
        self._room = num_bytes

    def _content(self, key: str, kind: str) -> bytes | None:
        """The bytes to embed; None if they are absent, or cannot be decoded where they are made smaller."""
        clip = self.clip(key)
        try:
            if kind == "excerpt":
                return None if clip.audio is None else sound_excerpt(clip.audio, key)
            if kind == "picture" and clip.image is not None:
                return image_thumbnail(clip.image, key)
            if kind == "picture":
                return None if clip.video is None else video_thumbnails(clip.video, 1, key)[0]
        except MediaError:
            return None  # the cards of the clip say so
        content: bytes | None = getattr(clip, kind)
        return content

    def embed(self, key: str, kind: str) -> str | None:
        """The id of the embedded "video", "audio", "excerpt" or "picture" of a clip; None if absent or too large.

        An excerpt is the first seconds of the audio, a picture a thumbnail of the image or the video.
        """
        if (key, kind) not in self._numbers:
            content = self._content(key, kind)
            identifier = None
            if content is not None:
                uri = data_uri(content, MIME_TYPES[kind])
                if len(uri) <= self._room:
                    self._room -= len(uri)
                    identifier = f"{self._prefix}{kind}-{len(self.embedded)}"
                    self.embedded[identifier] = uri
                else:
                    self.num_left_out += 1
            self._numbers[key, kind] = identifier
        return self._numbers[key, kind]

    def excerpt_button(self, key: str) -> Html:
        """A button that plays the first seconds of the clip's audio; words if there are none in the page."""
        if self.clip(key).audio is None:
            return Html("")
        identifier = self.embed(key, "excerpt")
        if identifier is None:
            return tag("span", "sound not embedded", class_="missing")
        sound = tag("audio", preload="none", data_media=identifier, aria_label=f"Sound of {key}")
        label = f"Play the sound of {key}"
        return join(sound, tag("button", "▶ sound", type="button", data_play=True, aria_label=label))

    def player(self, key: str, kind: str) -> Html:
        """The image, frame or waveform of a clip; video and audio that are embedded have a play control.

        The script of the page sets the data: URI, so that a clip that is shown five times is in the page once.
        """
        if kind == "image":
            return self.image(key)
        identifier = self.embed(key, kind)
        if kind == "audio":
            control: Html | str = ""
            if identifier:
                control = tag(
                    "audio", controls=True, preload="none", data_media=identifier, aria_label=f"Audio of {key}"
                )
            return join(self.wave(key), control or tag("span", "not embedded", class_="missing"))
        frames = self.frames(key, 1)
        if identifier and not isinstance(frames, Html):
            # The controls of the browser hide half of a small video: the script shows them on hover and focus only.
            label = f"Video of {key}, without audio"
            attributes = {"poster": frames[0], "preload": "none", "muted": True, "playsinline": True, "tabindex": 0}
            video = tag("video", **attributes, data_media=identifier, aria_label=label)
            return join(
                video, tag("button", "▶ play", type="button", data_play=True, aria_label=f"Play video of {key}")
            )
        return join(self.thumbnails(key, 1), tag("span", "not embedded", class_="missing"))
