"""Media of any length are embedded at constant memory: an hour takes what five minutes take."""

import sys

import numpy as np
import pytest

import avssl
from avssl.embedding.folder import FolderJob
from avssl.embedding.index import FolderIndex
from avssl.embedding.rows import RowMaker, RowSpool
from avssl.embedding.table import EmbeddingTable
from avssl.embedding.windows import WINDOWS_PER_READ
from data_prep.transcode.encode import MediaWriter
from data_prep.transcode.encode_settings import AudioSettings, VideoSettings
from tests.conftest import run_python

RATE_HZ, FPS = 8000, 2
# Peak resident memory of a process of its own after the recipe has done its work in it. Not getrusage's: what a process
# starts with there is its parent's.
MEASURED = """
import sys
from recipes import embed
assert embed.main(embed.parse(sys.argv[1:])) == 0
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("peak MiB", int(peak) / 1024)
"""


def write_video(path, seconds):
    """A slow, tiny video: noise whose brightness rises every minute, and a tone that rises every second."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 100, (32, 32, 3)).astype(np.uint8)
    settings = VideoSettings(32, 32, FPS, keyframe_interval=10), AudioSettings(RATE_HZ)
    with MediaWriter(path, video=settings[0], audio=settings[1]) as writer:
        for second in range(seconds):
            for _ in range(FPS):
                writer.write_video(np.roll(noise, second, 0) + np.uint8(second // 60))
            times = np.arange(RATE_HZ) / RATE_HZ
            writer.write_audio(0.3 * np.sin(2 * np.pi * (200 + second) * times).astype(np.float32)[None])
    return path


@pytest.mark.slow
def test_no_more_than_a_batch_of_clips_and_the_rows_of_a_spool_are_held(tiny_run, tmp_path, monkeypatch):
    """Of three minutes: 719 windows of half a second."""
    video = write_video(tmp_path / "film.mp4", 180)
    held, most_rows, add, put = [], [], RowMaker.add, RowSpool.put

    def watched_add(maker, number, key, item):
        add(maker, number, key, item)
        held.append(sum(len(clips) for waiting in maker._clips.values() for clips in waiting))

    def watched_put(spool, number, table):
        put(spool, number, table)
        most_rows.append(spool.most_rows)

    monkeypatch.setattr(RowMaker, "add", watched_add)
    monkeypatch.setattr(RowSpool, "put", watched_put)
    embedder = avssl.load_embedder(str(tiny_run))
    job = FolderJob.begin(embedder, [video], tmp_path / "out", window_seconds=0.5, stride_seconds=0.25)
    job.run(embedder, batch_size=24, spool_rows=100)
    assert len(held) == -(-719 // WINDOWS_PER_READ)
    assert max(held) < 2 * 24, "clips of both modalities that wait for a batch"
    assert max(most_rows) <= 100
    table = EmbeddingTable.read(tmp_path / "out")
    np.testing.assert_allclose(table.start_seconds, np.arange(719) * 0.25)
    at_once = embedder.embed(video, window_seconds=0.5, stride_seconds=0.25)[0]
    np.testing.assert_allclose(table.video_embedding, at_once.video_embedding, atol=1e-5)
    np.testing.assert_allclose(table.audio_embedding, at_once.audio_embedding, atol=1e-5)


@pytest.mark.slow
def test_an_hour_takes_the_memory_of_five_minutes(tiny_run, tmp_path):
    peaks = {}
    for minutes in (5, 60):
        video = write_video(tmp_path / f"{minutes}.mp4", 60 * minutes)
        out = tmp_path / f"out-{minutes}"
        options = ["--window", "2", "--stride", "1", "--num-workers", "0", "--device", "cpu"]
        process = run_python("-c", MEASURED, tiny_run, video, "--out", out, *options)
        peaks[minutes] = float(process.stdout.split("peak MiB")[1])
        assert FolderIndex.read(out).num_rows == 60 * minutes - 1
    sys.stdout.write(f"peak resident memory in MiB by minutes of video: {peaks}\n")
    # 3,600 rows of the tiny run are 2 MiB; the decoded video would be 800 MiB, and its audio at 24 kHz 330.
    assert peaks[60] < peaks[5] + 60, peaks
    table = EmbeddingTable.read(tmp_path / "out-60")
    np.testing.assert_allclose(table.start_seconds, np.arange(3599))
    assert table.has_video.all()
    assert table.has_audio.all()
