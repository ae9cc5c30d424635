"""avssl.media.decode against known content and against plain PyAV loops from the first frame on."""

import io
from array import array
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import scipy.signal
import torch
from PIL import Image

from avssl.media import ffmpeg
from avssl.media.decode import probe, read_audio, read_video, stream_audio, stream_frames, stream_video
from avssl.media.info import audio_span, fitted_size, mix_to_mono, mono_weights
from avssl.media.readers import AudioReader
from avssl.types import MediaError
from data_prep.transcode.encode import MediaWriter, write_media
from data_prep.transcode.encode_settings import AudioSettings
from tests.fixtures import REAL_VIDEOS, real_videos  # noqa: F401

LEVELS = np.linspace(20, 235, 40).astype(np.uint8)
FORMATS = [
    (".mp4", "libx264", "aac"),
    (".webm", "libvpx-vp9", "libopus"),
    (".avi", "mpeg4", "libmp3lame"),
    (".mkv", "libx264", "flac"),
]


def gray_frames(num_frames, height=48, width=64):
    """Frame k is one shade of gray, LEVELS[k], so that a decoded frame tells its number."""
    return [np.full((height, width, 3), LEVELS[k], np.uint8) for k in range(num_frames)]


def numbers(frames):
    """Which frames of gray_frames these are."""
    means = frames.float().mean(dim=(1, 2, 3)).numpy()
    return [int(np.abs(LEVELS.astype(float) - mean).argmin()) for mean in means]


def tone(rate_hz, seconds, hz=440.0):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate_hz * seconds)) / rate_hz)).astype(np.float32)[None]


def all_frames(path):
    """Oracle: (seconds from the first frame, RGB) of every frame, decoded from the start."""
    with av.open(str(path)) as container:
        frames = [
            (frame.pts * frame.time_base, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)
        ]
    return np.array([float(t - frames[0][0]) for t, _ in frames]), [image for _, image in frames]


@pytest.mark.parametrize(("suffix", "video_codec", "audio_codec"), FORMATS)
def test_a_time_shows_the_latest_frame_that_began(tmp_path, suffix, video_codec, audio_codec):
    path = tmp_path / f"clip{suffix}"
    write_media(
        path, video=gray_frames(40), video_fps=20, keyframe_interval=10, video_codec=video_codec,
        audio=tone(48000, 2.0), audio_rate_hz=48000, audio_codec=audio_codec,
    )  # fmt: skip
    times = [-1.0, 0.0, 0.02, 0.05, 0.149, 0.15, 1.0, 1.54, 1.95, 30.0]
    assert numbers(read_video(path, times)) == [0, 0, 0, 1, 2, 3, 20, 30, 39, 39]
    assert numbers(read_video(path.read_bytes(), times[::-1])) == [39, 39, 30, 20, 3, 2, 1, 0, 0, 0]


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["bigbuckbunny.mp4", "obama_speech.mp4", "shot_change.mp4", "bikes.mp4"])
def test_frames_of_real_files_equal_those_decoded_from_the_start(real_videos, name):  # noqa: F811
    path = next(real_videos.rglob(name))
    starts, images = all_frames(path)
    times = np.random.default_rng(0).uniform(-0.5, starts[-1] + 0.5, 8)
    for time, frame in zip(times, read_video(path, times), strict=True):
        wanted = images[max(0, int(np.searchsorted(starts, time + 0.0006, side="right")) - 1)]
        assert np.array_equal(frame.permute(1, 2, 0).numpy(), wanted)


def test_uneven_frame_times_are_followed(tmp_path):
    times = [0.0, 0.1, 0.15, 0.5, 0.55, 1.2]
    path = tmp_path / "vfr.mkv"
    write_media(path, video=gray_frames(6), video_fps=20, frame_times_seconds=times)
    assert numbers(read_video(path, [0.0, 0.12, 0.3, 0.5, 0.54, 1.1, 1.3])) == [0, 1, 2, 3, 3, 4, 5]
    assert np.allclose([seconds for seconds, _ in stream_video(path)], times, atol=0.001)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_is_applied(tmp_path, degrees):
    stored = np.zeros((48, 64, 3), np.uint8)
    stored[:24, :32] = (250, 0, 0)  # red top left, blue bottom right, black elsewhere
    stored[24:, 32:] = (0, 0, 250)
    path = tmp_path / "turned.mp4"
    write_media(path, video=[stored] * 4, video_fps=20, rotation_degrees=degrees)
    upright = np.rot90(stored, -degrees // 90)  # a player turns clockwise
    info = probe(path).video
    assert (info.rotation_degrees, info.height, info.width) == (degrees, *upright.shape[:2])
    frame = read_video(path, [0.1])[0].permute(1, 2, 0).numpy()
    assert frame.shape == upright.shape
    assert np.abs(frame.astype(int) - upright)[4:-4, 4:-4].mean() < 8
    streamed = list(stream_video(path))[2][1].permute(1, 2, 0).numpy()
    assert np.abs(streamed.astype(int) - upright)[4:-4, 4:-4].mean() < 8
    planes = read_video(path, [0.1], rgb=False)
    assert planes.shape == (1, upright.shape[0] * 3 // 2, upright.shape[1])
    scaled = next(iter(stream_frames(path, (upright.shape[1] // 2, upright.shape[0] // 2)))).frame
    assert np.abs(scaled.to_ndarray(format="rgb24").astype(int) - upright[::2, ::2])[4:-4, 4:-4].mean() < 20


def test_the_size_of_frames_may_not_change_on_the_way(tmp_path):
    path = tmp_path / "growing.mpg"
    first, second = tmp_path / "a.mpg", tmp_path / "b.mpg"
    for part, size in ((first, (48, 64)), (second, (96, 128))):
        write_media(part, video=gray_frames(25, *size), video_fps=25, video_codec="mpeg1video", container_format="mpeg")
    path.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(MediaError, match="the size of its frames changes"):
        read_video(path, np.arange(0, 2, 0.2))


def test_yuv_holds_the_same_frame_as_rgb(real_videos):  # noqa: F811
    path = next(real_videos.rglob("bikes.mp4"))
    planes = read_video(path, [1.0], rgb=False)[0].numpy()
    rgb = av.VideoFrame.from_ndarray(planes, format="yuv420p").to_ndarray(format="rgb24")
    assert np.abs(rgb.astype(int) - read_video(path, [1.0])[0].permute(1, 2, 0).numpy()).mean() < 1.5


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("suffix", "video_codec", "audio_codec", "start_seconds"),
    [(*one, start) for one in FORMATS for start in (0.0, 0.3) if not (one[0] == ".avi" and start)],  # AVI has no starts
)
def test_audio_excerpts_have_the_right_samples(tmp_path, suffix, video_codec, audio_codec, start_seconds):
    rng = np.random.default_rng(1)
    smooth = scipy.signal.butter(4, 3000, fs=48000, output="sos")
    wave = scipy.signal.sosfilt(smooth, rng.standard_normal((1, 48000 * 4))).astype(np.float32)
    wave *= 0.5 / np.abs(wave).max()
    path = tmp_path / f"clip{suffix}"
    write_media(
        path, video=gray_frames(40), video_fps=10, video_codec=video_codec, audio=wave, audio_rate_hz=48000,
        audio_codec=audio_codec, audio_start_seconds=start_seconds, audio_options={"b": "256000"},
    )  # fmt: skip
    wanted = scipy.signal.resample_poly(wave[0], 1, 2)
    for start in (0.0, 0.51, 2.25, 3.0):
        # Priming samples may be part of the stream: only the file's clock says where the first true sample lies.
        found = read_audio(path, start + start_seconds - probe(path).audio.start_seconds, 12000, 24000)
        assert found.shape == (1, 12000)
        assert found.dtype == torch.float32
        piece = wanted[round(start * 24000) :][:12000]
        found = found[0].numpy()
        lag = int(scipy.signal.correlate(found, piece, method="fft").argmax()) - 11999
        assert abs(lag) <= (1 if suffix == ".mp4" and not start_seconds else 24)  # files round starts to milliseconds
        assert np.corrcoef(found[200:-200], np.roll(piece, lag)[200:-200])[0, 1] > 0.98


@pytest.mark.quick(1)
@pytest.mark.parametrize("rate_hz", [24000, 16000, 44100])
def test_excerpts_equal_pieces_of_the_whole(real_videos, rate_hz):  # noqa: F811
    for name, (has_audio, _) in REAL_VIDEOS.items():
        if not has_audio:
            continue
        path = real_videos / name
        whole = torch.cat([block for _, block in stream_audio(path, rate_hz)], dim=1)
        for start in (0.0, 0.31, 1.7, whole.shape[1] / rate_hz - 0.25):
            if 0 <= start < whole.shape[1] / rate_hz:
                found = read_audio(path, start, rate_hz, rate_hz)
                first = round(start * rate_hz)
                piece = whole[:, first : first + rate_hz]
                assert (found[:, : piece.shape[1]] - piece).abs().max() < 2e-3
                assert found[:, piece.shape[1] :].abs().max() == 0 if piece.shape[1] < rate_hz else True


def test_audio_outside_the_stream_is_zero_and_the_count_exact(tmp_path):
    path = tmp_path / "tone.flac"
    write_media(path, audio=np.full((1, 24000), 0.5, np.float32), audio_rate_hz=24000, audio_codec="flac")
    found = read_audio(path, -0.25, 36000, 24000)[0]
    assert found.shape == (36000,)
    assert torch.equal(found != 0, torch.cat([torch.zeros(6000), torch.ones(24000), torch.zeros(6000)]).bool())
    assert read_audio(path, 5.0, 100, 24000).abs().max() == 0
    assert read_audio(path, -5.0, 100, 24000).abs().max() == 0


def test_the_resampler_is_flushed():
    buffer = io.BytesIO()
    write_media(buffer, audio=tone(44100, 1.0), audio_rate_hz=44100, audio_codec="flac", container_format="flac")
    whole = torch.cat([block for _, block in stream_audio(buffer.getvalue(), 24000)], dim=1)[0].numpy()
    assert whole.shape == (24000,)
    oracle = scipy.signal.resample_poly(tone(44100, 1.0)[0], 80, 147)
    assert np.abs(whole - oracle)[100:-100].max() < 2e-3
    assert abs(np.abs(whole[-20:]).max() - np.abs(oracle[-20:]).max()) < 0.1


def test_a_pause_in_the_audio_stays_where_it_is(tmp_path):
    path = tmp_path / "pause.mkv"
    block = np.full((1, 4800), 0.5, np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=48000, layout="mono")
        for first in (0, 4800, 48000, 52800):
            frame = av.AudioFrame.from_ndarray((block * 32767).astype(np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, first, Fraction(1, 48000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = read_audio(path, 0.0, 57600, 48000)[0].numpy()
    wanted = np.zeros(57600)
    wanted[:9600] = wanted[48000:] = 0.5
    assert np.abs(found - wanted).max() < 1e-3


def test_the_mono_mix_is_the_usual_one_and_cannot_clip(real_videos):  # noqa: F811
    path = next(real_videos.rglob("bigbuckbunny.mp4"))  # 5.1
    assert probe(path).audio.channels == 6
    resampler = av.AudioResampler(format="s16", layout="mono", rate=48000)
    with av.open(str(path)) as container:
        pieces = [p.to_ndarray()[0] for f in container.decode(audio=0) for p in resampler.resample(f)]
    oracle = np.concatenate(pieces) / 32768
    found = read_audio(path, 0.0, len(oracle), 48000)[0].numpy()
    assert np.abs(found - oracle).max() < 2e-3
    stereo = np.array([[32767, 0, -32768]], np.int16).repeat(2, axis=1)
    assert np.abs(mix_to_mono(stereo, False, ("FL", "FR")) - np.array([32767, 0, -32768]) / 32768).max() < 1e-6
    assert mono_weights(("LFE",)) == 1.0


def test_probe_measures_start_offsets(tmp_path):
    for suffix, video_codec, audio_codec in FORMATS:
        if suffix == ".avi":
            continue
        path = tmp_path / f"late{suffix}"
        write_media(
            path, video=gray_frames(20), video_fps=20, video_codec=video_codec, audio=tone(48000, 1.0),
            audio_rate_hz=48000, audio_codec=audio_codec, video_start_seconds=0.25,
        )  # fmt: skip
        info = probe(path)
        assert abs(info.video.start_seconds - info.audio.start_seconds - 0.25) < 0.002, suffix
        assert numbers(read_video(path, [0.0, 0.5])) == [0, 10]


def test_a_cover_image_is_no_video(tmp_path):
    path = tmp_path / "song.m4a"
    write_media(path, audio=tone(48000, 0.5), audio_rate_hz=48000)
    assert probe(path).video is None
    with pytest.raises(MediaError, match="no_video"):
        read_video(path, [0.0])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.mp4", b"", "empty_file"),
        ("text.mp4", b"this is a text file, not a video\n" * 50, "not_media"),
        ("list.mp4", b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n", "not_media"),
        ("concat.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n", "not_media"),
        ("noise.mkv", bytes(range(256)) * 40, "not_media"),
    ],
)
def test_what_is_no_media_has_a_reason_and_names_the_file(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    for source, label in ((path, name), (content, "in a shard")):
        with pytest.raises(MediaError, match=label) as error:
            probe(source, name="" if source is path else label)
        assert error.value.reason == reason


def test_missing_and_cut_files_have_a_reason(tmp_path):
    with pytest.raises(MediaError, match=r"missing_file: .*gone\.mp4"):
        read_video(tmp_path / "gone.mp4", [0.0])
    path = tmp_path / "cut.mp4"
    write_media(path, video=gray_frames(20), video_fps=20)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(MediaError, match=r"truncated: .*cut\.mp4"):
        probe(path)


def test_damaged_bytes_end_in_a_media_error_or_in_frames(tmp_path):
    buffer = io.BytesIO()
    write_media(buffer, video=gray_frames(40), video_fps=20, keyframe_interval=8, container_format="mp4")
    good = np.frombuffer(buffer.getvalue(), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(60):
        bad = good.copy()
        positions = rng.integers(0, len(bad), 12)
        bad[positions] ^= rng.integers(1, 256, 12).astype(np.uint8)
        try:
            frames = read_video(bad.tobytes(), [0.0, 1.2], name="bad")
        except MediaError as error:
            assert "bad" in error.message  # noqa: PT017
        else:
            assert frames.shape[:2] == (2, 3)


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="times_seconds is empty"):
        read_video(b"x", [])
    with pytest.raises(ValueError, match="must be positive"):
        read_audio(b"x", 0.0, 0, 24000)


def test_nothing_stays_open(tmp_path):
    path = tmp_path / "clip.mkv"
    write_media(
        path, video=gray_frames(8), video_fps=20, audio=tone(48000, 0.4), audio_rate_hz=48000, audio_codec="flac"
    )
    opened = []
    original = ffmpeg.av.open
    try:
        ffmpeg.av.open = lambda *args, **kwargs: opened.append(original(*args, **kwargs)) or opened[-1]
        probe(path)
        read_video(path, [0.1])
        read_audio(path, 0.0, 100, 24000)
        list(stream_video(path))
        list(stream_audio(path))
    finally:
        ffmpeg.av.open = original
    assert len(opened) >= 6
    for container in opened:
        with pytest.raises(AssertionError, match="not open"):
            container.seek(0)


@pytest.mark.parametrize(
    ("size", "aspect", "short_side", "wanted"),
    [
        ((1280, 720), 1.0, 256, (456, 256)),
        ((720, 1280), 1.0, 256, (256, 456)),
        ((720, 576), 64 / 45, 256, (456, 256)),
        ((64, 64), 1.0, 256, (64, 64)),
        ((65, 63), 1.0, 256, (64, 64)),
        ((1000, 10), 1.0, 256, (1000, 10)),
    ],
)
def test_sizes_keep_the_shape_and_are_even(size, aspect, short_side, wanted):
    assert fitted_size(*size, aspect, short_side) == wanted


@pytest.mark.parametrize("rates", [(44100, 24000), (48000, 24000), (22050, 16000), (24000, 24000), (8000, 24000)])
def test_excerpts_begin_on_the_grid_of_the_whole(rates):
    source, target = rates
    for first_output in (0, 1, 999, 24000, 123457):
        span = audio_span(first_output, 1000, source, target)
        assert (span.first * target) % source == 0
        assert span.first * target // source + span.skip == first_output
        assert span.last * target >= (first_output + 1000) * source


@pytest.mark.parametrize("block_samples", [4608, 16384, 65535])
def test_audio_in_blocks_so_large_that_the_container_cannot_seek_is_read_from_its_beginning(
    tmp_path: Path, block_samples: int
) -> None:
    path = tmp_path / "blocks.flac"
    samples = np.random.default_rng(0).uniform(-1, 1, (1, 5 * 24_000)).astype(np.float32)
    settings = AudioSettings(24_000, 1, "flac", options={"frame_size": str(block_samples)})
    with MediaWriter(path, audio=settings) as writer:
        writer.write_audio(samples)
    whole = read_audio(path, 0.0, samples.shape[1], 24_000)
    for seconds in np.arange(0.0, 5.0, 0.3):
        first = round(seconds * 24_000)
        wanted = whole[:, first : first + 2400]
        assert torch.equal(read_audio(path, first / 24_000, wanted.shape[1], 24_000), wanted)
        with AudioReader(path) as stream:
            assert np.array_equal(np.concatenate(list(stream.play(24_000, first))), whole[0, first:].numpy())


def test_planes_of_frames_with_odd_sides_are_one_row_and_column_smaller(tmp_path: Path) -> None:
    levels = [40, 120, 200]
    images = [Image.new("L", (35, 33), level) for level in levels]
    images[0].save(tmp_path / "odd.gif", save_all=True, append_images=images[1:], duration=100)
    planes = read_video(tmp_path / "odd.gif", [0.0, 0.1, 0.2], rgb=False)
    assert planes.shape == (3, 48, 34)
    luma = planes[:, :32].float().mean((1, 2))
    assert torch.allclose(luma, torch.tensor([16 + level * 219 / 255 for level in levels]), atol=2)


class StampedPacket(SimpleNamespace):
    """A packet whose stamps are of 64 bits, as PyAV's."""

    def __setattr__(self, name, value):
        if name in ("pts", "dts"):
            array("q", [value])  # OverflowError
        super().__setattr__(name, value)


def test_stamps_that_wrapped_below_zero_are_a_decode_error_of_the_file():
    """As ffmpeg -ss 3 -c copy leaves them in Ogg."""
    video, audio = (SimpleNamespace(index=index, type=kind) for index, kind in enumerate(("video", "audio")))
    container = SimpleNamespace(format=SimpleNamespace(name="ogg"))
    video.container = audio.container = container
    packets = [
        StampedPacket(stream=stream, pts=stamp, dts=stamp, duration=1, time_base=Fraction(1, rate))
        for stream, stamp, rate in ((video, 2**58, 25), (video, 0, 25), (audio, 0, 44_100))
    ]
    with pytest.raises(MediaError, match=r"decode_error.*cut\.ogv: audio timestamps of more than 64 bits"):
        list(ffmpeg._packets_of(iter(packets), container, audio, "cut.ogv"))
