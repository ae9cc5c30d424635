"""Public encoders of audio give what transformers gives for the same samples: its preprocessing and its networks."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    ASTFeatureExtractor,
    AutoFeatureExtractor,
    AutoModel,
    ClapModel,
    PeAudioVideoModel,
)

from avssl.models import create_encoder, public
from tests import public_sounds
from tests.public_sounds import RATE_HZ

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def clips(*lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [0.3 * generator.standard_normal(length).astype(np.float32) for length in lengths]


def padded(waveforms, num_samples):
    """(B, 1, num_samples) as a reader gives it: NaN after the end of a stream."""
    result = torch.full((len(waveforms), 1, num_samples), torch.nan)
    for row, waveform in zip(result, waveforms, strict=True):
        row[0, : len(waveform)] = torch.from_numpy(waveform)
    return result


def encoder_of(folder, **options):
    return create_encoder(f"hf/{folder}", "audio", **options).eval()


def test_ast_reads_the_filterbanks_of_its_own_extractor(tmp_path):
    folder = public_sounds.make_ast(tmp_path / "ast")
    waveforms = clips(5120, 3000, 400)
    theirs, extractor = AutoModel.from_pretrained(folder).eval(), AutoFeatureExtractor.from_pretrained(folder)
    inputs = extractor(waveforms, sampling_rate=RATE_HZ, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**inputs).pooler_output
        assert torch.allclose(encoder_of(folder)(padded(waveforms, 5120)), expected, **CLOSE)


@pytest.mark.parametrize("lengths", [(16_000, 9_000, 5_000)])
def test_unfused_clap_repeats_short_clips_and_reads_its_own_mel(tmp_path, lengths):
    folder = public_sounds.make_clap(tmp_path / "clap")
    waveforms = clips(*lengths)
    theirs, extractor = ClapModel.from_pretrained(folder).eval(), AutoFeatureExtractor.from_pretrained(folder)
    inputs = extractor(waveforms, sampling_rate=RATE_HZ, return_tensors="pt")
    with torch.no_grad():
        expected = theirs.audio_model(**inputs).pooler_output
        assert torch.allclose(encoder_of(folder)(padded(waveforms, 16_000)), expected, **CLOSE)
        # Zeros in place of NaN are silence, which is another input.
        silence = padded(waveforms, 16_000).nan_to_num()
        assert not torch.allclose(encoder_of(folder)(silence)[1:], expected[1:], atol=1e-3)


def test_fused_clap_takes_the_same_excerpts_of_a_long_clip_in_any_batch(tmp_path):
    folder = public_sounds.make_clap(tmp_path / "clap", fused=True)
    waveforms = clips(40_000, 9_000, 33_000)
    theirs, extractor = ClapModel.from_pretrained(folder).eval(), AutoFeatureExtractor.from_pretrained(folder)
    encoder, expected = encoder_of(folder), []
    with torch.no_grad():
        for waveform in waveforms:  # each as if it were the only one
            np.random.seed(0)  # the library draws from it
            inputs = extractor(waveform, sampling_rate=RATE_HZ, return_tensors="pt")
            expected.append(theirs.audio_model(**inputs).pooler_output)
        np.random.seed(7)
        state = np.random.get_state()[1].copy()
        together = encoder(padded(waveforms, 40_000))
        assert np.array_equal(np.random.get_state()[1], state)
        assert torch.allclose(together, torch.cat(expected), **CLOSE)
        assert torch.allclose(encoder(padded(waveforms[1:], 40_000)), together[1:], **CLOSE)


KINDS = ["wav2vec2", "hubert", "wavlm", "data2vec-audio", "unispeech", "unispeech-sat", "sew", "wav2vec2-conformer"]


@pytest.mark.quick(2)
@pytest.mark.parametrize("kind", KINDS)
def test_speech_models_without_a_mask_read_every_clip_in_its_own_length(tmp_path, kind):
    folder = public_sounds.make_speech(tmp_path / "speech", kind)
    waveforms = clips(8_000, 5_000, 8_000)
    theirs, extractor = AutoModel.from_pretrained(folder).eval(), AutoFeatureExtractor.from_pretrained(folder)
    with torch.no_grad():
        expected = [
            theirs(**extractor(waveform, sampling_rate=RATE_HZ, return_tensors="pt")).last_hidden_state.mean(dim=1)
            for waveform in waveforms
        ]
        assert torch.allclose(encoder_of(folder)(padded(waveforms, 8_000)), torch.cat(expected), **CLOSE)


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # of the library's own pass
@pytest.mark.quick(1)
@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm", "unispeech-sat"])
def test_speech_models_with_a_mask_leave_padding_out_of_the_mean(tmp_path, kind):
    changes = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
    folder = public_sounds.make_speech(tmp_path / "speech", kind, **changes)
    waveforms = clips(8_000, 5_000)
    theirs, extractor = AutoModel.from_pretrained(folder).eval(), AutoFeatureExtractor.from_pretrained(folder)
    inputs = extractor(waveforms, sampling_rate=RATE_HZ, padding=True, return_tensors="pt")
    assert "attention_mask" in inputs
    with torch.no_grad():
        frames = theirs(**inputs).last_hidden_state
        # A frame sees 90 samples, and the next one begins 80 later.
        counts = [1 + (len(waveform) - 90) // 80 for waveform in waveforms]
        expected = torch.stack([row[:count].mean(dim=0) for row, count in zip(frames, counts, strict=True)])
        assert torch.allclose(encoder_of(folder)(padded(waveforms, 8_000)), expected, **CLOSE)


@pytest.mark.slow
def test_the_audio_tower_of_pe_av_masks_what_is_padding(tmp_path):
    folder = public_sounds.make_pe_audio_video(tmp_path / "pe")
    waveforms = clips(8_000, 5_003)
    theirs, extractor = PeAudioVideoModel.from_pretrained(folder).eval(), AutoFeatureExtractor.from_pretrained(folder)
    inputs = extractor(waveforms, sampling_rate=RATE_HZ, return_tensors="pt")
    with torch.no_grad():
        expected = theirs.audio_model.audio_encoder(**inputs).pooler_output
        assert torch.allclose(encoder_of(folder)(padded(waveforms, 8_000)), expected, **CLOSE)


@pytest.mark.quick(1)
@pytest.mark.parametrize("make", [public_sounds.make_ast, public_sounds.make_clap, public_sounds.make_speech,
                                  public_sounds.make_pe_audio_video])  # fmt: skip
def test_a_short_a_silent_and_a_missing_clip_have_finite_features_and_every_weight_a_gradient(tmp_path, make):
    encoder = create_encoder(f"hf/{make(tmp_path / 'model')}", "audio")
    waveforms = padded([np.zeros(4_800, np.float32), np.ones(3, np.float32), np.zeros(0, np.float32)], 4_800)
    waveforms = torch.cat([waveforms, padded(clips(4_800, 4_000), 4_800)])
    features = encoder(waveforms)
    assert features.shape == (5, encoder.dim)
    assert features.isfinite().all()
    features.square().sum().backward()
    missing = [name for name, weight in encoder.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not missing


def test_what_the_views_need_comes_from_the_extractor(tmp_path):
    ast = public.requirements(f"hf/{public_sounds.make_ast(tmp_path / 'ast')}", "audio", {})
    assert ast == {
        "transform": "processor", "rate_hz": RATE_HZ, "window_samples": 400, "hop_samples": 160, "num_frames": 32,
        "num_mels": 16, "seconds": 0.32,
    }  # fmt: skip
    clap = public.requirements(f"hf/{public_sounds.make_clap(tmp_path / 'clap')}", "audio", {})
    assert clap == {
        "transform": "processor", "rate_hz": RATE_HZ, "window_samples": 512, "hop_samples": 160, "num_frames": 101,
        "num_mels": 16, "seconds": 1.0,
    }  # fmt: skip
    speech = public.requirements(f"hf/{public_sounds.make_speech(tmp_path / 'speech')}", "audio", {})
    assert speech == {"transform": "processor", "rate_hz": RATE_HZ}


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (public_sounds.make_ast, {"num_mel_bins": 32}, "has num_mel_bins 32, and its network needs 16"),
        (public_sounds.make_ast, {"max_length": 64}, "has max_length 64, and its network needs 32"),
        (public_sounds.make_clap, {"truncation": "fusion"}, "has truncation=fusion True, and its network needs False"),
        (public_sounds.make_clap, {"max_length_s": 3}, "has frames at most 301, and its network needs 256"),
        (public_sounds.make_pe_audio_video, {"hop_length": 16}, "has hop_length 16, and its network needs 32"),
    ],
)
def test_a_processor_of_another_model_is_refused(tmp_path, make, changes, message):
    with pytest.raises(ValueError, match=message):
        encoder_of(make(tmp_path / "model", **changes))


def test_a_missing_processor_and_one_of_another_kind_are_refused(tmp_path):
    folder = public_sounds.make_speech(tmp_path / "speech")
    ASTFeatureExtractor().save_pretrained(folder)
    with pytest.raises(ValueError, match="is 'ASTFeatureExtractor', and its network reads what Wav2Vec2Feature"):
        encoder_of(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"no feature extractor of audio; its folder needs preprocessor_config\.json"):
        encoder_of(folder)


def test_modalities_options_lengths_and_shapes_that_do_not_fit_are_refused(tmp_path):
    folder = public_sounds.make_ast(tmp_path / "ast")
    with pytest.raises(ValueError, match="it is to encode video; it encodes audio"):
        create_encoder(f"hf/{folder}", "video")
    with pytest.raises(ValueError, match="has no option 'pool'; its options: pretrained"):
        create_encoder(f"hf/{folder}", "audio", pool="mean")
    with pytest.raises(ValueError, match=r"reads at most 0\.335 s at 16000 Hz, and would cut 0\.5 s; set"):
        encoder_of(folder)(padded(clips(8_000), 8_000))
    with pytest.raises(ValueError, match=r"got \(1, 1, 32, 16\); its views need views.audio.transform=processor"):
        encoder_of(folder)(torch.zeros(1, 1, 32, 16))
    clap = public_sounds.make_clap(tmp_path / "clap")
    with pytest.raises(ValueError, match="reads at most 1 s"):
        encoder_of(clap)(padded(clips(17_000), 17_000))


@pytest.mark.quick(1)
@pytest.mark.parametrize("make", [public_sounds.make_ast, public_sounds.make_clap, public_sounds.make_pe_audio_video])
def test_what_a_run_keeps_builds_the_encoder_without_the_files(tmp_path, make):
    folder = make(tmp_path / "model")
    options = public.resolved_options(f"hf/{folder}", {})
    before = encoder_of(folder)
    shutil.rmtree(folder)
    kept = {key: value for key, value in options.items() if key not in ("sha256", "license")} | {"pretrained": False}
    after = create_encoder(modality="audio", **kept).eval()
    after.load_state_dict(before.state_dict())
    waveforms = padded(clips(4_800, 3_000), 4_800)
    with torch.no_grad():
        assert torch.equal(after(waveforms), before(waveforms))


def test_weights_that_are_missing_are_not_left_random(tmp_path):
    folder = public_sounds.make_ast(tmp_path / "ast")
    state = load_file(folder / "model.safetensors")
    save_file(
        {key: value for key, value in state.items() if ".1." not in key},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ValueError, match="tensors of ASTModel"):
        encoder_of(folder)
