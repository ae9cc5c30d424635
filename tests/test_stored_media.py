"""What shards store of a source: at which times, upright, in which colors, at which rates."""

import av
import numpy as np
import pytest

from avssl.media.decode import probe, read_audio, read_video
from avssl.shards.shard_set import ShardSet
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.transcode.encode import write_media
from data_prep.transcode.file import transcode
from data_prep.transcode.options import WriteOptions
from data_prep.write.run import write_shards
from tests.clips import OPTIONS, complaints, make_clip, square_frames, tone


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


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".mp4"])
def test_a_file_whose_streams_begin_late_is_whole(tmp_path, suffix):
    """Matroska counts the file's duration from time 0, others from the first stream."""
    codecs = {"video_codec": "libvpx-vp9", "audio_codec": "libopus"} if suffix == ".webm" else {}
    make_clip(tmp_path / f"late{suffix}", video_start_seconds=2.0, audio_start_seconds=2.0, **codecs)
    result = transcode(str(tmp_path / f"late{suffix}"), OPTIONS)
    assert result.duration_seconds == pytest.approx(1.0, abs=0.1)
