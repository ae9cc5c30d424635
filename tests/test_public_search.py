"""Media embedded by public models that read text are found by text, from the command line and in Python."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoTokenizer, ClapModel, PeAudioVideoModel

import avssl
from avssl.embedding.search import EmbeddingIndex, load_embedder_of, search
from avssl.embedding.table import EmbeddingTable
from avssl.media.decode import read_audio
from data_prep.transcode.encode import write_media
from tests import public_sounds
from tests.clips import make_clip, tone
from tests.conftest import run_python
from tests.public_sounds import RATE_HZ

TEXTS = ["a dog barks", "the sound of rain"]


def unit(rows):
    return torch.nn.functional.normalize(torch.as_tensor(rows), dim=1)


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    """(CLAP's folder, a folder of three sounds of a second, the folder of their embeddings by `avssl embed`)."""
    folder = tmp_path_factory.mktemp("clap")
    public_sounds.make_clap(folder / "model")
    (folder / "sounds").mkdir()
    for number, seconds in enumerate((1.0, 0.6, 1.0)):
        noise = 0.1 * np.random.default_rng(number).standard_normal((1, round(seconds * RATE_HZ)))
        wave = (tone(seconds, RATE_HZ, seed=5 * number) + noise).clip(-1, 1).astype(np.float32)
        write_media(folder / "sounds" / f"{number}.wav", audio=wave, audio_rate_hz=RATE_HZ, audio_codec="pcm_s16le")
    embed = ("-m", "avssl", "embed", f"hf/{folder / 'model'}", folder / "sounds", "--out", folder / "rows")
    run_python(*embed, "--num-workers", "0")
    return folder / "model", folder / "sounds", folder / "rows"


@pytest.mark.slow
def test_rows_of_clap_are_its_projected_audio_and_text_finds_them_in_its_own_order(clap):
    model, sounds, rows = clap
    theirs, extractor = ClapModel.from_pretrained(model).eval(), AutoFeatureExtractor.from_pretrained(model)
    lengths = [round(seconds * RATE_HZ) for seconds in (1.0, 0.6, 1.0)]
    waveforms = [
        read_audio(sounds / f"{number}.wav", 0.0, length, RATE_HZ)[0].numpy() for number, length in enumerate(lengths)
    ]
    tokens = AutoTokenizer.from_pretrained(model)(TEXTS, padding=True, return_tensors="pt")
    inputs = extractor(waveforms, sampling_rate=RATE_HZ, return_tensors="pt")
    with torch.no_grad():
        output = theirs(**tokens, input_features=inputs["input_features"], is_longer=inputs["is_longer"])
        features = theirs.audio_model(**inputs).pooler_output
    table = EmbeddingTable.read(rows)
    assert table.modalities() == ["audio"]
    np.testing.assert_allclose(table.audio_embedding, output.audio_embeds, atol=1e-5)
    np.testing.assert_allclose(table.audio_feature, features, atol=1e-5, rtol=1e-5)
    answers = json.loads(run_python("-m", "avssl", "search", rows, "--text", *TEXTS, "--json").stdout)["answers"]
    cosines = (output.logits_per_text / theirs.logit_scale_t.exp()).detach().numpy()
    for text, answer, expected in zip(TEXTS, answers, cosines, strict=True):
        hits = answer["hits"]["audio"]
        assert answer["text"] == text
        assert [hit["row"] for hit in hits] == np.argsort(-expected).tolist()
        np.testing.assert_allclose([hit["score"] for hit in hits], np.sort(expected)[::-1], atol=1e-5)


def assert_same(found, expected):
    """The same rows in the same order, with scores that are equal but for the padding of texts beside each other."""
    assert [[hit.row for hit in hits] for hits in found] == [[hit.row for hit in hits] for hits in expected]
    scores = [[[hit.score for hit in hits] for hits in answers] for answers in (found, expected)]
    np.testing.assert_allclose(*scores, atol=1e-6)


@pytest.mark.slow
def test_text_is_searched_in_python_in_a_folder_and_in_a_table(clap):
    model, _, rows = clap
    embedder = avssl.load_embedder(f"hf/{model}")
    vectors = embedder.embed_text(TEXTS, "audio")
    assert vectors.shape == (2, 8)
    expected = search(rows, vectors, "audio", top=2)
    table = EmbeddingTable.read(rows)
    assert search(table, vectors, "audio", top=2) == expected
    for found in (search(rows, TEXTS, "audio", top=2), search(table, TEXTS, "audio", top=2)):
        assert_same(found, expected)
    assert_same(search(rows, TEXTS[0], "audio", top=2), expected[:1])
    with pytest.raises(ValueError, match="has no video rows; it has audio"):
        search(rows, TEXTS, "video")


@pytest.mark.slow
def test_the_command_says_which_text_a_table_answers(clap):
    _, _, rows = clap
    output = run_python("-m", "avssl", "search", rows, "--text", "a dog", "--top", "1").stdout
    assert output.startswith("text 'a dog' -> audio\n   1  ")
    both = run_python("-m", "avssl", "search", rows, "x.wav", "--text", "a dog", check=False)
    assert "give one of QUERY (a file), --key and --text; given: QUERY, --text" in both.stderr
    neither = run_python("-m", "avssl", "search", rows, "--text", "a dog", "--each-window", check=False)
    assert "--each-window is for files" in neither.stderr


def other_clap(folder):
    """A CLAP that hears as the one of `clap` does, and reads text in another way."""
    public_sounds.make_clap(folder)
    theirs = ClapModel.from_pretrained(folder)
    torch.nn.init.normal_(theirs.text_projection.linear1.weight)
    theirs.save_pretrained(folder)
    return f"hf/{folder}"


@pytest.mark.slow
def test_another_model_and_a_training_answer_no_text(clap, tiny_run, tmp_path):
    with pytest.raises(ValueError, match="search with the run that made it, or embed again"):
        load_embedder_of(EmbeddingIndex(clap[2]), other_clap(tmp_path / "other"))
    embedder = avssl.load_embedder(str(tiny_run))
    assert embedder.text_modalities() == ()
    with pytest.raises(ValueError, match=r"reads no text: .* public model.*clap, clip"):
        embedder.embed_text(TEXTS, "audio")


@pytest.mark.slow
def test_the_command_refuses_another_model_and_the_embeddings_of_a_training(clap, tiny_run, tmp_path):
    search_text = ("-m", "avssl", "search", clap[2], "--text", "a dog", "--run", other_clap(tmp_path / "other"))
    refused = run_python(*search_text, check=False)
    assert refused.returncode
    assert "search with the run that made it" in refused.stderr
    make_clip(tmp_path / "videos" / "0.mp4")
    run_python("-m", "avssl", "embed", tiny_run, tmp_path / "videos", "--out", tmp_path / "run", "--num-workers", "0")
    refused = run_python("-m", "avssl", "search", tmp_path / "run", "--text", "a dog", check=False)
    assert "reads no text" in refused.stderr


@pytest.mark.slow
def test_pe_av_puts_video_audio_and_text_into_one_space(tmp_path):
    model = public_sounds.make_pe_audio_video(tmp_path / "model")
    for seed in range(2):
        make_clip(tmp_path / "videos" / f"{seed}.mp4", seed=seed)
    embed = ("-m", "avssl", "embed", f"hf/{model}", tmp_path / "videos", "--out", tmp_path / "rows", "--window", "1")
    views = ("views.audio.seconds=1", "views.video.num_frames=4", "views.video.fps=4")
    run_python(*embed, "--set", *views, "--num-workers", "0", "--batch-size", "2")
    table = EmbeddingTable.read(tmp_path / "rows")
    assert table.modalities() == ["video", "audio"]
    assert table.video_embedding.shape == table.audio_embedding.shape == (2, 16)
    assert table.video_feature.shape == (2, 32)
    found = run_python("-m", "avssl", "search", tmp_path / "rows", "--text", "a dog", "--json").stdout
    theirs, tokenizer = PeAudioVideoModel.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    with torch.no_grad():
        first = theirs.text_model(**tokenizer(["a dog"], return_tensors="pt")).last_hidden_state[:, 0]
        for name in ("video", "audio"):
            head = getattr(getattr(theirs, f"{name}_model"), f"text_{name}_head")
            scores = (unit(table.embedding(name)) @ unit(head(first)).T)[:, 0].numpy()
            hits = json.loads(found)["answers"][0]["hits"][name]
            np.testing.assert_allclose([hit["score"] for hit in hits], np.sort(scores)[::-1], atol=1e-5)
    across = run_python("-m", "avssl", "search", tmp_path / "rows", tmp_path / "videos" / "0.mp4", "--json").stdout
    assert sorted(json.loads(across)["answers"][0]["hits"]) == ["audio", "video"]
