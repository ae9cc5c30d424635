"""Files that begin in the middle of a broadcast last as long as what is in them, however their container counts."""

import struct
from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest

from avssl.embedding.media import open_media
from avssl.media.decode import probe
from avssl.shards.manifest import stream_manifest
from avssl.types import MediaError
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.index.cutting import Cutting, claimed_seconds
from data_prep.transcode.file import transcode
from data_prep.transcode.options import WriteOptions

SECONDS, FPS, RATE_HZ, LATE = 6, 25, 48_000, 3600
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
OPTIONS = WriteOptions(on_missing_audio="keep", on_missing_video="keep", short_side_px=48)

# suffix, video codec, audio codec, the muxer's options
LATE_FILES = {
    "mkv": ("libx264", "aac", {}),
    "live mkv": ("libx264", "aac", {"live": "1"}),
    "webm": ("libvpx", "libopus", {"live": "1"}),
    "mka": (None, "aac", {}),
    "ts": ("libx264", "aac", {}),
    "mpg": ("mpeg2video", "mp2", {}),
    "flv": ("libx264", "aac", {}),
    "asf": ("msmpeg4", "wmav2", {}),
    "wma": (None, "wmav2", {}),
    "ogg": (None, "libopus", {}),
    "opus": (None, "libopus", {}),
    "oga": (None, "flac", {}),
    "mp4": ("libx264", "aac", {}),
}  # fmt: skip


def made(path: Path, video: str | None, audio: str | None, options: dict[str, str], late_seconds: float = 0) -> Path:
    """SECONDS of frames and audio whose timestamps begin at late_seconds."""
    with av.open(str(path), "w", options=options) as out:
        streams = []
        if video is not None:
            stream = out.add_stream(video, rate=FPS)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.options = {"g": "25", "bf": "0"}
            frames = [
                av.VideoFrame.from_ndarray(np.full((48, 64, 3), number, np.uint8), format="rgb24")
                for number in range(SECONDS * FPS)
            ]
            streams.append((stream, frames))
        if audio is not None:
            stream = out.add_stream(audio, rate=RATE_HZ, layout="mono")
            stream.bit_rate = 64_000
            kind = stream.codec_context.format.name if stream.codec_context.format else "fltp"
            frames = []
            for at in range(0, SECONDS * RATE_HZ, 960):
                tone = 0.5 * np.sin(np.arange(at, at + 960) / 20)[None]
                samples = (tone * 32767).astype(np.int16) if kind.startswith("s16") else tone.astype(np.float32)
                frame = av.AudioFrame.from_ndarray(samples, format=kind, layout="mono")
                frame.sample_rate, frame.pts = RATE_HZ, at
                frames.append(frame)
            streams.append((stream, frames))
        packets = [packet for stream, frames in streams for frame in [*frames, None] for packet in stream.encode(frame)]
        for packet in sorted(packets, key=lambda one: float((one.dts or 0) * one.time_base)):
            shift = round(late_seconds / packet.time_base)
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            out.mux(packet)
    return path


def late_fragments(path: Path, late_seconds: int = LATE, header_seconds: int = 0) -> None:
    """Move the fragments of an mp4, and the sidx; header_seconds: what its header says of the whole film."""
    content = bytearray(path.read_bytes())
    ticks: dict[int, int] = {}
    track = 0

    def walk(begin: int, end: int) -> None:
        nonlocal track
        while begin + 8 <= end:
            length, kind = struct.unpack_from(">I4s", content, begin)
            body = begin + 8
            wide, after = (">Q", 20) if content[body] else (">I", 12)
            if kind in (b"moov", b"trak", b"mdia", b"moof", b"traf"):
                walk(body, begin + length)
            elif kind == b"tkhd":
                (track,) = struct.unpack_from(">I", content, body + after)
            elif kind in (b"mdhd", b"mvhd"):
                (scale,) = struct.unpack_from(">I", content, body + after)
                ticks[track if kind == b"mdhd" else 0] = scale
                if header_seconds:
                    struct.pack_into(">I", content, body + after + 4, header_seconds * scale)
            elif kind == b"tfhd":
                (track,) = struct.unpack_from(">I", content, body + 4)
            elif kind == b"tfdt":
                moved = struct.unpack_from(wide, content, body + 4)[0] + late_seconds * ticks[track]
                struct.pack_into(wide, content, body + 4, moved)
            elif kind == b"sidx":
                (scale,) = struct.unpack_from(">I", content, body + 8)
                moved = struct.unpack_from(wide, content, body + 12)[0] + late_seconds * scale
                struct.pack_into(wide, content, body + 12, moved)
            begin += length

    walk(0, len(content))
    path.write_bytes(content)


def check_reads_as_six_seconds(path: Path) -> None:
    info = probe(path)
    for stream in (info.video, info.audio):
        if stream is not None and stream.duration_seconds is not None:
            assert stream.duration_seconds == pytest.approx(SECONDS, abs=1.0)  # streams of MPEG are not told exactly
    claim = claimed_seconds(info.to_json())
    assert claim is None or claim == pytest.approx(SECONDS, abs=0.2)
    assert transcode(str(path), OPTIONS).duration_seconds == pytest.approx(SECONDS, abs=0.15)
    manifest = path.parent / "clips.jsonl"
    build_manifest(path.parent, manifest, IndexOptions(cutting=Cutting(clip_seconds=2)))
    entries = list(stream_manifest(manifest))
    assert [entry.segment for entry in entries][:2] == [(0.0, 2.0), (2.0, 4.0)]
    assert len(entries) == 3
    assert all(entry.error is None for entry in entries)
    with closing(open_media(path, "late", ("video", "audio"))) as media:
        assert max(span.end_seconds for span in media.spans.values()) == pytest.approx(SECONDS, abs=0.2)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", LATE_FILES)
def test_a_file_that_begins_an_hour_late_lasts_as_long_as_what_is_in_it(tmp_path, name):
    video, audio, options = LATE_FILES[name]
    check_reads_as_six_seconds(made(tmp_path / f"late.{name.split()[-1]}", video, audio, options, LATE))


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("video", "audio", "flags", "header_seconds"),
    [
        ("libx264", "aac", "frag_keyframe+empty_moov+default_base_moof", 0),
        ("libx264", "aac", "frag_keyframe+empty_moov+default_base_moof+global_sidx", 0),
        ("libx264", "aac", "dash+frag_keyframe+empty_moov", 7200),
        ("libx264", "aac", "frag_keyframe+empty_moov+skip_trailer", 7200),
        ("libx264", None, "cmaf+frag_keyframe", 0),
        (None, "aac", "cmaf+empty_moov", 0),
    ],
)
def test_fragments_from_the_middle_of_a_broadcast_are_no_truncated_film(tmp_path, video, audio, flags, header_seconds):
    path = made(tmp_path / "live.mp4", video, audio, {"movflags": flags, "frag_duration": "1000000"})
    late_fragments(path, header_seconds=header_seconds)
    info = probe(path)
    stream = info.video or info.audio
    assert stream is not None
    assert stream.start_seconds == pytest.approx(LATE, abs=0.1)
    assert stream.duration_seconds == pytest.approx(SECONDS, abs=0.1)
    check_reads_as_six_seconds(path)


def test_the_offset_between_audio_and_frames_does_not_change_with_the_start(tmp_path):
    near, far = (made(tmp_path / f"{name}.mp4", "libx264", "aac", FRAGMENTS) for name in ("near", "far"))
    late_fragments(far)
    offsets = [transcode(str(path), OPTIONS).av_offset_seconds for path in (near, far)]
    assert offsets[0] == pytest.approx(offsets[1], abs=1e-6)


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", ["mkv", "flv", "asf", "mp4", "fragments"])
def test_a_late_file_whose_end_is_cut_off_is_truncated(tmp_path, name):
    if name == "fragments":
        path = made(tmp_path / "late.mp4", "libx264", "aac", FRAGMENTS)
        late_fragments(path)
    else:
        path = made(tmp_path / f"late.{name}", *LATE_FILES[name], LATE)
    content = path.read_bytes()
    begins = [at for at in range(len(content)) if content[at : at + 4] == b"moof"]
    path.write_bytes(content[: (begins[1] + begins[2]) // 2 if begins else len(content) // 2])
    with pytest.raises(MediaError, match="truncated"):
        transcode(str(path), OPTIONS)


def test_fragments_that_begin_at_0_and_of_which_the_last_are_missing_are_truncated(tmp_path):
    path = made(tmp_path / "cut.mp4", "libx264", "aac", FRAGMENTS)
    late_fragments(path, late_seconds=0, header_seconds=SECONDS)
    content = path.read_bytes()
    third = [at for at in range(len(content)) if content[at : at + 4] == b"moof"][3] - 4
    path.write_bytes(content[:third])
    with pytest.raises(MediaError, match="truncated"):
        transcode(str(path), OPTIONS)


def test_an_avi_whose_first_frames_need_earlier_ones_lasts_from_the_first_that_does_not(tmp_path):
    path = tmp_path / "cut.avi"
    options = {"x264-params": "bframes=0:keyint=25:scenecut=0"}
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        images = [np.full((48, 64, 3), 2 * k, np.uint8) for k in range(100)]
        frames = [av.VideoFrame.from_ndarray(image, format="rgb24") for image in images]
        packets = [packet for frame in [*frames, None] for packet in stream.encode(frame)]
        for number, packet in enumerate(packets[1:]):
            packet.pts = packet.dts = number
            out.mux(packet)
    info = probe(path).video
    assert info.duration_seconds == pytest.approx(75 / FPS)
    assert info.start_seconds == pytest.approx(24 / FPS)
    assert transcode(str(path), OPTIONS).duration_seconds == pytest.approx(75 / FPS, abs=0.1)
