"""A folder of broken and odd files, made on the spot, and what preparation must make of each of them."""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from av.stream import Disposition

from data_prep.transcode.encode import write_media
from tests import odd_surgery as surgery
from tests.odd_media import (
    FLASH_SECONDS,
    FPS,
    RATE_HZ,
    audio_file,
    beep,
    clip,
    cover,
    film,
    mux,
    scene,
    subtitles,
    voice,
    weave,
    with_title,
)

BY_25 = np.arange(25) / 25  # MPEG-1 and 2 have no 20 frames a second


@dataclass(frozen=True)
class Odd:
    """A file and what must become of it.

    reason: why it is skipped, None: it is written. words: what the message says. The rest is of written files.
    video, audio: how many seconds of each are stored, None: none. size: (width, height). offset: the audio's start less
    the video's. is_aligned: flash and beep belong together. source: facts that the sample's json holds, by dotted name.
    """

    make: Callable[[Path], Any]
    reason: str | None = None
    words: str = ""
    video: float | None = 1.0
    audio: float | None = 1.0
    size: tuple[int, int] = (64, 48)
    offset: float | None = None
    is_aligned: bool = True
    source: dict[str, Any] = field(default_factory=dict)


ODD: dict[str, Odd] = {}


def written(name, make=None, **expected):
    """A file that is written; make: see odd_media.clip if it is a dict."""
    ODD[name] = Odd(make if callable(make) else a_clip(make), **expected)


def heard(name, codec, rate_hz=RATE_HZ, channels=1, seconds=1.0, **changes):
    """An audio file that is written."""
    facts = {"audio.rate_hz": rate_hz, "audio.channels": channels}
    make = makes_audio(codec, rate_hz=rate_hz, channels=channels, **changes)
    ODD[name] = Odd(make, video=None, audio=seconds, source=facts)


def skipped(name, reason, make, words=""):
    """A file that is skipped."""
    ODD[name] = Odd(make, reason, words)


def steps(*functions):
    """Makes a file in several steps."""
    return lambda path: [function(path) for function in functions]


def after(make, change, *arguments):
    """Makes a file, then changes it."""
    return steps(make, lambda path: change(path, *arguments))


def a_clip(changes=None):
    """Makes a clip (see odd_media.clip)."""
    return lambda path: clip(path, **(changes or {}))


def makes_audio(codec, **changes):
    """Makes a beep (see odd_media.gapless_audio)."""
    return lambda path: audio_file(path, codec, **changes)


def tracks(*made, container_format=None, **options):
    """Makes a file of these tracks (see odd_media.mux)."""
    return lambda path: mux(path, list(made), container_format, options)


# --- time ------------------------------------------------------------------------------------------------------------

UNEVEN = [0.0, 0.05, 0.1, 0.17, 0.3, 0.31, FLASH_SECONDS, 0.62, FLASH_SECONDS + 0.2, 0.95]
TS = {"video": list(scene(BY_25)), "video_fps": 25, "video_codec": "mpeg2video", "audio_codec": "mp2",
      "container_format": "mpegts"}  # fmt: skip
for suffix in ("mp4", "mkv"):
    written(f"uneven.{suffix}", {"video": list(scene(UNEVEN)), "frame_times_seconds": UNEVEN},
            video=1.1 if suffix == "mp4" else 1.0)  # mp4 cannot tell how long the last frame is shown  # fmt: skip
    written(f"both_late.{suffix}", {"video_start_seconds": 3.0, "audio_start_seconds": 3.0}, offset=0.0)
    written(f"late_audio.{suffix}", {"audio_start_seconds": 0.3, "audio": beep(seconds=0.7, beep_seconds=0.2)},
            audio=0.7, offset=0.3)  # fmt: skip
    written(f"late_film.{suffix}", {"video_start_seconds": 0.25, "audio": beep(seconds=1.25, beep_seconds=0.75)},
            audio=1.25, offset=-0.25)  # fmt: skip
written("b_frames.mp4", {"video_options": {"bf": "3"}, "keyframe_interval": 20})
written("b_frames.avi", tracks(film(codec="mpeg4", options={"bf": "2"}), voice(codec="libmp3lame")), is_aligned=False)
written("no_stamps.mp4", tracks(film(options={"bf": "2"}), container_format="h264"), audio=None)
written(
    "trimmed.mp4", steps(lambda path: clip(path, keyframe_interval=20), surgery.trim_a_quarter), video=0.75, audio=0.75
)
written("no_first_keyframe.mp4", lambda path: surgery.without_first_frames(path, 3), video=0.5, offset=-0.5)


def stream_from(seconds):
    """Makes an MPEG transport stream whose clock begins there."""
    shift = {"output_ts_offset": str(seconds)} if seconds else {}
    both = film(codec="mpeg2video", options={"bf": "0"}), voice(codec="mp2")
    return tracks(*both, container_format="mpegts", **shift)


written("clock_wraps.ts", stream_from(2**33 / 90000 - 2))
for name, clocks in {"restarts": (0, 0), "goes_back": (20, 0), "jumps": (0, 100), "jumps_far": (0, 9000)}.items():
    made = [stream_from(seconds) for seconds in clocks]
    written(f"clock_{name}.ts", lambda path, made=made: surgery.joined(path, *made), video=2.0, audio=2.0)
written("chained.ogg", after(makes_audio("libopus"), surgery.edit, lambda content: content * 2),
        video=None, audio=2.0)  # fmt: skip
written("header_says_more.mp4", steps(clip, *[lambda path, box=box, at=at: surgery.scale_box(path, box, at, 3)
        for box, at in ((b"mvhd", 16), (b"mdhd", 16), (b"tkhd", 20), (b"elst", 8))]))  # fmt: skip
written("header_says_more.avi", steps(lambda path: clip(path, video_codec="mpeg4", audio_codec="libmp3lame"),
        lambda path: surgery.scale_avi_lengths(path, 3)))  # fmt: skip
written("header_says_more.mkv", steps(clip, lambda path: surgery.scale_matroska_duration(path, 3)))
written("one_frame.mp4", {"video": scene([0.0]), "audio": None}, video=0.05, audio=None)
written("one_frame_and_audio.mp4", {"video": scene([0.0])}, video=0.05, is_aligned=False)

# --- images ----------------------------------------------------------------------------------------------------------

for degrees in (0, 90, 180, 270):
    written(f"turned_{degrees}.mp4", {"video": scene(turns=degrees // 90), "rotation_degrees": degrees},
            source={"video.rotation_degrees": degrees})  # fmt: skip
written("ten_bits.mp4", {"pixel_format": "yuv420p10le"}, source={"video.pixel_format": "yuv420p10le"})
written("high_dynamic_range.mp4", {"pixel_format": "yuv420p10le", "video_options": {
    "color_primaries": "bt2020", "color_trc": "arib-std-b67", "colorspace": "bt2020nc"}})  # fmt: skip
written("full_chroma.mkv", {"pixel_format": "yuv444p"})
written("alpha.webm", {"video_codec": "libvpx-vp9", "pixel_format": "yuva420p", "audio_codec": "libopus"})
written("alpha_animation.mov", {"video_codec": "qtrle", "pixel_format": "argb", "audio_codec": "pcm_s16le"})
written("alpha_png.mov", {"video_codec": "png", "pixel_format": "rgba"})
written("odd_size.mkv", {"video": scene(height=47, width=63), "video_codec": "ffv1", "pixel_format": "yuv444p"},
         source={"video.width": 63, "video.height": 47})  # fmt: skip
written("wide_pixels.mp4", {"video": scene(width=32), "video_codec": "mpeg4", "video_options": {"aspect": "2"}},
        source={"video.pixel_aspect": 2.0})  # fmt: skip
written("strip.mkv", {"video": scene(height=8, width=256), "video_codec": "ffv1", "pixel_format": "yuv444p"},
        size=(256, 8))  # fmt: skip
for order in ("tff", "bff"):
    written(f"interlaced_{order}.mp4", tracks(film(images=[weave(n, order) for n in range(FPS)],
            field_order=order, options={"x264-params": "interlaced=1", "crf": "10"}), voice()),
            is_aligned=False)  # fmt: skip
for name, codec, changes in (
    ("mpeg4.avi", "mpeg4", {"audio_codec": "libmp3lame"}),
    ("motion_jpeg.avi", "mjpeg", {"pixel_format": "yuvj420p", "audio_codec": "pcm_s16le"}),
    ("prores.mov", "prores_ks", {"pixel_format": "yuv422p10le", "audio_codec": "pcm_s24le"}),
    ("vp8.webm", "libvpx", {"audio_codec": "libopus"}),
    ("vp9.webm", "libvpx-vp9", {"audio_codec": "libopus"}),
    ("av1.mp4", "libsvtav1", {"video_options": {"preset": "12"}}),
    ("hevc.mp4", "libx265", {"video_options": {"x265-params": "log-level=none"}}),
    ("sorenson.flv", "flv", {"audio_codec": "libmp3lame", "audio_rate_hz": 44100, "container_format": "flv"}),
    ("h264.flv", "libx264", {"container_format": "flv"}),
    ("h264.ts", "libx264", {"container_format": "mpegts"}),
    ("mpeg2.ts", "mpeg2video", TS),
    ("mpeg1.mpg", "mpeg1video", TS | {"video_codec": "mpeg1video", "container_format": "mpeg"}),
    ("raw.avi", "rawvideo", {"audio_codec": "pcm_s16le"}),
    ("cinepak.avi", "cinepak", {"pixel_format": "rgb24", "audio_codec": "pcm_u8"}),
    ("windows.wmv", "wmv2", {"audio_codec": "libmp3lame", "container_format": "asf"}),
    ("real.rm", "rv20", {"audio_codec": "ac3", "container_format": "rm"}),
    ("broadcast.mxf", "mpeg2video", TS | {"audio_codec": "pcm_s16le", "container_format": "mxf"}),
):
    written(name, {"video_codec": codec} | changes)
written("animation.gif", {"video_codec": "gif", "pixel_format": "rgb8", "audio": None, "container_format": "gif"},
        audio=None)  # fmt: skip

# --- audio -----------------------------------------------------------------------------------------------------------

for name, codec, rate_hz, channels, changes in (
    ("telephone.wav", "pcm_mulaw", 8000, 1, {}), ("bytes.wav", "pcm_u8", 11025, 2, {}),
    ("floats.wav", "pcm_f32le", 22050, 2, {}), ("studio.wav", "pcm_s24le", 96000, 2, {}),
    ("stereo.flac", "flac", 44100, 2, {}), ("stereo.mp3", "libmp3lame", 44100, 2, {}),
    ("mono.opus", "libopus", 48000, 1, {}), ("stereo.ogg", "vorbis", 48000, 2, {"audio_options": {"strict": "-2"}}),
    ("bare.aac", "aac", 44100, 2, {"container_format": "adts", "seconds": 1.045}),
    ("lossless.m4a", "alac", 44100, 2, {}), ("mac.aiff", "pcm_s16be", 22050, 1, {"container_format": "aiff"}),
    ("dolby.ac3", "ac3", 48000, 2, {"container_format": "ac3"}),
):  # fmt: skip
    heard(name, codec, rate_hz, channels, **changes)
for layout, count in (("5.1", 6), ("7.1", 8)):
    for name, codec in (
        (f"{layout}.m4a", "aac"),
        (f"{layout}.mov", "pcm_s16le"),
        (f"{layout}.caf", "pcm_f32le"),
        (f"{layout}.flac", "flac"),
    ):
        written(name, tracks(voice(layout, count, codec=codec)), video=None, source={"audio.channels": count})
written("two_sounds.mp4", tracks(film(), voice(), voice(hz=3000.0)),
        source={"audio.stream_index": 1, "audio.num_streams": 2})  # fmt: skip
written("second_is_default.mkv", tracks(film(), voice(disposition=Disposition(0)), voice(
        hz=3000.0, disposition=Disposition.default)), source={"audio.stream_index": 2})  # fmt: skip
written("first_is_for_the_blind.mkv", tracks(film(), voice(
        disposition=Disposition.default | Disposition.visual_impaired), voice(disposition=Disposition(0))),
        source={"audio.stream_index": 2})  # fmt: skip
written("silence.mp4", {"audio": np.zeros((1, RATE_HZ), np.float32)}, is_aligned=False)
written("no_audio.mp4", {"audio": None}, audio=None)
written("short_audio.mp4", {"audio": beep()[:, 24000:25000]}, audio=0.021, is_aligned=False)
written("cover.mp3", lambda path: surgery.with_tag(path, {b"APIC": b"\0image/png\0\3\0" + cover()}),
        video=None)  # fmt: skip
written("old_tag.mp3", lambda path: surgery.with_tag(path, {b"TIT2": b"\0caf\xe9 \xff\xfe"}), video=None)
written("tag_at_the_end.mp3", after(makes_audio("libmp3lame"), surgery.add_ape_tag), video=None)
written("latin_1.mkv", lambda path: with_title(path, b"\xe9\xff\xfe\xc0\x80\xe9"), audio=None)
written("endless.wav", steps(lambda path: audio_file(path, "pcm_s16le"), lambda path: surgery.edit(
        path, lambda c: c[:4] + b"\xff" * 4 + c[8:40] + b"\xff" * 4 + c[44:])), video=None)  # fmt: skip
written("strange $(name)\n;%d 'ü.mp4", {})
written(os.fsdecode(b"latin \xe9.mp4"), {})

# --- damaged a little ------------------------------------------------------------------------------------------------

WEBM = {"video_codec": "libvpx-vp9", "audio_codec": "libopus"}
AVI = {"video_codec": "mpeg4", "audio_codec": "libmp3lame"}
JPEGS = {"video_codec": "mjpeg", "pixel_format": "yuvj420p"}
written("end_missing.webm", after(a_clip(WEBM), surgery.cut, 0.98), audio=0.93)
written("one_picture_damaged.mov", after(a_clip(JPEGS), surgery.damage_packets, "video", [4]))
written(
    "one_packet_damaged.mp3",
    after(makes_audio("libmp3lame"), surgery.damage_packets, "audio", [30]),
    video=None,
    audio=0.97,
)

# --- not to be used --------------------------------------------------------------------------------------------------

for name, text in {
    "empty.mp4": "", "text.mp4": "this is no film\n" * 99, "page.mp4": "<!DOCTYPE html><html>Not found</html>",
    "list.mp4": "#EXTM3U\n#EXTINF:1,\nfile:turned_0.mp4\n", "concat.mov": "ffconcat version 1.0\nfile turned_0.mp4\n",
    "list_of_pages.mkv": "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n",
    "noise.mkv": "".join(map(chr, range(128))) * 40,
}.items():  # fmt: skip
    skipped(name, "not_media" if text else "empty_file", lambda path, text=text: path.write_text(text))
skipped("words.mkv", "not_media", subtitles, "without video or audio streams")
skipped("pipe.mp4", "missing_file", os.mkfifo, "no regular file")
skipped("gone.mp4", "missing_file", lambda path: path.symlink_to("nowhere.mp4"))
skipped("unknown_film.mp4", "unsupported_codec", after(a_clip(), surgery.replace, b"avc1", b"zzz1"), "video")
skipped("unknown_audio.mkv", "unsupported_codec", after(a_clip(WEBM), surgery.replace, b"A_OPUS", b"A_ZZZZ"), "audio")
for suffix, changes in {"mp4": {}, "mkv": {}, "webm": WEBM, "avi": AVI, "flv": {"container_format": "flv"}}.items():
    for share in (0.03, 0.6):
        skipped(f"cut_{share}.{suffix}", "truncated", after(a_clip(changes), surgery.cut, share))
for suffix, codec, container in (
    ("wav", "pcm_s16le", None), ("mp3", "libmp3lame", None), ("ogg", "libopus", None), ("flac", "flac", None),
    ("aiff", "pcm_s16be", "aiff"), ("aac", "aac", "adts"), ("au", "pcm_s16be", "au"), ("caf", "pcm_s16le", "caf"),
    ("w64", "pcm_s16le", "w64"), ("wv", "wavpack", "wv"),
):  # fmt: skip
    skipped(f"half.{suffix}", "truncated", after(makes_audio(codec, container_format=container), surgery.cut, 0.5))
skipped("cut.ts", "truncated", after(a_clip(TS), surgery.cut, 0.504), "ends inside a packet of 188 bytes")
skipped("cut_index_first.mp4", "truncated", steps(clip, surgery.index_first, lambda path: surgery.cut(path, 0.7)))
skipped("no_index.mp4", "truncated", after(a_clip(), surgery.replace, b"moov", b"skip"), "moov")
skipped("damaged.mov", "decode_error", after(a_clip(JPEGS), surgery.damage_packets, "video", [5, 6, 7, 9]),
        "4 of 20 video packets")  # fmt: skip
skipped("not_a_number.wav", "decode_error", steps(makes_audio("pcm_f32le"), lambda path: surgery.edit(
        path, lambda content: content[:-4] + struct.pack("<f", float("nan")))), "no numbers")  # fmt: skip
skipped("too_short.wav", "too_short", lambda path: write_media(
        path, audio=beep()[:, 24000:24002], audio_rate_hz=RATE_HZ, audio_codec="pcm_s16le"))  # fmt: skip


def make_odd_files(folder):
    """All of them below a folder."""
    for name, odd in ODD.items():
        odd.make(folder / name)
