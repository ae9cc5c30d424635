"""Random parameters of an image: the published numbers, ranges, independence; and the augmentation sets by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from avssl import config, help_text
from avssl.config import ConfigError, RunConfig, parse
from avssl.transforms.color_augment import JITTER_ORDERS, ColorParams
from avssl.transforms.config import ViewsConfig, check_views, image_augment
from avssl.transforms.crop import Box
from avssl.transforms.image_augment import ImageAugment
from avssl.transforms.jigsaw import jigsaw_size
from avssl.transforms.published_sets import published_sets
from avssl.transforms.raw_view import ViewParams, draw_view_params
from avssl.types import View
from tests.conftest import ROOT

SIMCLR = str(ROOT / "recipes/configs/simclr.yaml")
SIDE = 1000  # large, so that rounding the crop to pixels does not show


class Published(NamedTuple):
    """A row of the papers: crop, strengths of brightness, contrast, saturation and hue, then probabilities."""

    crop: tuple[float, float] = (0.08, 1.0)
    strengths: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.4)
    jitter: float = 1.0
    gray: float = 0.2
    blur: float = 0.0
    solarize: float = 0.0
    photometric: float = 0.0


PAPERS = {
    "npid": Published(crop=(0.2, 1)),
    "moco_v1": Published(crop=(0.2, 1)),
    "moco_v2": Published((0.2, 1), (0.4, 0.4, 0.4, 0.1), jitter=0.8, blur=0.5),
    "moco_v3_first": Published((0.2, 1), (0.4, 0.4, 0.2, 0.1), jitter=0.8, blur=1.0),
    "moco_v3_second": Published((0.2, 1), (0.4, 0.4, 0.2, 0.1), jitter=0.8, blur=0.1, solarize=0.2),
    "simclr": Published((0.08, 1), (0.8, 0.8, 0.8, 0.2), jitter=0.8, blur=0.5),
    "byol_first": Published((0.08, 1), (0.4, 0.4, 0.2, 0.1), jitter=0.8, blur=1.0),
    "byol_second": Published((0.08, 1), (0.4, 0.4, 0.2, 0.1), jitter=0.8, blur=0.1, solarize=0.2),
    "swav_large": Published((0.14, 1), (0.8, 0.8, 0.8, 0.2), jitter=0.8, blur=0.5),
    "swav_small": Published((0.05, 0.14), (0.8, 0.8, 0.8, 0.2), jitter=0.8, blur=0.5),
    "dino_first": Published((0.4, 1.0), (0.4, 0.4, 0.2, 0.1), jitter=0.8, blur=1.0),
    "dino_second": Published((0.4, 1.0), (0.4, 0.4, 0.2, 0.1), jitter=0.8, blur=0.1, solarize=0.2),
    "dino_small": Published((0.05, 0.4), (0.4, 0.4, 0.2, 0.1), jitter=0.8, blur=0.5),
    "swav_two_crops": Published((0.08, 1), (0.8, 0.8, 0.8, 0.2), jitter=0.8, blur=0.5),
    "pirl": Published((0.08, 1), (0.4, 0.4, 0.4, 0.2), photometric=0.66),
    "pirl_jigsaw": Published((0.6, 1), (0.4, 0.4, 0.4, 0.2), photometric=0.66),
    "deepcluster": Published(strengths=(0, 0, 0, 0), jitter=0.0, gray=0.0),
    "sela": Published(),
    "rho": Published((0.2, 0.766), (0.6, 0.6, 0.6, 0.15), jitter=0.8, blur=0.5),
}


def draw(augment: ImageAugment, count: int, **options: Any) -> list[ViewParams]:
    return [draw_view_params(np.random.default_rng((7, seed)), SIDE, SIDE, augment, **options) for seed in range(count)]


def test_every_set_is_checked_here_and_only_small_crops_and_jigsaws_differ_in_form() -> None:
    sets = published_sets()
    assert sets.keys() == PAPERS.keys()
    assert [name for name, augment in sets.items() if augment.small] == ["swav_small", "dino_small"]
    assert [name for name, augment in sets.items() if augment.jigsaw] == ["pirl_jigsaw"]


@pytest.mark.quick(5)
@pytest.mark.parametrize("name", PAPERS)
def test_a_named_set_draws_the_published_distribution(name: str) -> None:
    paper, augment = PAPERS[name], published_sets()[name]
    count = 1500
    drawn = draw(augment, count)
    params = ColorParams(*np.array([each.color_params[0] for each in drawn]).T)
    area = np.array([each.box.height * each.box.width for each in drawn]) / SIDE**2
    low, high = paper.crop
    assert low - 0.002 < area.min() < low + 0.05
    # Large crops with an extreme aspect do not fit and are drawn again, so the upper end is thinner than uniform.
    assert high - 0.05 < area.max() < high + 0.002
    aspect = np.array([each.box.width / each.box.height for each in drawn])
    assert 0.74 < aspect.min() < 0.78
    assert 1.28 < aspect.max() < 1.35
    factors = np.stack([params.brightness, params.contrast, params.saturation, params.hue])
    jittered = (factors != np.array([[1], [1], [1], [0]])).any(axis=0)
    for values, strength, middle in zip(factors, paper.strengths, (1, 1, 1, 0), strict=True):
        np.testing.assert_allclose([values.min(), values.max()], [middle - strength, middle + strength], atol=0.02)
    frequencies = {
        "flip": (params.flip, 0.5),
        "jitter": (jittered, paper.jitter),
        "gray": (params.gray, paper.gray),
        "blur": (params.blur_sigma_px > 0, paper.blur),
        "solarize": (params.solarize, paper.solarize),
        "photometric": (params.photometric, paper.photometric),
    }
    for what, (happened, probability) in frequencies.items():
        tolerance = 4 * np.sqrt(probability * (1 - probability) / count)
        assert np.mean(happened) == pytest.approx(probability, abs=tolerance + 1e-9), what
    if paper.blur:
        sigma = params.blur_sigma_px[params.blur_sigma_px > 0]
        assert 0.1 <= sigma.min() < 0.2
        assert 1.9 < sigma.max() <= 2.0
    if paper.photometric:
        pack = params.photometric > 0
        assert set(params.posterize_bits[pack]) == {4, 5, 6, 7, 8}
        np.testing.assert_allclose(np.quantile(params.sharpness[pack], [0, 0.5, 1]), [0.1, 1.0, 1.9], atol=0.1)
        np.testing.assert_allclose(np.quantile(params.photometric_threshold[pack], [0, 0.5, 1]), [0, 0.5, 1], atol=0.05)


def test_avids_clips_are_drawn_as_before_there_were_other_operations() -> None:
    """Values of the first version, so that a run resumed from it draws the same parameters."""
    drawn = [draw_view_params(np.random.default_rng((5, 2, 7, view)), 256, 340, ImageAugment()) for view in range(2)]
    assert drawn[0].box == Box(top=48, left=103, height=178, width=209)
    assert drawn[1].box == Box(top=39, left=16, height=151, width=199)
    params = drawn[0].color_params[0]
    factors = (0.6743318030218783, 1.3947444938003701, 0.6971087535422322, 0.04717112899374892)
    assert (params.brightness, params.contrast, params.saturation, params.hue) == factors
    assert JITTER_ORDERS[int(params.order)] == (0, 3, 2, 1)
    assert JITTER_ORDERS[int(drawn[1].color_params[0].order)] == (3, 2, 1, 0)
    assert params.flip == 1
    assert params[6:] == (0, 8, 1, 256 / 255, 0, 0, 0)


def test_the_order_of_the_jitter_is_uniform_and_a_strength_above_one_stops_at_zero() -> None:
    augment = ImageAugment(brightness=0.4, contrast=2.0, saturation=0.0, hue=0.1, flip_probability=0.25)
    params = ColorParams(*np.array([each.color_params[0] for each in draw(augment, 3000)]).T)
    factors = np.stack([params.brightness, params.contrast, params.saturation, params.hue])
    np.testing.assert_allclose(factors.min(axis=1), [0.6, 0.0, 1.0, -0.1], atol=0.01)
    np.testing.assert_allclose(factors.max(axis=1), [1.4, 3.0, 1.0, 0.1], atol=0.01)
    assert params.flip.mean() == pytest.approx(0.25, abs=0.03)
    orders, counts = np.unique(params.order, return_counts=True)
    assert orders.tolist() == list(range(24))
    assert counts.min() > 80


def test_blur_is_scaled_to_the_size_of_the_images() -> None:
    augment = ImageAugment(blur_probability=1)
    for full, half in zip(draw(augment, 20, size_px=224), draw(augment, 20, size_px=112), strict=True):
        assert half.color_params[0].blur_sigma_px == pytest.approx(full.color_params[0].blur_sigma_px / 2)


def test_patches_of_a_jigsaw_are_drawn_independently_of_each_other() -> None:
    drawn = draw(published_sets()["pirl_jigsaw"], 400, jigsaw_size=jigsaw_size(224))
    params = np.array([each.color_params for each in drawn])  # (400, 9, fields)
    for field in ("flip", "brightness", "hue", "gray", "photometric"):
        column = params[:, :, ColorParams._fields.index(field)]
        correlation = np.corrcoef(column.T) - np.eye(9)
        assert np.abs(correlation).max() < 0.25, field
        np.testing.assert_allclose(column.mean(axis=0), column.mean(), atol=0.13, err_msg=field)
    for each in drawn:
        assert each.jigsaw is not None
        assert sorted(each.jigsaw.permutation) == list(range(9))
        assert all(0 <= value <= 21 for offset in each.jigsaw.offsets for value in offset)
    cells = np.array([each.jigsaw.permutation for each in drawn if each.jigsaw is not None])
    counts = np.stack([np.bincount(column, minlength=9) for column in cells.T])
    assert counts.min() > 20  # 400 / 9 = 44 of each cell at each position
    assert counts.max() < 75


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grayscale_probability": 1.5}, "grayscale_probability must be in [0, 1], got 1.5"),
        ({"color_jitter_probability": -0.1}, "color_jitter_probability must be in [0, 1]"),
        ({"blur_sigma_px": (0, 2)}, "blur_sigma_px must be 0 < low <= high"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale must be 0 < low <= high <= 1"),
    ],
)
def test_an_impossible_set_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as error:
        ImageAugment(**options)
    assert words in str(error.value)


def test_a_yaml_changes_a_published_set_and_adds_one_of_its_own(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "mine.yaml").write_text(
        "views: {augments: {mine: {hue: 0.05, crop_scale: [0.5, 1.0]}, byol_first: {small: true}}}"
    )
    changes = ["views.augments.simclr.blur_probability=0"]
    augments = parse(RunConfig, [SIMCLR, str(tmp_path / "mine.yaml"), *changes]).views.augments
    published = published_sets()
    assert augments["mine"] == ImageAugment(hue=0.05, crop_scale=(0.5, 1.0))
    assert augments["simclr"].blur_probability == 0
    assert augments["simclr"].brightness == 0.8
    assert augments["byol_first"].small
    untouched = published.keys() - {"simclr", "byol_first"}
    assert {name: augments[name] for name in untouched} == {name: published[name] for name in untouched}


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("views.augments.simclr.blur_probability=2", r"blur_probability must be in \[0, 1\], got 2"),
        ("views.augments.simclr.blur_probabilty=1", r"Did you mean one of: 'blur_probability'"),
        ("views.augments.mine.gray=1", r"'gray' not in"),
        ("views.image.size_px=0", "size_px must be at least 1, got 0"),
        ("views.image.small_size_px=-1", "small_size_px must be at least 1, got -1"),
    ],
)
def test_a_mistake_in_a_set_is_refused_with_what_to_do(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(RunConfig, [SIMCLR, change])


def test_a_run_with_a_set_of_its_own_reads_back_equal(tmp_path) -> None:  # type: ignore[no-untyped-def]
    cfg = parse(RunConfig, [SIMCLR, "views.augments.mine.small=true", "run=x"])
    config.save(cfg, tmp_path / "config.yaml")
    assert config.load_run(tmp_path) == cfg


def test_help_names_the_sets_without_their_values() -> None:
    line = next(line for line in help_text.describe(RunConfig).splitlines() if line.startswith("  augments:"))
    assert all(name in line for name in published_sets())
    assert "ImageAugment(" not in line
    assert len(line) < 300


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (
            View("first", "image", "simcrl"),
            r"view 'first' asks .* 'simcrl'\. Did you mean 'simclr'\? Allowed: test, npid",
        ),
        (View("a", "image", "train"), r"'train'\..*Allowed: test, npid, .*rho$"),
        (View("v", "video", "jigsaw"), r"'jigsaw'.*Did you mean 'pirl_jigsaw'\? Allowed: train, test, npid"),
        (View("s", "audio", "simclr"), "Allowed: train, test, jigsaw"),
    ],
)
def test_an_unknown_set_is_refused_with_the_allowed_ones(view: View, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_views([View("fine", "audio", "train"), view], ViewsConfig())


def test_a_view_takes_the_set_that_it_names() -> None:
    views = ViewsConfig()
    views.video.augment = ImageAugment(hue=0.33)
    views.augments["mine"] = ImageAugment(hue=0.11)
    assert image_augment(View("v", "video", "train"), views) == views.video.augment
    assert image_augment(View("v", "video", "mine"), views) == views.augments["mine"]
    assert image_augment(View("i", "image", "mine"), views) == views.augments["mine"]
    assert image_augment(View("i", "image", "test"), views) is None


def test_images_too_small_for_a_jigsaw_are_refused_before_any_are_read() -> None:
    views = ViewsConfig()
    views.image.size_px = 2
    with pytest.raises(ValueError, match="a jigsaw of images of 2 px has no patches"):
        check_views([View("j", "image", "pirl_jigsaw")], views)
    check_views([View("i", "image", "pirl")], views)


def test_equal_seeds_give_equal_draws_and_different_ones_differ() -> None:
    augment = published_sets()["simclr"]
    make: Callable[[int], ViewParams] = lambda seed: draw_view_params(  # noqa: E731
        np.random.default_rng(seed), SIDE, SIDE, augment
    )
    assert make(1) == make(1)
    assert make(1) != make(2)
