"""Views of a clip: its times, its random parameters, and the operations on frames, waveforms and spectrograms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avssl.exports import offer

if TYPE_CHECKING:
    from avssl.transforms.audio import AudioAugment as AudioAugment
    from avssl.transforms.config import AudioViewConfig as AudioViewConfig
    from avssl.transforms.config import ImageViewConfig as ImageViewConfig
    from avssl.transforms.config import VideoViewConfig as VideoViewConfig
    from avssl.transforms.config import ViewsConfig as ViewsConfig
    from avssl.transforms.image_augment import ImageAugment as ImageAugment
    from avssl.transforms.own import register_augment as register_augment
    from avssl.transforms.published_sets import published_sets as published_sets
    from avssl.transforms.raw_view import RawView as RawView
    from avssl.transforms.spectrogram import LogMel as LogMel
    from avssl.transforms.spectrogram import LogSpectrogram as LogSpectrogram
    from avssl.transforms.view_maker import ViewMaker as ViewMaker

offer(
    __name__,
    {
        "audio": "AudioAugment",
        "config": "AudioViewConfig ImageViewConfig VideoViewConfig ViewsConfig",
        "image_augment": "ImageAugment",
        "own": "register_augment",
        "published_sets": "published_sets",
        "raw_view": "RawView",
        "spectrogram": "LogMel LogSpectrogram",
        "view_maker": "ViewMaker",
    },
)
