"""Views of audio for models with a processor of their own: waveforms that say where their stream ends."""

import numpy as np
import pytest
import torch

from avssl.data.read_views import decode_audio_clip
from avssl.embedding.window_clips import AudioClips
from avssl.media.decode import read_audio
from avssl.transforms.audio import AudioAugment, num_samples, shift_time
from avssl.transforms.config import AudioViewConfig, ViewsConfig, check_views
from avssl.transforms.raw_view import raw_audio
from avssl.transforms.view_maker import ViewMaker
from avssl.types import Span, View
from data_prep.transcode.encode import write_media
from tests.clips import tone

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A sound of 0.5 s, of which the second half is digital silence."""
    path = tmp_path_factory.mktemp("sounds") / "short.flac"
    wave = tone(0.5, RATE_HZ)
    wave[:, RATE_HZ // 4 :] = 0
    write_media(path, audio=wave, audio_rate_hz=RATE_HZ, audio_codec="flac")
    return path


def config(**changes):
    return AudioViewConfig(**{"seconds": 1.0, "rate_hz": RATE_HZ, "transform": "processor", **changes})


def test_samples_after_the_stream_are_nan_and_those_before_it_silence(short):
    plain = read_audio(short, -0.25, RATE_HZ, RATE_HZ)
    marked = read_audio(short, -0.25, RATE_HZ, RATE_HZ, padding=np.nan)
    assert marked.isnan().nonzero()[:, 1].tolist() == list(range(12_000, 16_000))
    assert torch.equal(marked.nan_to_num(), plain)
    assert torch.equal(plain[:, :4000], torch.zeros(1, 4000))


def test_the_two_readers_agree_about_where_the_stream_ends(short):
    span = Span(0.0, 0.5)
    clips = AudioClips(short, "short", config(), span)
    for start in (0.0, 0.2, -0.01):
        one = decode_audio_clip(short, start, config(), span, "short")
        assert torch.equal(clips.read([start])[0].nan_to_num(7.0), one.nan_to_num(7.0))
        assert int(num_samples(one[None])) == round((0.5 - start) * RATE_HZ)
    clips.close()
    assert not decode_audio_clip(short, 0.0, config(transform="log_mel"), span, "short").isnan().any()


def test_a_view_is_the_waveform_with_its_volume_and_shifted_within_its_stream():
    views = ViewsConfig(audio=config(augment=AudioAugment(time_shift_seconds=0.2)))
    maker = ViewMaker(views, ["audio"])
    assert not list(maker.state_dict())
    generator, waveform = np.random.default_rng(0), torch.arange(1.0, RATE_HZ + 1)[None] / RATE_HZ
    waveform[:, 12_000:] = torch.nan
    raw = raw_audio(waveform, views.audio, generator)
    raw.media, raw.audio_params = raw.media[None], raw.audio_params[None]
    volume, shift = raw.audio_params[0, :2].tolist()
    assert shift
    expected = volume * np.roll(waveform[0, :12_000].numpy(), int(shift))
    view = maker({"view": raw}, torch.device("cpu"))["view"]
    np.testing.assert_allclose(view[0, 0, :12_000], expected, rtol=1e-6)
    assert view[0, 0, 12_000:].isnan().all()


def test_shifting_waveforms_without_an_end_is_a_roll_of_all_samples():
    waveforms = torch.arange(20.0).view(2, 1, 10)
    expected = torch.stack([waveforms[0].roll(3), waveforms[1].roll(-4)])
    assert torch.equal(shift_time(waveforms, torch.tensor([3.0, -4.0])), expected)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mixup_ratio": 0.4}, r"views\.audio\.augment\.mixup_ratio"),
        ({"crop_time_scale": (0.6, 1.0)}, "crop_time_scale"),
        ({"crop_canvas": 1.5}, "crop_canvas"),
    ],
)
def test_changes_of_spectrograms_are_refused_by_name(changes, named):
    views = ViewsConfig(audio=config(augment=AudioAugment(**changes)))
    with pytest.raises(ValueError, match=f"{named} of view 'audio' changes a spectrogram.*volume_low"):
        check_views([View("audio", "audio")], views)
    check_views([View("audio", "audio", "test")], views)
    views.audio.transform = "log_mel"
    check_views([View("audio", "audio")], views)


def test_a_jigsaw_of_sound_is_refused():
    with pytest.raises(ValueError, match="the jigsaw of view 'first' changes a spectrogram"):
        check_views([View("first", "audio", "jigsaw")], ViewsConfig(audio=config()))
