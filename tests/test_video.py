"""Video transforms against torchvision and colorsys."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import v2 as torchvision_v2
from torchvision.transforms.v2 import functional as oracle

from avssl.transforms.color import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation
from avssl.transforms.color_augment import JITTER_ORDERS, ColorParams, apply_color_params
from avssl.transforms.crop import Box, center_crop_box, crop_resize, random_resized_crop_box
from avssl.transforms.frame_tensors import flip_horizontally, normalize, to_float, to_model_layout
from avssl.transforms.image_augment import ImageAugment
from avssl.transforms.raw_view import draw_view_params
from tests.conftest import RESIZE_LEVELS

ORACLES = (oracle.adjust_brightness, oracle.adjust_contrast, oracle.adjust_saturation, oracle.adjust_hue)


def frames(*shape: int, seed: int = 0) -> torch.Tensor:
    """uint8 noise with flat, gray, black, white and saturated patches: the corner cases of HSV."""
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    pixels[..., 0, :4] = 0
    pixels[..., 1, :4] = 255
    pixels[..., 2, :4] = 128
    pixels[..., 0, 3, :4] = 255  # pure red
    pixels[..., 1:, 3, :4] = 0
    return torch.from_numpy(pixels)


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (adjust_brightness, oracle.adjust_brightness, [0.0, 0.6, 1.0, 1.4]),
        (adjust_contrast, oracle.adjust_contrast, [0.0, 0.6, 1.0, 1.4]),
        (adjust_saturation, oracle.adjust_saturation, [0.0, 0.6, 1.0, 1.4]),
        (adjust_hue, oracle.adjust_hue, [-0.5, -0.13, 0.0, 0.2]),
    ],
)
def test_each_color_operation_equals_torchvision(
    ours: Callable[..., torch.Tensor], theirs: Callable[..., torch.Tensor], factors: list[float]
) -> None:
    video = to_float(frames(4, 3, 3, 9, 7))
    result = ours(video, torch.tensor(factors))
    for clip, expected, factor in zip(result, video, factors, strict=True):
        torch.testing.assert_close(clip, theirs(expected, factor), atol=2e-5, rtol=0)


def test_hue_equals_the_standard_librarys_hsv() -> None:
    video = to_float(frames(1, 1, 3, 5, 6))
    turned = adjust_hue(video, torch.tensor([0.17]))[0, 0]
    for row in range(5):
        for column in range(6):
            hue, saturation, value = colorsys.rgb_to_hsv(*video[0, 0, :, row, column].double().tolist())
            expected = colorsys.hsv_to_rgb((hue + 0.17) % 1, saturation, value)
            np.testing.assert_allclose(turned[:, row, column].numpy(), expected, atol=1e-5)


def draw_colors(augment: ImageAugment, count: int, seed: int = 0) -> tuple[list[ColorParams[float]], torch.Tensor]:
    generator = np.random.default_rng(seed)
    params = [draw_view_params(generator, 20, 20, augment).color_params[0] for _ in range(count)]
    return params, torch.tensor(params)


def test_jitter_applies_each_clips_own_order() -> None:
    augment = ImageAugment(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.3, flip_probability=0)
    params, color_params = draw_colors(augment, 12, seed=7)
    assert len({each.order for each in params}) > 6
    video = frames(12, 2, 3, 8, 8)
    before = video.clone()
    result = apply_color_params(video, color_params, blur_radius_px=1)
    torch.testing.assert_close(video, before, rtol=0, atol=0)  # the input does not change
    for clip, start, each in zip(result, to_float(video), params, strict=True):
        expected = start
        for operation in JITTER_ORDERS[int(each.order)]:
            expected = ORACLES[operation](expected, each[1 + operation])
        torch.testing.assert_close(clip, expected, atol=1e-4, rtol=0)


def test_jitter_is_the_same_for_all_frames_of_a_clip() -> None:
    still = frames(2, 1, 3, 8, 8).expand(2, 5, 3, 8, 8)
    result = apply_color_params(still, draw_colors(ImageAugment(), 2)[1], blur_radius_px=1)
    torch.testing.assert_close(result, result[:, :1].expand_as(result), rtol=0, atol=0)


def test_flip_mirrors_only_the_marked_clips() -> None:
    video = frames(3, 2, 3, 5, 6)
    flipped = flip_horizontally(video, torch.tensor([True, False, True]))
    expected = video.numpy().copy()
    expected[[0, 2]] = expected[[0, 2], ..., ::-1]
    np.testing.assert_array_equal(flipped.numpy(), expected)


def test_float_normalize_and_layout_equal_torchvision() -> None:
    video = frames(2, 4, 3, 5, 6)
    scaled = to_float(video)
    torch.testing.assert_close(scaled, oracle.to_dtype(video, torch.float32, scale=True))
    expected = oracle.normalize(scaled, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(normalize(scaled), expected)
    layout = to_model_layout(scaled)
    assert layout.is_contiguous()
    np.testing.assert_array_equal(layout.numpy(), np.moveaxis(scaled.numpy(), 2, 1))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("box", "size_px"),
    [(Box(3, 5, 40, 31), 24), (Box(0, 0, 50, 60), 32), (Box(10, 20, 16, 16), 16), (Box(1, 1, 9, 7), 20)],
)
def test_crop_resize_equals_torchvision(box: Box, size_px: int, channels_last: bool) -> None:
    clip = frames(3, 3, 50, 60)
    if channels_last:
        clip = clip.contiguous(memory_format=torch.channels_last)
    ours = crop_resize(clip, box, size_px)
    expected = oracle.resized_crop(clip, *box, size=[size_px, size_px], antialias=True)
    assert ours.shape == (3, 3, size_px, size_px)
    assert (ours.movedim(1, -1) if channels_last else ours).is_contiguous()  # in the layout of the clip
    torch.testing.assert_close(ours, expected, rtol=0, atol=RESIZE_LEVELS)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (120, 160, (0.08, 1.0), (3 / 4, 4 / 3)),
        (200, 40, (0.5, 1.0), (3 / 4, 4 / 3)),  # often no box fits: the fallback counts
        (64, 64, (0.2, 0.5), (1.2, 2.0)),
    ],
)
def test_crop_boxes_are_distributed_as_torchvisions(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    generator = np.random.default_rng(1)
    torch.manual_seed(1)
    ours = np.array([random_resized_crop_box(generator, height, width, scale, ratio) for _ in range(4000)])
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(4000)])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    for measure in (
        lambda box: box[:, 0],
        lambda box: box[:, 1],
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
    ):
        assert ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10)])
def test_a_frame_without_a_fitting_box_gives_torchvisions_fallback(height: int, width: int) -> None:
    box = random_resized_crop_box(np.random.default_rng(0), height, width, (0.9, 1.0))
    assert box == RandomResizedCrop.get_params(torch.empty(3, height, width), [0.9, 1.0], [3 / 4, 4 / 3])


@pytest.mark.parametrize(("height", "width"), [(256, 340), (340, 256), (48, 64), (1, 1), (101, 64)])
def test_test_crop_is_the_central_view_of_resize_and_crop(height: int, width: int) -> None:
    top, left, box_height, box_width = center_crop_box(height, width)
    assert box_height == box_width == max(1, round(min(height, width) * 0.875))
    assert abs((height - box_height) / 2 - top) <= 0.5
    assert abs((width - box_width) / 2 - left) <= 0.5


def test_test_crop_equals_torchvisions_resize_then_center_crop_nearly() -> None:
    ramp = torch.linspace(0, 255, 340).expand(1, 3, 256, 340).round().to(torch.uint8)
    ours = crop_resize(ramp, center_crop_box(256, 340), 112)
    resized = torchvision_v2.Resize(128, antialias=True)(ramp)
    expected = torchvision_v2.CenterCrop(112)(resized)
    assert (ours.int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ImageAugment(crop_scale=(0.0, 1.0)), "crop_scale"),
        (lambda: ImageAugment(crop_ratio=(2.0, 1.0)), "crop_ratio"),
        (lambda: ImageAugment(flip_probability=1.5), "flip_probability"),
        (lambda: ImageAugment(hue=0.6), "hue at most 0.5"),
        (lambda: ImageAugment(contrast=-1), "must not be negative"),
        (lambda: to_float(torch.zeros(1)), "uint8"),
        (lambda: crop_resize(torch.zeros(2, 3, 8, 8), Box(0, 0, 4, 4), 4), "torch.float32"),
        (lambda: crop_resize(frames(2, 3, 8, 8), Box(5, 0, 4, 4), 4), "does not fit"),
        (lambda: crop_resize(frames(2, 3, 8, 8), Box(0, 0, 0, 4), 4), "does not fit"),
        (lambda: flip_horizontally(frames(2, 3, 3, 8, 8), torch.tensor([True])), "one flag per clip"),
        (lambda: apply_color_params(frames(1, 3, 2, 8, 8), torch.zeros(1, 13), blur_radius_px=1), "(B, T, 3, H, W)"),
        (
            lambda: apply_color_params(frames(2, 1, 3, 8, 8), torch.zeros(1, 13), blur_radius_px=1),
            "13 color parameters per clip",
        ),
    ],
)
def test_wrong_arguments_are_explained(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)
