"""Audio augmentation against NumPy and PyTorch's own resizing, one sample at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from avssl.transforms.audio import (
    FULL_CROP,
    AudioAugment,
    AudioParams,
    crop_spectrogram,
    draw_audio_params,
    mix_power,
    scale_volume,
    shift_time,
)

BYOL_A = AudioAugment(
    volume_low=1.0,
    volume_high=1.0,
    mixup_ratio=0.4,
    crop_canvas=1.5,
    crop_time_scale=(0.6, 1.5),
    crop_frequency_scale=(0.6, 1.5),
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32))


def draw(augment: AudioAugment, count: int, rate_hz: int = 16_000) -> AudioParams[Any]:
    return AudioParams(
        *np.array([draw_audio_params(np.random.default_rng(seed), augment, rate_hz) for seed in range(count)]).T
    )


def crop_of(*rows: tuple[float, float, float, float]) -> AudioParams[torch.Tensor]:
    """Batch of crops (time start, time scale, frequency start, frequency scale); the rest is off."""
    return AudioParams(*torch.tensor([(1.0, 0.0, 0.0, *row) for row in rows]).unbind(1))


def test_the_default_is_only_avids_volume_drawn_as_in_the_first_version() -> None:
    drawn = draw_audio_params(np.random.default_rng((5, 2, 7, 0)), AudioAugment(), 24_000)
    assert drawn == (1.070356574256873, 0, 0, *FULL_CROP)  # of the first version
    assert not AudioAugment().crops
    volumes = draw(AudioAugment(), 500).volume
    assert 0.9 <= volumes.min() < 0.91
    assert 1.09 < volumes.max() <= 1.1


def test_byol_as_numbers_are_drawn() -> None:
    params = draw(BYOL_A, 4000)
    assert (params.volume == 1).all()
    np.testing.assert_allclose(np.quantile(params.mixup_ratio, [0, 0.5, 1]), [0, 0.2, 0.4], atol=0.01)
    np.testing.assert_allclose(np.quantile(params.time_scale, [0, 0.5, 1]), [0.6, 1.05, 1.5], atol=0.02)
    assert (params.time_start >= -0.25 - 1e-9).all()
    assert (params.time_start + params.time_scale <= 1.25 + 1e-9).all()
    # Along the bins the canvas ends with the spectrogram: 5 of 9 draws are above 1 and become the whole.
    np.testing.assert_allclose(np.quantile(params.frequency_scale, [0, 2 / 9, 1]), [0.6, 0.8, 1.0], atol=0.02)
    assert (params.frequency_scale == 1).mean() == pytest.approx(5 / 9, abs=0.03)
    assert (params.frequency_start[params.frequency_scale == 1] == 0).all()
    assert (params.frequency_start + params.frequency_scale <= 1 + 1e-9).all()


def test_shifts_are_uniform_whole_samples_either_way() -> None:
    shifts = draw(AudioAugment(time_shift_seconds=0.25), 2000).shift_samples
    assert (shifts == np.round(shifts)).all()
    np.testing.assert_allclose(np.quantile(shifts, [0, 0.25, 0.5, 1]), [-4000, -2000, 0, 4000], atol=150)


def test_volume_scales_each_sample_by_its_own_factor() -> None:
    waveform = noise(3, 1, 10)
    scaled = scale_volume(waveform, torch.tensor([1.0, 0.5, 2.0]))
    np.testing.assert_allclose(scaled.numpy(), waveform.numpy() * np.array([1, 0.5, 2], np.float32)[:, None, None])


def test_shifting_equals_numpys_roll() -> None:
    waveform = noise(4, 1, 50)
    shifts = [0, 7, -13, 61]
    result = shift_time(waveform, torch.tensor(shifts, dtype=torch.float32))
    for row, shift in enumerate(shifts):
        np.testing.assert_array_equal(result[row, 0].numpy(), np.roll(waveform[row, 0].numpy(), shift))


def test_mixing_adds_powers_in_the_given_ratios() -> None:
    own, other = 40 * noise(3, 1, 5, 6), 40 * noise(3, 1, 5, 6, seed=1) - 10
    mixed = mix_power(own, other, torch.tensor([0.0, 0.1, 0.4]))
    for row, share in enumerate([0.0, 0.1, 0.4]):
        power = [(1 - share) * 10 ** (own[row].double().numpy() / 10), share * 10 ** (other[row].double().numpy() / 10)]
        np.testing.assert_allclose(mixed[row].numpy(), 10 * np.log10(sum(power)), atol=1e-4)
    assert mixed.isfinite().all()


def test_mixing_does_not_depend_on_the_number_of_threads() -> None:
    """To the last bit: workers, which may make the views, have one thread, and the training process has several."""
    before, ratios = torch.get_num_threads(), torch.full((7,), 0.3)
    try:
        for seed in range(6):
            own, other = 40 * noise(7, 1, 200, 257, seed=seed), 40 * noise(7, 1, 200, 257, seed=seed + 100)
            torch.set_num_threads(1)
            expected = mix_power(own, other, ratios)
            for num_threads in (2, 3, 4):
                torch.set_num_threads(num_threads)
                assert torch.equal(mix_power(own, other, ratios), expected), (seed, num_threads)
    finally:
        torch.set_num_threads(before)


def cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75, which PyTorch uses."""
    x, a = abs(distance), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resample(values: np.ndarray, start: float, scale: float) -> np.ndarray:
    """An interval of the first axis resized to the length of the axis, zeros outside, in float64."""
    length = len(values)
    result = np.zeros_like(values)
    for out in range(length):
        place = (start + scale * (out + 0.5) / length) * length - 0.5
        for source in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            if 0 <= source < length:
                result[out] += cubic(place - source) * values[source]
    return result


def test_cropping_equals_numpy_for_each_samples_own_crop() -> None:
    spectrogram = noise(4, 1, 12, 9)
    crops = [(0.1, 0.6, 0.3, 0.7), (-0.25, 1.5, 0.0, 1.0), (0.55, 0.7, 0.05, 0.9), FULL_CROP]
    result = crop_spectrogram(spectrogram, crop_of(*crops))
    for row, (time_start, time_scale, frequency_start, frequency_scale) in enumerate(crops):
        expected = resample(spectrogram[row, 0].double().numpy(), time_start, time_scale)
        expected = resample(expected.T, frequency_start, frequency_scale).T
        np.testing.assert_allclose(result[row, 0].numpy(), expected, atol=2e-6)
    torch.testing.assert_close(result[3], spectrogram[3], atol=1e-6, rtol=0)


def test_a_crop_inside_equals_resizing_the_cut_out_interval() -> None:
    """Away from the borders, where resizing the cut interval does not see the neighboring values."""
    spectrogram = noise(1, 1, 40, 40)
    result = crop_spectrogram(spectrogram, crop_of((0.25, 0.5, 0.1, 0.8)))
    piece = spectrogram[..., 10:30, 4:36]
    expected = torch.nn.functional.interpolate(piece, size=(40, 40), mode="bicubic", align_corners=False)
    torch.testing.assert_close(result[..., 4:-4, 4:-4], expected[..., 4:-4, 4:-4], atol=1e-5, rtol=0)


def test_the_canvas_around_the_spectrogram_is_empty() -> None:
    result = crop_spectrogram(torch.ones(1, 1, 30, 8), crop_of((-0.25, 1.5, 0.0, 1.0)))[0, 0, :, 3]
    assert result[:4].abs().max() == 0
    assert result[-4:].abs().max() == 0
    torch.testing.assert_close(result[8:22], torch.ones(14))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"volume_low": 1.1, "volume_high": 0.9}, "low <= high"),
        ({"time_shift_seconds": -1}, "time_shift_seconds must not be negative, got -1"),
        ({"mixup_ratio": 1.0}, "mixup_ratio must be in [0, 1), got 1.0"),
        ({"crop_time_scale": (0.0, 1.0)}, "crop_time_scale must be 0 < low <= high"),
        ({"crop_frequency_scale": (0.9, 0.5)}, "crop_frequency_scale must be 0 < low <= high"),
        ({"crop_canvas": 0.5}, "crop_canvas must be at least 1"),
        ({"crop_time_scale": (1.2, 1.5)}, "at least the lowest crop_time_scale"),
    ],
)
def test_an_impossible_augmentation_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as error:
        AudioAugment(**options)
    assert words in str(error.value)


def test_volume_needs_one_factor_per_sample() -> None:
    with pytest.raises(ValueError, match="one volume factor per sample"):
        scale_volume(torch.zeros(2, 1, 4), torch.ones(3))
