"""Batched color operations against torchvision and Pillow, one sample at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms.v2 import functional as oracle

from avssl.transforms import color_augment
from avssl.transforms.color import adjust_contrast, adjust_sharpness, autocontrast, gaussian_blur, posterize, solarize
from avssl.transforms.color_augment import JITTER_ORDERS, ColorParams, apply_color_params, draw_color_params
from avssl.transforms.frame_tensors import to_float
from avssl.transforms.image_augment import ImageAugment
from avssl.transforms.published_sets import published_sets

OFF: ColorParams[float] = ColorParams(
    0, 1, 1, 1, 0, 0, 0, 5, 0.2, 0.4, 0, 0, 0
)  # strengths of a photometric pack that is not applied
JITTER = (oracle.adjust_brightness, oracle.adjust_contrast, oracle.adjust_saturation, oracle.adjust_hue)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    """uint8 noise on a ramp: bright and dark parts, all colors."""
    noise = np.random.default_rng(seed).integers(-90, 90, shape)
    ramp = np.linspace(30, 225, shape[-1])
    return torch.from_numpy(np.clip(noise + ramp, 0, 255).astype(np.uint8))


def test_posterizing_equals_torchvision_on_eight_bits() -> None:
    video = torch.arange(256, dtype=torch.uint8).expand(5, 2, 3, 2, 256)
    result = posterize(to_float(video), torch.tensor([4.0, 5, 6, 7, 8]))
    for clip, start, bits in zip(result, video, (4, 5, 6, 7, 8), strict=True):
        torch.testing.assert_close(clip * 255, oracle.posterize(start, bits).float(), atol=1e-4, rtol=0)


def test_solarizing_equals_torchvision_at_each_clips_threshold() -> None:
    video = to_float(images(4, 2, 3, 6, 7))
    thresholds = [0.0, 100 / 255, 0.5, 1.0]
    for clip, start, threshold in zip(solarize(video, torch.tensor(thresholds)), video, thresholds, strict=True):
        torch.testing.assert_close(clip, oracle.solarize(start, threshold), atol=1e-6, rtol=0)
    untouched = solarize(video, torch.full((4,), 256 / 255))
    assert torch.equal(untouched, video)


def test_sharpness_equals_torchvision_and_pillow() -> None:
    video = images(4, 2, 3, 9, 11)
    factors = [0.1, 0.8, 1.0, 1.9]
    result = adjust_sharpness(to_float(video), torch.tensor(factors))
    for clip, start, factor in zip(result, video, factors, strict=True):
        torch.testing.assert_close(clip, oracle.adjust_sharpness(to_float(start), factor), atol=1e-5, rtol=0)
        pillow = ImageEnhance.Sharpness(Image.fromarray(start[0].permute(1, 2, 0).numpy())).enhance(factor)
        expected = torch.from_numpy(np.array(pillow)).permute(2, 0, 1)
        assert (clip[0] * 255 - expected).abs().max() < 2.1  # Pillow rounds to 8 bits in between


def test_autocontrast_stretches_an_image_as_torchvision_and_pillow_do() -> None:
    video = (images(3, 1, 3, 8, 9).float() * 0.5 + 40).to(torch.uint8)
    result = autocontrast(to_float(video))
    torch.testing.assert_close(result, oracle.autocontrast(to_float(video)), atol=1e-6, rtol=0)
    pillow = ImageOps.autocontrast(Image.fromarray(video[0, 0].permute(1, 2, 0).numpy()))
    assert (result[0, 0] * 255 - torch.from_numpy(np.array(pillow)).permute(2, 0, 1)).abs().max() < 1.1


def test_autocontrast_stretches_all_frames_of_a_clip_alike() -> None:
    video = to_float(images(1, 3, 3, 8, 8)) * torch.tensor([0.3, 0.6, 0.9])[None, :, None, None, None] + 0.05
    low, high = video.amin(dim=(1, 3, 4), keepdim=True), video.amax(dim=(1, 3, 4), keepdim=True)
    torch.testing.assert_close(autocontrast(video), (video - low) / (high - low), atol=1e-6, rtol=0)


def test_a_flat_color_stays_in_autocontrast() -> None:
    flat = torch.full((1, 2, 3, 4, 4), 0.3)
    torch.testing.assert_close(autocontrast(flat), flat)


@pytest.mark.parametrize(("height", "width", "radius_px"), [(24, 24, 2), (40, 31, 11), (12, 12, 11)])
def test_blur_equals_torchvision_with_a_sigma_for_each_clip(height: int, width: int, radius_px: int) -> None:
    video = to_float(images(4, 2, 3, height, width))
    sigmas = [0.1, 0.7, 1.3, 2.0]
    result = gaussian_blur(video, torch.tensor(sigmas), radius_px)
    for clip, start, sigma in zip(result, video, sigmas, strict=True):
        expected = oracle.gaussian_blur(start, [2 * radius_px + 1] * 2, [sigma] * 2)
        torch.testing.assert_close(clip, expected, atol=2e-6, rtol=0)


def test_a_kernel_larger_than_the_image_is_cut_to_it() -> None:
    video = to_float(images(1, 1, 3, 5, 9))
    torch.testing.assert_close(
        gaussian_blur(video, torch.tensor([1.5]), 11), gaussian_blur(video, torch.tensor([1.5]), 4)
    )


def by_hand(clip: torch.Tensor, params: ColorParams[float], radius_px: int) -> torch.Tensor:
    """One clip (T, 3, H, W) through torchvision's functions in the published order."""
    frames = to_float(clip.flip(-1) if params.flip else clip)
    for operation in JITTER_ORDERS[int(params.order)]:
        frames = JITTER[operation](frames, params[1 + operation])
    if params.photometric:
        frames = oracle.posterize((frames * 255).round().to(torch.uint8), int(params.posterize_bits)).float() / 255
        frames = oracle.adjust_sharpness(frames, params.sharpness)
        frames = torch.where(frames >= params.photometric_threshold, 1 - frames, frames)
        tall = oracle.autocontrast(torch.cat(list(frames), dim=1))
        frames = torch.stack(tall.chunk(len(frames), dim=1))
    if params.gray:
        frames = oracle.rgb_to_grayscale(frames, num_output_channels=3)
    if params.blur_sigma_px:
        frames = oracle.gaussian_blur(frames, [2 * radius_px + 1] * 2, [params.blur_sigma_px] * 2)
    return oracle.solarize(frames, 0.5) if params.solarize else frames


@pytest.mark.parametrize("num_frames", [1, 3])
def test_a_batch_with_color_params_equals_torchvision_clip_by_clip_in_the_published_order(num_frames: int) -> None:
    generator = np.random.default_rng(11)
    everything = ImageAugment(
        color_jitter_probability=0.8,
        photometric_probability=0.5,
        grayscale_probability=0.3,
        blur_probability=0.5,
        solarize_probability=0.3,
    )
    color_params = [draw_color_params(generator, everything, 224) for _ in range(24)]
    video = images(24, num_frames, 3, 14, 14, seed=4)
    result = apply_color_params(video, torch.tensor(color_params), blur_radius_px=3)
    wrong = 0.0
    for clip, start, params in zip(result, video, color_params, strict=True):
        difference = (clip - by_hand(start, params, 3)).abs()
        # A value at a threshold may fall on its other side, but only for a few pixels.
        wrong += (difference > 2e-4).float().mean().item() / len(color_params)
    assert wrong < 0.003
    assert result.amin() >= 0
    assert result.amax() <= 1


def test_contrast_is_the_same_to_the_bit_for_any_number_of_threads_and_in_any_batch() -> None:
    """Workers, which have one thread, make the same views as the training process; a sum of one image was divided."""
    images = torch.from_numpy(np.random.default_rng(0).integers(256, size=(12, 1, 3, 192, 192), dtype=np.uint8))
    images, factor = to_float(images), torch.full((12,), 0.5)
    together = adjust_contrast(images, factor)
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            alone = torch.cat([adjust_contrast(image[None], factor[:1]) for image in images])
            assert torch.equal(alone, together), num_threads
    finally:
        torch.set_num_threads(before)


def test_the_published_sets_leave_still_frames_still() -> None:
    for name, augment in published_sets().items():
        color_params = torch.tensor([draw_color_params(np.random.default_rng(seed), augment, 224) for seed in range(6)])
        still = images(6, 1, 3, 12, 12).expand(6, 4, 3, 12, 12)
        result = apply_color_params(still, color_params, blur_radius_px=1)
        # Planes of one clip may be summed in another order, which changes no more than the rounding.
        torch.testing.assert_close(result, result[:, :1].expand_as(result), atol=1e-5, rtol=0, msg=name)


def test_a_clip_is_the_same_in_any_batch() -> None:
    augment = published_sets()["byol_second"]
    color_params = torch.tensor([draw_color_params(np.random.default_rng(seed), augment, 224) for seed in range(40)])
    video = images(40, 1, 3, 12, 12)
    together = apply_color_params(video, color_params, blur_radius_px=1)
    for row in range(0, 40, 7):
        alone = apply_color_params(video[row : row + 1], color_params[row : row + 1], blur_radius_px=1)
        # Contrast adds up an image's 144 pixels, of at most 1, in any order: 144 u = 9e-6.
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("used", ["flip", "brightness", "hue", "photometric", "gray", "blur_sigma_px", "solarize"])
def test_operations_that_no_clip_takes_are_not_computed(used: str, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []

    def spy(name: str, original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda *arguments: computed.append((name, len(arguments[0]))) or original(*arguments)

    spied_flip = spy("flip", color_augment.flip_horizontally)
    monkeypatch.setattr(color_augment, "flip_horizontally", spied_flip)
    operations = tuple(each._replace(apply=spy(each.column, each.apply)) for each in color_augment.OPERATIONS)
    monkeypatch.setattr(color_augment, "OPERATIONS", operations)
    jitter = tuple((name, spy(name, adjust)) for name, adjust in color_augment.JITTER)
    monkeypatch.setattr(color_augment, "JITTER", jitter)
    video = images(5, 1, 3, 6, 6)
    assert torch.equal(apply_color_params(video, torch.tensor([OFF] * 5), blur_radius_px=1), to_float(video))
    assert computed == []
    value = {"brightness": 0.5, "hue": 0.2}.get(used, 1.0)
    color_params = torch.tensor([OFF, OFF._replace(**{used: value}), OFF, OFF._replace(**{used: value}), OFF])
    result = apply_color_params(video, color_params, blur_radius_px=1)
    rows = 5 if used == "flip" else 2  # a flip is chosen pixel by pixel
    assert computed == [(used, rows)]
    assert torch.equal(result[[0, 2, 4]], to_float(video[[0, 2, 4]]))
    assert not torch.equal(result[1], to_float(video[1]))
