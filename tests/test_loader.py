"""The loader: order, workers, resume in the middle of an epoch, and the accounting of unreadable samples."""

import gc
import logging
import weakref

import numpy as np
import pytest
import torch

from avssl.data import loader as loader_module
from avssl.data.loader import Loader
from avssl.data.loader_config import LoaderConfig
from avssl.data.statistics import measure_statistics
from avssl.processes.timeouts import start_loader
from avssl.shards.shard_set import ShardSet
from avssl.transforms.config import AudioViewConfig, VideoViewConfig, ViewsConfig
from avssl.transforms.view_maker import ViewMaker
from avssl.types import MediaError, View

VIEWS = (View("video", "video"), View("audio", "audio"))
CONFIG = ViewsConfig(
    video=VideoViewConfig(num_frames=4, size_px=24),
    audio=AudioViewConfig(seconds=0.5, window_samples=256, hop_samples=480, num_frames=25),
)


def make_loader(folder, seed=0, views=VIEWS, **options):
    options = {"global_batch_size": 4, "num_workers": 0} | options
    maker = ViewMaker(CONFIG, ["audio", "video"])
    return Loader(ShardSet(folder), LoaderConfig(**options), views, maker, seed=seed, device=torch.device("cpu"))


def batches_equal(left, right):
    assert torch.equal(left.index, right.index)
    for name, view in left.views.items():
        assert torch.equal(view, right.views[name]), name


def test_batches_have_the_shapes_that_models_read(shards):
    loader = make_loader(shards["train"])
    batches = list(loader.epoch(0))
    assert len(batches) == loader.steps_per_epoch == 18 // 4
    assert batches[0].views["video"].shape == (4, 3, 4, 24, 24)
    assert batches[0].views["audio"].shape == (4, 1, 25, 65)
    seen = torch.cat([batch.index for batch in batches])
    assert len(set(seen.tolist())) == 16


def test_batches_do_not_depend_on_the_number_of_workers(shards):
    alone = list(make_loader(shards["train"]).epoch(3))
    for left, right in zip(alone, make_loader(shards["train"], num_workers=2).epoch(3), strict=True):
        batches_equal(left, right)


def test_views_made_in_workers_are_those_made_in_the_training_process(shards, monkeypatch):
    """To the bit, with the same strides, which decide what convolutions compute; after measured statistics."""
    loaders = [make_loader(shards["train"], num_workers=1, views_in_workers=is_there) for is_there in (False, True)]
    for loader in loaders:
        measure_statistics(loader.view_maker, loader)
    here = list(loaders[0].epoch(2))
    monkeypatch.setattr(ViewMaker, "video", None)  # nothing is left to make in this process
    there = list(loaders[1].epoch(2))
    for left, right in zip(here, there, strict=True):
        batches_equal(left, right)
        assert {name: view.stride() for name, view in left.views.items()} == {
            name: view.stride() for name, view in right.views.items()
        }


def test_an_epoch_begun_in_the_middle_gives_the_same_batches_without_reading_earlier_ones(shards, monkeypatch):
    straight = list(make_loader(shards["train"]).epoch(1))
    loader = make_loader(shards["train"])
    read = []
    original = ShardSet.read
    monkeypatch.setattr(ShardSet, "read", lambda shards, index: read.append(index) or original(shards, index))
    for left, right in zip(straight[2:], loader.epoch(1, first_batch=2), strict=True):
        batches_equal(left, right)
    assert set(read) == {int(i) for batch in straight[2:] for i in batch.index}


def test_a_start_at_the_end_of_an_epoch_starts_the_workers_once(shards, monkeypatch):
    """As a run does whose newest checkpoint is of the last batch of an epoch."""
    started = []
    monkeypatch.setattr(loader_module, "start_loader", lambda *given: started.append(given) or start_loader(*given))
    loader = make_loader(shards["train"])
    assert list(loader.epoch(0, loader.steps_per_epoch)) == []
    for batch, alone in zip(loader.epoch(1), make_loader(shards["train"]).epoch(1), strict=True):
        batches_equal(batch, alone)
    assert len(started) == 2  # one of them of the other loader


def test_epochs_follow_each_other_as_if_each_were_started_alone(shards):
    loader = make_loader(shards["train"])
    first, second = list(loader.epoch(0)), list(loader.epoch(1))
    for left, right in zip(second, make_loader(shards["train"]).epoch(1), strict=True):
        batches_equal(left, right)
    assert not torch.equal(first[0].index, second[0].index)


def test_augmentation_changes_with_the_epoch_and_the_seed_but_not_with_the_batch(shards):
    def view_of(index, loader, epoch):
        for batch in loader.epoch(epoch):
            for row, i in enumerate(batch.index.tolist()):
                if i == index:
                    return batch.views["video"][row]
        raise AssertionError(f"sample {index} is not in epoch {epoch}")

    common = next(
        i for i in range(18) if all(i in o for o in (make_loader(shards["train"])._order(epoch=e) for e in (0, 1)))
    )
    small = view_of(common, make_loader(shards["train"]), 0)
    assert torch.equal(small, view_of(common, make_loader(shards["train"], global_batch_size=18), 0))
    assert not torch.equal(small, view_of(common, make_loader(shards["train"]), 1))


def test_the_workers_of_a_dropped_loader_end_at_once(shards):
    """If the garbage collector frees the workers' queues first, each worker is waited for in vain."""
    loader = make_loader(shards["train"])
    list(loader.epoch(0))
    gone = weakref.ref(loader)
    gc.disable()
    try:
        del loader
        assert gone() is None
    finally:
        gc.enable()


def test_every_sample_once_is_deterministic_and_complete(shards):
    batches = list(make_loader(shards["train"]).every_sample_once())
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(18))
    for left, right in zip(batches, make_loader(shards["train"], seed=9).every_sample_once(), strict=True):
        batches_equal(left, right)


def break_samples(broken, monkeypatch):
    original = ShardSet.read

    def read(shards, index):
        if index in broken:
            raise MediaError("truncated", f"sample {index} was broken for this test")
        return original(shards, index)

    monkeypatch.setattr(ShardSet, "read", read)


def test_an_unreadable_sample_is_counted_and_named_and_is_never_in_the_batch(shards, monkeypatch, caplog):
    loader = make_loader(shards["train"], max_failure_rate=0.1)
    broken = int(loader._order(epoch=0)[1, 2])
    break_samples({broken}, monkeypatch)
    with caplog.at_level(logging.WARNING, logger="avssl"):
        batches = list(loader.epoch(0))
    assert [batch.failures for batch in batches] == [{}, {"truncated": 1}, {}, {}]
    assert all(broken not in batch.index for batch in batches)
    assert batches[1].index[2] == batches[1].index[1]  # its neighbor is there twice, with its index
    assert torch.equal(batches[1].views["video"][2], batches[1].views["video"][1])
    assert loader.failures == {"truncated": 1}
    assert f"sample {broken} left out: truncated" in caplog.text


def test_a_run_stops_above_the_failure_rate_with_the_reasons(shards, monkeypatch):
    loader = make_loader(shards["train"], max_failure_rate=0.01)  # of at least 200 samples: 2 are allowed
    break_samples(set(loader._order(epoch=0)[:, 0].tolist()), monkeypatch)
    with pytest.raises(
        MediaError, match=r"3 of 12 samples could not be read \(\{'truncated': 3\}\).*avssl prep verify"
    ):
        list(loader.epoch(0))


def test_a_batch_in_which_everything_fails_stops_the_run_at_once(shards, monkeypatch):
    loader = make_loader(shards["train"], max_failure_rate=1.0)
    break_samples(set(range(18)), monkeypatch)
    with pytest.raises(MediaError, match="4 of 4 samples could not be read"):
        next(loader.epoch(0))


def test_evaluation_does_not_shrink_when_a_sample_is_unreadable(shards, monkeypatch):
    loader = make_loader(shards["train"], max_failure_rate=1.0)
    break_samples({5}, monkeypatch)
    with pytest.raises(MediaError, match="none may be missing here"):
        list(loader.every_sample_once())


def test_statistics_standardize_the_corpus_they_were_measured_on(shards):
    loader = make_loader(shards["train"], views=(View("audio", "audio", "test"),))
    measure_statistics(loader.view_maker, loader)
    spectra = torch.cat([batch.views["audio"] for batch in loader.every_sample_once()])
    frames = spectra.flatten(0, 2).double()
    np.testing.assert_allclose(frames.mean(dim=0), np.zeros(65), atol=1e-4)
    np.testing.assert_allclose(frames.std(dim=0, unbiased=False), np.ones(65), atol=1e-3)


def test_an_unsuitable_batch_size_is_refused_with_the_numbers(shards):
    with pytest.raises(ValueError, match="global_batch_size is 64, but the shards hold 18 samples"):
        make_loader(shards["train"], global_batch_size=64)
