"""What views look like: sizes, clip lengths, spectrograms, augmentation sets; and which set a view asks for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from avssl.transforms.audio import AudioAugment
from avssl.transforms.draw import ImageAugment
from avssl.transforms.jigsaw import jigsaw_size
from avssl.transforms.published_sets import published_sets, unknown_set
from avssl.transforms.time_sampling import ClipLengths
from avssl.types import View

AUDIO_SETS = ("train", "test", "jigsaw")  # jigsaw: as train, then cut into nine tiles


@dataclass
class VideoViewConfig:
    """A clip of num_frames at fps, cropped and resized to a square."""

    num_frames: int = 8
    fps: float = 16.0
    size_px: int = 224  # side
    small_size_px: int = 96  # side in sets with `small`
    augment: ImageAugment = field(default_factory=ImageAugment)

    def __post_init__(self) -> None:
        _check_sizes(self)


@dataclass
class ImageViewConfig:
    """A picture, cropped and resized to a square."""

    size_px: int = 224  # side
    small_size_px: int = 96  # side in sets with `small`

    def __post_init__(self) -> None:
        _check_sizes(self)


@dataclass
class AudioViewConfig:
    """Seconds of mono sound as a spectrogram of num_frames x bins, normalized per bin by the corpus' statistics."""

    seconds: float = 2.0
    rate_hz: int = 24_000
    transform: Literal["log_spectrogram", "log_mel"] = "log_spectrogram"
    window_samples: int = 1024
    hop_samples: int = 240
    num_frames: int = 200
    bins_averaged: int = 2  # log_spectrogram: adjacent frequencies that make one bin
    num_mels: int = 80  # log_mel: filters
    augment: AudioAugment = field(default_factory=AudioAugment)


@dataclass
class ViewsConfig:
    """All modalities, the sets by name, and how far the video clip may reach out of the audio clip in training."""

    video: VideoViewConfig = field(default_factory=VideoViewConfig)
    audio: AudioViewConfig = field(default_factory=AudioViewConfig)
    image: ImageViewConfig = field(default_factory=ImageViewConfig)
    augments: dict[str, ImageAugment] = field(default_factory=published_sets)  # keys as video.augment; add your own
    max_offset_seconds: float = 0.5
    statistics_samples: int = 1000  # samples from which the per-bin statistics are measured


def clip_lengths(config: ViewsConfig) -> ClipLengths:
    """The two clip lengths in seconds."""
    return ClipLengths(config.video.num_frames / config.video.fps, config.audio.seconds, config.max_offset_seconds)


def image_augment(view: View, config: ViewsConfig) -> ImageAugment | None:
    """The set that a view of an image or a video asks for; None for "test". ValueError for one that is not there."""
    if view.augment == "test":
        return None
    if view.augment == "train" and view.modality == "video":
        return config.video.augment
    if view.augment not in config.augments:
        own = ("train", "test") if view.modality == "video" else ("test",)
        raise unknown_set(view.name, view.augment, (*own, *config.augments))
    return config.augments[view.augment]


def check_views(views: Iterable[View], config: ViewsConfig) -> None:
    """ValueError for a view that cannot be made: an unknown set or modality, or pictures too small for a jigsaw."""
    for view in views:
        if view.modality == "audio":
            if view.augment not in AUDIO_SETS:
                raise unknown_set(view.name, view.augment, AUDIO_SETS)
            continue
        augment = image_augment(view, config)
        if augment is not None and augment.jigsaw:
            jigsaw_size(picture_size_px(augment, config.image if view.modality == "image" else config.video))


def picture_size_px(augment: ImageAugment | None, config: ImageViewConfig | VideoViewConfig) -> int:
    """Side of a view's pictures, before a jigsaw cuts them."""
    return config.small_size_px if augment is not None and augment.small else config.size_px


def _check_sizes(config: ImageViewConfig | VideoViewConfig) -> None:
    for name in ("size_px", "small_size_px"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
