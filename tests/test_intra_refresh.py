"""What a jump shows is what decoding from the beginning shows, wherever the jump lands."""

import av
import numpy as np
import pytest

from avssl.media import random_access
from avssl.media.decode import read_video, stream_video
from avssl.media.random_access import (
    BitReader,
    is_h264_access_point,
    is_hevc_access_point,
    sei_messages,
    split_units,
)
from avssl.media.readers import VideoReader

NUM_FRAMES, FPS, WIDTH, HEIGHT = 420, 25, 144, 96
MPEG = {"bf": "2", "b_strategy": "0", "g": "30", "sc_threshold": "1000000000"}  # groups are open unless told otherwise
ENCODED = {
    "refresh": ("libx264", {"x264-params": "intra-refresh=1:keyint=50:bframes=0:scenecut=0", "crf": "15"}),
    "refresh with b": ("libx264", {"x264-params": "intra-refresh=1:keyint=40:bframes=2:b-adapt=0", "crf": "15"}),
    "hevc refresh": ("libx265", {"x265-params": "intra-refresh=1:keyint=40:bframes=0:log-level=none", "crf": "20"}),
    "open": ("libx264", {"x264-params": "open-gop=1:bframes=3:keyint=40:b-adapt=0:scenecut=0", "crf": "15"}),
    "hevc open": ("libx265", {"x265-params": "open-gop=1:bframes=3:keyint=40:log-level=none", "crf": "20"}),
    "mpeg2 open": ("mpeg2video", MPEG),
    "mpeg4": ("mpeg4", MPEG),
}
FILMS = [
    ("refresh", "mp4"), ("open", "ts"), ("mpeg2 open", "mpg"), ("mpeg4", "avi"),  # the quick ones
    ("refresh", "mkv"), ("refresh", "ts"), ("refresh with b", "mp4"), ("refresh with b", "ts"),
    ("hevc refresh", "mp4"), ("hevc refresh", "ts"), ("open", "mp4"), ("open", "mkv"), ("hevc open", "mp4"),
    ("hevc open", "ts"), ("mpeg2 open", "mp4"), ("mpeg2 open", "mkv"), ("mpeg2 open", "ts"),
    ("mpeg4", "ts"), ("mpeg4", "mpg"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("films")


@pytest.fixture(scope="module", params=FILMS, ids=" ".join)
def film(request, folder):
    """(its path, [(seconds, pixels)] from the beginning on)."""
    name, suffix = request.param
    path = folder / f"{name}.{suffix}"
    codec, options = ENCODED[name]
    generator = np.random.default_rng(0)
    texture = generator.integers(0, 255, (8, 12, 3)).astype(np.uint8).repeat(12, 0).repeat(12, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.bit_rate = 2_000_000
        for k in range(NUM_FRAMES):
            frame = np.roll(texture, 3 * k, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path, list(stream_video(path))


@pytest.mark.slow
@pytest.mark.grid(6)
def test_a_frame_alone_is_the_one_of_decoding_from_the_beginning(film):
    path, whole = film
    for number in [*range(80, NUM_FRAMES, 23), 401, 409, 417]:
        shown = read_video(path, [whole[number][0]])[0]
        assert (shown == whole[number][1]).all(), number


@pytest.mark.quick(2)
@pytest.mark.parametrize("first", [64, 163, 409])
def test_playing_from_a_time_begins_with_a_whole_frame(film, first):
    path, whole = film
    with VideoReader(path) as stream:
        for (seconds, pixels), frame in zip(whole[first : first + 60], stream.play(whole[first][0]), strict=False):
            assert frame.seconds == pytest.approx(seconds)
            np.testing.assert_array_equal(stream.pixels(frame), pixels.movedim(0, -1).numpy())


@pytest.mark.quick(2)
def test_frames_far_apart_are_whole(film):
    """As embedding reads them, with jumps between them."""
    path, whole = film
    numbers = [3, 64, 99, 232, 233, 371, 409]
    with VideoReader(path) as stream:
        stream.expect([whole[number][0] for number in numbers])
        for number in numbers:
            frame = stream.on_screen(whole[number][0])
            np.testing.assert_array_equal(stream.pixels(frame), whole[number][1].movedim(0, -1).numpy())


def test_where_keyframes_are_whole_a_jump_still_skips_what_lies_before(folder, monkeypatch):
    path, taken = folder / "usual.mp4", []
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=FPS, options={"x264-params": "keyint=20:min-keyint=20:scenecut=0:bframes=0"}
        )
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for k in range(100):
            frame = np.full((32, 32, 3), 2 * k, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    original = random_access.RandomAccessContainer._is_access_point
    monkeypatch.setattr(
        random_access.RandomAccessContainer,
        "_is_access_point",
        lambda self, packet: taken.append(packet.pts) or original(self, packet),
    )
    read_video(path, [87 / FPS])
    assert [pts * FPS / 12_800 for pts in taken] == [80]


# --- the bits --------------------------------------------------------------------------------------------------------


def sei(*content):
    """A unit of h264 with one recovery point."""
    return bytes([6, 6, len(content), *content, 0x80])


IDR, INTRA, PREDICTED = b"\x65\x88\x80", b"\x41\x88\x80", b"\x41\x9a\x00"  # slices of types 7, 7 and 5


@pytest.mark.parametrize(
    ("stored", "is_access_point"),
    [
        ([IDR], True),
        ([INTRA], False),
        ([sei(0b11000000), INTRA], True),
        ([sei(0b11000000), PREDICTED], False),
        ([sei(0b10000000), INTRA], False),  # no exact match
        ([sei(0b11100000), INTRA], False),  # a link that is broken
        ([sei(0b00100010), INTRA], False),  # whole three frames later
        ([b"\x09\x30", sei(0b11000000), PREDICTED, IDR], False),
        ([b"\x06\x05\x02\x06\x06\x80", INTRA], False),  # another message whose content looks like it
        ([], False),
    ],
)
def test_where_h264_may_begin(stored, is_access_point):
    prefixed = b"".join(len(unit).to_bytes(4, "big") + unit for unit in stored)
    separated = b"".join(b"\0\0\1" + unit for unit in stored)
    assert is_h264_access_point(split_units(memoryview(prefixed), 4)) == is_access_point
    assert is_h264_access_point(split_units(memoryview(separated), 0)) == is_access_point


@pytest.mark.parametrize(
    ("kind", "is_access_point"), [(0, False), (1, False), (8, False), (16, True), (19, True), (21, True)]
)
def test_where_hevc_may_begin(kind, is_access_point):
    assert is_hevc_access_point(iter([bytes([32 << 1, 1]), bytes([kind << 1, 1, 0])])) == is_access_point


def test_numbers_and_messages_are_read_as_they_are_written():
    bits = BitReader(bytes([0b10100110, 0b01000010, 0b10000000]))
    assert [bits.exp_golomb() for _ in range(4)] == [0, 1, 2, 3]
    assert bits.take(3) == 0b001
    assert list(sei_messages(bytes([0xFF, 2, 3, 0, 0, 3, 1, 6, 1, 0x80, 0x80]))) == [(257, b"\0\0\1"), (6, b"\x80")]
