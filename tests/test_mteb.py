"""A run is a model of mteb: its rows are those of `avssl embed`, and mteb's scores are those of its embeddings."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

import avssl
from avssl.exchange.mteb import MtebModel
from data_prep.transcode.encode import write_media
from tests.test_embed import frames, sine

NUM_CLIPS = 6


def test_without_mteb_the_error_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "mteb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(ImportError, match=r'pip install "avssl\[mteb\]"'):
        MtebModel("runs/none")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Paths of six films with sound, and of the sound of each alone."""
    folder = tmp_path_factory.mktemp("mteb")
    for number in range(NUM_CLIPS):
        video = [np.roll(frame, 5 * number, 0) // (number // 2 + 1) for frame in frames(24 + 4 * number, 32)]
        sound = sine(1.5 + number / 4) / (number + 1)
        write_media(folder / f"{number}.mp4", video=video, video_fps=16, audio=sound, audio_rate_hz=24_000)
        write_media(folder / f"{number}.wav", audio=sound, audio_rate_hz=24_000, audio_codec="pcm_s16le")
    return [folder / f"{number}.mp4" for number in range(NUM_CLIPS)], [
        folder / f"{number}.wav" for number in range(NUM_CLIPS)
    ]


@pytest.fixture(scope="module")
def model(tiny_run):
    return MtebModel(tiny_run, num_workers=0)


@pytest.fixture(scope="module")
def own(tiny_run, clips):
    """{modality: unit rows of the clips, by the embedder itself}; "both" is the mean of the two, made unit again."""
    embedder = avssl.load_embedder(str(tiny_run))
    rows = {}
    for name, paths in zip(("video", "audio"), clips, strict=True):
        table = embedder.embed(paths, modalities=[name])[0].pool_by_key()
        rows[name] = table.embedding(name).astype(np.float64)
    both = rows["video"] + rows["audio"]
    return rows | {"both": both / np.linalg.norm(both, axis=1, keepdims=True)}


def column(paths, kind, *, with_bytes=True):
    """A column of a data set: contents with names, or paths alone."""
    return [{"bytes": path.read_bytes() if with_bytes else None, "path": str(path)} for path in paths]


def dataset_of(columns):
    from datasets import Audio, Dataset, Video

    dataset = Dataset.from_dict(columns)
    for name in columns:
        if name.startswith(("video", "audio")):
            dataset = dataset.cast_column(name, Video() if name.startswith("video") else Audio())
    return dataset


def task_of(base, name, modalities, category, main_score, dataset, **attributes):
    """A task of one of mteb's classes with a made data set."""
    from mteb.abstasks.task_metadata import TaskMetadata

    metadata = TaskMetadata(
        name=name, description="made", reference="https://example.org", dataset={"path": "NA", "revision": "NA"},
        type=attributes.pop("type"), category=category, modalities=modalities, eval_splits=["test"],
        eval_langs=["eng-Latn"], main_score=main_score, date=("2022-12-22", "2022-12-22"), domains=[],
        task_subtypes=[], license="cc-by-4.0", annotations_creators="derived", dialect=[], sample_creation="found",
        bibtex_citation="",
    )  # fmt: skip

    def load_data(self, **_):
        self.dataset, self.data_loaded = dataset, True

    return type(name, (base,), {"metadata": metadata, "load_data": load_data, **attributes})()


def encode(model, dataset, modalities, **options):
    metadata = SimpleNamespace(name="Made", modalities=modalities)
    loader = SimpleNamespace(dataset=dataset)
    return model.encode(loader, task_metadata=metadata, hf_split="test", hf_subset="default", **options)


@pytest.mark.slow
def test_rows_are_those_of_the_embedder(model, own, clips, tiny_run):
    columns = {"video": column(clips[0], "video"), "audio": column(clips[1], "audio", with_bytes=False)}
    both = dataset_of(columns)
    for name in ("video", "audio"):
        found = encode(model, both.select_columns([name]), [name])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, own[name], atol=1e-5)
    np.testing.assert_allclose(encode(model, both, ["video", "audio"]), own["both"], atol=1e-5)
    sandboxed = MtebModel(tiny_run, num_workers=1)
    np.testing.assert_allclose(encode(sandboxed, both, ["video", "audio"]), own["both"], atol=1e-5)
    embedder = avssl.load_embedder(str(tiny_run))
    features = embedder.embed(clips[0], modalities=["video"])[0].pool_by_key().video_feature
    found = encode(MtebModel(tiny_run, vectors="feature", num_workers=0), both, ["video", "audio"])
    np.testing.assert_allclose(found[:, : features.shape[1]], features, atol=1e-4)
    assert found.shape[1] > features.shape[1]  # features share no space: sound stands behind the picture


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Precision is ill-defined")  # of classes that the random classifiers never say
def test_mteb_scores_a_run_as_its_embeddings_are(model, own, clips, monkeypatch, tmp_path):
    """Retrieval from picture to sound, pairs, classes and clusters, by mteb.evaluate; the oracles read `own` alone."""
    import datasets
    import mteb
    from mteb.abstasks.classification import AbsTaskClassification
    from mteb.abstasks.clustering import AbsTaskClustering
    from mteb.abstasks.pair_classification import AbsTaskPairClassification
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from sklearn.metrics import average_precision_score

    monkeypatch.setenv("MTEB_CACHE", str(tmp_path))
    video, audio = column(clips[0], "video"), column(clips[1], "audio")
    ids = [f"{number}" for number in range(NUM_CLIPS)]
    split = RetrievalSplitData(
        queries=dataset_of({"id": [f"q{n}" for n in ids], "video": video}),
        corpus=dataset_of({"id": [f"d{n}" for n in ids], "audio": audio}),
        relevant_docs={f"q{n}": {f"d{n}": 1} for n in ids},
        top_ranked=None,
    )
    retrieval = task_of(
        AbsTaskRetrieval, "MadeVideoToAudio", ["video", "audio"], "v2a", "ndcg_at_10",
        {"default": {"test": split}}, type="Any2AnyRetrieval",
    )  # fmt: skip
    matched = [1, 0, 1, 0, 1, 0]
    other = [n if is_same else (n + 2) % NUM_CLIPS for n, is_same in enumerate(matched)]
    pairs = {"video1": video, "audio2": [audio[n] for n in other], "label": matched}
    pair = task_of(
        AbsTaskPairClassification, "MadePairs", ["video", "audio"], "v2a", "max_ap",
        {"test": dataset_of(pairs)}, type="VideoPairClassification",
        input1_column_name={"video1": "video"}, input2_column_name={"audio2": "audio"}, label_column_name="label",
    )  # fmt: skip
    labels = [n // 2 for n in range(NUM_CLIPS)]
    classes = dataset_of({"video": video, "audio": audio, "label": labels})
    classified = task_of(
        AbsTaskClassification, "MadeClasses", ["video", "audio"], "va2c", "accuracy",
        {"train": classes, "test": classes}, type="VideoClassification", input_column_name=("video", "audio"),
        samples_per_label=2, n_experiments=2,
    )  # fmt: skip
    clustered = task_of(
        AbsTaskClustering, "MadeClusters", ["video"], "v2c", "v_measure",
        {"test": dataset_of({"video": video, "label": labels})}, type="VideoClustering",
        input_column_name="video", label_column_name="label", max_document_to_embed=None,
        max_fraction_of_documents_to_embed=None,
    )  # fmt: skip
    tasks = [retrieval, pair, classified, clustered]
    results = mteb.evaluate(model, tasks, cache=None, show_progress_bar=False)
    scores = {result.task_name: result.scores["test"][0] for result in results.task_results}

    cosines = own["video"] @ own["audio"].T
    ranks = (cosines > np.diag(cosines)[:, None]).sum(axis=1)
    assert scores["MadeVideoToAudio"]["ndcg_at_10"] == pytest.approx(np.mean(1 / np.log2(ranks + 2)), abs=1e-4)
    assert scores["MadeVideoToAudio"]["hit_rate_at_1"] == pytest.approx(np.mean(ranks == 0), abs=1e-4)
    expected = average_precision_score(matched, [cosines[n, m] for n, m in enumerate(other)])
    assert scores["MadePairs"]["cosine_ap"] == pytest.approx(expected, abs=1e-4)

    class Stored(MtebModel):
        """The rows of `own` in place of a model, so that mteb's classifiers and clusters see what they should see."""

        def __init__(self):
            self.mteb_model_meta = model.mteb_model_meta

        def encode(self, inputs, **_):
            names = [name for name in ("video", "audio") if name in inputs.dataset.column_names]
            rows = {value["bytes"]: n for n, value in enumerate(video)}
            files = inputs.dataset.cast_column("video", datasets.Video(decode=False))
            chosen = [rows[value["bytes"]] for value in files["video"]]
            return own["both" if len(names) == 2 else "video"][chosen].astype(np.float32)

    again = mteb.evaluate(Stored(), [classified, clustered], cache=None, show_progress_bar=False)
    stored = {result.task_name: result.scores["test"][0] for result in again.task_results}
    assert scores["MadeClasses"]["accuracy"] == stored["MadeClasses"]["accuracy"]
    # A task draws its samples of clusters on where the first evaluation ended.
    assert scores["MadeClusters"]["v_measure"] == pytest.approx(stored["MadeClusters"]["v_measure"], abs=0.01)


@pytest.mark.slow
def test_what_cannot_be_embedded_is_named_and_nothing_stands_in_for_it(model, clips, tmp_path, tiny_run, monkeypatch):
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(b"no film")
    films = [clips[0][0], damaged]
    with pytest.raises(ValueError, match=r"^Made, default, test, row 1: the video cannot be embedded"):
        encode(model, dataset_of({"video": column(films, "video")}), ["video"])
    with pytest.raises(ValueError, match=r"row 1: the video cannot be embedded: it has no video"):
        encode(model, dataset_of({"video": column([clips[0][0], clips[1][0]], "video")}), ["video"])
    with pytest.raises(ValueError, match=r"row 0: there is no video"):
        encode(model, dataset_of({"video": [None, column(films, "video")[0]]}), ["video"])
    with pytest.raises(ValueError, match=r"row 0: there is no audio: '/none.wav' is no file of this machine"):
        encode(model, dataset_of({"audio": [{"bytes": None, "path": "/none.wav"}]}), ["audio"])
    with pytest.raises(ValueError, match=r"the data set has text, and this model reads video, audio"):
        encode(model, dataset_of({"text": ["a"]}), ["text"])
    with pytest.raises(ValueError, match="revision is 'x'"):
        MtebModel(tiny_run, "x")
    with pytest.raises(ValueError, match="vectors is 'rows'"):
        MtebModel(tiny_run, vectors="rows")
    monkeypatch.setattr(type(model.embedder.loss), "has_one_space", False)
    from mteb.types import PromptType

    sides = {PromptType.query: ["video"], PromptType.document: ["audio"]}
    metadata = SimpleNamespace(name="Made", modalities=["video", "audio"], get_modalities=sides.get)
    with pytest.raises(ValueError, match="video is compared with audio, and their embeddings lie in different spaces"):
        model.encode(
            SimpleNamespace(dataset=dataset_of({"video": column(clips[0], "video")})), task_metadata=metadata,
            hf_split="test", hf_subset="default", prompt_type=PromptType.query,
        )  # fmt: skip
