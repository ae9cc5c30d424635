"""Samples that are decoded once: the same batches to the bit, within the bound, whole or absent on any disk."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from avssl.config import CHANGEABLE_KEYS
from avssl.data import decoded, decoded_shards, read_views
from avssl.data.decoded import DecodedAudio, decode_whole_audio, decode_whole_video
from avssl.data.decoded_shards import NAME, DecodedFolder, DecodedShards
from avssl.data.loader import Loader
from avssl.data.loader_config import LoaderConfig
from avssl.data.read_views import raw_views, read_clip
from avssl.media.decode import read_audio, read_video
from avssl.shards.mixture import ShardMixture
from avssl.shards.shard_set import ShardSet
from avssl.transforms.audio import AudioAugment
from avssl.transforms.config import AudioViewConfig, VideoViewConfig, ViewsConfig
from avssl.transforms.view_maker import ViewMaker
from avssl.types import MediaError, View
from tests.clips import make_clip
from tests.conftest import ROOT
from tests.fixtures import real_videos  # noqa: F401
from tests.test_loader import batches_equal

VIEWS = (View("video", "video"), View("audio", "audio"), View("other", "video", clip=1))
CONFIG = ViewsConfig(
    video=VideoViewConfig(num_frames=4, fps=10, size_px=24),
    audio=AudioViewConfig(
        seconds=0.5, rate_hz=16_000, window_samples=256, hop_samples=320, num_frames=25,
        augment=AudioAugment(mixup_ratio=0.4),
    ),
)  # fmt: skip
MUCH = 1 << 30


def make_loader(shards: ShardSet, folder: Path, cache_decoded: int = MUCH, num_workers: int = 0) -> Loader:
    options = LoaderConfig(
        global_batch_size=4, num_workers=num_workers, cache_decoded=cache_decoded, cache_decoded_dir=str(folder)
    )
    maker = ViewMaker(CONFIG, ["audio", "video"])
    return Loader(shards, options, VIEWS, maker, seed=3, device=torch.device("cpu"))


def same_epochs(left: Loader, right: Loader, epochs: tuple[int, ...] = (0, 1)) -> None:
    for epoch in epochs:
        for one, other in zip(left.epoch(epoch), right.epoch(epoch), strict=True):
            batches_equal(one, other)
            assert one.failures == other.failures


def kept(folder: Path) -> dict[str, int]:
    """{name: bytes} of the kept files."""
    found = [path for path in folder.glob(f".{NAME}.*.scratch/*") if path.suffix in (".json", ".video", ".audio")]
    return {path.name: path.stat().st_size for path in found}


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise AssertionError("nothing may be decoded or read from the shards again")

    for module, name in ((read_views, "read_video"), (read_views, "read_audio"), (ShardSet, "read")):
        monkeypatch.setattr(module, name, refused)


def test_batches_are_the_same_to_the_bit_and_each_sample_is_decoded_once(shards, tmp_path, monkeypatch):
    plain, cached = (
        make_loader(ShardSet(shards["train"]), tmp_path, 0),
        make_loader(ShardSet(shards["train"]), tmp_path),
    )
    expected = {epoch: list(plain.epoch(epoch)) for epoch in (0, 5)}
    for left, right in zip(expected[0], cached.epoch(0), strict=True):
        batches_equal(left, right)
    assert list(cached.every_sample_once())[-1].index[-1] == 17  # now all of them were read
    no_decoding(monkeypatch)
    for left, right in zip(expected[5], cached.epoch(5), strict=True):
        batches_equal(left, right)


@pytest.mark.slow
def test_workers_share_what_is_decoded(shards, tmp_path):
    same_epochs(
        make_loader(ShardSet(shards["train"]), tmp_path, 0),
        make_loader(ShardSet(shards["train"]), tmp_path, num_workers=2),
    )


def test_a_clip_of_a_kept_sample_is_what_decoding_gives_at_any_time_and_rate(shards):
    sample = ShardSet(shards["train"]).read(0)
    video = decode_whole_video(sample.video, sample.info.num_frames, MUCH)
    audio = decode_whole_audio(sample.audio, sample.info.num_audio_samples, MUCH)
    for times in ([0.0, 0.0625, 0.125], [0.9, 0.3, 5.0], [-1.0, 0.7, 0.7], [0.33, 0.66]):
        assert torch.equal(video.read(times), read_video(sample.video, times))
        assert video.read(times).stride() == read_video(sample.video, times).stride()
    for start, count, rate_hz in ((0.0, 100, 24_000), (0.31, 8000, 16_000), (-0.2, 9000, 24_000), (0.7, 9000, 22_050)):
        expected = read_audio(sample.audio, start, count, rate_hz, padding=7.0)
        assert torch.equal(audio.read(start, count, rate_hz, 7.0), expected)
    assert torch.equal(audio.read(-1.0, 10, 16_000), torch.zeros(1, 10))
    assert torch.equal(audio.read(9.0, 10, 16_000, -1.0), -torch.ones(1, 10))


@pytest.mark.slow
def test_real_files_are_cut_as_decoding_cuts_them(real_videos):  # noqa: F811
    compared = 0
    for path in sorted(real_videos.rglob("*.mp4")):
        content = path.read_bytes()
        try:
            video = decode_whole_video(content, 1, 400 << 20)
        except MediaError:
            continue
        if video is None:
            continue
        times = np.random.default_rng(0).uniform(-0.1, len(video.ticks) / 25 + 0.2, 6).tolist()
        assert torch.equal(video.read(times), read_video(content, times)), path
        compared += 1
    assert compared >= 5


def test_images_are_kept_too(image_shards, tmp_path, monkeypatch):
    shards, folder = ShardSet(image_shards), DecodedFolder(str(tmp_path), "images", MUCH)
    views = [View("one", "image", "byol_first"), View("two", "image", "swav_small")]
    cached = DecodedShards(shards, folder)
    first = [raw_views(shards, index, views, ViewsConfig(), 0, 0) for index in range(3)]
    for _ in range(2):
        for index, expected in enumerate(first):
            found = raw_views(cached, index, views, ViewsConfig(), 0, 0)
            for name, view in expected.items():
                assert torch.equal(view.media, found[name].media)
                assert view.media.stride() == found[name].media.stride()
        no_decoding(monkeypatch)


def same_clips(cached: DecodedShards, plain: ShardSet, indices: range = range(6)) -> None:
    for epoch in (0, 1):
        for index in indices:
            found = [raw_views(source, index, VIEWS, CONFIG, 0, epoch) for source in (cached, plain)]
            for name, view in found[1].items():
                assert torch.equal(found[0][name].media, view.media), name


def test_what_does_not_fit_is_decoded_each_time_and_the_bound_holds(shards, tmp_path):
    plain = ShardSet(shards["train"])
    whole = DecodedShards(plain, DecodedFolder(str(tmp_path), "whole", MUCH))
    same_clips(whole, plain, range(1))
    one = sum(kept(tmp_path).values())
    folder = DecodedFolder(str(tmp_path), "small", 2 * one)
    same_clips(DecodedShards(plain, folder), plain)
    taken = sum(path.stat().st_size for path in folder.path.iterdir() if path.suffix in (".json", ".video", ".audio"))
    assert one < taken <= 2 * one
    tiny = DecodedFolder(str(tmp_path), "tiny", 100)
    same_clips(DecodedShards(plain, tiny), plain, range(1))
    assert not [path for path in tiny.path.iterdir() if path.suffix in (".video", ".audio")]


def test_a_full_disk_ends_keeping_with_a_warning_and_no_half_file(shards, tmp_path, monkeypatch, caplog):
    plain, folder = ShardSet(shards["train"]), DecodedFolder(str(tmp_path), "full", MUCH)
    real, left = os.posix_fallocate, [3]

    def fallocate(descriptor: int, offset: int, length: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    same_clips(DecodedShards(plain, folder), plain, range(3))
    assert len(kept(tmp_path)) == 3
    assert not [path for path in folder.path.iterdir() if path.name.startswith(".")]
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder.path}: no more decoded samples are kept (the disk is full); others are decoded each time"
    ]


def test_the_folder_is_shared_by_those_who_read_the_same_shards_and_goes_with_the_last(shards, tmp_path, monkeypatch):
    one, other = make_loader(ShardSet(shards["train"]), tmp_path), make_loader(ShardSet(shards["train"]), tmp_path)
    test = make_loader(ShardSet(shards["test"]), tmp_path)
    assert one._decoded.path == other._decoded.path != test._decoded.path
    list(one.every_sample_once())
    path = one._decoded.path
    del one
    no_decoding(monkeypatch)
    assert len(list(other.every_sample_once())) == 5
    del other
    assert not path.exists()
    assert test._decoded.path.exists()


@pytest.mark.slow
def test_leftovers_of_killed_processes_are_removed_and_not_read(shards, tmp_path):
    program = (
        "import sys, os, signal; from avssl.data.decoded_shards import *\n"
        "folder = DecodedFolder(sys.argv[1], sys.argv[2], 1 << 20)\n"
        "(folder.path / '0.json').write_text('left behind')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    opened = ShardSet(shards["train"])
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path), opened.fingerprint], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.glob(f".{NAME}.*.scratch/0.json"))
    loader = make_loader(opened, tmp_path)
    assert not kept(tmp_path)
    same_epochs(make_loader(opened, tmp_path, 0), loader, (0,))


def test_a_damaged_video_is_reported_as_without_and_its_readable_part_is_read(shards, tmp_path, monkeypatch):
    opened = ShardSet(shards["train"])
    folder = DecodedFolder(str(tmp_path), "damaged", MUCH)

    def refused(*arguments: object, **options: object) -> None:
        raise MediaError("truncated", "the end is missing")

    monkeypatch.setattr(decoded_shards, "decode_whole_video", refused)
    sample = DecodedShards(opened, folder).read(0)
    clip, plain = (read_clip(item, CONFIG, {"video", "audio"}, None) for item in (sample, opened.read(0)))
    assert isinstance(sample.video, bytes)
    assert isinstance(sample.audio, DecodedAudio)
    assert torch.equal(clip.video, plain.video)
    assert torch.equal(clip.audio, plain.audio)
    monkeypatch.setattr(read_views, "read_video", refused)
    with pytest.raises(MediaError, match="the end is missing"):
        raw_views(DecodedShards(opened, folder), 0, VIEWS, CONFIG, 0, 0)


def test_a_video_that_cannot_be_cut_exactly_is_not_kept(tmp_path, monkeypatch):
    make_clip(tmp_path / "clip.mp4")
    content = (tmp_path / "clip.mp4").read_bytes()
    assert decode_whole_video(content, 20, 20 * 48 * 64 * 3 - 1) is None
    real = decoded.decode_frames
    monkeypatch.setattr(decoded, "decode_frames", lambda *given: ((5, frame) for _, frame in real(*given)))
    assert decode_whole_video(content, 20, MUCH) is None


def test_who_writes_into_a_clip_does_not_change_what_is_kept(shards, tmp_path):
    cached = DecodedShards(ShardSet(shards["train"]), DecodedFolder(str(tmp_path), "written", MUCH))
    first = read_clip(cached.read(0), CONFIG, {"video"}, None).video.clone()
    read_clip(cached.read(0), CONFIG, {"video"}, None).video.zero_()
    assert torch.equal(read_clip(cached.read(0), CONFIG, {"video"}, None).video, first)


def test_samples_of_several_folders_are_kept_by_their_number_over_all(shards, tmp_path):
    parts = [ShardSet(shards["train"]), ShardSet(shards["test"])]
    cached = DecodedShards(ShardMixture(parts), DecodedFolder(str(tmp_path), "mixture", MUCH))
    for _ in range(2):
        for index in (0, 17, 18, 20):
            mine, theirs = cached.read(index), ShardMixture(parts).read(index)
            assert mine.info == theirs.info
            assert torch.equal(*(read_clip(item, CONFIG, {"video"}, None).video for item in (mine, theirs)))


def test_a_folder_that_cannot_be_made_or_is_not_ours_is_refused_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"absent: decoded samples cannot be kept there .* set data.cache_decoded_dir"):
        DecodedFolder(str(tmp_path / "absent"), "x", MUCH)
    path = DecodedFolder(str(tmp_path), "x", MUCH).path  # it is freed, and removed
    (tmp_path / "elsewhere").mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="decoded samples cannot be kept there"):
        DecodedFolder(str(tmp_path), "x", MUCH)
    path.unlink()
    monkeypatch.setattr(os, "getuid", lambda: 12_345)
    with pytest.raises(ValueError, match="decoded samples cannot be kept there"):
        DecodedFolder(str(tmp_path), "x", MUCH)


def test_keeping_may_change_when_a_run_goes_on():
    assert {"data.cache_decoded", "data.cache_decoded_dir"} <= CHANGEABLE_KEYS
