"""Frames are upright whatever says how: all eight orientations of a container, and what a stream itself tells."""

import struct

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext

from avssl.media.decode import probe, read_video, stream_video
from avssl.media.info import Orientation
from avssl.media.readers import VideoReader
from avssl.media.stream_info import orientation
from avssl.shards.shard_set import ShardSet
from data_prep.__main__ import main

FPS, NUM_FRAMES, ONE = 10, 30, 1 << 16
# {name: (a, b, c, d), and what it does: point (x, y) of the stored frame goes to (ax + cy, bx + dy)}
MATRICES = {
    "as stored": ((1, 0, 0, 1), lambda frame: frame),
    "turned by 90": ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),
    "turned by 180": ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
    "turned by 270": ((0, -1, 1, 0), lambda frame: np.rot90(frame, 1)),
    "left to right": ((-1, 0, 0, 1), lambda frame: frame[:, ::-1]),
    "top to bottom": ((1, 0, 0, -1), lambda frame: frame[::-1]),
    "over one diagonal": ((0, 1, 1, 0), lambda frame: frame.transpose(1, 0, 2)),
    "over the other": ((0, -1, -1, 0), lambda frame: frame[::-1, ::-1].transpose(1, 0, 2)),
}


def scene():
    """uint8 (48, 64, 3): four colors, each in a corner."""
    frame = np.empty((48, 64, 3), np.uint8)
    frame[:24, :32], frame[:24, 32:], frame[24:, :32], frame[24:, 32:] = 235, 30, (200, 40, 40), (40, 40, 200)
    return frame


def write(path, matrix=None, **options):
    with av.open(str(path), "w") as container:
        given = {"crf": "5", "g": "10", "bf": "0"} | options
        stream = container.add_stream("libx264", rate=FPS, options=given)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if matrix is not None:
            a, b, c, d = (int(value * ONE) for value in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for _ in range(NUM_FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene(), format="rgb24")))
        container.mux(stream.encode())


def turn(path, matrix):
    """Write the matrix into the track's header, past all writers."""
    content = bytearray(path.read_bytes())
    a, b, c, d = (value * ONE for value in matrix)
    struct.pack_into(">9i", content, content.find(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def in_stream(path, target, which, angle):
    """Copy a film with an orientation, counter-clockwise degrees, told by the keyframe of that number alone."""
    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        stored = source.streams.video[0]
        copied = container.add_stream_from_template(stored)
        telling = BitStreamFilterContext(f"h264_metadata=display_orientation=insert:rotate={angle}", stored, copied)
        silent = BitStreamFilterContext("null", stored, copied)
        packets = [packet for packet in source.demux(stored) if packet.size]
        for number, packet in enumerate(packets):
            for one in (telling if number == which else silent).filter(packet):
                one.stream = copied
                container.mux(one)


def like(pixels, expected):
    """Are (H, W, 3) pixels the expected ones, but for what a codec does?"""
    return pixels.shape == expected.shape and np.abs(pixels.astype(int) - expected).mean() < 6


@pytest.fixture(params=[(name, suffix) for name in MATRICES for suffix in ("mp4", "mov", "mkv")], ids=" ".join)
def turned(request, tmp_path):
    """(a film, what it shows)."""
    name, suffix = request.param
    matrix, shown = MATRICES[name]
    path = tmp_path / f"film.{suffix}"
    if suffix == "mkv":
        write(path, matrix)
    else:
        write(path)
        turn(path, matrix)
    return path, shown(scene())


@pytest.mark.quick(8)
def test_every_reader_shows_what_the_container_says(turned):
    path, expected = turned
    for source in (path, path.read_bytes()):
        for seconds in (0.0, 1.5):
            assert like(read_video(source, [seconds])[0].permute(1, 2, 0).numpy(), expected)
            planes = read_video(source, [seconds], rgb=False)[0].numpy()
            colors = av.VideoFrame.from_ndarray(planes, format="yuv420p").to_ndarray(format="rgb24")
            assert like(colors, expected)
        assert all(like(pixels.permute(1, 2, 0).numpy(), expected) for _, pixels in stream_video(source))
    with VideoReader(path) as stream:
        assert all(like(VideoReader.pixels(frame), expected) for frame in stream.play(0.7))
    with VideoReader(path) as stream:
        assert like(stream.pixels(stream.on_screen(1.5)), expected)
    info = probe(path).video
    assert (info.height, info.width) == expected.shape[:2]
    stored = scene()[:, ::-1] if info.is_mirrored else scene()
    assert (np.rot90(stored, -info.rotation_degrees // 90) == expected).all()


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", ["turned by 90", "left to right", "top to bottom", "over the other"])
def test_shards_hold_frames_that_are_upright(tmp_path, name):
    (tmp_path / "files").mkdir()
    matrix, shown = MATRICES[name]
    write(tmp_path / "files" / "film.mp4")
    turn(tmp_path / "files" / "film.mp4", matrix)
    expected = shown(scene())
    info, pixels = stored_in(tmp_path)
    assert (info.is_mirrored, info.rotation_degrees) == (False, 0)
    assert like(pixels, expected)


def stored_in(folder):
    """(facts, a frame in the middle) of a sample of shards made from folder / files."""
    main(["index", str(folder / "files"), "--out", str(folder / "list.jsonl")])
    main(["write", str(folder / "list.jsonl"), "--out", str(folder / "shards"), "--on-missing-audio", "keep",
          "--num-workers", "1"])  # fmt: skip
    content = ShardSet(folder / "shards").read(0).video
    return probe(content).video, read_video(content, [1.5])[0].permute(1, 2, 0).numpy()


# --- streams that say it themselves ----------------------------------------------------------------------------------


@pytest.fixture
def telling(tmp_path):
    """A function: (which frame tells of a turn, matrix of the container) -> a film."""

    def make(which, matrix=None):
        write(tmp_path / "plain.mp4")
        in_stream(tmp_path / "plain.mp4", tmp_path / "film.mp4", which, 90)
        if matrix is not None:
            turn(tmp_path / "film.mp4", matrix)
        return tmp_path / "film.mp4"

    return make


UPRIGHT, LEFT = scene(), np.rot90(scene(), 1)


@pytest.mark.parametrize(
    ("which", "matrix", "expected"),
    [
        (0, None, LEFT),  # the first frame says it for all
        (10, None, UPRIGHT),  # another one says it for none
        (0, (-1, 0, 0, -1), LEFT),  # FFmpeg believes the stream before the container
        (10, (-1, 0, 0, -1), np.rot90(scene(), 2)),
    ],
)
def test_a_stream_is_turned_as_its_first_frame_wherever_it_is_read(telling, which, matrix, expected):
    path = telling(which, matrix)
    for source in (path, path.read_bytes()):
        for times in ([0.0], [0.1], [1.0], [1.05], [2.5], [0.0, 1.0, 2.5]):
            for pixels in read_video(source, times):
                assert like(pixels.permute(1, 2, 0).numpy(), expected), times
    for begin in (0.0, 1.05, 2.0):
        with VideoReader(path) as stream:
            assert all(like(VideoReader.pixels(frame), expected) for frame in stream.play(begin))
    with VideoReader(path) as stream:
        assert all(like(stream.pixels(stream.on_screen(seconds)), expected) for seconds in (0.0, 1.2, 2.5))
    info = probe(path).video
    assert (info.height, info.width) == expected.shape[:2]


@pytest.mark.slow
def test_shards_of_a_stream_that_says_it_itself_are_upright(telling, tmp_path):
    path = telling(0)
    (tmp_path / "files").mkdir()
    path.rename(tmp_path / "files" / "film.mp4")
    info, pixels = stored_in(tmp_path)
    assert (info.rotation_degrees, info.is_mirrored) == (0, False)
    assert like(pixels, LEFT)


# --- the arithmetic --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("scale", [1, 7, ONE, 2.5 * ONE])
def test_a_matrix_is_the_orientation_that_moves_points_as_it_does(name, scale):
    (a, b, c, d), shown = MATRICES[name]
    turns, is_mirrored = orientation([round(value * scale) for value in (a, b, 0, c, d, 0, 0, 0, 1)])
    stored = scene()[:, ::-1] if is_mirrored else scene()
    assert (np.rot90(stored, -turns) == shown(scene())).all()


def test_a_matrix_that_leaves_no_frame_says_nothing_and_others_are_rounded():
    assert orientation([0] * 9) == orientation([ONE, ONE, 0, ONE, ONE, 0, 0, 0, 1]) == Orientation()
    assert orientation([ONE, ONE // 3, 0, -ONE // 3, ONE, 0, 0, 0, 1]) == Orientation()
    assert orientation([ONE // 3, ONE, 0, -ONE, ONE // 3, 0, 0, 0, 1]) == Orientation(1)
    assert orientation([-ONE, ONE // 3, 0, ONE // 3, ONE, 0, 0, 0, 1]) == Orientation(0, True)
