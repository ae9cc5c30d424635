"""Loudness, level and silence of audio, against BS.1770 and FFmpeg."""

import av
import numpy as np
import pytest

from data_prep.measures.audio import AudioMeter
from tests.clips import sine


def meter(samples, rate_hz, silence_dbfs=-60.0, piece=4096):
    one = AudioMeter(rate_hz, silence_dbfs)
    for begin in range(0, len(samples), piece):
        one.add(samples[begin : begin + piece].astype(np.float32))
    return one.facts()


@pytest.mark.parametrize("rate_hz", [8000, 24000, 44100, 48000, 96000])
def test_a_full_scale_sine_has_the_loudness_that_the_standard_says(rate_hz):
    """BS.1770: 997 Hz at 0 dBFS in one channel is -3.01 LUFS."""
    facts = meter(sine(3, rate_hz), rate_hz)
    assert abs(facts.loudness_lufs + 3.01) < 0.05
    assert abs(facts.rms_dbfs + 3.01) < 0.01
    assert abs(facts.peak_dbfs) < 0.05


def ffmpeg_loudness(samples, rate_hz):
    """Integrated loudness by FFmpeg's ebur128 filter."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=rate_hz, format="flt", layout="mono")
    graph.link_nodes(source, graph.add("ebur128", "metadata=1"), graph.add("abuffersink")).configure()
    frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], format="flt", layout="mono")
    frame.sample_rate, frame.pts = rate_hz, 0
    graph.push(frame)
    graph.push(None)
    while True:
        try:
            loudness = float(graph.pull().metadata["lavfi.r128.I"])
        except (av.BlockingIOError, av.EOFError):
            return loudness


@pytest.mark.parametrize("rate_hz", [24000, 44100, 48000])
def test_loudness_is_that_of_ffmpeg(rate_hz):
    """Colored noise with loud, soft and silent passages, so that both gates have something to do."""
    rng = np.random.default_rng(rate_hz)
    noise = np.convolve(rng.normal(size=9 * rate_hz), [1, -0.6, 0.3])[: 9 * rate_hz]
    levels = np.repeat([0.2, 0.05, 0.0, 0.001, 0.1, 0.15, 0.01, 0.2, 0.0], rate_hz)
    samples = np.clip(noise * levels, -1, 1)
    assert abs(meter(samples, rate_hz).loudness_lufs - ffmpeg_loudness(samples, rate_hz)) < 0.1


def test_the_share_of_silence_is_known_and_pieces_do_not_matter():
    rate_hz = 24000
    samples = np.concatenate(
        [sine(1, rate_hz, 0.5), np.zeros(rate_hz * 2), sine(1, rate_hz, 0.001), sine(6, rate_hz, 0.1)]
    )
    facts = meter(samples, rate_hz)
    assert facts.silent_share == pytest.approx(0.3)  # 0.001 is -63 dBFS RMS
    assert meter(samples, rate_hz, silence_dbfs=-66).silent_share == pytest.approx(0.2)
    for piece in (1000, 7777, len(samples)):
        assert vars(meter(samples, rate_hz, piece=piece)) == pytest.approx(vars(facts))
    assert facts.rms_dbfs == pytest.approx(10 * np.log10(np.mean(samples**2)), abs=1e-3)


def test_the_shortest_and_the_silent_have_no_loudness():
    for samples in (sine(0.3, 24000), np.zeros(24000), np.zeros(3), np.zeros(0)):
        assert meter(samples, 24000).loudness_lufs is None
    assert meter(np.zeros(3), 24000).silent_share == 1
    assert meter(sine(0.01, 24000), 24000).silent_share == 0
