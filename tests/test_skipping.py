"""Frames at the requested times are the same bits, though frames that are neither shown nor referenced are skipped."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from avssl.media import readers
from avssl.media.cursor import FrameCursor, SeekError
from avssl.media.readers import VideoReader
from avssl.media.skipping import SkippingContainer
from data_prep.transcode.encode import MediaWriter
from data_prep.transcode.encode_settings import VideoSettings
from tests.odd_surgery import set_edits

NUM_FRAMES, FPS, LENGTH_BYTES = 240, 30, 4
ENCODED = {  # x264: how frames are made from each other, and how they are shown
    "usual": {"preset": "veryfast"},
    "pyramid": {"x264-params": "bframes=8:b-pyramid=normal:b-adapt=0"},
    "flat": {"x264-params": "bframes=3:b-pyramid=none:b-adapt=0:direct=temporal"},
    "open": {"x264-params": "open-gop=1:bframes=3:b-adapt=0"},
    "in order": {"x264-params": "bframes=0"},
}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """{(how it is encoded, suffix): a film of 8 s that moves, with cuts}."""
    folder, found = tmp_path_factory.mktemp("films"), {}
    generator = np.random.default_rng(0)
    scenes = generator.integers(0, 255, (6, 12, 16, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    for name, options in ENCODED.items():
        for suffix in ("mp4", "mkv"):
            found[name, suffix] = folder / f"{name}.{suffix}"
            settings = VideoSettings(64, 48, FPS, keyframe_interval=60, options=options)
            with MediaWriter(found[name, suffix], video=settings) as writer:
                for k in range(NUM_FRAMES):
                    image = np.roll(scenes[k // 45], k, 1)
                    image[:8, :8] = 37 * k % 256, 11 * k % 256, 3 * k % 256
                    writer.write_video(image)
    return found


@pytest.fixture
def decoded(monkeypatch):
    """A list that grows by every frame that is decoded."""
    found, decode_frames = [], readers.decode_frames

    def counting(container, stream, label):
        for ticks, frame in decode_frames(container, stream, label):
            found.append(ticks)
            yield ticks, frame

    monkeypatch.setattr(readers, "decode_frames", counting)
    return found


def shown(film, parts, *, expects):
    """[(seconds, pixels)] of what is on screen at the times of all parts."""
    found = []
    with VideoReader(film) as stream:
        for times in parts:
            if expects:
                stream.expect(times)
            frames = map(stream.on_screen, times)
            found += [(frame.seconds, stream.pixels(frame).copy()) for frame in frames]
    return found


def times_of(kind, generator):
    """Rising seconds, in the parts in which they are made known."""
    if kind == "random":
        times = np.sort(generator.uniform(0, NUM_FRAMES / FPS + 0.2, 60))
    elif kind == "clips":
        times = np.arange(0, 7.9, 1 / 16)
    else:  # with gaps that are jumped over
        times = np.array([start + k / 8 for start in (0.4, 3.1, 6.6) for k in range(8)])
    return np.split(times, [len(times) // 3, len(times) // 2])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "clips", "gaps"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("name", ENCODED)
def test_what_is_on_screen_does_not_depend_on_what_is_left_out(films, decoded, name, suffix, kind):
    parts = times_of(kind, np.random.default_rng(len(name)))
    expected = shown(films[name, suffix], parts, expects=False)
    num_all = len(decoded)
    found = shown(films[name, suffix], parts, expects=True)
    assert [seconds for seconds, _ in found] == [seconds for seconds, _ in expected]
    for (_, pixels), (_, others) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(pixels, others)
    num_decoded = len(decoded) - num_all
    assert num_decoded == num_all if name == "in order" else num_decoded < num_all


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ENCODED)
def test_all_unrequested_frames_that_no_other_references_are_skipped(films, decoded, name):
    """Counted in the bits of the file: h264 marks frames that no other is made from."""
    wanted = np.arange(0, NUM_FRAMES, 2) / FPS  # every other frame, and the last one is not
    with av.open(str(films[name, "mp4"])) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        seconds = [float(packet.pts * packet.time_base) for packet in packets]
    assert len(packets) == NUM_FRAMES
    looked_at = {round(one * FPS) for one in wanted}
    of_no_use = [
        packet
        for packet, one in zip(packets, seconds, strict=True)
        if is_for_itself(bytes(packet))
        and round((one - min(seconds)) * FPS) not in looked_at
        and round((one - min(seconds)) * FPS) < max(looked_at)
    ]
    shown(films[name, "mp4"], [wanted], expects=True)
    assert len(decoded) == NUM_FRAMES - len(of_no_use)
    assert (len(of_no_use) > 0) == (name != "in order")


def is_for_itself(data):
    """Are the slices of an h264 packet, with lengths before its units, marked as of no use to other frames?"""
    while data:
        length = int.from_bytes(data[:LENGTH_BYTES], "big")
        head = data[LENGTH_BYTES]
        if head & 31 in (1, 5):
            return head >> 5 & 3 == 0
        data = data[LENGTH_BYTES + length :]
    raise AssertionError("no slice")


def test_an_interlaced_film_is_decoded_whole(tmp_path, decoded):
    """There a packet may hold half a frame."""
    film, (wanted,) = tmp_path / "film.mkv", [np.arange(0, 1.9, 1 / 8)]
    with av.open(str(film), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"x264-params": "tff=1:bframes=3:b-adapt=0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(60):
            image = av.VideoFrame.from_ndarray(np.full((72, 64), 2 * k, np.uint8), format="yuv420p")
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    shown(film, [wanted], expects=False)
    num_all = len(decoded)
    shown(film, [wanted], expects=True)
    assert len(decoded) == 2 * num_all


@pytest.mark.parametrize("name", ENCODED)
def test_a_film_that_has_to_be_opened_anew_shows_the_same(films, monkeypatch, name):
    """As where a jump comes out too late: it is read from its beginning, and the same times are wanted."""
    parts = times_of("gaps", np.random.default_rng(0))
    expected = shown(films[name, "mp4"], parts, expects=False)
    missed = []

    def miss(cursor, target):
        missed.append(target)
        raise SeekError

    monkeypatch.setattr(FrameCursor, "_seek_before", miss)
    found = shown(films[name, "mp4"], parts, expects=True)
    assert len(missed) == 1
    assert [seconds for seconds, _ in found] == [seconds for seconds, _ in expected]
    for (_, pixels), (_, others) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(pixels, others)


# [(seconds long, seconds from the first frame on)] of edit lists, by what they do
EDITS = {
    "end hidden": [(3.05, 0.0)],
    "beginning hidden": [(3.0, 0.45)],
    "cut out": [(1.53, 0.0), (1.5, 6.9)],
    "shown twice": [(2.03, 0.3), (1.97, 5.1), (1.0, 1.2)],
    "a seam without a cut": [(1.5, 0.0), (1.5, 1.5)],
}


@pytest.mark.quick(15)
@pytest.mark.parametrize("step", [1 / 16, 1 / 10, 1 / 15])
@pytest.mark.parametrize("edits", EDITS)
@pytest.mark.parametrize("name", ["pyramid", "flat", "open"])
def test_frames_that_an_edit_list_hides_are_not_taken_for_shown(films, tmp_path, name, edits, step):
    """They are stored, with stamps, and a real frame must not be left out for one of them."""
    film = shutil.copy(films[name, "mp4"], tmp_path)
    set_edits(Path(film), EDITS[edits])
    times = np.arange(0.001, sum(seconds for seconds, _ in EDITS[edits]) + 0.1, step)
    expected, found = (shown(film, [times], expects=expects) for expects in (False, True))
    assert [seconds for seconds, _ in found] == [seconds for seconds, _ in expected]
    for (_, pixels), (_, others) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(pixels, others)


@pytest.mark.parametrize("edits", [[(7.0, 0.0), (1.0, 7.0)], [(8.0, 0.0)]])
def test_what_is_left_out_of_a_film_with_edits(films, tmp_path, decoded, edits):
    """All of it where they hide no frame, nothing where they do: also of the parts that were left as they were."""
    film = shutil.copy(films["flat", "mp4"], tmp_path)
    set_edits(Path(film), edits)
    times = np.arange(0, 6, 1 / 10)
    shown(film, [times], expects=False)
    num_all = len(decoded)
    shown(film, [times], expects=True)
    num_decoded = len(decoded) - num_all
    assert num_decoded == num_all if len(edits) > 1 else num_decoded < 0.7 * num_all


def left_out(stamps, wanted, dts=None, *, hidden=()):
    """Of a film in h264 with these stamps in the order in which they are stored: those that the decoder may skip."""
    dts = sorted(stamps) if dts is None else dts
    packets = [SimpleNamespace(pts=pts, dts=at, is_discard=pts in hidden) for pts, at in zip(stamps, dts, strict=True)]
    context = SimpleNamespace(name="h264", skip_frame="DEFAULT")
    stream = SimpleNamespace(codec_context=context, index_entries=[])
    file = SimpleNamespace(
        format=SimpleNamespace(name="matroska,webm"), demux=lambda stream: (packet for packet in packets)
    )
    found = [packet.pts for packet in SkippingContainer(file, wanted).demux(stream) if context.skip_frame == "NONREF"]
    assert context.skip_frame == "DEFAULT"
    return found


def test_a_frame_is_left_out_only_if_a_later_one_is_sure_to_be_on_screen():
    stamps = [0, 40, 20, 10, 30, 80, 60, 50, 70]
    dts = [-20, -10, 0, 10, 20, 30, 40, 50, 60]
    assert left_out(stamps, [0, 30, 60], dts) == [40, 20, 10, 50], "what follows the last wanted one is unknown"
    assert left_out(stamps, [5, 35, 75], dts) == [40, 20, 10, 60, 50]
    assert left_out(stamps, [25], dts) == [0, 10]
    assert left_out(stamps, [], dts) == []
    assert left_out(stamps, [0, 30, 60], [None] * 9) == [10, 50], "only what was stored before is known"


def test_nothing_is_left_out_from_the_first_sign_of_edits_on():
    """Of a stream whose index does not show them."""
    stamps, wanted = [0, 40, 20, 10, 30, 80, 60, 50, 70], [5, 35, 75]
    dts = [-20, -10, 0, 10, 20, 30, 40, 50, 60]
    assert left_out(stamps, wanted, dts, hidden=[50]) == [40, 20, 10], "a frame that is not shown"
    assert left_out(stamps, wanted, [*dts[:7], 30, 60]) == [40, 20, 10], "a clock that goes back"
    assert left_out([*stamps[:7], 35, 70], wanted, dts) == [40, 20, 10], "a frame shown before its time"
