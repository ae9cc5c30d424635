"""Clips cut from one pass through a file equal clips that are read one by one, and nothing is decoded twice."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import avssl
from avssl.embedding.folder import FolderJob
from avssl.embedding.index import FolderIndex
from avssl.embedding.table import EmbeddingTable
from avssl.embedding.window_clips import AudioClips, VideoClips
from avssl.embedding.windows import WINDOWS_PER_READ, WindowReader
from avssl.media import ffmpeg, gapless_audio, readers
from avssl.media.decode import read_audio, read_video, stream_audio
from avssl.shards.manifest import FileSource
from avssl.transforms.config import AudioViewConfig, VideoViewConfig, ViewsConfig
from avssl.transforms.raw_view import raw_image
from avssl.transforms.time_sampling import frame_times_seconds
from avssl.types import Span
from data_prep.transcode.encode import MediaWriter
from data_prep.transcode.encode_settings import AudioSettings, VideoSettings

VIDEO, AUDIO = VideoViewConfig(num_frames=4, fps=8.0, size_px=24), AudioViewConfig(seconds=0.5, rate_hz=16_000)
SECONDS, FPS, RATE_HZ = 12, 10, 44_100


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """{suffix: video of noise with a keyframe every 4 s}; its last frames are on none of the grids."""
    folder, paths = tmp_path_factory.mktemp("videos"), {}
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (SECONDS * FPS, 40, 64, 3), dtype=np.uint8)
    clock = np.arange(SECONDS * RATE_HZ) / RATE_HZ  # no noise: AAC's decoder generates it, differently for every start
    waveform = 0.3 * np.sin(2 * np.pi * np.array([[200.0], [310.0]]) * (1 + clock / 10) * clock).astype(np.float32)
    for suffix in ("mp4", "mkv"):
        paths[suffix] = folder / f"video.{suffix}"
        settings = VideoSettings(64, 40, FPS, keyframe_interval=40), AudioSettings(RATE_HZ, num_channels=2)
        with MediaWriter(paths[suffix], video=settings[0], audio=settings[1]) as writer:
            for k, image in enumerate(images):
                writer.write_video(image)
                writer.write_audio(waveform[:, k * RATE_HZ // FPS : (k + 1) * RATE_HZ // FPS])
    return paths


def windows_of(count, stride, per_window):
    """Starts of clips, window by window: they overlap where the stride is short."""
    return [[k * stride + j * 0.5 for j in range(per_window)] for k in range(count)]


GRIDS = {
    "side by side": windows_of(12, 1.0, 2),
    "overlapping": windows_of(20, 0.3, 4),
    "with gaps": windows_of(3, 5.0, 1),
    "all at once": [windows_of(1, 1.0, 20)[0]],
}


@pytest.mark.quick(1)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_video_clips_equal_those_read_one_by_one(videos, suffix, grid):
    span = Span(0.25, 0.25 + SECONDS)
    windows = [[0.25 + start for start in starts] for starts in GRIDS[grid]]
    clips = VideoClips(videos[suffix], "video", VIDEO, span)
    for number, starts in enumerate(windows):
        later = [start for other in windows[number + 1 :] for start in other if start < starts[-1] + 0.5]
        read = clips.read(starts, later)
        for clip, start in zip(read, starts, strict=True):
            times = frame_times_seconds(start, VIDEO.num_frames, VIDEO.fps, span) - span.start_seconds
            alone = raw_image("video", read_video(videos[suffix], times.tolist()), VIDEO, None, None)
            assert torch.equal(clip, alone.media)
        assert len(clips._kept) <= len(later) * VIDEO.num_frames
    clips.close()


def test_frames_kept_for_later_clips_hold_no_other_memory(videos):
    """Frames are resized some together, and a view of one of them would hold them all."""
    clips = VideoClips(videos["mp4"], "video", VIDEO, Span(0.0, SECONDS))
    clips.read([0.0, 0.5, 1.0, 1.5], [1.75, 2.5])
    clips.close()
    assert sorted(clips._kept) == [1.75, 1.875]
    assert all(frame.base is None for frame in (*clips._kept.values(), clips._last_frame))


@pytest.mark.quick(3)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_audio_clips_are_cut_from_the_whole_stream(videos, suffix, grid, monkeypatch):
    """And begin before it, and end after it; what was read and is not needed is dropped."""
    if grid == "with gaps":
        monkeypatch.setattr("avssl.embedding.window_clips.SKIP_AUDIO_SECONDS", 2.0)  # by opening it anew
    whole = torch.cat([block for _, block in stream_audio(videos[suffix], AUDIO.rate_hz)], 1).numpy()[0]
    length, edge = round(AUDIO.seconds * AUDIO.rate_hz), 2 * AUDIO.rate_hz
    padded = np.pad(whole, edge)
    span = Span(0.3, 0.3 + SECONDS)
    clips = AudioClips(videos[suffix], "video", AUDIO, span)
    for starts in [[0.0, 0.2], *GRIDS[grid], [SECONDS + 0.1, SECONDS + 0.4]]:
        clips.forget(min(starts))
        for clip, start in zip(clips.read(starts), starts, strict=True):
            first = round((start - span.start_seconds) * AUDIO.rate_hz)
            expected = padded[edge + first : edge + first + length]
            np.testing.assert_allclose(clip[0].numpy(), expected, atol=1e-3)
        assert len(clips._waveform) <= (starts[-1] - starts[0] + 0.5 + 7.0) * AUDIO.rate_hz, "gaps are below 7 s"
    clips.close()
    if suffix == "mp4":
        alone = read_audio(videos[suffix], 3.0, length, AUDIO.rate_hz)[0].numpy()
        np.testing.assert_allclose(alone, padded[edge + 3 * AUDIO.rate_hz :][:length], atol=1e-3)


@pytest.fixture
def counts(monkeypatch):
    """{what: how often} of files opened and blocks or frames decoded by reading."""
    numbers, open_container, decoded = Counter(), ffmpeg.open_container, ffmpeg.decode_frames

    def counting_open(source, name):
        numbers[f"{Path(source).name} opened"] += 1
        return open_container(source, name)

    def counting_decoded(container, stream, label, *more):
        for item in decoded(container, stream, label, *more):
            numbers[f"{Path(label).name} {stream.type}"] += 1
            yield item

    monkeypatch.setattr(readers, "open_container", counting_open)
    for module in (readers, gapless_audio):
        monkeypatch.setattr(module, "decode_frames", counting_decoded)
    return numbers


@pytest.mark.parametrize("stride", [0.5, 0.2])
def test_a_file_is_opened_once_per_stream_and_each_frame_decoded_once(videos, counts, stride):
    """However much windows overlap: 12 s of 10 frames per second are 120 frames."""
    config = ViewsConfig(video=VIDEO, audio=AUDIO)
    stream = WindowReader([FileSource(str(videos["mp4"]), "video")], config, ("video", "audio"), 0.5, stride)
    num_windows = sum(len(windows.grid) for _, windows in stream)
    assert num_windows >= 11.5 / stride
    assert counts["video.mp4 opened"] == 2
    assert counts["video.mp4 video"] == SECONDS * FPS
    assert 0 < counts["video.mp4 audio"] <= SECONDS * RATE_HZ / 1024 + 3


@pytest.mark.slow
def test_batches_are_full_across_files_for_each_modality(tiny_run, videos, tmp_path, monkeypatch):
    """Of each modality ceil(clips / batch) calls of the network; the last one is filled up."""
    embedder = avssl.load_embedder(str(tiny_run))
    sizes, encode = {"video": [], "audio": []}, embedder.encode

    def counting(modality, raw):
        sizes[modality].append(len(raw.media))
        return encode(modality, raw)

    monkeypatch.setattr(embedder, "encode", counting)
    sources = [videos["mp4"], videos["mkv"]]
    job = FolderJob.begin(embedder, sources, tmp_path / "out", window_seconds=0.5, stride_seconds=0.5)
    job.run(embedder, batch_size=20)
    index = FolderIndex.read(tmp_path / "out")
    num_clips = {"video": 2 * index.rows_with["video"], "audio": index.rows_with["audio"]}  # of 0.25 and 0.5 s
    assert num_clips["audio"] >= 2 * 24
    assert {name: len(found) for name, found in sizes.items()} == {
        name: -(-count // 20) for name, count in num_clips.items()
    }
    assert {size for found in sizes.values() for size in found} == {20}


@pytest.mark.slow
def test_a_clip_that_several_windows_hold_goes_through_the_network_once(tiny_run, videos, tmp_path, monkeypatch):
    """Windows that overlap by half share all their clips of a quarter of a second, and their rows are the same bits."""
    embedder, num_clips = avssl.load_embedder(str(tiny_run)), Counter()
    encode = embedder.encode

    def counting(modality, raw):
        num_clips[modality] += len(raw.media)
        return encode(modality, raw)

    monkeypatch.setattr(embedder, "encode", counting)
    tables = []
    for stride in (0.5, 0.25):
        num_clips.clear()
        job = FolderJob.begin(
            embedder, [videos["mp4"]], tmp_path / f"{stride}", window_seconds=0.5, stride_seconds=stride
        )
        job.run(embedder, batch_size=1)
        tables.append(EmbeddingTable.read(tmp_path / f"{stride}"))
    num_windows = int(tables[1].has_video.sum())
    num_reads = -(-num_windows // WINDOWS_PER_READ)
    assert num_windows == 2 * SECONDS / 0.5 - 1
    assert num_clips["video"] == num_windows + num_reads, (
        "not two a window: one that is new, and where a read begins two"
    )
    apart, overlapping = tables
    assert len(overlapping.select(np.arange(0, len(overlapping), 2))) == len(apart)
    for name in ("video_embedding", "video_feature", "audio_embedding"):
        np.testing.assert_array_equal(getattr(overlapping, name)[::2], getattr(apart, name))


def test_a_clip_that_a_window_holds_several_times_counts_as_often(tiny_run, tmp_path):
    """The audio goes on after the video, whose last clip then fills the rest of the window."""
    embedder, video = avssl.load_embedder(str(tiny_run)), tmp_path / "film.mp4"
    generator = np.random.default_rng(0)
    with MediaWriter(video, video=VideoSettings(64, 40, FPS), audio=AudioSettings(RATE_HZ)) as writer:
        for _ in range(4):
            writer.write_video(generator.integers(0, 255, (40, 64, 3), dtype=np.uint8))
        writer.write_audio(0.1 * generator.standard_normal((1, RATE_HZ)).astype(np.float32))
    settings = embedder.settings(1.0, 1.0, None)
    ((_, windows),) = embedder.window_reader([FileSource(str(video), "video")], settings)
    (clips, owners), (table, _) = (
        (windows.clips["video"], windows.owners["video"]),
        embedder.embed(video, window_seconds=1.0),
    )
    assert [len(windows) for windows in owners] == [1, 3], "four clips of 0.25 s, of which the video has 0.4 s"
    _, vectors = embedder.encode("video", clips)
    mean = vectors[0] + 3 * vectors[1]
    np.testing.assert_allclose(table.video_embedding[0], mean / np.linalg.norm(mean), atol=1e-6)
