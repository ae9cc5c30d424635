"""ShardDataset: the clips of a shard folder for a loop of your own."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

from avssl.data import ShardDataset
from avssl.media.decode import read_audio, read_video
from avssl.shards.shard_set import ShardSet
from avssl.transforms import AudioViewConfig, ImageViewConfig, VideoViewConfig, ViewsConfig
from avssl.types import MediaError

VIEWS = ViewsConfig(
    video=VideoViewConfig(num_frames=4, size_px=24),
    audio=AudioViewConfig(seconds=0.5, num_frames=40),
    image=ImageViewConfig(size_px=24),
)


def test_torch_makes_batches_of_it_with_any_sampler_and_number_of_workers(shards):
    dataset = ShardDataset(shards["train"], views=VIEWS, label_field="label")
    batches = []
    for num_workers in (0, 2):
        sampler = RandomSampler(dataset, generator=torch.Generator().manual_seed(0))
        loader = DataLoader(dataset, batch_size=6, sampler=sampler, num_workers=num_workers)
        batches.append(list(loader))
    assert batches[0][0]["video"].shape == (6, 4, 3, 24, 24)
    assert batches[0][0]["audio"].shape == (6, 1, 12_000)
    assert sorted(torch.cat([batch["index"] for batch in batches[0]]).tolist()) == list(range(18))
    for first, second in zip(*batches, strict=True):
        assert first["key"] == second["key"]
        assert first["label"] == second["label"]
        assert torch.equal(first["video"], second["video"])
        assert torch.equal(first["audio"], second["audio"])


def test_a_seed_an_epoch_and_an_index_give_the_same_clip_and_another_epoch_another(shards):
    dataset, again = (ShardDataset(shards["train"], ("audio",), views=VIEWS, seed=3) for _ in range(2))
    assert all(torch.equal(dataset[number]["audio"], again[number]["audio"]) for number in range(4))
    again.set_epoch(1)
    assert not all(torch.equal(dataset[number]["audio"], again[number]["audio"]) for number in range(4))


def test_without_randomness_the_clip_is_the_middle_of_the_stored_stream(shards):
    item = ShardDataset(shards["test"], views=VIEWS, is_random=False, transform=dict)[0]
    sample = ShardSet(str(shards["test"])).read(0)
    seconds = sample.info.num_audio_samples / sample.info.audio_rate_hz
    start = (seconds - 0.5) / 2
    frame_seconds = 1 / sample.info.video_fps
    times = [round((seconds - 4 / 16) / 2 / frame_seconds) * frame_seconds + k / 16 for k in range(4)]
    audio = read_audio(sample.audio, start, 12_000, 24_000)
    difference = min(
        (item["audio"][:, max(0, lag) : 11_000 + min(0, lag)] - audio[:, max(0, -lag) : 11_000 + min(0, -lag)])
        .abs()
        .max()
        for lag in range(-1500, 1500)
    )
    assert difference < 0.05  # the same waveform, up to the frame that the clip was snapped to
    assert item["video"].shape == read_video(sample.video, times).shape


def test_a_transform_gets_whole_frames_and_its_result_is_the_item(shards):
    dataset = ShardDataset(shards["train"], ("video",), views=VIEWS, transform=lambda item: tuple(item["video"].shape))
    assert dataset[0] == (4, 3, 32, 32)


def test_images_come_as_images(image_shards):
    item = ShardDataset(image_shards, ("image",), views=VIEWS, label_field="label")[-1]
    assert (item["index"], item["label"], item["image"].shape) == (11, "light", (3, 24, 24))


def test_impossible_requests_are_errors(shards, image_shards):
    with pytest.raises(ValueError, match=r"modalities are \['sound'\]; allowed are"):
        ShardDataset(shards["train"], ("sound",))
    with pytest.raises(MediaError, match="no_audio"):
        ShardDataset(image_shards, ("audio",))[0]
    with pytest.raises(IndexError, match="index 18 is out of range: there are 18 samples"):
        ShardDataset(shards["train"])[18]
    with pytest.raises(FileNotFoundError):
        ShardDataset(image_shards.parent)
