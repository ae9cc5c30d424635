"""Files written into a pipe hold zeros or "unknown" where their lengths belong: they are read whole."""

import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest

from avssl.media.decode import probe, read_audio, stream_audio
from avssl.shards.manifest import stream_manifest
from avssl.types import MediaError
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.index.cutting import Cutting, claimed_seconds
from data_prep.transcode.file import transcode
from data_prep.transcode.options import WriteOptions
from tests.test_late_start import made

RATE_HZ, SECONDS = 8000, 6
TONE = np.round(8000 * np.sin(np.arange(SECONDS * RATE_HZ) / 7)).astype(np.int16)
UNKNOWN = [0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFF000]
OPTIONS = WriteOptions(on_missing_audio="keep", on_missing_video="keep", short_side_px=48)


def wav(riff: int, data: int) -> bytes:
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", riff, b"WAVE", b"fmt ", 16, 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)
    return head + struct.pack("<4sI", b"data", data) + TONE.tobytes()


def rf64(riff: int, data: int) -> bytes:
    sizes = struct.pack("<QQQI", riff, data, 0, 0)
    head = struct.pack("<4sI4s4sI", b"RF64", 0xFFFFFFFF, b"WAVE", b"ds64", len(sizes)) + sizes
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)
    return head + form + struct.pack("<4sI", b"data", 0xFFFFFFFF) + TONE.tobytes()


def wave64(riff: int, data: int) -> bytes:
    tail = bytes.fromhex("f3acd3118cd100c04f8edb8a")
    head = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000") + struct.pack("<Q", riff) + b"wave" + tail
    form = struct.pack("<HHIIHH", 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)
    head += b"fmt " + tail + struct.pack("<Q", 40) + form
    return head + b"data" + tail + struct.pack("<Q", data) + TONE.tobytes()


def aiff(form: int, num_bytes: int, num_frames: int | None = None) -> bytes:
    count = num_bytes & 0xFFFFFFFF if num_frames is None else num_frames
    rate = struct.pack(">HQ", 16383 + 12, RATE_HZ << (63 - 12))  # an 80-bit float
    common = struct.pack(">4sIHIH", b"COMM", 18, 1, count, 16) + rate
    head = struct.pack(">4sI4s", b"FORM", form, b"AIFF") + common
    return head + struct.pack(">4sIII", b"SSND", num_bytes, 0, 0) + TONE.astype(">i2").tobytes()


def au(size: int) -> bytes:
    return struct.pack(">4sIIIII", b".snd", 24, size, 3, RATE_HZ, 1) + TONE.astype(">i2").tobytes()


FILES = {
    **{f"wav {size:x}": wav(size, size) for size in UNKNOWN},
    "wav of which the RIFF is known": wav(36 + 2 * len(TONE), 0),
    **{f"rf64 {size:x}": rf64(size, size) for size in (0, 0xFFFFFFFFFFFFFFFF)},
    **{f"wave64 {size:x}": wave64(size, size) for size in (0, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)},
    **{f"aiff {size:x}": aiff(size, size) for size in UNKNOWN},
    "aiff of SoX": aiff(0x7F000008 + 46, 0x7F000008, 0x7F000000 // 2),
    **{f"au {size:x}": au(size) for size in UNKNOWN},
}  # fmt: skip


@pytest.mark.quick(8)
@pytest.mark.parametrize("name", FILES)
def test_audio_without_a_length_is_read_whole(tmp_path, name):
    path = tmp_path / f"piped.{name.split()[0].replace('rf64', 'wav').replace('wave64', 'w64')}"
    path.write_bytes(FILES[name])
    for source in (path, FILES[name]):
        blocks = np.concatenate([block.numpy()[0] for _, block in stream_audio(source)])
        np.testing.assert_array_equal(blocks, TONE / np.float32(32768))
        info = probe(source).audio
        assert info is not None
        assert info.duration_seconds in (None, pytest.approx(SECONDS, abs=0.001))
        excerpt = read_audio(source, 4.0, 800, RATE_HZ)[0].numpy()
        np.testing.assert_array_equal(excerpt, TONE[4 * RATE_HZ :][:800] / np.float32(32768))
    assert transcode(str(path), OPTIONS).duration_seconds == SECONDS


@pytest.mark.parametrize(
    "content",
    [
        wav(36 + 2 * len(TONE), 2 * len(TONE)),
        rf64(72 + 2 * len(TONE), 2 * len(TONE)),
        wave64(104 + 2 * len(TONE), 24 + 2 * len(TONE)),
        aiff(46 + 2 * len(TONE), 8 + 2 * len(TONE), len(TONE)),
        au(2 * len(TONE)),
    ],
)
def test_audio_with_a_length_that_is_not_there_is_truncated(content):
    assert probe(content).audio is not None
    with pytest.raises(MediaError, match="truncated"):
        probe(content[: len(content) // 2])


def piped(path: Path, video: str, audio: str, options: dict[str, str] | None = None) -> Path:
    """As FFmpeg writes into a pipe: it cannot go back."""
    whole = made(path.with_name(f"whole{path.suffix}"), video, audio, {})
    sink = io.BytesIO()

    class Pipe:
        def write(self, content: bytes) -> int:
            return sink.write(content)

    form = {".avi": "avi", ".mkv": "matroska", ".flv": "flv", ".mp4": "mp4"}[path.suffix]
    with av.open(str(whole)) as source, av.open(Pipe(), "w", format=form, options=options or {}) as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream_index]
                out.mux(packet)
    path.write_bytes(sink.getvalue())
    whole.unlink()
    return path


def check_video(path: Path) -> None:
    claim = claimed_seconds(probe(path).to_json())
    assert claim is None or claim == pytest.approx(SECONDS, abs=0.1)
    stored = transcode(str(path), OPTIONS)
    assert stored.num_frames == pytest.approx(SECONDS * OPTIONS.fps, abs=1)
    assert stored.duration_seconds == pytest.approx(SECONDS, abs=0.1)
    manifest = path.parent / "clips.jsonl"
    build_manifest(path.parent, manifest, IndexOptions(cutting=Cutting(clip_seconds=2)))
    assert len(list(stream_manifest(manifest))) == 3


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("suffix", "audio"), [("avi", "mp2"), ("avi", "pcm_s16le"), ("mkv", "aac"), ("flv", "aac"), ("mp4", "aac")]
)
def test_films_from_a_pipe_are_read_whole(tmp_path, suffix, audio):
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"} if suffix == "mp4" else None
    check_video(piped(tmp_path / f"piped.{suffix}", "flv1" if suffix == "flv" else "mpeg4", audio, options))


@pytest.mark.quick(1)
@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x40000000])
@pytest.mark.parametrize("with_index", [False, True])
def test_an_avi_whose_header_counts_nothing_is_read_whole(tmp_path, size, with_index):
    content = bytearray(made(tmp_path / "whole.avi", "mpeg4", "mp2", {}).read_bytes())
    (tmp_path / "whole.avi").unlink()
    places = [4, content.index(b"movi") - 4]
    places += [at + 8 + 32 for at in range(len(content)) if content[at : at + 4] == b"strh"]
    for place in places:
        struct.pack_into("<I", content, place, size if place > 4 or size != 1 << 30 else 0)
    struct.pack_into("<I", content, content.index(b"avih") + 8 + 16, 0)
    path = tmp_path / "piped.avi"
    path.write_bytes(content if with_index else content[: content.index(b"idx1")])
    check_video(path)


def test_an_avi_that_says_how_long_it_is_and_is_not_is_truncated(tmp_path):
    path = made(tmp_path / "cut.avi", "mpeg4", "mp2", {})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(MediaError, match="truncated"):
        transcode(str(path), OPTIONS)
