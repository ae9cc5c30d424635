"""Costs of the loader that do not depend on the machine: files opened, frames decoded, bytes sent, no copies."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Mapping
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from avssl.data import workers
from avssl.data.batch import Collate, RawBatch
from avssl.data.every_sample import ClipPlan, DecodedClips, SampleClips
from avssl.data.read_views import raw_views
from avssl.data.shared_memory import SPARE_BUFFERS, SharedBuffers, open_buffer
from avssl.media import decode, ffmpeg
from avssl.media.decode import read_video
from avssl.shards.shard_set import Sample, ShardSet
from avssl.transforms.config import AudioViewConfig, VideoViewConfig, ViewsConfig
from avssl.transforms.frame_tensors import to_device
from avssl.transforms.raw_view import RawView
from avssl.types import View
from benchmarks.loader_memory import host_mib, sample_bytes
from tests.conftest import ROOT

VIEWS = (View("video", "video"), View("audio", "audio"))
MULTI_CROP = (
    *(View(f"large{number}", "video", "swav_large") for number in range(2)),
    *(View(f"small{number}", "video", "swav_small") for number in range(6)),
)
CONFIG = ViewsConfig(
    video=VideoViewConfig(num_frames=4, size_px=24, small_size_px=12),
    audio=AudioViewConfig(seconds=0.5, window_samples=256, hop_samples=480, num_frames=25),
)
KEYFRAME_INTERVAL = 8  # of `data_prep write`


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The numbers of files opened, and of frames and blocks of audio decoded after opening, by kind."""
    found: Counter[str] = Counter()
    open_container, frames = ffmpeg.open_container, ffmpeg.decode_frames

    def counting_opened(*arguments: object, **options: object):  # type: ignore[no-untyped-def]
        found["opened"] += 1
        return open_container(*arguments, **options)  # type: ignore[arg-type]

    def counting_frames(container, stream, label):  # type: ignore[no-untyped-def]
        for item in frames(container, stream, label):
            found[stream.type] += 1
            yield item

    monkeypatch.setattr(decode, "open_container", counting_opened)
    monkeypatch.setattr(decode, "decode_frames", counting_frames)
    return found


def sample_of(shards: dict[str, Path]) -> Sample:
    """The first training sample."""
    return ShardSet(shards["train"]).read(0)


def test_a_clip_decodes_from_its_keyframe_to_its_last_frame_and_no_more(
    shards: dict[str, Path], counts: Counter[str]
) -> None:
    sample = sample_of(shards)
    for first in range(sample.info.num_frames - 3):
        counts.clear()
        read_video(sample.video or b"", (np.arange(first, first + 4) / sample.info.video_fps).tolist())
        assert counts == {"opened": 1, "video": first % KEYFRAME_INTERVAL + 4}, first


def test_frames_between_those_of_a_clip_are_skipped(shards: dict[str, Path], counts: Counter[str]) -> None:
    sample = sample_of(shards)
    read_video(sample.video or b"", [2 / sample.info.video_fps, 17 / sample.info.video_fps])
    assert counts == {"opened": 1, "video": 3 + 2}


def test_opening_a_shards_video_decodes_nothing(shards: dict[str, Path]) -> None:
    content = sample_of(shards).video or b""
    assert ffmpeg.holds_frames_in_order(content)
    with ffmpeg.open_container(content, "", in_order=True) as (container, _):
        assert container.streams.video[0].format is None  # only a decoded frame tells
    with ffmpeg.open_container(content, "") as (container, _):
        assert container.streams.video[0].format is not None


def test_a_pair_of_views_opens_each_stream_once(shards: dict[str, Path], counts: Counter[str]) -> None:
    raw_views(ShardSet(shards["train"]), 0, VIEWS, CONFIG, seed=0, epoch=0)
    assert counts["opened"] == 2
    assert 4 <= counts["video"] < 4 + KEYFRAME_INTERVAL


def test_eight_views_of_a_clip_decode_what_one_decodes(shards: dict[str, Path], counts: Counter[str]) -> None:
    folder = ShardSet(shards["train"])
    raw_views(folder, 0, MULTI_CROP[:1], CONFIG, seed=0, epoch=0)
    of_one = counts.copy()
    counts.clear()
    assert len(raw_views(folder, 0, MULTI_CROP, CONFIG, seed=0, epoch=0)) == 8
    assert counts == of_one
    assert counts["opened"] == 1


def batch_of(shards: dict[str, Path], views: tuple[View, ...] = VIEWS, collate: Collate | None = None) -> RawBatch:
    """A batch of three samples."""
    folder = ShardSet(shards["train"])
    return (collate or Collate())([(index, raw_views(folder, index, views, CONFIG, 0, 0)) for index in range(3)])


@pytest.mark.parametrize(
    ("views", "wanted"),
    [
        (VIEWS, 8 + 4 * 3 * 24 * 24 + 4 * 13 + 4 * 12_000 + 4 * 7),
        (MULTI_CROP, 8 + 2 * 4 * 3 * 24 * 24 + 6 * 4 * 3 * 12 * 12 + 8 * 4 * 13),
        ((View("a", "audio", "test"), View("v", "video", "test")), 8 + 4 * 3 * 24 * 24 + 4 * 12_000),
    ],
)
def test_a_sample_sends_its_pixels_as_bytes_its_audio_and_little_else(
    shards: dict[str, Path], views: tuple[View, ...], wanted: int
) -> None:
    batch = batch_of(shards, views)
    tensors = [tensor for view in batch.views.values() for tensor in view.tensors().values()]
    drawn = sum(tensor.numel() * tensor.element_size() for tensor in [batch.index, *tensors])
    assert drawn == 3 * sample_bytes(views, CONFIG)
    assert sample_bytes(views, CONFIG) == wanted


@pytest.fixture
def as_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process look like a worker of a loader."""
    monkeypatch.setattr(torch.utils.data._utils.worker, "_worker_info", SimpleNamespace())  # type: ignore[attr-defined]


def sent(batch: RawBatch) -> RawBatch:
    """The batch after the queue to the training process."""
    return pickle.loads(ForkingPickler.dumps(batch))  # type: ignore[no-any-return]


def test_a_batch_arrives_as_it_was_stacked_and_its_pixels_keep_channels_last(
    shards: dict[str, Path], as_worker: None
) -> None:
    alone, arrived = batch_of(shards), sent(batch_of(shards))
    assert arrived.index.tolist() == alone.index.tolist()
    assert arrived.failures == alone.failures
    for name, view in alone.views.items():
        there = arrived.views[name].tensors()
        assert there.keys() == view.tensors().keys()
        for field, tensor in view.tensors().items():
            assert torch.equal(there[field], tensor), (name, field)
            assert there[field].data_ptr() % 64 == 0
    pixels = arrived.views["video"].media
    assert pixels.shape == (3, 4, 3, 24, 24)
    assert pixels.movedim(-3, -1).is_contiguous()  # made contiguous on the device, not here


def test_sending_copies_nothing(shards: dict[str, Path], as_worker: None) -> None:
    batch = batch_of(shards)
    arrived = sent(batch)
    for name, view in batch.views.items():
        view.media.zero_()
        assert not arrived.views[name].media.any()  # both processes see the same memory


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux alone has memory without a file system")
def test_batches_take_no_room_in_dev_shm(shards: dict[str, Path], as_worker: None) -> None:
    """Containers have 64 MiB there, and a worker that writes more is killed by SIGBUS."""
    batch = sent(batch_of(shards))
    for view in batch.views.values():
        assert mapped_from(view.media).startswith("/memfd:")


def mapped_from(tensor: torch.Tensor) -> str:
    """The file that the memory of a tensor is mapped from."""
    mappings = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    bounds = [[int(end, 16) for end in mapping[0].split("-")] for mapping in mappings]
    inside = [m for m, (low, high) in zip(mappings, bounds, strict=True) if low <= tensor.data_ptr() < high]
    (mapping,) = inside
    return mapping[-1]


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux alone has memory without a file system")
def test_clips_of_an_evaluation_take_no_room_in_dev_shm_and_are_those_read_here(shards: dict[str, Path]) -> None:
    clips = SampleClips(str(shards["test"]), CONFIG, ("video", "audio"), ClipPlan(num_clips=3))
    for there, here in zip(clips.load(1), clips.load(0), strict=True):
        assert isinstance(there, DecodedClips)
        assert isinstance(here, DecodedClips)
        assert (there.index, there.key, there.labels, there.reason) == (here.index, here.key, here.labels, here.reason)
        assert there.clips.keys() == here.clips.keys() == {"video", "audio"}
        for name, view in there.clips.items():
            assert mapped_from(view.media).startswith("/memfd:")
            assert torch.equal(view.media, here.clips[name].media)


def test_what_a_worker_makes_views_of_takes_no_room_in_dev_shm(shards: dict[str, Path], as_worker: None) -> None:
    """Only finished views are sent: PyTorch's own collate function would stack their pixels in shared memory."""
    shared = []

    def make(raw: Mapping[str, RawView], device: torch.device) -> dict[str, torch.Tensor]:
        tensors = {name: view.tensors() for name, view in raw.items()}
        shared.extend(tensor.is_shared() for fields in tensors.values() for tensor in fields.values())
        return {name: fields["media"].to(device) for name, fields in tensors.items()}

    batch = batch_of(shards, collate=Collate(make))
    assert batch.made == tuple(view.name for view in VIEWS)
    assert len(shared) > len(VIEWS)
    assert not any(shared)


def test_memory_is_reused_once_its_last_tensor_is_freed(shards: dict[str, Path], as_worker: None) -> None:
    collate = Collate()
    for _ in range(5):
        sent(batch_of(shards, collate=collate))
    assert len(collate.buffers) == 1
    kept = sent(batch_of(shards, collate=collate)).views["audio"].media[1:, :, ::2]  # a view of a view
    copy = kept.clone()
    for _ in range(5):
        sent(batch_of(shards, collate=collate)).views["audio"].media.zero_()
    assert len(collate.buffers) == 2
    assert torch.equal(kept, copy)
    del kept
    held = [sent(batch_of(shards, collate=collate)) for _ in range(4)]
    assert len(collate.buffers) == 4
    assert len({batch.views["video"].media.data_ptr() for batch in held}) == 4


def test_a_batch_that_was_not_sent_yet_is_not_overwritten(shards: dict[str, Path], as_worker: None) -> None:
    collate = Collate()
    first, second = batch_of(shards, collate=collate), batch_of(shards, collate=collate)
    first.views["video"].media.zero_()
    assert second.views["video"].media.any()


def test_free_buffers_that_are_too_small_are_freed(tmp_path: Path) -> None:
    pieces = SharedBuffers()
    small = pieces.take(100)
    assert pieces.take(1000) is not small
    assert len(pieces) == 2
    small._mapped[0] = 0  # as its receiver does
    large = pieces.take(1000)
    assert large is not small
    assert len(pieces) == 2
    with pytest.raises(RuntimeError):
        large.empty((2000,), torch.uint8)


def test_a_worker_frees_memory_after_a_peak(shards: dict[str, Path], as_worker: None) -> None:
    collate = Collate()
    held = [sent(batch_of(shards, collate=collate)) for _ in range(8)]
    open_before = len(list(Path("/dev/fd").iterdir()))
    assert len(collate.buffers) == 8
    held.clear()
    sent(batch_of(shards, collate=collate))
    assert len(collate.buffers) == 1 + SPARE_BUFFERS
    assert open_before - len(list(Path("/dev/fd").iterdir())) >= 8 - (1 + SPARE_BUFFERS)


def test_a_batch_that_cannot_be_stacked_takes_no_memory_for_good(as_worker: None) -> None:
    collate = Collate()
    for _ in range(5):
        with pytest.raises(RuntimeError, match="equal size"):
            collate([(size, {"audio": RawView("audio", torch.zeros(1, size))}) for size in (100, 90)])
    assert len(collate.buffers) == 1


def test_receiving_from_a_worker_that_died_is_a_clear_error() -> None:
    class OfTheDead:
        def detach(self) -> int:
            raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(RuntimeError, match="worker of the loader died"):
        open_buffer(OfTheDead(), 100, [])


@pytest.mark.parametrize(("kind", "at_once"), [("cuda", True), ("mps", False), ("cpu", False)])
def test_memory_that_is_not_pinned_is_read_before_a_worker_writes_there_again(kind: str, at_once: bool) -> None:
    asked = Mock()
    to_device(asked, torch.device(kind))
    asked.to.assert_called_once_with(torch.device(kind), non_blocking=at_once)
    copying = [path.name for path in (ROOT / "avssl").glob("[dt]*/*.py") if "non_blocking" in path.read_text()]
    assert copying == ["frame_tensors.py"]


def test_the_bound_on_host_memory_grows_with_its_options() -> None:
    def bound(batch_size: int = 32, count: int = 2, prefetch: int = 4) -> float:
        return host_mib(VIEWS, ViewsConfig(), batch_size, count, prefetch)

    batch_mib = 32 * (8 * 3 * 224**2 + 4 * 48_000 + 4 * 13 + 4 * 7 + 8) / 2**20
    assert bound(prefetch=5) - bound() == pytest.approx(2 * batch_mib)
    assert bound(count=4) == pytest.approx(2 * bound())
    assert bound(batch_size=64) - bound() == pytest.approx(2 * 6 * batch_mib)


def test_keeping_freed_memory_returns_whether_the_c_library_can() -> None:
    assert workers.keep_freed_memory() in (True, False)
    assert pickle.loads(pickle.dumps(workers.start_worker)) is workers.start_worker  # as a start method needs it


def test_frames_shown_as_they_are_stored_are_those_of_the_careful_way(
    shards: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = sample_of(shards)
    times = [1.2, 0.0, 0.031, 0.5, 0.49, 5.0, 0.51]
    quick = read_video(sample.video or b"", times)
    path = tmp_path / "same.mp4"
    path.write_bytes(sample.video or b"")
    assert torch.equal(quick, read_video(path, times))
    monkeypatch.setattr(decode, "holds_frames_in_order", lambda source: False)
    assert torch.equal(quick, read_video(sample.video or b"", times))
