"""Frames that are stored in another order than they are shown come at their times, whatever the container stamps."""

import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from avssl.media.decode import probe, read_video
from avssl.media.readers import AudioReader, VideoReader
from avssl.shards.shard_set import ShardSet
from data_prep.__main__ import main
from tests import numbered
from tests.numbered import FPS

NUM_FRAMES, GROUP = 100, 20
MPEG = {"bf": "2", "b_strategy": "0", "g": str(GROUP), "sc_threshold": "1000000000"}
X264 = {"crf": "10", "x264-params": f"bframes=3:b-adapt=0:b-pyramid=normal:keyint={GROUP}:min-keyint={GROUP}"}
STORED_AS_SHOWN = {"crf": "10", "x264-params": f"bframes=0:keyint={GROUP}"}
FILMS = {  # as FFmpeg writes them: codec, options, container
    "mpeg4.avi": ("mpeg4", MPEG, None),
    "mpeg2.avi": ("mpeg2video", MPEG, None),
    "mpeg1.avi": ("mpeg1video", MPEG, None),
    "h264.avi": ("libx264", X264, None),
    "plain.avi": ("libx264", STORED_AS_SHOWN, None),
    "h264.asf": ("libx264", X264, "asf"),
    "mpeg4.asf": ("mpeg4", MPEG, "asf"),
    "mpeg2.asf": ("mpeg2video", MPEG, "asf"),
    "h264.mxf": ("libx264", X264, "mxf"),
    "mpeg2.mxf": ("mpeg2video", MPEG, "mxf"),
    "mpeg2.mpg": ("mpeg2video", MPEG, "mpeg"),  # several small frames share a PES packet, and one stamp
    "mpeg1.mpg": ("mpeg1video", MPEG, "mpeg"),
    "h264.mpg": ("libx264", X264, "mpeg"),
    "mpeg1.m1v": ("mpeg1video", MPEG, "mpeg1video"),
    "mpeg4.m4v": ("mpeg4", MPEG, "m4v"),
    "h264.nut": ("libx264", X264, "nut"),
    "h264.h264": ("libx264", X264, "h264"),
}
MADE = ("packed.avi", "untimed.mp4", "untimed.mkv")  # as others do
NAMES = (*FILMS, *MADE)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("films"), {}
    for name, (codec, options, container_format) in FILMS.items():
        found[name] = folder / name
        numbered.write(found[name], codec, options, NUM_FRAMES, container_format)
    found["packed.avi"] = folder / "packed.avi"
    write_packed(found["packed.avi"])
    for name in MADE[1:]:
        found[name] = folder / name
        write_untimed(found[name])
    return found


def write_packed(path):
    """As DivX and XviD do: a frame and the one that is shown before it in one chunk, then one without a frame."""
    context = numbered.encoder("mpeg4", {**MPEG, "bf": "1"})
    stored = [(bytes(packet), packet.is_keyframe) for packet in numbered.packets(context, NUM_FRAMES)]
    kinds = [data[data.find(b"\0\0\1\xb6") + 4] >> 6 for data, _ in stored]  # 2: shown before the one stored before it
    nothing, chunks, k = b"\0\0\1\xb6\x50\x4f", [], 0
    while k < len(stored):
        is_pair = k + 1 < len(stored) and kinds[k] != 2 and kinds[k + 1] == 2
        chunks.append((stored[k][0] + stored[k + 1][0] if is_pair else stored[k][0], stored[k][1]))
        chunks += [(nothing, False)] if is_pair else []
        k += 1 + is_pair
    first, head = chunks[0][0], b"\0\0\1\xb2DivX503b1393p"
    at = first.find(b"\0\0\1\xb3") if b"\0\0\1\xb3" in first else first.find(b"\0\0\1\xb6")
    before = first[:at].split(b"\0\0\1\xb2")[0]
    extra = b"" if b"\0\0\1\x20" in first else bytes(context.extradata or b"")
    chunks[0] = (extra + before + head + first[at:], True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = numbered.WIDTH, numbered.HEIGHT, "yuv420p"
        stream.codec_context.codec_tag = "DX50"
        for number, (content, is_keyframe) in enumerate(chunks):
            mux(container, stream, av.Packet(content), number, is_keyframe)


def write_untimed(path):
    """A file whose writer knew of no difference between decoding and showing."""
    source = path.with_name(f"source {path.name}")
    numbered.write(source, "libx264", X264, NUM_FRAMES)
    with av.open(str(source)) as original, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(original.streams.video[0])
        for number, packet in enumerate(packet for packet in original.demux(video=0) if packet.size):
            mux(container, stream, packet, number, packet.is_keyframe)


def mux(container, stream, packet, number, is_keyframe):
    packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, FPS), is_keyframe
    packet.pts = packet.dts = number
    packet.duration = 1
    container.mux(packet)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", NAMES)
def test_every_frame_comes_at_its_time(films, name):
    found = numbered.numbers(films[name])
    assert [number for _, number in found] == list(range(NUM_FRAMES))
    assert [seconds * FPS for seconds, _ in found] == pytest.approx(np.arange(NUM_FRAMES), abs=0.05)


@pytest.mark.quick(8)
@pytest.mark.parametrize("name", NAMES)
def test_a_frame_alone_is_that_of_its_time(films, name):
    times = np.arange(3, NUM_FRAMES, 7)
    assert [numbered.number(read_video(films[name], [k / FPS])[0]) for k in times] == times.tolist()
    in_memory = films[name].read_bytes()
    assert [numbered.number(read_video(in_memory, [k / FPS])[0]) for k in times] == times.tolist()


@pytest.mark.quick(8)
@pytest.mark.parametrize("name", NAMES)
def test_playing_from_a_time_gives_what_playing_from_the_beginning_gives(films, name):
    with VideoReader(films[name]) as stream:
        whole = [(frame.seconds, stream.pixels(frame).copy()) for frame in stream.play()]
    for first in (7, 45, 61):
        with VideoReader(films[name]) as stream:
            part = [(frame.seconds, stream.pixels(frame).copy()) for frame in stream.play(first / FPS)]
        assert [seconds for seconds, _ in part] == pytest.approx([seconds for seconds, _ in whole[first:]])
        for (_, pixels), (_, expected) in zip(part, whole[first:], strict=True):
            np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("name", NAMES)
def test_frames_are_not_left_out_by_stamps_that_are_not_theirs(films, name):
    """As embedding reads them: it knows the times that it will ask for."""
    times = [k / FPS for k in (1, 2, 5, 6, 9, 14, 15, 30, 33, 70, 71, 85)]
    with VideoReader(films[name]) as stream:
        stream.expect(times)
        found = [
            numbered.number(torch.from_numpy(stream.pixels(one)).movedim(-1, 0)) for one in map(stream.on_screen, times)
        ]
        assert found == [round(seconds * FPS) for seconds in times]


@pytest.mark.parametrize("name", ["mpeg4.avi", "packed.avi", "h264.avi", "plain.avi", "h264.mxf"])
def test_the_first_frame_is_shown_when_the_file_begins(films, name):
    assert probe(films[name]).video.start_seconds == 0


@pytest.mark.parametrize(("codec", "options"), [("mpeg4", MPEG), ("libx264", X264), ("mpeg2video", MPEG)])
@pytest.mark.parametrize(("suffix", "audio_codec"), [("avi", "pcm_s16le"), ("asf", "pcm_s16le")])
def test_frames_that_a_decoder_holds_back_do_not_come_late_against_the_audio(
    tmp_path, suffix, audio_codec, codec, options
):
    film = tmp_path / f"film.{suffix}"
    with av.open(str(film), "w") as container:
        frames = container.add_stream(codec, rate=FPS, options=options)
        frames.width, frames.height, frames.pix_fmt = numbered.WIDTH, numbered.HEIGHT, "yuv420p"
        voice = container.add_stream(audio_codec, rate=16_000, layout="mono")
        for k in range(60):
            block = av.AudioFrame.from_ndarray(np.zeros((1, 640), np.int16), format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = 16_000, 640 * k, Fraction(1, 16_000)
            container.mux(frames.encode(av.VideoFrame.from_ndarray(numbered.image(k), format="rgb24")))
            container.mux(voice.encode(block))
        container.mux(frames.encode())
        container.mux(voice.encode())
    with VideoReader(film) as stream, AudioReader(film) as heard:
        assert stream.info.start_seconds == pytest.approx(heard.info.start_seconds, abs=0.0015)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["packed.avi", "h264.avi", "untimed.mp4"])
def test_shards_hold_every_frame_once_and_in_order(films, tmp_path, name):
    (tmp_path / "files").mkdir()
    shutil.copy(films[name], tmp_path / "files")
    main(["index", str(tmp_path / "files"), "--out", str(tmp_path / "list.jsonl")])
    main(["write", str(tmp_path / "list.jsonl"), "--out", str(tmp_path / "shards"), "--fps", str(FPS),
          "--on-missing-audio", "keep", "--num-workers", "1"])  # fmt: skip
    found = numbered.numbers(ShardSet(tmp_path / "shards").read(0).video)
    assert [number for _, number in found] == list(range(NUM_FRAMES))
