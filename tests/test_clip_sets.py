"""Several clips per sample, some samples of a folder, and labels read without media."""

import pickle

import numpy as np
import pytest
import torch

from avssl.data.every_sample import ClipSets, clip_set
from avssl.data.read_views import decode_video_clip
from avssl.shards.shard_set import ShardSet, spans
from avssl.shards.subset import ShardSubset
from avssl.transforms.config import AudioViewConfig, VideoViewConfig, ViewsConfig
from avssl.transforms.crop import crop_resize, evaluation_crop_boxes

VIEWS = ViewsConfig(
    video=VideoViewConfig(num_frames=4, fps=16, size_px=16),
    audio=AudioViewConfig(seconds=0.5, window_samples=256, hop_samples=480, num_frames=25),
)


@pytest.fixture(scope="module")
def train(shards):
    return ShardSet(shards["train"])


def test_clips_are_evenly_spaced_from_the_first_frame_to_the_last(train):
    sample = train.read(0)
    video_span, _ = spans(sample)
    assert video_span is not None
    clips = clip_set(sample, VIEWS, ["video"], num_clips=5)["video"].media
    assert clips.shape == (5, 4, 3, 16, 16)
    last = video_span.end_seconds - 4 / 16
    for clip, start in zip(clips, np.linspace(video_span.start_seconds, last, 5), strict=True):
        frames = decode_video_clip(sample.video, float(start) + 1e-9, VIEWS.video, video_span, "sample")
        expected = crop_resize(frames, evaluation_crop_boxes(*frames.shape[2:], 1)[0], 16)
        torch.testing.assert_close(clip, expected, rtol=0, atol=0)


def test_three_crops_are_squares_of_the_short_side_along_the_longer_one():
    assert [(box.top, box.left, box.height, box.width) for box in evaluation_crop_boxes(30, 50, 3)] == [
        (0, 0, 30, 30), (0, 10, 30, 30), (0, 20, 30, 30),
    ]  # fmt: skip
    assert [(box.top, box.left) for box in evaluation_crop_boxes(50, 30, 3)] == [(0, 0), (10, 0), (20, 0)]


def test_audio_and_video_of_a_sample_have_as_many_clips(train):
    for num_crops in (1, 3):
        clips = clip_set(train.read(1), VIEWS, ["video", "audio"], 4, num_crops)
        assert len(clips["video"].media) == len(clips["audio"].media) == 4 * num_crops
    assert torch.equal(clips["audio"].media[0], clips["audio"].media[2])


def test_every_sample_comes_once_and_a_missing_modality_is_named(train, image_shards):
    seen = [sample.index for sample in ClipSets(train, VIEWS, ["audio"], 2, 1).load(num_workers=0)]
    assert seen == list(range(18))
    failures = list(ClipSets(ShardSet(image_shards), VIEWS, ["audio"], 2, 1).load(num_workers=0))
    assert len(failures) == 12
    assert all("no_audio: sample" in text for text in failures)


def test_a_subset_reads_as_a_folder_of_its_own(train):
    positions = [3, 0, 8, 17]
    subset = ShardSubset(train, positions)
    assert (subset.num_samples, subset.shard_sizes) == (4, [2, 1, 1])
    assert subset.keys == [train.keys[position] for position in sorted(positions)]
    for number, position in enumerate(sorted(positions)):
        mine, original = subset.read(number), train.read(position)
        assert (mine.info.index, mine.info.key, mine.video) == (number, original.info.key, original.video)
        assert subset.shard_of(number) == train.shard_of(position)
    assert subset.fingerprint != ShardSubset(train, [0, 3, 8]).fingerprint != train.fingerprint
    assert pickle.loads(pickle.dumps(subset)).read(3) == subset.read(3)  # as it is sent to workers
    for wrong in ([], [1, 1], [18], [-1]):
        with pytest.raises(ValueError, match="subset"):
            ShardSubset(train, wrong)


def test_labels_read_without_media_are_those_of_the_samples(train):
    expected = [train.read(position).info for position in range(18)]
    assert [train.read_info(position) for position in range(18)] == expected
