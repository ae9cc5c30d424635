"""How many packets an audio decoder needs after a seek until its output is right, for each codec.

    python benchmarks/audio_preroll.py

A rising tone in noise is encoded. From every seventh packet on it is decoded by a flushed decoder, and compared with
decoding from the beginning. Printed is the number of packets until no sample differs by more than 0.001.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import av  # noqa: TID251  (decodes from the middle, which no reader of ours does)
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.audio_files import chirp, write_audio

MOST_PACKETS, EVERY, TOLERANCE, SECONDS = 100, 7, 1e-3, 20
CASES = (
    *(("libmp3lame", "mp3", rate, bits, layout) for rate, bits, layout in (
        (44_100, 128_000, "mono"), (44_100, 32_000, "mono"), (48_000, 32_000, "stereo"), (22_050, 8_000, "mono"),
        (24_000, 8_000, "mono"), (24_000, 8_000, "stereo"), (8_000, 8_000, "mono"))),
    ("mp2", "mp2", 44_100, 64_000, "mono"), ("aac", "adts", 44_100, 24_000, "stereo"),
    ("aac", "adts", 44_100, 128_000, "stereo"),
    *(("libopus", "ogg", 48_000, bits, "mono") for bits in (6_000, 24_000, 128_000)),
    ("ac3", "ac3", 44_100, 96_000, "stereo"), ("eac3", "eac3", 44_100, 96_000, "stereo"),
    ("wmav1", "asf", 44_100, 64_000, "mono"), ("wmav2", "asf", 44_100, 32_000, "mono"),
    *((codec, container, rate, bits, "mono") for codec, container, rate, bits in (
        ("nellymoser", "flv", 22_050, None), ("adpcm_swf", "flv", 44_100, None), ("adpcm_ima_wav", "wav", 44_100, None),
        ("adpcm_ms", "wav", 44_100, None), ("adpcm_yamaha", "wav", 44_100, None), ("g722", "wav", 16_000, None),
        ("g726", "wav", 8_000, None), ("alac", "matroska", 44_100, None), ("flac", "flac", 44_100, None),
        ("libopencore_amrnb", "amr", 8_000, 12_200))),
)  # fmt: skip


def decoded(context: Any, packet: Any) -> np.ndarray:
    """The samples of a packet: (channels, samples) in [-1, 1]."""
    blocks = [frame.to_ndarray() / (32_768 if "s16" in frame.format.name else 1) for frame in context.decode(packet)]
    return np.concatenate(blocks, 1) if blocks else np.empty((1, 0))


def packets_needed(path: Path) -> int:
    """The most packets needed from any beginning; MOST_PACKETS: the output never becomes right."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        context, packets = stream.codec_context, [packet for packet in container.demux(stream) if packet.size]
        whole = [decoded(context, packet) for packet in packets]
        most = 0
        for first in range(20, len(packets) - 1, EVERY):
            context.flush_buffers()
            for number in range(first, min(first + MOST_PACKETS, len(packets) - 1)):
                samples, right = decoded(context, packets[number]), whole[number]
                if samples.shape != right.shape or (samples.size and np.abs(samples - right).max() > TOLERANCE):
                    most = max(most, number - first + 1)
    return most


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for codec, container_format, rate, bits, layout in CASES:
            file = Path(folder) / "sound"
            write_audio(file, codec, rate, chirp(rate, SECONDS), container_format, bits, layout)
            print(f"{codec:18s} {rate:6d} Hz {layout:6s} {bits or 0:7d} bit/s: {packets_needed(file)} packets")
