"""Jigsaws: where patches and tiles come from, and that only their position and colors change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avssl.data.batch import stack_raw_views
from avssl.transforms.config import ImageViewConfig, VideoViewConfig, ViewsConfig
from avssl.transforms.image_augment import ImageAugment
from avssl.transforms.jigsaw import Jigsaw, centered_jigsaw, cut_patches, cut_tiles, draw_jigsaw, jigsaw_size
from avssl.transforms.published_sets import published_sets
from avssl.transforms.raw_view import raw_image
from avssl.transforms.view_maker import ViewMaker

CPU = torch.device("cpu")


def numbered(num_frames: int, side: int) -> torch.Tensor:
    """A clip whose every pixel has its own value."""
    return torch.arange(num_frames * 3 * side * side, dtype=torch.int64).view(num_frames, 3, side, side)


@pytest.mark.parametrize(("size_px", "cell_px", "patch_px"), [(224, 85, 64), (112, 42, 32), (96, 36, 27), (32, 12, 9)])
def test_the_published_proportions_hold_at_any_size(size_px: int, cell_px: int, patch_px: int) -> None:
    assert jigsaw_size(size_px) == (cell_px, patch_px)


def test_putting_the_patches_back_gives_the_cells_of_the_image() -> None:
    size = jigsaw_size(224)
    clip = numbered(2, 3 * size.cell_px)
    jigsaw = draw_jigsaw(np.random.default_rng(3), size)
    assert jigsaw.permutation != list(range(9))
    patches = cut_patches(clip, jigsaw, size)
    assert patches.shape == (9, 2, 3, 64, 64)
    for place, cell in enumerate(jigsaw.permutation):
        top, left = jigsaw.offsets[cell]
        assert 0 <= min(top, left) <= max(top, left) <= 21
        row, column = divmod(cell, 3)
        inside = clip[:, :, 85 * row : 85 * (row + 1), 85 * column : 85 * (column + 1)]
        assert torch.equal(patches[place], inside[:, :, top : top + 64, left : left + 64])


def test_the_deterministic_jigsaw_has_centered_patches_in_order() -> None:
    size = jigsaw_size(224)
    patches = cut_patches(numbered(1, 255), centered_jigsaw(size), size)
    for cell in range(9):
        top, left = 85 * (cell // 3) + 10, 85 * (cell % 3) + 10
        assert torch.equal(patches[cell], numbered(1, 255)[:, :, top : top + 64, left : left + 64])


def test_offsets_and_permutations_are_uniform() -> None:
    size = jigsaw_size(224)
    drawn = [draw_jigsaw(np.random.default_rng(seed), size) for seed in range(900)]
    offsets = np.array([jigsaw.offsets for jigsaw in drawn])
    assert (offsets.min(axis=(0, 1)) == 0).all()
    assert (offsets.max(axis=(0, 1)) == 21).all()
    np.testing.assert_allclose(offsets.mean(axis=0), 10.5, atol=1.0)
    first = np.bincount([jigsaw.permutation[0] for jigsaw in drawn], minlength=9)
    assert first.min() > 65  # of 100
    assert first.max() < 140


def test_tiles_are_those_of_numpy_in_the_order_of_each_sample() -> None:
    generator = np.random.default_rng(0)
    spectrogram = generator.normal(size=(4, 1, 20, 14)).astype(np.float32)  # one frame and one bin are left over
    order = np.stack([np.arange(9), *(generator.permutation(9) for _ in range(3))])
    tiles = cut_tiles(torch.from_numpy(spectrogram), torch.from_numpy(order))
    assert tiles.shape == (4, 9, 1, 6, 4)
    for sample in range(4):
        for place, tile in enumerate(order[sample]):
            row, column = divmod(int(tile), 3)
            expected = spectrogram[sample, :, 1 + 6 * row : 7 + 6 * row, 1 + 4 * column : 5 + 4 * column]
            np.testing.assert_array_equal(tiles[sample, place].numpy(), expected)


def test_a_spectrogram_too_small_for_nine_tiles_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 3 frames and 3 bins, got a spectrogram \(1, 1, 8, 2\)"):
        cut_tiles(torch.zeros(1, 1, 8, 2), torch.arange(9)[None])


def test_patches_of_one_image_differ_in_color_but_not_over_the_frames() -> None:
    """Of a flat red clip only the color parameters can tell the patches apart."""
    red = torch.tensor([180, 60, 40], dtype=torch.uint8)[None, :, None, None].expand(3, 3, 90, 90)
    augment = published_sets()["pirl_jigsaw"]
    config = VideoViewConfig(size_px=64)
    raw = stack_raw_views([{"v": raw_image("video", red, config, augment, np.random.default_rng(5))}])
    assert raw["v"].media.dtype == torch.uint8
    assert raw["v"].media.shape == (1, 9, 3, 3, 18, 18)
    jigsaw = ViewMaker(ViewsConfig(video=config), ["video"])(raw, CPU)["v"]
    assert jigsaw.shape == (1, 9, 3, 3, 18, 18)
    flat = jigsaw.flatten(3)  # (1, 9, 3, frames and pixels)
    torch.testing.assert_close(flat, flat[..., :1].expand_as(flat), atol=1e-4, rtol=0)
    colors = flat[0, :, :, 0]
    assert len(torch.unique((colors * 50).round(), dim=0)) >= 8


def test_patches_are_flipped_one_by_one_within_their_cells() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 255, 255), dtype=np.uint8))
    augment = ImageAugment(
        crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), brightness=0, contrast=0, saturation=0, hue=0, jigsaw=True
    )
    raw = raw_image("image", image, ImageViewConfig(), augment, np.random.default_rng(2))
    assert raw.color_params is not None
    flips = raw.color_params[:, 0].tolist()
    assert 2 <= sum(flips) <= 7
    patches = ViewMaker(ViewsConfig(), ["image"])(stack_raw_views([{"v": raw}]), CPU)["v"][0]
    off = ImageAugment(**{**vars(augment), "flip_probability": 0.0})
    plain = raw_image("image", image, ImageViewConfig(), off, np.random.default_rng(2))
    straight = ViewMaker(ViewsConfig(), ["image"])(stack_raw_views([{"v": plain}]), CPU)["v"][0]
    for patch, original, flip in zip(patches, straight, flips, strict=True):
        assert torch.equal(patch, original.flip(-1) if flip else original)


def test_the_deterministic_jigsaw_of_an_image_has_no_randomness() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 300, 291), dtype=np.uint8))
    raw = raw_image("image", image, ImageViewConfig(), published_sets()["pirl_jigsaw"], None)
    assert raw.color_params is None
    assert raw.media.shape == (9, 1, 3, 64, 64)
    side = image[..., 22 : 22 + 255, 18 : 18 + 255]  # 0.875 of 291 is 255: cut, not resized
    size = jigsaw_size(224)
    assert torch.equal(raw.media, cut_patches(side, Jigsaw([(10, 10)] * 9, list(range(9))), size))
