"""data_prep show: the written file plays what the sample holds, when its clock says so."""

import io
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from avssl.media.decode import read_audio, read_video
from avssl.shards.shard_set import ShardSet
from data_prep.__main__ import main
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.inspect.show import closest, find
from data_prep.transcode.encode import write_media
from data_prep.transcode.options import WriteOptions
from data_prep.transcode.remux import remux
from data_prep.write.run import write_shards

RATE, FPS = 48000, 25


def clap(path, video_start, audio_start):
    """Two seconds, a flash and a beep together about 1 s after the file's time 0, whenever the streams begin."""
    frames = np.zeros((50, 48, 64, 3), np.uint8)
    first = round((1.0 - video_start) * FPS)
    frames[first : first + 5] = 255
    audio = np.zeros((1, 2 * RATE), np.float32)
    begin = round((video_start + first / FPS - audio_start) * RATE)
    audio[0, begin : begin + 9600] = 0.4 * np.sin(2 * np.pi * 440 * np.arange(9600) / RATE)
    write_media(
        path, video=frames, video_fps=FPS, audio=audio, audio_rate_hz=RATE, video_start_seconds=video_start,
        audio_start_seconds=audio_start, audio_codec="flac",
    )  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Claps with equal and unequal starts, a video and audio alone."""
    folder = tmp_path_factory.mktemp("show")
    media = folder / "media"
    (media / "claps").mkdir(parents=True)
    clap(media / "claps" / "together.mkv", 0.0, 0.0)
    clap(media / "claps" / "video_later.mkv", 0.37, 0.0)
    clap(media / "claps" / "audio_later.mkv", 0.0, 0.41)
    rng = np.random.default_rng(0)
    write_media(media / "silent.mp4", video=rng.integers(0, 255, (20, 48, 64, 3), dtype=np.uint8), video_fps=FPS)
    write_media(media / "blind.flac", audio=rng.uniform(-0.5, 0.5, (1, 24000)), audio_rate_hz=24000, audio_codec="flac")
    build_manifest(media, folder / "all.jsonl", IndexOptions())
    options = WriteOptions(on_missing_audio="keep", on_missing_video="keep", samples_per_shard=2)
    write_shards(folder / "all.jsonl", folder / "shards", options)
    return folder / "shards"


def sample_of(shards, key):
    whole = ShardSet(shards)
    return whole.read(whole.keys.index(key))


def flash_and_beep(path):
    """Seconds on the file's clock, by PyAV alone, as a player would take them."""
    with av.open(str(path)) as container:
        flash = next(frame.time for frame in container.decode(video=0) if frame.to_ndarray(format="gray").mean() > 128)
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            loud = np.flatnonzero(np.abs(frame.to_ndarray().reshape(-1) / 2**15) > 0.1)
            if len(loud):
                return flash, frame.time + loud[0] / frame.sample_rate
    raise AssertionError("no beep")


@pytest.mark.quick(1)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("name", ["together", "video_later", "audio_later"])
def test_flash_and_beep_stay_together_in_the_shown_file(shards, tmp_path, name, suffix):
    path = tmp_path / f"shown{suffix}"
    assert main(["show", str(shards), f"claps/{name}_mkv", "--out", str(path)]) == 0
    info = sample_of(shards, f"claps/{name}_mkv").info
    assert abs(info.av_offset_seconds) == pytest.approx({"together": 0, "video_later": 0.37, "audio_later": 0.41}[name])
    flash, beep = flash_and_beep(path)
    assert -0.003 < flash - beep < 1 / 16  # a frame is shown from the next multiple of 1 / 16 s on
    assert flash == pytest.approx(1.0, abs=0.08)
    with av.open(str(path)) as container:
        starts = {stream.type: float(stream.start_time * stream.time_base) for stream in container.streams}
    assert starts["video"] == pytest.approx(info.video_start_seconds, abs=1e-4 if suffix == ".mp4" else 1e-3)
    assert starts["audio"] == pytest.approx(info.audio_start_seconds, abs=1e-4 if suffix == ".mp4" else 1e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_the_streams_are_copied_bit_by_bit(shards, suffix):
    sample = sample_of(shards, "claps/video_later_mkv")
    info = sample.info
    shown = remux(sample.video, sample.audio, suffix, video_start_seconds=0.37, audio_start_seconds=0.0)
    times = np.arange(info.num_frames) / info.video_fps
    assert (read_video(shown, times, rgb=False) == read_video(sample.video, times, rgb=False)).all()
    waveforms = [
        read_audio(content, 0.0, info.num_audio_samples, info.audio_rate_hz) for content in (shown, sample.audio)
    ]
    assert (waveforms[0] == waveforms[1]).all()

    def packets(content, kind):
        with av.open(io.BytesIO(content)) as container:
            found = [bytes(packet) for packet in container.demux(**{kind: 0}) if packet.size]
            return found, [container.streams[0].codec_context.name, len(container.streams)]

    assert packets(shown, "audio")[0] == packets(sample.audio, "audio")[0]
    if suffix == ".mp4":  # Matroska may write the same packets in another dress
        assert packets(shown, "video")[0] == packets(sample.video, "video")[0]
    assert remux(sample.video, sample.audio, suffix, video_start_seconds=0.37) == shown


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_that_are_stored_out_of_order_keep_their_times(suffix):
    """A video with B-frames, as one that was copied from its source may be."""
    frames = np.repeat(np.linspace(0, 250, 40).astype(np.uint8), 48 * 64 * 3).reshape(40, 48, 64, 3)
    video, audio = io.BytesIO(), io.BytesIO()
    write_media(video, video=frames, video_fps=20, container_format="mp4", video_options={"bf": "3"})
    write_media(audio, audio=np.full((1, 9600), 0.5), audio_rate_hz=4800, audio_codec="flac", container_format="flac")
    with av.open(io.BytesIO(video.getvalue())) as container:
        stamps = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert stamps != sorted(stamps)
    shown = remux(video.getvalue(), audio.getvalue(), suffix, video_start_seconds=0.25)
    first = {}
    for kind in ("video", "audio"):
        with av.open(io.BytesIO(shown)) as container:
            times = [frame.time for frame in container.decode(**{kind: 0})]
        first[kind] = times[0]
        if kind == "video":
            assert np.diff(times) == pytest.approx(np.full(39, 0.05), abs=2e-3)
    assert first["video"] - first["audio"] == pytest.approx(0.25, abs=2e-3)
    assert (read_video(shown, np.arange(40) / 20) == read_video(video.getvalue(), np.arange(40) / 20)).all()


def test_what_is_alone_is_written_as_it_is_stored(shards, image_shards, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["show", str(shards), "silent_mp4"]) == 0
    assert json.loads(capsys.readouterr().out)["num_frames"] == sample_of(shards, "silent_mp4").info.num_frames
    assert Path("silent_mp4.mp4").read_bytes() == sample_of(shards, "silent_mp4").video
    assert main(["show", str(shards), "blind_flac"]) == 0
    assert Path("blind_flac.flac").read_bytes() == sample_of(shards, "blind_flac").audio
    assert main(["show", str(image_shards), "3"]) == 0
    key = ShardSet(image_shards).keys[3].rsplit("/", 1)[-1]
    assert Path(f"{key}.png").read_bytes() == ShardSet(image_shards).read(3).image
    assert f"written: {key}.png" in capsys.readouterr().err


def test_samples_are_found_by_key_or_index(shards, capsys):
    keys = ShardSet(shards).keys
    assert [find(keys, key) for key in keys] == [find(keys, str(index)) for index in range(5)] == list(range(5))
    assert find(["7", "b", "1"], "1") == 2  # a key goes first
    assert closest(["dogs/rex_mp4", "cats/tom_mp4", "cats/tim_mp4"], "cats/tam_mp4")[:2] in (
        ["cats/tom_mp4", "cats/tim_mp4"], ["cats/tim_mp4", "cats/tom_mp4"]
    )  # fmt: skip
    assert main(["show", str(shards), "audio_latr"]) == 2
    assert "the closest: claps/audio_later_mkv" in capsys.readouterr().err
    assert main(["show", str(shards), "5"]) == 2
    assert "indices are 0..4" in capsys.readouterr().err
    assert main(["show", str(shards)]) == 2
    assert "--list" in capsys.readouterr().err
    assert main(["show", str(shards), "--list", "2"]) == 0
    assert capsys.readouterr().out == f"0  {keys[0]}\n1  {keys[1]}\n"
    assert main(["show", str(shards), "--list"]) == 0
    assert capsys.readouterr().out.count("\n") == 5


def test_files_that_cannot_hold_the_sample_are_refused(shards, image_shards, tmp_path, capsys):
    for folder, key, name in (
        (shards, "blind_flac", "a.mp3"),
        (shards, "silent_mp4", "a"),
        (image_shards, "0", "a.jpg"),
    ):
        assert main(["show", str(folder), key, "--out", str(tmp_path / name)]) == 2
        assert "allowed: ." in capsys.readouterr().err
        assert not (tmp_path / name).exists()
    with pytest.raises(ValueError, match=r"cannot be written as \.avi"):
        remux(b"", None, ".avi")
    with pytest.raises(ValueError, match="neither video nor audio"):
        remux(None, None, ".mp4")
    with pytest.raises(ValueError, match="at least 0"):
        remux(b"", None, ".mp4", video_start_seconds=-1.0)


def test_a_damaged_sample_is_exit_code_1(shards, tmp_path, capsys):
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    sample = sample_of(shards, "claps/together_mkv")
    tar = copy / f"shard-{sample.info.index // 2:06d}.tar"
    tar.write_bytes(tar.read_bytes().replace(sample.audio[:2000], b"\0" * 2000))
    assert main(["show", str(copy), "claps/together_mkv", "--out", str(tmp_path / "a.mp4")]) == 1
    assert "claps/together_mkv" in capsys.readouterr().err
    assert not (tmp_path / "a.mp4").exists()
