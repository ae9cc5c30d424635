"""Making odd media: one known scene, written in any format.

The scene lasts a second: a red corner at the top left, the right half dark, white from FLASH_SECONDS on for a fifth
of a second, and a beep while it is white. Whatever a file is, its corner, its flash and its beep can be looked for.
"""

import io
from fractions import Fraction

import av
import numpy as np
from av.filter import Graph
from PIL import Image

from data_prep.transcode.encode import write_media

SECONDS, FPS, RATE_HZ = 1.0, 20, 48_000
FLASH_SECONDS, FLASH_LENGTH_SECONDS = 0.5, 0.2
RED, DARK, WHITE = (220, 20, 20), 40, 245


def scene(times_seconds=None, height=48, width=64, turns=0, flash_seconds=FLASH_SECONDS):
    """uint8 (height, width, 3) images at these seconds; turns: quarter turns clockwise that make them upright."""
    times = np.arange(round(SECONDS * FPS)) / FPS if times_seconds is None else times_seconds
    for seconds in times:
        image = np.full((height, width, 3), DARK, np.uint8)
        if flash_seconds - 1e-6 <= seconds < flash_seconds + FLASH_LENGTH_SECONDS - 1e-6:
            image[:, width // 2 :] = WHITE
        image[: height // 3, : width // 3] = RED
        yield np.ascontiguousarray(np.rot90(image, turns))


def beep(rate_hz=RATE_HZ, seconds=SECONDS, channels=1, beep_seconds=FLASH_SECONDS, hz=1000.0):
    """float32 (channels, samples): silence and a beep."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    is_on = (time >= beep_seconds - 1e-9) & (time < beep_seconds + FLASH_LENGTH_SECONDS)
    wave = 0.6 * np.sin(2 * np.pi * hz * (time - beep_seconds)) * is_on
    return np.repeat(wave[None].astype(np.float32), channels, axis=0)


def clip(path, **changes):
    """The scene through data_prep.transcode.encode, as mp4 with h264 and AAC unless `changes` says otherwise."""
    rate_hz = changes.get("audio_rate_hz", RATE_HZ)
    settings = {"video_fps": FPS, "audio_rate_hz": rate_hz}
    settings |= {"video": scene()} if "video" not in changes else {}
    settings |= {"audio": beep(rate_hz)} if "audio" not in changes else {}
    write_media(path, **(settings | changes))


def audio_file(path, codec, rate_hz=RATE_HZ, channels=1, **changes):
    """The beep alone."""
    write_media(path, audio=beep(rate_hz, channels=channels), audio_rate_hz=rate_hz, audio_codec=codec, **changes)


def film(**changes):
    """A track of mux: the scene in h264."""
    return {"codec": "libx264", "images": list(scene())} | changes


def voice(layout="mono", num_channels=1, hz=1000.0, **changes):
    """A track of mux: the beep in AAC."""
    waveform = beep(channels=num_channels, hz=hz)
    return {"codec": "aac", "audio": waveform, "rate_hz": RATE_HZ, "layout": layout} | changes


def mux(path, tracks, container_format=None, options=None):
    """A file of any number of streams, through PyAV: for what data_prep.transcode.encode does not write.

    tracks: dicts with `codec`; of a film `images`, `pixel_format`, `field_order`; of audio `audio`, `rate_hz`,
    `layout`; and `options`, `disposition` of either.
    """
    with av.open(str(path), "w", format=container_format, options=options or {}) as container:
        streams = [_add_stream(container, track) for track in tracks]
        packets = [
            packet
            for stream, track in zip(streams, tracks, strict=True)
            for frame in [*_frames(track), None]
            for packet in stream.encode(frame)
        ]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)


def _add_stream(container, track):
    options = track.get("options", {})
    if "audio" in track:
        stream = container.add_stream(track["codec"], rate=track["rate_hz"], layout=track["layout"], options=options)
    else:
        stream = container.add_stream(track["codec"], rate=FPS, options=options)
        first = track["images"][0]
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = track.get("pixel_format", "yuv420p")
    stream.codec_context.thread_count = 1
    if "disposition" in track:
        stream.disposition = track["disposition"]
    return stream


def _frames(track):
    if "audio" not in track:
        for number, image in enumerate(track["images"]):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(format=track.get("pixel_format", "yuv420p"))
            if "field_order" in track:
                frame = _with_fields(frame, track["field_order"])
            frame.time_base, frame.pts = Fraction(1, FPS), number
            yield frame
        return
    for begin in range(0, track["audio"].shape[1], 1024):
        block = track["audio"][:, begin : begin + 1024].T.reshape(1, -1)  # one plane: PyAV 18.1 cannot take eight
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="flt", layout=track["layout"])
        frame.sample_rate, frame.time_base, frame.pts = track["rate_hz"], Fraction(1, track["rate_hz"]), begin
        yield frame


def _with_fields(frame, order):
    """The frame marked as interlaced; order: which field comes first, "tff" or "bff"."""
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, FPS)
    )  # fmt: skip
    graph.link_nodes(source, graph.add("setfield", f"mode={order}"), graph.add("buffersink")).configure()
    graph.push(frame)
    return graph.pull()


def with_title(path, title):
    """The scene alone, with a title of these bytes."""
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "X" * len(title)
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in scene():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"X" * len(title), title))


def subtitles(path):
    """A Matroska file with nothing but subtitles."""
    lines = path.with_suffix(".srt")
    lines.write_text("1\n00:00:00,000 --> 00:00:01,000\nwords\n")
    with av.open(str(lines)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams[0])
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    lines.unlink()


def cover(side=8):
    """A small image, for covers: the bytes of a png."""
    content = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(content, "png")
    return content.getvalue()


def weave(number, order):
    """Two fields of a bar that moves 4 px a field, the earlier one on top if order is "tff"."""
    earlier, later = (_bar(2 * number + k) for k in (0, 1))
    if order == "tff":
        earlier[1::2] = later[1::2]
        return earlier
    later[1::2] = earlier[1::2]
    return later


def _bar(number):
    image = next(scene([0.0]))
    first = 32 + (4 * number) % 24
    image[:, first : first + 8] = WHITE
    return image
