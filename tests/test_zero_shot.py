"""Zero-shot classes against an explicit computation with transformers and NumPy."""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, recall_score, top_k_accuracy_score
from transformers import AutoFeatureExtractor, AutoTokenizer, ClapModel

import avssl
from avssl import config
from avssl.eval import tasks
from avssl.eval.results import read_evaluation
from avssl.media.decode import read_audio
from avssl.shards.shard_set import ShardSet
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.transcode.encode import write_media
from data_prep.transcode.options import WriteOptions
from data_prep.write.run import write_shards
from recipes import evaluate as recipe
from tests import public_sounds
from tests.conftest import ROOT, run_python
from tests.public_sounds import RATE_HZ

CLASSES = ["blue", "cat", "dog_barks", "green", "rain", "red"]
TEMPLATES = ["the sound of {}.", "a {}"]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """(CLAP's folder, shards of twelve sounds of 1.5 s of six classes)."""
    folder = tmp_path_factory.mktemp("zero_shot")
    public_sounds.make_clap(folder / "model")
    lines = ["path,label\n"]
    for number in range(12):
        generator = np.random.default_rng(number)
        seconds = np.arange(round(1.5 * RATE_HZ)) / RATE_HZ
        wave = 0.3 * np.sin(2 * np.pi * (200 + 500 * number) * seconds) + 0.05 * generator.normal(size=len(seconds))
        audio = wave.astype(np.float32)[None]
        write_media(folder / f"{number}.wav", audio=audio, audio_rate_hz=RATE_HZ, audio_codec="pcm_s16le")
        lines.append(f"{number}.wav,{CLASSES[number % 6]}\n")
    (folder / "sounds.csv").write_text("".join(lines))
    build_manifest(folder / "sounds.csv", folder / "sounds.jsonl", IndexOptions())
    write_shards(folder / "sounds.jsonl", folder / "shards", WriteOptions(on_missing_video="keep"))
    return folder / "model", folder / "shards"


def explicit_scores(model, shards, starts, templates=TEMPLATES):
    """(cosines (12, 6) averaged over the clips of a second that begin at `starts`, class numbers (12,))."""
    theirs, extractor = ClapModel.from_pretrained(model).eval(), AutoFeatureExtractor.from_pretrained(model)
    tokenizer, stored = AutoTokenizer.from_pretrained(model), ShardSet(str(shards))
    classes, scores, targets = [], [], []
    with torch.no_grad():
        for name in CLASSES:
            texts = [template.format(name.replace("_", " ")) for template in templates]
            rows = theirs.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output
            mean = rows.mean(dim=0)
            classes.append(mean / mean.norm())
        for number in range(stored.num_samples):
            sample = stored.read(number)
            clips = [read_audio(sample.audio, start, RATE_HZ, RATE_HZ)[0].numpy() for start in starts]
            inputs = extractor(clips, sampling_rate=RATE_HZ, return_tensors="pt")
            rows = theirs.get_audio_features(**inputs).pooler_output
            scores.append((rows @ torch.stack(classes).T).mean(dim=0).numpy())
            targets.append(CLASSES.index(sample.info.labels["label"][0]))
    return np.array(scores), np.array(targets)


@pytest.mark.quick(1)
@pytest.mark.parametrize("starts", [(0.25,), (0.0, 0.25, 0.5)])
def test_scores_and_metrics_are_those_of_the_explicit_computation(sounds, starts):
    model, shards = sounds
    embedder = avssl.load_embedder(f"hf/{model}")
    task = tasks.get("zero_shot")
    options = [f"test={shards}", "modality=audio", f"templates=[{', '.join(map(repr, TEMPLATES))}]", "num_workers=0"]
    outcome = task.run(embedder, config.parse(task.Config, [*options, f"test_clips={len(starts)}"]))
    scores, targets = explicit_scores(model, shards, starts)
    (repeat,) = outcome.repeats
    np.testing.assert_allclose(repeat.columns["audio_scores"], scores, atol=1e-5)
    assert repeat.classes == CLASSES
    values, named = repeat.values(), scores.argmax(axis=1)
    assert values["audio_top1_accuracy"] == (named == targets).mean()
    assert values["audio_top5_accuracy"] == pytest.approx(top_k_accuracy_score(targets, scores, k=5))
    assert values["audio_class_mean_accuracy"] == pytest.approx(balanced_accuracy_score(targets, named))
    by_class = recall_score(targets, named, average=None, labels=range(6), zero_division=0)
    assert [values[f"audio_accuracy of {name}"] for name in CLASSES] == pytest.approx(by_class.tolist())
    assert repeat.metrics["audio_top1_accuracy"].chance == pytest.approx(1 / 6)


@pytest.mark.slow
def test_the_command_writes_a_result_with_intervals(sounds, tmp_path):
    model, shards = sounds
    yaml = ROOT / "recipes" / "configs" / "evaluate" / "zero_shot_esc50.yaml"
    run_python("-m", "avssl", "evaluate", f"hf/{model}", yaml, f"test={shards}", f"out={tmp_path}", "num_workers=0")
    result = read_evaluation(tmp_path / "evaluations" / "zero_shot-esc50.json")
    low, high = result["intervals"]["values"]["trained"]["audio_accuracy of rain"]
    assert low <= result["results"]["trained"]["audio_accuracy of rain"] <= high
    assert result["intervals"]["num_rows"]["audio_accuracy of rain"] == 2
    assert list(result["results"]) == ["trained"]
    assert result["protocol"]["templates"] == ["This is a sound of {}."]


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("templates=[a sound]", "each with one {} for the class"),
        ("class_names={wolf: a wolf}", "'wolf', which is no label"),
        ("train=shards", "learns nothing"),
        ("untrained=true", "random weights share no space with text"),
        ("modality=both", "one of video, audio and image"),
        ("modality=video", "this run has encoders for audio"),
        ("label_field=species", "no label field 'species'"),
    ],
)
def test_what_does_not_fit_is_refused(sounds, change, message):
    model, shards = sounds
    task = tasks.get("zero_shot")
    options = config.parse(task.Config, [f"test={shards}", "modality=audio", change])
    with pytest.raises(ValueError, match=message):
        task.run(avssl.load_embedder(f"hf/{model}"), options)


def test_words_for_labels_change_the_prompts(sounds):
    _, shards = sounds
    task = tasks.get("zero_shot")
    settings = config.parse(task.Config, [f"test={shards}", "class_names={rain: the rain}", "templates=['a {}']"])
    prompts = tasks.zero_shot.prompts_of(CLASSES, settings)
    assert [row[0] for row in prompts] == ["a blue", "a cat", "a dog barks", "a green", "a the rain", "a red"]


@pytest.mark.slow
def test_a_training_has_no_text_and_a_public_model_needs_a_folder_for_its_results(sounds, tiny_run):
    model, shards = sounds
    task = ("task=zero_shot", f"test={shards}", "modality=audio", "num_workers=0")
    refused = run_python("-m", "avssl", "evaluate", f"hf/{model}", *task, check=False)
    assert "add out=FOLDER" in refused.stderr
    with pytest.raises(ValueError, match="is random, or a training without captions, and reads no text"):
        recipe.evaluate(tiny_run, recipe.load_task(list(task)))
