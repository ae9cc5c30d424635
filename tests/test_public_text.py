"""Text towers of public models give transformers' own text embeddings, and refuse what they cannot read."""

import hashlib
import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer, ClapModel, CLIPConfig, CLIPModel, PeAudioVideoModel, SiglipConfig, SiglipModel

from avssl.models import public
from tests import public_sounds

TEXTS = ["a dog barks", "the sound of rain", "a cat"]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def unit(rows):
    return torch.nn.functional.normalize(rows, dim=1)


def tower(folder):
    return public.text_tower(f"hf/{folder}")


def test_text_of_clap_is_the_librarys_own(tmp_path):
    folder = public_sounds.make_clap(tmp_path / "clap")
    theirs, tokenizer = ClapModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        expected = theirs.get_text_features(**tokenizer(TEXTS, padding=True, return_tensors="pt")).pooler_output
    rows = tower(folder).embed(TEXTS, "audio")
    assert torch.allclose(rows, expected, **CLOSE)
    assert torch.allclose(tower(folder).embed(TEXTS[2:], "audio"), rows[2:], **CLOSE)  # whatever stands beside it


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["audio", "video"])
def test_text_of_pe_av_has_a_head_for_each_modality(tmp_path, modality):
    folder = public_sounds.make_pe_audio_video(tmp_path / "pe")
    theirs, tokenizer = PeAudioVideoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = theirs(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"],
            input_values=torch.zeros(3, 1, 800), pixel_values_videos=torch.zeros(3, 2, 3, 32, 32),
        )  # fmt: skip
    expected = unit(output[f"text_{modality}_embeds"])
    assert torch.allclose(tower(folder).embed(TEXTS, modality), expected, **CLOSE)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_text_of_models_of_images_is_the_librarys_own(tmp_path, kind):
    torch.manual_seed(0)
    text = {"vocab_size": 32, "max_position_embeddings": 12, **SIZES}
    vision = {"image_size": 32, "patch_size": 16, **SIZES}
    if kind == "clip":
        ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
        net = CLIPModel(CLIPConfig(text_config={**text, **ends}, vision_config=vision, projection_dim=8))
        padding = {"padding": True}
    else:
        net = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        padding = {"padding": "max_length", "max_length": 12}
    folder = public_sounds.saved(tmp_path / kind, net, public_sounds.tokenizer(12))
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, return_tensors="pt", **padding)
    tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = unit(net.eval().get_text_features(**tokens).pooler_output)
    for modality in ("image", "video"):
        assert torch.allclose(tower(folder).embed(TEXTS, modality), expected, **CLOSE)


def test_what_cannot_be_read_is_refused_with_what_can(tmp_path):
    folder = public_sounds.make_clap(tmp_path / "clap")
    text = tower(folder)
    with pytest.raises(ValueError, match="compares text with audio, and not with video"):
        text.embed(TEXTS, "video")
    with pytest.raises(ValueError, match="give a list of texts of which none is empty"):
        text.embed(["a dog", " "], "audio")
    with pytest.raises(ValueError, match="give a list of texts"):
        text.embed("a dog", "audio")
    assert text.max_tokens == 40
    with pytest.raises(ValueError, match=r"'dog dog .* has 42 tokens; .* reads at most 40"):
        text.embed(["a", "dog " * 40], "audio")
    with pytest.raises(ValueError, match="the weights have the SHA-256"):
        public.text_tower(f"hf/{folder}", {"sha256": "0" * 64})


def test_a_missing_tokenizer_one_of_another_model_and_a_model_without_text_are_refused(tmp_path):
    folder = public_sounds.make_clap(tmp_path / "clap")
    shutil.copytree(folder, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bare" / name).unlink()
    with pytest.raises(ValueError, match=r"no tokenizer .* answers no text; it needs tokenizer\.json"):
        tower(tmp_path / "bare")
    tokens = json.loads((folder / "tokenizer.json").read_text())
    tokens["model"]["vocab"] |= {f"word{number}": 20 + number for number in range(20)}
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(ValueError, match="its tokenizer has 39 tokens, and its network knows 32"):
        tower(folder)
    speech = public_sounds.make_speech(tmp_path / "speech")
    with pytest.raises(ValueError, match=r"is of the type wav2vec2, which reads no text; types that do are clap, clip"):
        tower(speech)


def test_a_changed_tokenizer_is_refused_though_the_weights_are_the_same(tmp_path):
    folder = public_sounds.make_clap(tmp_path / "clap")
    options = public.resolved_options(f"hf/{folder}", {})
    names = {"tokenizer.json", "tokenizer_config.json", "processor_config.json"}
    assert names <= options["files"].keys()
    for name, digest in options["files"].items():
        assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    public.text_tower(f"hf/{folder}", options)
    content = (folder / "tokenizer.json").read_text()
    tokens = json.loads(content)
    vocabulary = tokens["model"]["vocab"]
    vocabulary["dog"], vocabulary["cat"] = vocabulary["cat"], vocabulary["dog"]
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    for opened in (
        lambda: public.text_tower(f"hf/{folder}", options),
        lambda: public.tower(modality="audio", **options),
    ):
        with pytest.raises(ValueError, match=r"'tokenizer\.json' is not as when this model was used first"):
            opened()
    (folder / "tokenizer.json").write_text(content)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=r"'tokenizer_config\.json' is not as"):
        public.text_tower(f"hf/{folder}", options)


def test_the_code_of_a_model_is_not_run(tmp_path):
    folder = public_sounds.make_clap(tmp_path / "clap")
    canary = tmp_path / "was-run"
    (folder / "own.py").write_text(f"open({str(canary)!r}, 'w')\nclass Own:\n    pass\n")
    for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
        values = json.loads((folder / name).read_text())
        values["auto_map"] = dict.fromkeys(("AutoModel", "AutoConfig", "AutoFeatureExtractor"), "own.Own")
        if name == "tokenizer_config.json":
            values["auto_map"] = {"AutoTokenizer": ["own.Own", "own.Own"]}
        (folder / name).write_text(json.dumps(values))
    try:
        tower(folder).embed(TEXTS, "audio")
        public.build(f"hf/{folder}", "audio")
    except ValueError:
        pass
    assert not canary.exists()
