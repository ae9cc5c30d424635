"""Spectrograms, their statistics and audio augmentation against golden values, SciPy, NumPy and torchaudio."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import torch
import torchaudio

from avssl.transforms.spectrogram import (
    BinNormalize,
    BinStatistics,
    LogMel,
    LogSpectrogram,
    average_adjacent_bins,
    power_to_db,
)

GOLDEN = Path(__file__).parent / "golden"
SMALL = {"window_samples": 512, "hop_samples": 480, "num_frames": 100}


def golden_signal() -> torch.Tensor:
    """2 s at 24 kHz: a tone, a sweep and a faint quadratic chirp (golden/README.md), (1, 1, 48000) float32."""
    n = np.arange(48_000)
    t = n / 24_000
    tone, sweep = 0.4 * np.sin(2 * np.pi * 440 * t), 0.2 * np.sin(2 * np.pi * (500 + 1500 * t) * t)
    return torch.from_numpy((tone + sweep + 0.02 * np.sin(n**2 * 0.00137)).astype(np.float32))[None, None]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32))


def textbook_log_spectrogram(
    waveform: np.ndarray, window_samples: int, hop_samples: int, num_frames: int, factor: int
) -> np.ndarray:
    """Frame by frame with NumPy's FFT in float64: (samples,) -> (frames, bins)."""
    padded = np.pad(waveform.astype(np.float64), window_samples // 2)
    window = scipy.signal.get_window("hann", window_samples)
    rows = []
    for frame in range(num_frames):
        piece = padded[frame * hop_samples : frame * hop_samples + window_samples] * window
        power = np.abs(np.fft.rfft(piece)) ** 2
        rows.append([power[0], *(power[k : k + factor].mean() for k in range(1, len(power), factor))])
    decibels = 10 * np.log10(np.maximum(np.array(rows), 1e-10))
    return np.maximum(decibels, decibels.max() - 100)


# Decibels that float32 may be off by. An FFT of n = 1024 samples errs by about u log2(n) = 6e-7 of the frame's norm in
# every bin, and of thousands of noise's bins the quietest has 1/100 of it: 20 log10(1 + 6e-5) = 5e-4 dB.
ROUNDING_DB = 1e-3


def test_log_spectrogram_equals_the_golden_one() -> None:
    golden = np.load(GOLDEN / "avid_cma_log_spectrogram.npz")["log_spectrogram"]
    ours = LogSpectrogram()(golden_signal())
    assert ours.shape == (1, 1, 200, 257)
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours[0].numpy(), golden, atol=ROUNDING_DB, rtol=0)


def test_single_precision_errs_only_near_the_floor() -> None:
    golden = np.load(GOLDEN / "avid_cma_log_spectrogram.npz")["log_spectrogram"]
    error = np.abs(LogSpectrogram(double_precision=False)(golden_signal())[0].numpy() - golden)
    assert error.max() < 0.1
    assert error[golden > golden.max() - 60].max() < 5e-3


@pytest.mark.parametrize(
    ("options", "samples", "factor"),
    [
        ({}, 48_000, 2),
        (SMALL, 48_000, 2),
        ({"window_samples": 256, "hop_samples": 160, "num_frames": 30, "bins_averaged": 1}, 5_000, 1),
        ({"window_samples": 256, "hop_samples": 100, "num_frames": 7, "bins_averaged": 4}, 601, 4),
    ],
)
def test_log_spectrogram_equals_the_textbook_one(options: dict[str, int], samples: int, factor: int) -> None:
    waveform = noise(2, 1, samples)
    transform = LogSpectrogram(**options)
    ours = transform(waveform)
    assert ours.shape[-1] == transform.num_bins
    for row in range(2):
        window, hop = options.get("window_samples", 1024), options.get("hop_samples", 240)
        expected = textbook_log_spectrogram(waveform[row, 0].numpy(), window, hop, ours.shape[-2], factor)
        np.testing.assert_allclose(ours[row, 0].numpy(), expected, atol=ROUNDING_DB)


def test_small_configuration_has_the_papers_shape() -> None:
    assert LogSpectrogram(**SMALL)(noise(1, 1, 48_000)).shape == (1, 1, 100, 129)
    assert LogSpectrogram(num_frames=None)(noise(1, 1, 48_000)).shape == (1, 1, 201, 257)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    waveform = torch.cat([noise(1, 1, 4800), 1e-4 * noise(1, 1, 4800, seed=1)])
    transform = LogSpectrogram(num_frames=20)
    torch.testing.assert_close(transform(waveform)[1:], transform(waveform[1:]), atol=ROUNDING_DB, rtol=0)


@pytest.mark.parametrize("transform", [LogSpectrogram(num_frames=20), LogMel(num_frames=20)])
def test_silence_is_minus_100_db_and_a_click_spans_100_db(transform: torch.nn.Module) -> None:
    silence = torch.zeros(1, 1, 4800)
    assert (transform(silence) == -100).all()
    click = silence.clone()
    click[..., 2400] = 1.0
    decibels = transform(click)
    assert decibels.isfinite().all()
    assert (decibels.amax() - decibels.amin()).item() == pytest.approx(100, abs=1e-4)


def test_log_mel_equals_torchaudio() -> None:
    waveform = noise(2, 1, 24_000)
    ours = LogMel(num_bins=64, low_hz=60, high_hz=7800, num_frames=None)(waveform)
    oracle = torchaudio.transforms.MelSpectrogram(
        sample_rate=24_000, n_fft=1024, hop_length=240, n_mels=64, f_min=60, f_max=7800, pad_mode="constant"
    )
    expected = 10 * oracle(waveform).clamp_min(1e-10).log10().transpose(-1, -2)
    expected = torch.maximum(expected, expected.amax(dim=(-1, -2), keepdim=True) - 100)
    torch.testing.assert_close(ours, expected, atol=ROUNDING_DB, rtol=0)


def test_spectrogram_modules_have_no_state_to_save() -> None:
    assert not LogSpectrogram().state_dict()
    assert not LogMel().state_dict()


def test_averaging_keeps_dc_and_averages_neighbors() -> None:
    power = torch.tensor([[7.0, 1.0, 3.0, 10.0, 20.0]])
    assert average_adjacent_bins(power, 2).tolist() == [[7.0, 2.0, 15.0]]
    assert average_adjacent_bins(power, 4).tolist() == [[7.0, 8.5]]
    assert average_adjacent_bins(power, 1).tolist() == power.tolist()


def test_decibel_floor_is_per_clip() -> None:
    power = torch.tensor([[[1.0, 1e-9]], [[1e3, 1e-9]]])
    torch.testing.assert_close(power_to_db(power, 60.0), torch.tensor([[[0.0, -60.0]], [[30.0, -30.0]]]))


@pytest.mark.parametrize("splits", [[50], [1, 49], [7, 13, 30], [50, 0]])
def test_statistics_equal_numpy_whatever_the_batches(splits: list[int]) -> None:
    data = np.random.default_rng(3).normal(-1e6, 1.0, (50, 1, 4, 6)) * np.arange(1, 7)
    statistics = BinStatistics(6)
    for batch in torch.from_numpy(data).split(splits):
        statistics.update(batch)
    frames = data.reshape(-1, 6)
    assert statistics.count == 200
    np.testing.assert_allclose(statistics.mean.numpy(), frames.mean(0), rtol=1e-13)
    np.testing.assert_allclose(statistics.std.numpy(), frames.std(0), rtol=1e-7)


def test_statistics_of_ranks_merge_to_those_of_all_data() -> None:
    data = noise(30, 1, 5, 3)
    parts = []
    for rank in range(3):
        part = BinStatistics(3)
        if rank != 1:  # a rank without data must not matter
            part.update(data[rank::3])
        parts.append(part.pack())
    merged = BinStatistics.unpack(parts)
    frames = torch.cat([data[0::3], data[2::3]]).double().reshape(-1, 3).numpy()
    np.testing.assert_allclose(merged.mean.numpy(), frames.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.std.numpy(), frames.std(0), rtol=1e-12)
    assert merged.count == len(frames)


def test_normalizing_with_a_corpus_statistics_gives_unit_bins() -> None:
    spectrogram = noise(8, 1, 10, 4) * torch.tensor([1.0, 5.0, 20.0, 0.0]) - 40
    statistics = BinStatistics(4)
    statistics.update(spectrogram)
    normalize = BinNormalize(4)
    normalize.set_statistics(statistics)
    assert set(normalize.state_dict()) == {"mean", "std"}
    out = normalize(spectrogram).reshape(-1, 4).double()
    np.testing.assert_allclose(out.mean(0).numpy(), 0, atol=2e-5)
    np.testing.assert_allclose(out.std(0, correction=0).numpy(), [1, 1, 1, 0], atol=1e-4)
    expected = (spectrogram.numpy() - statistics.mean.numpy()) / (statistics.std.numpy() + 1e-5)
    np.testing.assert_allclose(normalize(spectrogram).numpy()[..., :3], expected[..., :3], atol=1e-4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LogSpectrogram()(torch.zeros(2, 48_000)), "(B, 1, samples)"),
        (lambda: LogSpectrogram()(torch.zeros(2, 1, 48_000, dtype=torch.int16)), "torch.int16"),
        (lambda: LogSpectrogram()(torch.zeros(2, 1, 24_000)), "at least 47760 samples"),
        (lambda: LogSpectrogram(window_samples=511), "even window_samples"),
        (lambda: LogSpectrogram(bins_averaged=3), "must divide window_samples / 2 = 512"),
        (lambda: LogSpectrogram(num_frames=0), "num_frames must be at least 1"),
        (lambda: LogSpectrogram(dynamic_range_db=0.0), "dynamic_range_db must be positive"),
        (lambda: LogMel(high_hz=20_000.0), "12000.0"),
        (lambda: LogMel(num_bins=400), "would be empty"),
        (lambda: BinStatistics(3).update(torch.zeros(1, 1, 2, 4)), "expected 3 bins"),
        (lambda: BinStatistics(1).update(torch.full((1, 1, 2, 1), float("nan"))), "NaN"),
        (lambda: BinStatistics(3).merge(BinStatistics(4)), "cannot merge"),
        (lambda: BinStatistics(3).std, "no spectrogram"),
        (lambda: BinStatistics.unpack([]), "no packed statistics"),
        (lambda: BinNormalize(3).set_statistics(BinStatistics(4)), "expected statistics of 3 bins"),
    ],
)
def test_wrong_arguments_are_explained(make: object, words: str) -> None:
    with pytest.raises(ValueError) as error:
        make()  # type: ignore[operator]
    assert words in str(error.value)
