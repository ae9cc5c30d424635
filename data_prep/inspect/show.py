"""The command `show`: writes a sample of a shard folder as a file that any player opens, and prints its json."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from avssl.files.checked_json import parse
from avssl.files.plain_text import emit, say, say_lines
from avssl.files.whole import write_whole
from avssl.shards.shard_set import Sample, ShardSet, image_member
from avssl.types import MediaError
from data_prep.transcode.remux import remux

NUM_LISTED = 20
NUM_MATCHES = 5
NUM_COMPARED = 100_000  # keys that are compared letter by letter, which takes 10 microseconds or more each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `avssl prep show`."""
    parser.add_argument("shards", type=Path, help="a finished shard folder")
    parser.add_argument("sample", nargs="?", help="its key or its index (a key that is a number goes first)")
    parser.add_argument(
        "--out",
        type=Path,
        help="the file; .mp4 or .mkv for video (with audio), .flac, .m4a or .mka for audio, .jpg or .png as the image"
        " is stored (default: named after the key, in this folder)",
    )
    parser.add_argument(
        "--list",
        type=int,
        nargs="?",
        const=NUM_LISTED,
        metavar="N",
        help=f"print index and key of the first N samples (default: {NUM_LISTED}) and write nothing",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the sample as a file, and print its json to stdout and the file's path to stderr; or list keys."""
    shards = ShardSet(arguments.shards)
    if arguments.list is not None:
        if arguments.list < 1:
            raise ValueError(f"--list is {arguments.list}; it must be at least 1")
        for index, key in enumerate(islice(shards.keys, arguments.list)):
            say(f"{index}  {key}")
            emit("sample", index=index, key=key)
        emit("result", num_samples=len(shards))
        return 0
    if arguments.sample is None:
        raise ValueError(f"which sample? Give a key or an index (0..{len(shards) - 1}), or --list to see some")
    index = find(shards.keys, arguments.sample)
    try:
        sample = shards.read(index)
        out = arguments.out or Path(default_name(sample))
        write_whole(out, playable(sample, out.suffix.lower()))
    except MediaError as error:  # a damaged shard is not an error of usage
        raise RuntimeError(str(error)) from error
    info = parse(sample.info.to_json(), sample.info.key)
    say_lines(json.dumps(info, indent=2))
    emit("result", index=index, key=sample.info.key, file=out, bytes=out.stat().st_size, info=info)
    say(f"written: {out} ({out.stat().st_size / 1e6:.2f} MB)", file=sys.stderr)
    return 0


def find(keys: Sequence[str], text: str) -> int:
    """The index of the sample whose key is `text`; if there is none, `text` as an index.

    Raises ValueError with the closest keys.
    """
    try:
        return keys.index(text)
    except ValueError:
        pass
    if text.isdecimal():
        if int(text) < len(keys):
            return int(text)
        raise ValueError(f"there is no sample {text}; indices are 0..{len(keys) - 1}")
    matches = closest(keys, text)
    hint = f"the closest: {', '.join(matches)}" if matches else "none is like it; --list shows some"
    raise ValueError(f"no sample has the key {text!r}; {hint}")


def closest(keys: Sequence[str], text: str) -> list[str]:
    """At most NUM_MATCHES keys that contain the text or are spelled like it, the likeliest first."""
    containing = sorted((key for key in keys if text.lower() in key.lower()), key=len)
    similar = get_close_matches(text, keys[:NUM_COMPARED], NUM_MATCHES, cutoff=0.5)
    return list(dict.fromkeys(containing + similar))[:NUM_MATCHES]


def suffixes(sample: Sample) -> list[str]:
    """The suffixes with which the sample can be written, the default first."""
    if sample.image is not None:
        return [".jpg", ".jpeg"] if image_member(sample.image).endswith("jpg") else [".png"]
    if sample.video is None:
        return [".flac", ".m4a", ".mka", ".mp4", ".mkv"]
    return [".mp4", ".mkv"]


def default_name(sample: Sample) -> str:
    """The file name of a sample: the last component of its key, with the default suffix."""
    return sample.info.key.rsplit("/", 1)[-1] + suffixes(sample)[0]


def playable(sample: Sample, suffix: str) -> bytes:
    """The bytes of the sample as one file: a single member as it is stored if the suffix is its own, otherwise all
    streams in a container, each from its start in the sample.

    Raises ValueError for a suffix that does not fit, MediaError for damaged members.
    """
    allowed = suffixes(sample)
    if suffix not in allowed:
        raise ValueError(f"{sample.info.key}: cannot be written as {suffix!r} without encoding it anew; "
                         f"allowed: {', '.join(allowed)}")  # fmt: skip
    if sample.image is not None:
        return sample.image
    if sample.audio is not None and suffix == ".flac":
        return sample.audio
    if sample.video is not None and sample.audio is None and suffix == ".mp4":
        return sample.video
    return remux(
        sample.video,
        sample.audio,
        suffix,
        video_start_seconds=sample.info.video_start_seconds,
        audio_start_seconds=sample.info.audio_start_seconds,
        name=sample.info.key,
    )
