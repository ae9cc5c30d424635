"""Embeddings are a function of the input: of nothing random, not of batch size or workers, on one time grid."""

import json

import numpy as np
import pytest
import torch

import avssl
from avssl.embedding.embedder import Embedder
from avssl.embedding.table import EmbeddingTable
from avssl.embedding.windows import clip_starts
from avssl.shards.shard_set import ShardSet
from avssl.types import MediaError
from data_prep.transcode.encode import write_media
from tests.conftest import run_python


def sine(seconds, rate_hz=24_000):
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)[None]


def frames(count, size=48):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (size, size, 3), dtype=np.uint8) for _ in range(count)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a video of 3.2 s, one without audio, an audio file, and a text file with the suffix of a video."""
    folder = tmp_path_factory.mktemp("files")
    write_media(folder / "film.mp4", video=frames(51), video_fps=16, audio=sine(3.2), audio_rate_hz=24_000)
    write_media(folder / "mute.mp4", video=frames(20), video_fps=16)
    write_media(folder / "sound.wav", audio=sine(1.3), audio_rate_hz=24_000, audio_codec="pcm_s16le")
    (folder / "text.mp4").write_text("this is no video")
    return folder


@pytest.fixture(scope="module")
def embedder(tiny_run):
    return avssl.load_embedder(tiny_run)


def same_rows(left, right, tolerance=1e-5):
    assert left.keys == right.keys
    np.testing.assert_array_equal(left.start_seconds, right.start_seconds)
    for name in ("video_embedding", "audio_embedding", "video_feature", "audio_feature"):
        np.testing.assert_allclose(getattr(left, name), getattr(right, name), atol=tolerance, err_msg=name)


@pytest.mark.slow
def test_the_same_input_twice_gives_the_same_bits(embedder, files):
    first, _ = embedder.embed(files)
    second, _ = embedder.embed(files)
    same_rows(first, second, tolerance=0)


@pytest.mark.quick(1)
@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 5}, {"num_workers": 2}])
def test_rows_do_not_depend_on_batch_size_or_workers(embedder, files, shards, options):
    for sources in (files, shards["test"]):
        whole, _ = embedder.embed(sources, window_seconds=0.5, stride_seconds=0.3)
        other, _ = embedder.embed(sources, window_seconds=0.5, stride_seconds=0.3, **options)
        same_rows(whole, other)


def test_windows_lie_on_one_grid_for_both_modalities(embedder, files):
    table, _ = embedder.embed(files / "film.mp4", window_seconds=1.0, stride_seconds=0.5)
    np.testing.assert_allclose(table.start_seconds[:5], [0, 0.5, 1.0, 1.5, 2.0])
    np.testing.assert_allclose(table.end_seconds - table.start_seconds, 1.0)
    assert table.end_seconds[-1] >= 3.18
    assert table.has_video.all()
    assert table.has_audio.all()
    for name in ("video_embedding", "audio_embedding"):
        np.testing.assert_allclose(np.linalg.norm(getattr(table, name), axis=1), 1, atol=1e-6)


def test_each_file_gives_what_it_has_and_a_failure_is_named_with_its_reason(embedder, files):
    table, failures = embedder.embed(files)
    by_key = {
        key: (bool(video), bool(audio))
        for key, video, audio in zip(table.keys, table.has_video, table.has_audio, strict=True)
    }
    assert by_key == {"film_mp4": (True, True), "mute_mp4": (True, False), "sound_wav": (False, True)}
    assert list(failures) == ["text_mp4"]
    assert failures["text_mp4"].reason == "not_media"
    assert np.isnan(table.audio_embedding[table.keys.index("mute_mp4")]).all()


def test_one_file_by_modality(embedder, files):
    assert embedder.embed(files / "mute.mp4", modalities=["video"])[0].video_embedding.shape == (3, 8)
    assert embedder.embed(files / "sound.wav", modalities=["audio"])[0].audio_embedding.shape == (3, 8)
    with pytest.raises(ValueError, match="none of the 1 sources that could be opened has audio"):
        embedder.embed(files / "mute.mp4", modalities=["audio"])
    with pytest.raises(MediaError, match="not_media"):
        embedder.embed(files / "text.mp4", modalities=["video"])


def test_rows_of_a_shard_carry_index_key_and_labels(embedder, shards):
    table, failures = embedder.embed(ShardSet(shards["test"]))
    assert failures == {}
    pooled = table.pool_by_key()
    assert pooled.index.tolist() == list(range(6))
    assert pooled.keys == ShardSet(shards["test"]).keys
    assert pooled.label_fields() == ["sound", "visual"]


def test_a_row_is_what_the_encoder_gives_for_that_clip(embedder, shards):
    """The window of one clip's length equals the model applied by hand to the decoded clip."""
    from avssl.data.read_views import decode_audio_clip
    from avssl.transforms.raw_view import raw_audio
    from avssl.types import Span

    sample = ShardSet(shards["test"]).read(0)
    config = embedder.config.views
    seconds = config.audio.seconds
    table, _ = embedder.embed(ShardSet(shards["test"]), window_seconds=seconds)
    span = Span(
        sample.info.audio_start_seconds, sample.info.audio_start_seconds + sample.info.num_audio_samples / 24_000
    )
    clip = decode_audio_clip(sample.audio, 0.0, config.audio, span, "x")
    view = raw_audio(clip, config.audio, None)
    spectrum = embedder.views.audio(type(view)("audio", view.media[None]), torch.device("cpu"))
    with torch.no_grad():
        feature = embedder.encoders["audio"](spectrum)
    np.testing.assert_allclose(table.audio_feature[0], feature[0].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_untrained_weights_are_the_runs_own_start(tiny_run, shards, tmp_path):
    """A run of learning rate 0 ends where it began, which is what untrained=True loads."""
    from tests.conftest import TINY

    frozen = ["steps=1", "optim.lr=0", f"run={tmp_path}/run", f"data.shards={shards['train']}"]
    run_python("recipes/pretrain.py", "recipes/configs/avid.yaml", *TINY, *frozen)
    started, ended = (Embedder.from_run(tmp_path / "run", untrained=untrained) for untrained in (True, False))
    for modality in ("video", "audio"):
        for left, right in zip(
            started.encoders[modality].parameters(), ended.encoders[modality].parameters(), strict=True
        ):
            assert torch.equal(left, right)
    assert started.weights_hash == "untrained"


@pytest.mark.parametrize(
    ("window", "clip", "starts"),
    [
        ((0.0, 2.0), 0.5, [0.0, 0.5, 1.0, 1.5]),
        ((1.0, 3.0), 2.0, [1.0]),
        ((0.0, 1.0), 2.0, [-0.5]),
        ((0.0, 1.25), 0.5, [0.0625, 0.6875]),
    ],
)
def test_clips_fill_a_window_evenly(window, clip, starts):
    assert clip_starts(window, clip) == pytest.approx(starts)


def test_the_recipe_writes_parquet_and_what_was_skipped(tiny_run, files, tmp_path):
    command = [
        "recipes/embed.py",
        tiny_run,
        files,
        "--out",
        tmp_path,
        "--window",
        "0.5",
        "--stride",
        "0.25",
        "--num-workers",
        "0",
    ]
    process = run_python(*command)
    assert "3 of 4 sources embedded" in process.stdout
    assert set(EmbeddingTable.read(tmp_path / "embeddings.parquet").keys) == {"film_mp4", "mute_mp4", "sound_wav"}
    skipped = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [(row["key"], row["reason"]) for row in skipped] == [("text_mp4", "not_media")]


def test_the_recipe_names_what_is_missing(tiny_run, tmp_path):
    process = run_python("recipes/embed.py", tiny_run, tmp_path / "nowhere", "--out", tmp_path, check=False)
    assert process.returncode == 1
    assert "nowhere: no such file or folder" in process.stderr
    process = run_python("recipes/embed.py", tmp_path, tmp_path, "--out", tmp_path, check=False)
    assert "is not a run folder" in process.stderr
