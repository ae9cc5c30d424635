"""Audio files of known content in any codec and container, through PyAV: for the tests of reading from the middle."""

import av
import numpy as np
import torch

from avssl.media.decode import read_audio, stream_audio
from avssl.media.readers import AudioReader


def chirp(rate_hz, seconds, seed=0):
    """float32 (samples,): a rising tone in noise, so that no two moments are alike."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    tone = 0.35 * np.sin(2 * np.pi * (200 + rate_hz / 8 / seconds * time) * time)
    return (tone + 0.1 * np.random.default_rng(seed).standard_normal(len(time))).astype(np.float32)


def write_audio(
    path, codec, rate_hz, wave, container_format=None, bit_rate=None, layout="mono", options=None, lost=()
):  # fmt: skip
    """One audio stream; lost: numbers of packets that are left out."""
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=rate_hz, layout=layout, options=options or {})
        if bit_rate:
            stream.bit_rate = bit_rate
        context = stream.codec_context
        context.open()
        step = context.frame_size or 1024
        fitted = av.AudioResampler(format=context.format, layout=layout, rate=rate_hz)
        packets = []
        for begin in range(0, len(wave), step):
            block = np.repeat(wave[begin : begin + step], context.layout.nb_channels)[None]
            frame = av.AudioFrame.from_ndarray(block, format="flt", layout=layout)
            frame.sample_rate, frame.pts = rate_hz, begin
            packets += [packet for piece in fitted.resample(frame) for packet in stream.encode(piece)]
        for number, packet in enumerate([*packets, *stream.encode(None)]):
            if number not in lost:
                container.mux(packet)


def whole_of(path):
    """float32 (samples,), decoded from the beginning."""
    return torch.cat([block for _, block in stream_audio(path)], 1)[0].numpy()


def worst_difference(path, rate_hz, starts):
    """The largest difference of excerpts, and of playing on from there, from the same seconds of the whole."""
    whole, worst = whole_of(path), 0.0
    for start in starts:
        first = round(start * rate_hz)
        found = read_audio(path, start, rate_hz // 2, rate_hz)[0].numpy()
        with AudioReader(path) as stream:
            played = np.concatenate(list(stream.play(rate_hz, first)))
        piece = whole[first : first + len(found)]
        assert len(played) == len(whole) - first
        worst = max(worst, np.abs(found[: len(piece)] - piece).max(), np.abs(played - whole[first:]).max())
    return float(worst)
