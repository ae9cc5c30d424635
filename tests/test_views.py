"""Views of every modality: what is decoded, what is shared, and that views do not depend on batch or workers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as oracle

from avssl.data import read_views
from avssl.data.batch import stack_raw_views
from avssl.data.loader import Loader
from avssl.data.loader_config import LoaderConfig
from avssl.data.read_views import raw_views
from avssl.shards.format import SampleInfo
from avssl.shards.shard_set import Sample, ShardSet
from avssl.transforms.audio import AudioAugment
from avssl.transforms.config import AudioViewConfig, ImageViewConfig, VideoViewConfig, ViewsConfig
from avssl.transforms.raw_view import RawView
from avssl.transforms.view_maker import ViewMaker
from avssl.types import MediaError, View
from tests.conftest import RESIZE_LEVELS

CPU = torch.device("cpu")
SMALL_AUDIO = {"seconds": 0.5, "window_samples": 256, "hop_samples": 480, "num_frames": 25}
CONFIG = ViewsConfig(
    video=VideoViewConfig(num_frames=4, size_px=24, small_size_px=12),
    audio=AudioViewConfig(**SMALL_AUDIO),  # type: ignore[arg-type]
    image=ImageViewConfig(size_px=32, small_size_px=16),
)
MULTI_CROP = (
    *(View(f"large_{k}", "image", "swav_large", clip=k) for k in range(2)),
    *(View(f"small_{k}", "image", "swav_small") for k in range(3)),
)


class Pictures:
    """Twelve PNG images of different sizes in memory, in place of a shard folder; workers get a copy."""

    num_samples = 12
    shard_sizes = (7, 5)
    weights = None

    def __init__(self) -> None:
        self.num_reads = 0

    def __len__(self) -> int:
        return self.num_samples

    def pixels(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3)."""
        generator = np.random.default_rng(index)
        coarse = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((60 + index, 50), Image.Resampling.BICUBIC))

    def read(self, index: int) -> Sample:
        """As ShardSet.read."""
        self.num_reads += 1
        content = io.BytesIO()
        Image.fromarray(self.pixels(index)).save(content, "png")
        info = SampleInfo(index, str(index), 0.0, 0.0, 0, 0.0, 0, 0, {}, {}, 50, 60 + index)
        return Sample(info, None, None, content.getvalue())


def make_loader(shards: object, view_list: tuple[View, ...], config: ViewsConfig = CONFIG, **options: int) -> Loader:
    maker = ViewMaker(config, sorted({view.modality for view in view_list}))
    settings = LoaderConfig(**({"global_batch_size": 4, "num_workers": 0} | options))
    return Loader(shards, settings, view_list, maker, seed=1, device=CPU)  # type: ignore[arg-type]


def by_index(loader: Loader, epoch: int) -> dict[tuple[int, str], torch.Tensor]:
    """{(sample, view name): view} of an epoch."""
    return {
        (int(index), name): view[row]
        for batch in loader.epoch(epoch)
        for name, view in batch.views.items()
        for row, index in enumerate(batch.index)
    }


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modality of everything that is decoded, in order."""
    calls: list[str] = []
    for name, modality in (("read_video", "video"), ("read_audio", "audio"), ("read_image", "image")):
        original = getattr(read_views, name)

        def spy(*arguments: object, original=original, modality=modality, **options: object):  # type: ignore[no-untyped-def]
            calls.append(modality)
            return original(*arguments, **options)

        monkeypatch.setattr(read_views, name, spy)
    return calls


def test_multi_crop_views_have_their_sizes_and_cost_one_decoding(decoded: list[str]) -> None:
    raw = raw_views(Pictures(), 3, MULTI_CROP, CONFIG, seed=0, epoch=0)  # type: ignore[arg-type]
    assert decoded == ["image"]  # for any clip numbers: an image has no time
    assert {name: tuple(view.media.shape) for name, view in raw.items()} == {
        **{f"large_{k}": (1, 3, 32, 32) for k in range(2)},
        **{f"small_{k}": (1, 3, 16, 16) for k in range(3)},
    }
    assert all(view.media.dtype == torch.uint8 for view in raw.values())
    batch = next(make_loader(Pictures(), MULTI_CROP).epoch(0))
    assert batch.views["large_1"].shape == (4, 3, 32, 32)
    assert batch.views["small_2"].shape == (4, 3, 16, 16)
    assert batch.views["large_0"].dtype == torch.float32


def test_the_views_of_a_sample_are_drawn_independently() -> None:
    raw = raw_views(Pictures(), 3, MULTI_CROP, CONFIG, seed=0, epoch=0)  # type: ignore[arg-type]
    assert not torch.equal(raw["large_0"].media, raw["large_1"].media)
    color_params = torch.stack([view.color_params for view in raw.values() if view.color_params is not None])
    assert len(torch.unique(color_params[:, :6], dim=0)) == 5
    again = raw_views(Pictures(), 3, MULTI_CROP[::-1], CONFIG, seed=0, epoch=0)  # type: ignore[arg-type]
    for name, view in raw.items():  # neither the other views nor their order matter
        assert torch.equal(view.media, again[name].media)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"num_workers": 2}, {"global_batch_size": 12}, {"order_lanes": 2}])
def test_images_do_not_depend_on_the_batch_the_workers_or_the_lanes(options: dict[str, int]) -> None:
    view_list = (*MULTI_CROP, View("jigsaw", "image", "pirl_jigsaw"))
    expected = by_index(make_loader(Pictures(), view_list), 2)
    other = by_index(make_loader(Pictures(), view_list, **options), 2)
    common = expected.keys() & other.keys()
    assert len(common) >= 8 * 6
    for key in common:
        torch.testing.assert_close(expected[key], other[key], atol=1e-5, rtol=0)


def test_the_deterministic_image_is_the_normalized_central_crop() -> None:
    loader = make_loader(Pictures(), (View("plain", "image", "test"), View("first", "image", "simclr")))
    for batch in loader.every_sample_once():
        for row, index in enumerate(batch.index.tolist()):
            image = torch.from_numpy(Pictures().pixels(index).copy()).permute(2, 0, 1)
            left = (60 + index - 44) // 2
            crop = oracle.resized_crop(image, 3, left, 44, 44, size=[32, 32], antialias=True)
            expected = oracle.normalize(crop / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            bound = 1e-5 + RESIZE_LEVELS / 255 / 0.224
            torch.testing.assert_close(batch.views["plain"][row], expected, atol=bound, rtol=0)
            torch.testing.assert_close(batch.views["first"][row], expected, atol=bound, rtol=0)


def test_a_sample_without_an_image_fails_by_name(shards: dict[str, Path]) -> None:
    with pytest.raises(MediaError, match=r"no_image: sample \S+ has no image"):
        raw_views(ShardSet(shards["train"]), 0, [View("i", "image", "test")], CONFIG, 0, 0)
    with pytest.raises(MediaError, match="no_video: sample 0 has no video"):
        raw_views(Pictures(), 0, [View("v", "video")], CONFIG, 0, 0)  # type: ignore[arg-type]


def test_an_unknown_set_is_refused_when_the_loader_is_built_before_anything_is_read() -> None:
    images = Pictures()
    with pytest.raises(ValueError, match="Did you mean 'simclr'"):
        make_loader(images, (View("first", "image", "simcrl"),))
    assert images.num_reads == 0


def test_equal_clip_numbers_share_seconds_and_others_draw_their_own(
    shards: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[tuple[float, float]] = []
    original = read_views.read_clip

    def spy(*arguments, **options):  # type: ignore[no-untyped-def]
        clip = original(*arguments, **options)
        starts.append((clip.video_start_seconds, clip.audio_start_seconds))
        return clip

    monkeypatch.setattr(read_views, "read_clip", spy)
    opened = ShardSet(shards["train"])
    pair = [View("v", "video"), View("a", "audio")]
    for index in range(6):
        alone = raw_views(opened, index, pair, CONFIG, seed=4, epoch=1)
        more = [*pair, View("v2", "video", clip=2), View("again", "video"), View("a2", "audio", clip=2)]
        together = raw_views(opened, index, more, CONFIG, seed=4, epoch=1)
        for name, view in alone.items():  # clip 0 is as if there were no other
            assert torch.equal(view.media, together[name].media)
    first, second, third = np.array(starts[0::3]), np.array(starts[1::3]), np.array(starts[2::3])
    np.testing.assert_array_equal(first, second)
    assert len(starts) == 18  # one decoding for clip 0 alone, one each for clips 0 and 2 together
    assert (np.abs(third - first) > 1e-3).any(axis=1).all()
    assert len(np.unique(third[:, 0])) > 3


def test_a_clip_number_decodes_only_what_its_views_need(shards: dict[str, Path], decoded: list[str]) -> None:
    view_list = [View("v", "video"), View("a", "audio", clip=1), View("a2", "audio", clip=1)]
    raw_views(ShardSet(shards["train"]), 0, view_list, CONFIG, seed=0, epoch=0)
    assert decoded == ["video", "audio"]
    decoded.clear()
    raw_views(ShardSet(shards["train"]), 0, view_list, CONFIG, seed=0, epoch=-1)
    assert decoded == ["video", "audio"]  # evaluation reads one pair of clips, whatever the numbers


def test_video_takes_the_sets_of_images_with_the_same_colors_in_all_frames(shards: dict[str, Path]) -> None:
    view_list = (
        View("own", "video"),
        View("simclr", "video", "simclr"),
        View("small", "video", "swav_small", clip=1),
        View("jigsaw", "video", "pirl_jigsaw"),
    )
    batch = next(make_loader(shards_of(shards), view_list).epoch(0))
    assert {name: tuple(view.shape) for name, view in batch.views.items()} == {
        "own": (4, 3, 4, 24, 24),
        "simclr": (4, 3, 4, 24, 24),
        "small": (4, 3, 4, 12, 12),
        "jigsaw": (4, 9, 3, 4, 7, 7),
    }
    assert all(view.is_contiguous() for view in batch.views.values())


def shards_of(shards: dict[str, Path]) -> ShardSet:
    return ShardSet(shards["train"])


def test_the_jigsaw_of_audio_is_its_tiles_permuted(shards: dict[str, Path]) -> None:
    opened = shards_of(shards)
    maker = ViewMaker(CONFIG, ["audio"])
    rows = [raw_views(opened, index, [View("a", "audio", "jigsaw")], CONFIG, 0, 3) for index in range(4)]
    raw = stack_raw_views(rows)["a"]
    assert raw.tiles is not None
    tiles = maker({"a": raw}, CPU)["a"]
    assert tiles.shape == (4, 9, 1, 8, 21)  # of 25 frames and 65 bins
    whole = maker({"a": RawView("audio", raw.media, audio_params=raw.audio_params)}, CPU)["a"]
    for sample in range(4):
        order = raw.tiles[sample].tolist()
        assert sorted(order) == list(range(9))
        for place, tile in enumerate(order):
            row, column = divmod(tile, 3)
            expected = whole[sample, :, 8 * row : 8 * row + 8, 1 + 21 * column : 22 + 21 * column]
            assert torch.equal(tiles[sample, place], expected)
    assert len({tuple(order) for order in raw.tiles.tolist()}) == 4
    still = raw_views(opened, 0, [View("a", "audio", "jigsaw")], CONFIG, 0, -1)["a"]
    assert still.tiles is not None
    assert still.tiles.tolist() == list(range(9))


def byol_a() -> ViewsConfig:
    augment = AudioAugment(
        time_shift_seconds=0.1,
        mixup_ratio=0.4,
        crop_canvas=1.5,
        crop_time_scale=(0.6, 1.5),
        crop_frequency_scale=(0.6, 1.5),
    )
    return ViewsConfig(audio=AudioViewConfig(**SMALL_AUDIO, augment=augment))  # type: ignore[arg-type]


SOUNDS = (View("first", "audio"), View("second", "audio", clip=1))


@pytest.mark.quick(1)
@pytest.mark.parametrize("options", [{"num_workers": 2}, {"global_batch_size": 18}])
def test_augmented_audio_does_not_depend_on_the_batch_or_the_workers(
    shards: dict[str, Path], options: dict[str, int]
) -> None:
    expected = by_index(make_loader(shards_of(shards), SOUNDS, byol_a()), 0)
    other = by_index(make_loader(shards_of(shards), SOUNDS, byol_a(), **options), 0)
    common = expected.keys() & other.keys()
    assert len(common) >= 14 * 2
    for key in common:
        torch.testing.assert_close(expected[key], other[key], atol=1e-3, rtol=0)


def test_augmented_audio_is_shift_volume_mixup_and_crop_in_this_order(shards: dict[str, Path]) -> None:
    from avssl.transforms.audio import AudioParams, crop_spectrogram, mix_power, scale_volume, shift_time

    config = byol_a()
    maker = ViewMaker(config, ["audio"])
    raw = stack_raw_views([raw_views(shards_of(shards), index, SOUNDS, config, 0, 0) for index in range(3)])["first"]
    assert raw.audio_params is not None
    assert raw.background is not None
    assert raw.background.shape == raw.media.shape
    params = AudioParams(*raw.audio_params.unbind(1))
    waveform = scale_volume(shift_time(raw.media, params.shift_samples), params.volume)
    mixed = mix_power(maker.spectrogram(waveform), maker.spectrogram(raw.background), params.mixup_ratio)
    expected = crop_spectrogram(maker.normalize_audio(mixed), params)
    torch.testing.assert_close(maker({"first": raw}, CPU)["first"], expected)
    assert (expected - maker.spectrogram(raw.media)).abs().mean() > 1


def test_the_background_is_another_sample_that_the_samples_own_generator_chooses(
    shards: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, read = shards_of(shards), []
    original = ShardSet.read
    monkeypatch.setattr(ShardSet, "read", lambda self, index: read.append(index) or original(self, index))
    chosen = []
    for index in range(18):
        raw_views(opened, index, SOUNDS, byol_a(), seed=0, epoch=0)
        own, *others = read
        assert own == index
        assert index not in others
        chosen.append(tuple(others))
        read.clear()
    assert len({other for others in chosen for other in others}) > 10
    assert sum(first != second for first, second in chosen) > 12  # two views draw two backgrounds
    raw_views(opened, 0, SOUNDS, byol_a(), seed=0, epoch=-1)
    assert read == [0]  # nothing is mixed into deterministic views


def test_a_background_that_cannot_be_read_is_named_with_the_sample_it_was_for(
    shards: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = shards_of(shards)
    original = ShardSet.read

    def read(self: ShardSet, index: int) -> Sample:
        if index != 5:
            raise MediaError("truncated", f"sample {index} was broken for this test")
        return original(self, index)

    monkeypatch.setattr(ShardSet, "read", read)
    with pytest.raises(MediaError, match=r"truncated: to be mixed into sample 5: sample \d+ was broken"):
        raw_views(opened, 5, SOUNDS, byol_a(), seed=0, epoch=0)


def test_the_worked_yaml_of_byol_a_gives_its_input(tmp_path: Path, shards: dict[str, Path]) -> None:
    """The YAML in the docstring: 64 mel bins of 96 frames."""
    from avssl import config
    from avssl.transforms import audio

    text = (audio.__doc__ or "").split("as YAML")[1].split("\n\n", maxsplit=1)[1]
    (tmp_path / "byol_a.yaml").write_text(text)
    made = config.parse(config.RunConfig, [str(tmp_path / "byol_a.yaml")]).views
    assert made.audio.augment.mixup_ratio == 0.4
    batch = next(make_loader(shards_of(shards), SOUNDS, made).epoch(0))
    assert batch.views["first"].shape == (4, 1, 96, 64)
    assert batch.views["first"].isfinite().all()


def test_all_that_a_worker_sends_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(tuple(self.shape)) or self.clone())
    view = RawView("audio", torch.zeros(2, 1, 8), audio_params=torch.zeros(2, 7), background=torch.ones(2, 1, 8))
    copy = view.pin_memory()
    assert pinned == [(2, 1, 8), (2, 7), (2, 1, 8)]
    assert copy.color_params is None
    assert copy.background is not view.background
