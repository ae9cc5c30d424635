"""The configuration of one augmentation set of images and video clips, which works without torch."""

from __future__ import annotations

from dataclasses import dataclass, fields

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of red, green, blue in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageAugment:
    """Random changes of a training image or clip. The defaults are AVID's; 0 switches an operation off.

    brightness, contrast, saturation: for a strength s the factor is uniform in [max(0, 1 - s), 1 + s]; for hue, at most
    0.5, the shift is uniform in [-hue, hue] turns. The four are applied in random order. The photometric pack is
    PIRL's: posterize, sharpness, solarize and autocontrast in this order, with random strengths.

    >>> ImageAugment(hue=0.6)
    Traceback (most recent call last):
    ...
    ValueError: color strengths must not be negative and hue at most 0.5, got ImageAugment(...)
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)  # fraction of the area of the image
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of the crop
    flip_probability: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.2
    color_jitter_probability: float = 1.0  # of changing the four above at all
    photometric_probability: float = 0.0  # of PIRL's pack
    grayscale_probability: float = 0.0
    blur_probability: float = 0.0
    blur_sigma_px: tuple[float, float] = (0.1, 2.0)  # of a Gaussian at size_px 224; scaled for other sizes
    solarize_probability: float = 0.0  # of inverting the values from 0.5 on
    small: bool = False  # crops of small_size_px instead of size_px
    jigsaw: bool = False  # nine patches of a 3 x 3 grid, permuted
    operation: str = ""  # an augment of your own (docs/plugins.md) on the decoded frames, before all else

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be 0 < low <= high <= 1, got {self.crop_scale}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio must be 0 < low <= high, got {self.crop_ratio}")
        if not 0 < self.blur_sigma_px[0] <= self.blur_sigma_px[1]:
            raise ValueError(f"blur_sigma_px must be 0 < low <= high, got {self.blur_sigma_px}")
        if min(self.brightness, self.contrast, self.saturation, self.hue) < 0 or self.hue > 0.5:
            raise ValueError(f"color strengths must not be negative and hue at most 0.5, got {self}")
        for name in (item.name for item in fields(self) if item.name.endswith("_probability")):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
