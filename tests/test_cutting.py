"""Files cut into clips of equal length and into scenes, and how long a file lasts."""

import numpy as np
import pytest

from avssl.shards.manifest import stream_manifest
from data_prep.__main__ import main
from data_prep.index.build import IndexOptions
from data_prep.index.cutting import Cutting, claimed_seconds, clips, scenes
from data_prep.index.probing import Prober
from tests.clips import make_clip, square_frames
from tests.listed import listed


@pytest.mark.parametrize(
    ("whole", "clip_seconds", "stride", "least", "wanted"),
    [
        ((0, 10), 4, 4, 2, [(0, 4), (4, 8), (8, 10)]),
        ((0, 10), 4, 4, 2.5, [(0, 4), (4, 8)]),
        ((0, 8), 4, 4, 0, [(0, 4), (4, 8)]),
        ((0, 8.0005), 4, 4, 0, [(0, 4), (4, 8)]),
        ((0, 3), 4, 4, 2, [(0, 3)]),
        ((0, 1), 4, 4, 2, []),
        ((0, 10), 4, 2, 2, [(0, 4), (2, 6), (4, 8), (6, 10)]),
        ((0, 11), 4, 2, 2, [(0, 4), (2, 6), (4, 8), (6, 10), (8, 11)]),
        ((0, 10), 2, 5, 1, [(0, 2), (5, 7)]),
        ((30, 40), 4, 4, 2, [(30, 34), (34, 38), (38, 40)]),
    ],
)
def test_clips_cover_a_file_and_the_tail_has_a_rule(whole, clip_seconds, stride, least, wanted):
    assert list(clips(whole, clip_seconds, stride, least)) == wanted


def test_scenes_cover_a_file_and_short_ones_join_their_neighbor():
    assert scenes((0, 10), [3, 3.5, 6], 1.0) == [(0, 3), (3, 6), (6, 10)]
    assert scenes((0, 10), [0.5, 9.5], 1.0) == [(0, 10)]
    assert scenes((2, 5), [1, 3.2, 8], 1.0) == [(2, 3.2), (3.2, 5)]
    assert list(Cutting(2.0, scenes=True).segments((0, 5), [3])) == [(0, 2), (2, 3), (3, 5)]


def test_a_file_lasts_until_its_last_stream_ends():
    video = {"start_seconds": 1.0, "duration_seconds": 4.0}
    assert claimed_seconds({"video": video, "audio": {"start_seconds": 0.5, "duration_seconds": 4.0}}) == 4.5
    assert claimed_seconds({"video": video | {"duration_seconds": None}, "audio": None, "duration_seconds": 6.0}) == 5.0
    assert claimed_seconds({"video": None, "audio": None}) is None
    assert (
        claimed_seconds({"video": video | {"duration_seconds": None}, "audio": None, "duration_seconds": None}) is None
    )


def test_long_files_become_clips_also_within_listed_segments(tmp_path):
    make_clip(tmp_path / "media" / "a.mkv", seconds=2.5, video_codec="libvpx-vp9", audio_codec="flac")
    text = '{"path": "a.mkv", "label": "x"}\n'
    text += '{"path": "a.mkv", "segment": [0.5, 1.75]}\n{"path": "a.mkv", "segment": [3, 4]}\n'
    entries, summary = listed(tmp_path, "mine.jsonl", text, probe=True, cutting=Cutting(clip_seconds=1.0))
    found = {key: (entry.segment, entry.error and entry.error["reason"]) for key, entry in entries.items()}
    assert found == {
        "a_mkv_0_1000": ((0.0, 1.0), None),
        "a_mkv_1000_2000": ((1.0, 2.0), None),
        "a_mkv_2000_2500": ((2.0, 2.5), None),
        "a_mkv_500_1750_500_1500": ((0.5, 1.5), None),
        "a_mkv_3000_4000": ((3.0, 4.0), "too_short"),
    }
    assert summary.num_segments == 5
    assert entries["a_mkv_0_1000"].labels == {"label": ["x"]}
    assert "--trimmed" in entries["a_mkv_3000_4000"].error["message"]


@pytest.mark.slow
def test_scenes_are_cut_where_frames_change(tmp_path):
    pytest.importorskip("scenedetect")
    colors = ((24, (200, 30, 30)), (30, (20, 40, 220)), (4, (240, 240, 240)), (30, (10, 90, 10)))
    frames = np.concatenate([np.full((number, 48, 64, 3), color, np.uint8) for number, color in colors])
    make_clip(tmp_path / "media" / "a.mp4", seconds=88 / 20, video=frames)
    make_clip(tmp_path / "media" / "still.mp4", video=square_frames(20))
    make_clip(tmp_path / "media" / "audio.m4a", video=None)
    (tmp_path / "media" / "bad.mp4").write_bytes(b"no media")
    command = ["index", str(tmp_path / "media"), "--out", str(tmp_path / "c.jsonl"), "--scenes", "--num-workers", "1"]
    assert main(command) == 0
    entries = {entry.key: entry for entry in stream_manifest(tmp_path / "c.jsonl")}
    spans = [entry.segment for key, entry in entries.items() if key.startswith("a_mp4")]
    assert [begin for begin, _ in spans] == pytest.approx([0.0, 1.2, 2.7], abs=0.051)
    assert [end for _, end in spans[:-1]] == [begin for begin, _ in spans[1:]]
    assert spans[-1][1] == pytest.approx(4.4, abs=0.05)
    assert [key for key in entries if key.startswith("still")] == ["still_mp4_0_1000"]
    assert entries["bad_mp4"].error["reason"] == "not_media"
    assert len(entries) == 6


def test_scenes_without_pyscenedetect_say_what_to_install(monkeypatch):
    monkeypatch.setattr("data_prep.index.cutting.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'avssl\[scenes\]'"):
        IndexOptions(cutting=Cutting(scenes=True))


@pytest.mark.parametrize("claim", [None, 1e6])
def test_a_duration_that_a_header_lacks_or_exaggerates_is_measured(tmp_path, monkeypatch, claim):
    make_clip(tmp_path / "a.mkv", seconds=2.0, audio_start_seconds=0.5)
    monkeypatch.setattr("data_prep.index.probing.claimed_seconds", lambda media: claim)
    look = Prober(cutting=Cutting(clip_seconds=1.0))(str(tmp_path / "a.mkv"))
    assert look.seconds == pytest.approx(2.5, abs=0.05)
    assert Prober()(str(tmp_path / "a.mkv")).seconds == claim
