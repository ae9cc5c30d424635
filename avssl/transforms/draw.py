"""Random changes of pictures and video clips: what there is to choose from, and the drawing of it.

Everything random about one view of one sample is drawn here, in a worker, from a generator that the caller seeds;
the device (transforms/color.py) draws nothing. The operations run in the order in which the papers have them: crop
and resize, flip, color jitter, photometric pack, gray, blur, solarize. A video clip keeps its parameters over all its
frames; the nine patches of a jigsaw have a look each.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import permutations
from math import exp, log, sqrt
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from avssl.transforms.jigsaw import NUM_TILES, Jigsaw, JigsawSize, draw_jigsaw

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

COLOR_OPERATIONS = ("brightness", "contrast", "saturation", "hue")
JITTER_ORDERS = tuple(permutations(range(len(COLOR_OPERATIONS))))
TEST_CROP_SHARE = 0.875  # 224 of 256: the central part that is looked at in evaluation
PUBLISHED_SIZE_PX = 224  # what sizes in pixels are published for


@dataclass(frozen=True)
class ImageAugment:
    """Random changes of a training picture or clip. The defaults are AVID's; 0 switches an operation off.

    brightness, contrast, saturation s: factor uniform in [max(0, 1 - s), 1 + s]; hue h <= 0.5: shift in [-h, h] turns;
    the four in random order. The photometric pack is PIRL's: posterize, sharpness, solarize and auto-contrast, one
    after the other, each with a strength of its own.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the picture's area
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of the crop
    flip_probability: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.2
    color_jitter_probability: float = 1.0  # of jittering the four above at all
    photometric_probability: float = 0.0  # of PIRL's pack
    grayscale_probability: float = 0.0
    blur_probability: float = 0.0
    blur_sigma_px: tuple[float, float] = (0.1, 2.0)  # of a Gaussian, for size_px 224; other sizes scale it
    solarize_probability: float = 0.0  # of inverting what is brighter than half
    small: bool = False  # crops of small_size_px instead of size_px
    jigsaw: bool = False  # nine patches of a 3 x 3 grid, permuted

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


class Box(NamedTuple):
    """A rectangle of a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


class ColorParams(NamedTuple, Generic[T]):
    """What was drawn for one picture, clip or patch beside its place; every number is a float.

    Of a batch the same fields are the columns of one tensor, so that a view's parameters travel as one piece:
    torch.tensor([look, ...]) is (B, fields), and Look(*that.unbind(-1)) has tensors (B,).
    """

    flip: T  # 0 or 1
    brightness: T  # factor; 1 is off
    contrast: T
    saturation: T
    hue: T  # turns; 0 is off
    order: T  # place in JITTER_ORDERS, which lists positions in COLOR_OPERATIONS
    photometric: T  # 0 or 1
    posterize_bits: T  # bits of a color that are kept, 4 to 8
    sharpness: T  # factor, 0.1 to 1.9; 1 changes nothing
    photometric_threshold: T  # of the pack's solarizing, in [0, 256 / 255]
    gray: T  # 0 or 1
    blur_sigma_px: T  # 0 is off
    solarize: T  # 0 or 1


class ViewParams(NamedTuple):
    """All that was drawn for one view of one sample: looks has one entry, or one a patch of the jigsaw."""

    box: Box
    looks: list[ColorParams[float]]
    jigsaw: Jigsaw | None


def draw_view_params(
    generator: np.random.Generator,
    height: int,
    width: int,
    augment: ImageAugment,
    *,
    size_px: int = PUBLISHED_SIZE_PX,
    jigsaw_size: JigsawSize | None = None,
) -> ViewParams:
    """Draw everything that is random about one view of a picture or clip of height x width px.

    size_px: side of the modality's full pictures, which the blur is scaled to. jigsaw_size: None if it is no jigsaw.
    """
    look = draw_color_params(generator, augment, size_px)
    # The box comes after the look because it alone takes a varying number of draws for one and the same augment.
    box = random_resized_crop_box(generator, height, width, augment.crop_scale, augment.crop_ratio)
    if jigsaw_size is None:
        return ViewParams(box, [look], None)
    jigsaw = draw_jigsaw(generator, jigsaw_size)
    others = [draw_color_params(generator, augment, size_px) for _ in range(NUM_TILES - 1)]
    return ViewParams(box, [look, *others], jigsaw)


def draw_color_params(generator: np.random.Generator, augment: ImageAugment, size_px: int) -> ColorParams[float]:
    """One look. An operation with probability 0 or 1 takes no draw for whether it happens."""
    strengths = (augment.brightness, augment.contrast, augment.saturation)
    order = JITTER_ORDERS.index(tuple(generator.permutation(4).tolist()))
    factors = [float(generator.uniform(max(0.0, 1 - strength), 1 + strength)) for strength in strengths]
    factors.append(float(generator.uniform(-augment.hue, augment.hue)))
    flip = generator.random() < augment.flip_probability
    if not _happens(generator, augment.color_jitter_probability):
        factors = [1.0, 1.0, 1.0, 0.0]
    photometric, bits, sharpness, threshold = False, 8, 1.0, 256
    if _happens(generator, augment.photometric_probability):
        photometric, bits = True, int(generator.integers(4, 9))
        sharpness, threshold = float(generator.uniform(0.1, 1.9)), int(generator.integers(257))
    gray = _happens(generator, augment.grayscale_probability)
    sigma_px = 0.0
    if _happens(generator, augment.blur_probability):
        sigma_px = float(generator.uniform(*augment.blur_sigma_px)) * size_px / PUBLISHED_SIZE_PX
    solarize = _happens(generator, augment.solarize_probability)
    return ColorParams(
        flip=float(flip),
        brightness=factors[0],
        contrast=factors[1],
        saturation=factors[2],
        hue=factors[3],
        order=float(order),
        photometric=float(photometric),
        posterize_bits=float(bits),
        sharpness=sharpness,
        photometric_threshold=threshold / 255,
        gray=float(gray),
        blur_sigma_px=sigma_px,
        solarize=float(solarize),
    )


def random_resized_crop_box(
    generator: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Box with a uniform share of the area and a log-uniform aspect ratio, as torchvision's RandomResizedCrop draws it.

    After ten boxes that do not fit into height x width, the largest centered box of an allowed ratio is taken.
    """
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        aspect = exp(generator.uniform(log(ratio[0]), log(ratio[1])))
        box_width, box_height = round(sqrt(area * aspect)), round(sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(generator.integers(height - box_height + 1))
            left = int(generator.integers(width - box_width + 1))
            return Box(top, left, box_height, box_width)
    box_width, box_height = width, height
    if width / height < ratio[0]:
        box_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        box_width = round(height * ratio[1])
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def center_crop_box(height: int, width: int, share: float = TEST_CROP_SHARE) -> Box:
    """The central square of `share` of the short side: the same view as resizing to size / share and cropping."""
    side = max(1, round(min(height, width) * share))
    return Box((height - side) // 2, (width - side) // 2, side, side)


def _happens(generator: np.random.Generator, probability: float) -> bool:
    return probability == 1 or (probability > 0 and generator.random() < probability)
