"""The configuration of views: sizes, clip lengths, spectrograms, augmentation sets, and which set a view names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import nan
from typing import Literal

from avssl.transforms.audio import AudioAugment
from avssl.transforms.image_augment import IMAGENET_MEAN, IMAGENET_STD, ImageAugment
from avssl.transforms.jigsaw import jigsaw_size
from avssl.transforms.own import AUGMENTS, check_augment
from avssl.transforms.published_sets import published_sets, unknown_set
from avssl.types import ClipLengths, View

AUDIO_SETS = ("train", "test", "jigsaw")  # jigsaw: as train, then cut into nine tiles


@dataclass
class VideoViewConfig:
    """A clip of num_frames at fps, cropped and resized to a square.

    >>> VideoViewConfig(num_frames=16, fps=8.0).size_px
    224
    """

    num_frames: int = 8
    fps: float = 16.0
    size_px: int = 224  # side
    small_size_px: int = 96  # side in sets with `small`
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of red, green, blue in [0, 1]; subtracted
    std: tuple[float, float, float] = IMAGENET_STD  # what is left is divided by this
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # of all resizing, with antialiasing
    test_resize: Literal["crop", "short_side", "both_sides"] = "crop"  # of the view without augmentation: test_view.py
    test_resize_px: int = 0  # of short_side and both_sides, at least size_px; 0: size_px
    test_crop_offset: Literal["floor", "round"] = "floor"  # of half an odd number of pixels around the center
    augment: ImageAugment = field(default_factory=ImageAugment)

    def __post_init__(self) -> None:
        _check_sizes(self)


@dataclass
class ImageViewConfig:
    """An image, cropped and resized to a square.

    >>> ImageViewConfig(size_px=96).size_px
    96
    """

    size_px: int = 224  # side
    small_size_px: int = 96  # side in sets with `small`
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of red, green, blue in [0, 1]; subtracted
    std: tuple[float, float, float] = IMAGENET_STD  # what is left is divided by this
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # of all resizing, with antialiasing
    test_resize: Literal["crop", "short_side", "both_sides"] = "crop"  # of the view without augmentation: test_view.py
    test_resize_px: int = 0  # of short_side and both_sides, at least size_px; 0: size_px
    test_crop_offset: Literal["floor", "round"] = "floor"  # of half an odd number of pixels around the center

    def __post_init__(self) -> None:
        _check_sizes(self)


@dataclass
class AudioViewConfig:
    """A mono audio clip as a spectrogram of num_frames x bins, normalized per bin by the statistics of the corpus.

    With transform=processor a view is the waveform: the encoder, a public model, makes its input of it as its library
    does. The keys below `transform` that its processor knows then only say what that is.

    >>> AudioViewConfig(transform="log_mel", num_mels=64).rate_hz
    24000
    """

    seconds: float = 2.0
    rate_hz: int = 24_000
    transform: Literal["log_spectrogram", "log_mel", "processor"] = "log_spectrogram"
    window_samples: int = 1024
    hop_samples: int = 240
    num_frames: int = 200
    bins_averaged: int = 2  # of log_spectrogram: how many adjacent frequencies are averaged to one bin
    num_mels: int = 80  # of log_mel: number of filters
    augment: AudioAugment = field(default_factory=AudioAugment)

    @property
    def padding(self) -> float:
        """The value of samples after the end of a stream: 0, or NaN where the encoder's own processor pads."""
        return nan if self.transform == "processor" else 0.0


@dataclass
class ViewsConfig:
    """The views of all modalities and the augmentation sets by name.

    >>> ViewsConfig(video=VideoViewConfig(size_px=112)).audio.seconds
    2.0
    """

    video: VideoViewConfig = field(default_factory=VideoViewConfig)
    audio: AudioViewConfig = field(default_factory=AudioViewConfig)
    image: ImageViewConfig = field(default_factory=ImageViewConfig)
    augments: dict[str, ImageAugment] = field(default_factory=published_sets)  # you can add your own
    max_offset_seconds: float = 0.5  # how far the video clip may extend beyond the audio clip in training
    statistics_samples: int = 1000  # number of samples from which the per-bin statistics are measured


def clip_lengths(config: ViewsConfig) -> ClipLengths:
    """The clip lengths and the largest offset in training, in seconds."""
    return ClipLengths(config.video.num_frames / config.video.fps, config.audio.seconds, config.max_offset_seconds)


def image_augment(view: View, config: ViewsConfig) -> ImageAugment | None:
    """The augmentation set that an image or video view names; None for "test" and for an augment of the user's own.

    ValueError for an unknown name.
    """
    if view.augment == "test":
        return None
    if view.augment == "train" and view.modality == "video":
        return config.video.augment
    if view.augment in config.augments:
        return config.augments[view.augment]
    if AUGMENTS.knows(view.augment):
        return None
    fixed = ("train", "test") if view.modality == "video" else ("test",)
    raise unknown_set(view.name, view.augment, (*fixed, *config.augments, *AUGMENTS))


def own_augment(view: View, config: ViewsConfig) -> str:
    """The name of the augment of the user's own that a view takes; "" for none."""
    if view.augment == "test":
        return ""
    if view.modality == "audio":
        return config.audio.augment.operation if view.augment in AUDIO_SETS else view.augment
    augment = image_augment(view, config)
    return view.augment if augment is None else augment.operation


def check_views(views: Iterable[View], config: ViewsConfig) -> None:
    """Raise ValueError for a view that cannot be made: unknown augmentation set, or images too small for a jigsaw."""
    views = list(views)
    if any(view.other_moment for view in views) and config.max_offset_seconds:
        raise ValueError(
            f"views.max_offset_seconds is {config.max_offset_seconds:g}; with loss.num_negatives_same_clip the "
            "frames of a pair must lie within its audio: set views.max_offset_seconds=0, and views.audio.seconds to "
            "the length of the video clip, so that they are in sync"
        )
    for view in views:
        if view.augment in config.augments and view.augment in AUGMENTS:
            raise ValueError(
                f"view {view.name!r}: {view.augment!r} is both a set of views.augments and an augment of your own; "
                "rename one of them"
            )
        if view.modality == "audio" and view.augment not in AUDIO_SETS and not AUGMENTS.knows(view.augment):
            raise unknown_set(view.name, view.augment, (*AUDIO_SETS, *AUGMENTS))
        if own := own_augment(view, config):
            check_augment(own, view.modality)
        if view.modality == "audio":
            if config.audio.transform == "processor":
                _refuse_spectrogram_changes(view, config.audio.augment)
            continue
        augment = image_augment(view, config)
        if augment is not None and augment.jigsaw:
            jigsaw_size(view_size_px(augment, config.image if view.modality == "image" else config.video))


def _refuse_spectrogram_changes(view: View, augment: AudioAugment) -> None:
    """ValueError for a view whose spectrogram would be changed, where the model makes its own of the waveform."""
    changes = ["the jigsaw"] if view.augment == "jigsaw" else []
    changes += [f"views.audio.augment.{name}" for name in augment.of_spectrograms if view.augment != "test"]
    if changes:
        raise ValueError(
            f"{changes[0]} of view {view.name!r} changes a spectrogram, but with views.audio.transform=processor a "
            "view is a waveform, of which the model makes its own input; leave it out (volume_low, volume_high and "
            "time_shift_seconds work)"
        )


def view_size_px(augment: ImageAugment | None, config: ImageViewConfig | VideoViewConfig) -> int:
    """Side of a view's images or frames, before a jigsaw cuts them."""
    return config.small_size_px if augment is not None and augment.small else config.size_px


def _check_sizes(config: ImageViewConfig | VideoViewConfig) -> None:
    for name in ("size_px", "small_size_px"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if config.test_resize_px and config.test_resize_px < config.size_px:
        raise ValueError(f"test_resize_px must be 0 or at least size_px {config.size_px}, got {config.test_resize_px}")
    if min(config.std) <= 0:
        raise ValueError(f"std must be above 0, got {config.std}")
