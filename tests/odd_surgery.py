"""Surgery on the bytes and packets of media files: cuts, damage, headers that lie."""

import struct

import av

from tests.odd_media import audio_file, clip


def edit(path, change):
    """Replace a file's bytes by change(bytearray)."""
    path.write_bytes(bytes(change(bytearray(path.read_bytes()))))


def cut(path, share):
    """Leave the first `share` of a file."""
    edit(path, lambda content: content[: round(len(content) * share)])


def replace(path, old, new):
    """Replace some bytes, which must be there."""
    content = path.read_bytes()
    assert old in content, f"{path}: {old!r} is not in it"
    path.write_bytes(content.replace(old, new))


def scale_box(path, name, offset, factor):
    """Multiply the 32-bit number at `offset` in every mp4 box of this name."""

    def change(content):
        at = content.find(name)
        assert at >= 0
        while at >= 0:
            (value,) = struct.unpack_from(">I", content, at + 4 + offset)
            struct.pack_into(">I", content, at + 4 + offset, round(value * factor))
            at = content.find(name, at + 4)
        return content

    edit(path, change)


def index_first(path):
    """Move an mp4's index to its front, so that cutting the file cuts the media."""
    whole = path.with_name("whole-" + path.name)
    path.rename(whole)
    with av.open(str(whole)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    whole.unlink()


def id3(frames):
    """An ID3v2.3 tag of {frame name: content}, to be put before an mp3."""
    body = b"".join(name + struct.pack(">IH", len(data), 0) + data for name, data in frames.items())
    size = len(body)
    return b"ID3\x03\0\0" + bytes(((size >> shift) & 0x7F) for shift in (21, 14, 7, 0)) + body


def with_tag(path, frames):
    """The beep as mp3 with an ID3v2 tag of these frames."""
    audio_file(path, "libmp3lame")
    edit(
        path, lambda content: id3(frames) + (content[content.find(b"\xff\xfb") :] if content[:3] == b"ID3" else content)
    )


def add_ape_tag(path):
    """Put an APE tag behind an mp3."""
    item = struct.pack("<II", 5, 0) + b"Title\0waves"
    foot = b"APETAGEX" + struct.pack("<IIII", 2000, len(item) + 32, 1, 0) + bytes(8)
    edit(path, lambda content: content + item + foot)


def joined(path, *makes):
    """Several files in one, byte after byte."""
    content = b""
    for number, make in enumerate(makes):
        part = path.with_name(f"part-{number}-{path.name}")
        make(part)
        content += part.read_bytes()
        part.unlink()
    path.write_bytes(content)


def without_first_frames(path, count):
    """The scene, its audio whole, without its first frames: the next ones cannot be decoded up to a keyframe."""
    whole = path.with_name("whole-" + path.name)
    clip(whole, keyframe_interval=10)
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        seen = 0
        for packet in source.demux():
            if packet.dts is not None:
                seen += packet.stream.type == "video"
                if packet.stream.type == "audio" or seen > count:
                    packet.stream = streams[packet.stream.index]
                    target.mux(packet)
    whole.unlink()


def trim_a_quarter(path):
    """Let an mp4's edit lists begin a quarter of a second later, as cutting on a telephone does."""

    def change(content):
        track = content.find(b"trak")
        while track >= 0:
            edits, header = content.find(b"elst", track), content.find(b"mdhd", track)
            (scale,) = struct.unpack_from(">I", content, header + 16)
            length, start = struct.unpack_from(">Ii", content, edits + 12)
            struct.pack_into(">Ii", content, edits + 12, length - 250, start + scale // 4)
            track = content.find(b"trak", header)
        return content

    edit(path, change)


def set_edits(path, edits):
    """Let an mp4 of one track, its index at its end, show [(seconds long, seconds from its first frame on)] in turn."""

    def change(content):
        assert content.find(b"mdat") < content.find(b"moov"), "frames must not move"
        place = content.find(b"elst") - 4
        (size,) = struct.unpack_from(">I", content, place)
        (first,) = struct.unpack_from(">i", content, place + 20)  # of the file's own edit: frames may be stored early
        scales = [struct.unpack_from(">I", content, content.find(name) + 16)[0] for name in (b"mvhd", b"mdhd")]
        rows = [
            struct.pack(">IiI", round(seconds * scales[0]), first + round(start * scales[1]), 1 << 16)
            for seconds, start in edits
        ]
        box = struct.pack(">I4sII", 16 + 12 * len(rows), b"elst", 0, len(rows)) + b"".join(rows)
        content[place : place + size] = box
        for name in (b"moov", b"trak", b"edts"):
            around = content.find(name) - 4
            (length,) = struct.unpack_from(">I", content, around)
            struct.pack_into(">I", content, around, length + len(box) - size)
        return content

    edit(path, change)


def scale_avi_lengths(path, factor):
    """Multiply the lengths in an AVI's headers."""

    def change(content):
        places = [content.find(b"avih") + 24]
        at = content.find(b"strh")
        while at >= 0:
            places.append(at + 40)
            at = content.find(b"strh", at + 4)
        for place in places:
            (value,) = struct.unpack_from("<I", content, place)
            struct.pack_into("<I", content, place, value * factor)
        return content

    edit(path, change)


def scale_matroska_duration(path, factor):
    """Multiply the duration of the whole file, not those of its streams."""

    def change(content):
        at = content.find(b"\x44\x89\x88") + 3
        (value,) = struct.unpack_from(">d", content, at)
        struct.pack_into(">d", content, at, value * factor)
        return content

    edit(path, change)


def damage_packets(path, kind, numbers):
    """Overwrite some packets of the first stream of a kind with zeros."""
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(**{kind: 0}) if packet.size]

    def change(content):
        for place, size in (packets[number] for number in numbers):
            content[place : place + size] = bytes(size)
        return content

    edit(path, change)
