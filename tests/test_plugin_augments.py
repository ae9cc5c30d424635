"""Augments of the user's own: in workers, their draws, and results that are wrong."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch

from avssl.data.loader import Loader, LoaderConfig
from avssl.plugins import required
from avssl.plugins.files import PluginError
from avssl.processes.worker_server import worker_context
from avssl.shards.shard_set import ShardSet
from avssl.transforms import register_augment
from avssl.transforms.config import ImageViewConfig, ViewsConfig, check_views
from avssl.transforms.image_augment import ImageAugment
from avssl.transforms.own import apply_augment
from avssl.transforms.view_maker import ViewMaker
from avssl.types import View
from tests.made_plugins import AUGMENT, written

pytestmark = pytest.mark.usefixtures("own_registries")


DOTTED_AND_PLAIN = (View("first", "image", "dotted"), View("second", "image", "test"))


def loader_of(shards, num_workers, views=DOTTED_AND_PLAIN):
    sizes = ViewsConfig(image=ImageViewConfig(size_px=24))
    options = LoaderConfig(global_batch_size=4, num_workers=num_workers, order_lanes=1)
    maker = ViewMaker(sizes, ["image"])
    return Loader(ShardSet(shards), options, views, maker, seed=3, device=torch.device("cpu"))


def test_workers_know_an_augment_even_if_their_server_runs_longer(image_shards, tmp_path):
    worker_context()  # the server of this process is there before the plugin
    path = written(tmp_path, "dots.py", AUGMENT)
    required.use([path])
    here = [batch.views for batch in loader_of(image_shards, 0).epoch(0)]
    path.unlink()  # they have the content that ran
    loader = loader_of(image_shards, 1)
    there = [batch.views for batch in loader.epoch(0)]
    loader.close()
    assert len(here) == len(there) == 3
    for one, other in zip(here, there, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert not torch.equal(one["first"], one["second"])
        # The views are of the same frames, and the augmented ones have a dot, which the crop may cut off.
        assert ((one["first"] - one["second"]).abs() > 1e-6).flatten(1).any(dim=1).sum() >= 2


def test_an_augment_that_fails_in_a_worker_is_one_line_with_its_place(image_shards, tmp_path):
    path = written(tmp_path, "dots.py", AUGMENT.replace("frames[..., row, column] =", "frames[..., 1000, column] ="))
    required.use([path])
    for num_workers in (0, 1):
        loader = loader_of(image_shards, num_workers)
        with pytest.raises(PluginError) as error:
            next(iter(loader.epoch(0)))
        loader.close()
        assert re.match(rf"the augment 'dotted' on the image .*{path}, line 8: IndexError: ", str(error.value))
        assert "\n" not in str(error.value)


def test_draws_of_an_augment_depend_on_its_generator_alone_and_disturb_no_other():
    drawn = []

    @register_augment("drawing", "image")
    def drawing(frames, generator):
        drawn.append((random.random(), np.random.rand(), float(torch.rand(())), float(generator.random())))
        return frames

    frames = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    for seed in (0, 0, 1):
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        apply_augment("drawing", "image", frames, np.random.default_rng(seed), "key")
        assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected
    assert drawn[0] == drawn[1]
    assert all(one != other for one, other in zip(drawn[0], drawn[2], strict=True))


def test_an_operation_leaves_the_other_draws_of_its_set_as_they_are(image_shards):
    @register_augment("nothing", "image")
    def nothing(frames, generator):
        generator.random(100), torch.rand(100)
        return frames

    view = (View("first", "image", "simclr"),)
    plain, changed = loader_of(image_shards, 0, view), loader_of(image_shards, 0, view)
    changed.view_maker.config.augments["simclr"] = ImageAugment(
        **{**vars(plain.view_maker.config.augments["simclr"]), "operation": "nothing"}
    )
    one, other = (next(iter(loader.epoch(1))).views["first"] for loader in (plain, changed))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("function", "modality", "words"),
    [
        (lambda media, generator: None, "image", r"gave NoneType; it must give torch.uint8 \(1, 3, height, width\)"),
        (lambda media, generator: media.float(), "image", r"gave torch.float32 \(1, 3, 4, 5\)"),
        (lambda media, generator: media[0], "image", r"gave torch.uint8 \(3, 4, 5\)"),
        (lambda media, generator: media[..., :0], "image", r"\(1, 3, 4, 0\)"),
        (lambda media, generator: media[:, :4], "audio", r"must give torch.float32 \(1, 7\)"),
        (lambda media, generator: media / 0, "audio", "not finite"),
        (lambda media: media, "audio", "TypeError"),
    ],
)
def test_a_wrong_result_of_an_augment_is_explained(function, modality, words):
    register_augment("wrong", "image", "audio")(function)
    media = torch.zeros(1, 3, 4, 5, dtype=torch.uint8) if modality == "image" else torch.zeros(1, 7)
    with pytest.raises(PluginError, match=words):
        apply_augment("wrong", modality, media, np.random.default_rng(0), "key")


def test_an_augment_of_audio_sees_silence_where_a_stream_has_ended_and_the_mark_stays():
    seen = []

    @register_augment("louder", "audio")
    def louder(waveform, generator):
        seen.append(waveform.clone())
        return waveform + 1

    waveform = torch.tensor([[0.5, -0.5, torch.nan, torch.nan]])
    result = apply_augment("louder", "audio", waveform, np.random.default_rng(0), "key")
    assert seen[0].tolist() == [[0.5, -0.5, 0.0, 0.0]]
    assert result[0, :2].tolist() == [1.5, 0.5]
    assert result[0, 2:].isnan().all()


def test_views_that_name_no_augment_of_their_modality_are_refused():
    register_augment("for_images", "image")(lambda frames, generator: frames)
    views = ViewsConfig()
    check_views([View("v", "image", "for_images")], views)
    for view, words in (
        (View("v", "audio", "for_images"), "is for image, not for audio"),
        (View("v", "video", "for_imagse"), "Did you mean 'for_images'"),
        (View("v", "audio", "hizz"), "Allowed: train, test, jigsaw, for_images"),
    ):
        with pytest.raises(ValueError, match=words):
            check_views([view], views)
    views.augments["for_images"] = ImageAugment()
    with pytest.raises(ValueError, match=r"both a set of views\.augments and an augment of your own"):
        check_views([View("v", "image", "for_images")], views)
    with pytest.raises(ValueError, match="for no modality"):
        register_augment("for_nothing")
    with pytest.raises(ValueError, match="for smell"):
        register_augment("for_noses", "smell")
