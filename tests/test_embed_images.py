"""Pictures from the folder to the page: preparation, pretraining, embedding, evaluation, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import avssl
from avssl.embedding import loading
from avssl.embedding.embedder import Embedder
from avssl.embedding.table import EmbeddingTable
from avssl.eval.configs import StandardConfig
from avssl.losses.base import Loss
from avssl.shards.shard_set import ShardSet
from avssl.types import LossConfig, MediaError, View
from data_prep.__main__ import main as data_prep
from recipes import embed as embed_recipe
from recipes import evaluate as evaluate_recipe
from recipes import report as report_recipe
from tests.conftest import RESIZE_LEVELS, TINY, run_python

SIZE_PX = 24
TINY_IMAGES = [
    *(change for change in TINY if change.startswith(("cpu", "mixed", "log", "data", "optim"))),
    "sync_batch_norm=false",
    f"views.image.size_px={SIZE_PX}",
    "encoders.image={name: resnet10, width: 4, small_stem: true}",
    "loss.projector_hidden_dims=[16]",
    "loss.embedding_dim=8",
]
# Sizes of all shapes on purpose; every third image is a JPEG.
SIZES = [(40, 40), (48, 32), (32, 56)]


def save_image(path: Path, color: str, seed: int) -> Path:
    """Noise around red or blue."""
    width, height = SIZES[seed % 3]
    noise = np.random.default_rng(seed).integers(0, 80, (height, width, 3))
    noise[..., 0 if color == "red" else 2] += 160
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise.astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and test/ with red/ and blue/ images, the same as shards (train-shards/), and mixed/ with broken files."""
    root = tmp_path_factory.mktemp("images")
    for split, count, first in (("train", 6, 0), ("test", 3, 100)):
        for color in ("red", "blue"):
            for number in range(count):
                suffix = "jpg" if number % 3 == 2 else "png"
                save_image(root / split / color / f"{number}.{suffix}", color, first + number)
        assert data_prep(["index", f"{root / split}", "--out", f"{root / split}.jsonl", "--num-workers", "1"]) == 0
        shards = ["--out", f"{root / split}-shards", "--samples-per-shard", "5", "--num-workers", "1"]
        assert data_prep(["write", f"{root / split}.jsonl", *shards]) == 0
    good = save_image(root / "mixed" / "below" / "good.png", "red", 7)
    (root / "mixed" / "broken.png").write_bytes(good.read_bytes()[:400])
    (root / "mixed" / "text.jpg").write_text("no image")
    (root / "mixed" / "empty.png").touch()
    (root / "mixed" / "notes.txt").write_text("not even called an image")
    return root


@pytest.fixture(scope="module")
def image_run(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SimCLR, three steps, through the recipe."""
    run = tmp_path_factory.mktemp("runs") / "simclr"
    changes = [f"run={run}", f"data.shards={folders / 'train-shards'}", "steps=3"]
    run_python("recipes/pretrain.py", "recipes/configs/simclr.yaml", *TINY_IMAGES, *changes)
    return run


@pytest.fixture(scope="module")
def embedder(image_run: Path) -> Embedder:
    return avssl.load_embedder(str(image_run))


def test_one_row_per_image_with_labels_and_no_seconds(embedder: Embedder, folders: Path) -> None:
    library = ShardSet(folders / "test-shards")
    table, failures = embedder.embed(library)
    assert failures == {}
    assert table.keys == library.keys
    assert table.index.tolist() == list(range(6))
    assert table.modalities() == ["image"]
    assert (table.start_seconds == 0).all()
    assert (table.end_seconds == 0).all()
    assert sorted(set(table.label("label"))) == ["blue", "red"]
    assert table.image_feature is not None
    assert table.image_embedding is not None
    assert table.image_feature.shape == (6, 32)
    np.testing.assert_allclose(np.linalg.norm(table.image_embedding, axis=1), 1, atol=1e-6)
    assert "window_seconds" not in table.metadata
    assert table.pool_by_key().keys == table.keys


def test_a_run_with_a_queue_longer_than_the_state_that_is_kept_is_embedded(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of 200,000 keys beside a corpus of a million images, whose state is built for 131,072 at most."""
    changes = [f"run={tmp_path}/moco", f"data.shards={folders / 'train-shards'}", "steps=1", "loss.queue_size=8"]
    run_python("recipes/pretrain.py", "recipes/configs/moco_v2.yaml", *TINY_IMAGES, *changes, "loss.shuffle_groups=2")
    monkeypatch.setattr(loading, "MAX_STATE_ROWS", 4)
    table, failures = avssl.load_embedder(str(tmp_path / "moco")).embed(ShardSet(folders / "test-shards"))
    assert (len(table.keys), failures) == (6, {})


def test_a_row_is_what_the_encoder_gives_for_the_center_of_the_image(embedder: Embedder, folders: Path) -> None:
    """Crop by Pillow, resize by torchvision, normalize by hand; the projector by matrix products and statistics."""
    from torchvision.transforms.v2.functional import resize

    path = folders / "test" / "blue" / "1.png"  # 32 x 56
    with Image.open(path) as image:
        side = round(0.875 * min(image.size))
        left, top = (image.width - side) // 2, (image.height - side) // 2
        cropped = np.asarray(image.crop((left, top, left + side, top + side)))
    small = resize(torch.from_numpy(cropped.copy()).permute(2, 0, 1), [SIZE_PX, SIZE_PX], antialias=True)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None].unbind()
    with torch.no_grad():
        feature = embedder.encoders["image"](((small / 255 - mean) / std)[None])[0].double()
    x = feature
    for name, norm in (("0", "1"), ("3", "4")):
        weights = {key: value.double() for key, value in embedder.projectors["image"].state_dict().items()}
        x = weights[f"{name}.weight"] @ x
        x = (x - weights[f"{norm}.running_mean"]) / (weights[f"{norm}.running_var"] + 1e-5).sqrt()
        x = x * weights[f"{norm}.weight"] + weights[f"{norm}.bias"]
        x = x.relu() if name == "0" else x
    table, _ = embedder.embed(path)
    assert table.image_feature is not None
    assert table.image_embedding is not None
    # Another crop moves features by tenths, another rounding of the resized image by a few thousandths.
    bound = {"rtol": 1e-3, "atol": 1e-2 if RESIZE_LEVELS else 1e-4}
    np.testing.assert_allclose(table.image_feature[0], feature.numpy(), **bound)
    np.testing.assert_allclose(table.image_embedding[0], (x / x.norm()).numpy(), **bound)


def test_the_same_images_give_the_same_bits(embedder: Embedder, folders: Path) -> None:
    first, second = (embedder.embed(folders / "test")[0] for _ in range(2))
    np.testing.assert_array_equal(first.image_embedding, second.image_embedding)
    np.testing.assert_array_equal(first.image_feature, second.image_feature)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 4}, {"num_workers": 2}])
def test_rows_do_not_depend_on_batch_size_or_workers(
    embedder: Embedder, folders: Path, options: dict[str, int]
) -> None:
    for sources in (folders / "test", ShardSet(folders / "test-shards")):
        whole, other = embedder.embed(sources)[0], embedder.embed(sources, **options)[0]
        assert whole.keys == other.keys
        for name in ("image_embedding", "image_feature"):
            np.testing.assert_allclose(getattr(whole, name), getattr(other, name), atol=1e-5, err_msg=name)


def test_files_folders_and_shards_give_the_same_embedding_of_an_image(embedder: Embedder, folders: Path) -> None:
    """PNG is lossless, so that the image in the shard is that of the file."""
    in_shards = embedder.embed(folders / "test-shards")[0]
    in_folder = embedder.embed(folders / "test")[0]
    alone, _ = embedder.embed(folders / "test" / "red" / "0.png")
    assert in_folder.keys == [
        f"{color}/{n}_{s}" for color in ("blue", "red") for n, s in enumerate(["png", "png", "jpg"])
    ]
    assert alone.image_embedding is not None
    for table in (in_folder, in_shards):
        row = next(row for row, key in enumerate(table.keys) if "red" in key and "0" in key.split("red")[1])
        np.testing.assert_allclose(table.image_embedding[row], alone.image_embedding[0], atol=1e-5)


def test_what_cannot_be_read_is_named_with_its_reason(embedder: Embedder, folders: Path) -> None:
    table, failures = embedder.embed(folders / "mixed")
    assert table.keys == ["below/good_png"]
    reasons = {key: error.reason for key, error in failures.items()}
    assert reasons.keys() == {"broken_png", "text_jpg", "empty_png"}, "notes.txt is not even tried"
    assert (reasons["text_jpg"], reasons["empty_png"]) == ("not_media", "empty_file")
    assert reasons["broken_png"] in ("truncated", "decode_error")
    with pytest.raises(MediaError, match="not_media"):
        embedder.embed(folders / "mixed" / "text.jpg")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        embedder.embed(folders / "nowhere.jpg")
    with pytest.raises(ValueError, match="nothing could be embedded: 2 sources failed"):
        embedder.embed([folders / "mixed" / "text.jpg", folders / "mixed" / "empty.png"])


def test_what_a_run_cannot_do_is_refused_with_what_it_can(embedder: Embedder, folders: Path, shards: Any) -> None:
    with pytest.raises(ValueError, match="no video encoder; it has image"):
        embedder.embed(folders / "test" / "red" / "0.png", modalities=["video"])
    with pytest.raises(ValueError, match="images, which have no windows"):
        embedder.embed(folders / "test", window_seconds=2.0)
    with pytest.raises(ValueError, match="none of the 6 sources that could be opened has image"):
        embedder.embed(ShardSet(shards["test"]))


@pytest.mark.slow
def test_the_recipe_writes_the_images_and_what_was_skipped(
    image_run: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(image_run), str(folders / "mixed"), "--out", str(tmp_path), "--num-workers", "0", "--device", "cpu"]
    assert embed_recipe.main(embed_recipe.parse(command)) == 0
    assert "1 of 4 sources embedded, 1 rows" in capsys.readouterr().out
    skipped = [json.loads(line)["key"] for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert sorted(skipped) == ["broken_png", "empty_png", "text_jpg"]
    table = EmbeddingTable.read(tmp_path / "embeddings.parquet")
    again, _ = avssl.load_embedder(str(image_run)).embed(folders / "mixed" / "below" / "good.png")
    assert table.keys == ["below/good_png"]
    np.testing.assert_allclose(table.image_embedding, again.image_embedding, atol=1e-6)
    np.testing.assert_allclose(table.image_feature, again.image_feature, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def evaluated(image_run: Path, folders: Path) -> dict[str, Any]:
    splits = {split: str(folders / f"{split}-shards") for split in ("train", "test")}
    return json.loads(
        evaluate_recipe.evaluate(image_run, StandardConfig(**splits, num_neighbors=3, num_workers=0)).read_text()
    )


@pytest.mark.slow
def test_an_image_run_is_evaluated_by_knn_alone(evaluated: dict[str, Any]) -> None:
    for weights in ("trained", "untrained"):
        assert evaluated["results"][weights].keys() == {"image_knn_label"}
    assert evaluated["chance"] == {"image_knn_label": 0.5}
    assert evaluated["results"]["trained"]["image_knn_label"] == 1.0, "red and blue"
    assert (evaluated["protocol"]["num_train"], evaluated["protocol"]["modalities"]) == (12, ["image"])


@pytest.mark.slow
def test_the_report_of_an_image_run_shows_its_images(image_run: Path, folders: Path, evaluated: dict[str, Any]) -> None:
    page = report_recipe.main(image_run, [], str(folders / "test-shards")).read_text()
    assert evaluated["results"]["trained"]["image_knn_label"] == 1.0
    assert "Image kNN, label" in page
    assert "100.0\u00a0%" in page
    assert "From an image to the closest other images" in page
    assert page.count('src="data:image/jpeg') == 4 * 5 + 6
    for wrong in ("cannot be shown", "no video", "no audio", "no image", "not embedded", 'src="http', "No training"):
        assert wrong not in page, wrong


@pytest.mark.slow
def test_a_run_without_the_modality_of_the_shards_says_so(image_run: Path, shards: Any, folders: Path) -> None:
    task = StandardConfig(train=str(shards["train"]), test=str(shards["test"]), num_workers=0)
    with pytest.raises(ValueError, match="none of the 18 sources that could be opened has image"):
        evaluate_recipe.evaluate(image_run, task)


def test_a_loss_without_a_projector_embeds_by_the_features_themselves(embedder: Embedder, folders: Path) -> None:

    class Bare(Loss):
        @classmethod
        def views(cls, config: LossConfig) -> tuple[View, ...]:
            return (View("first", "image"),)

    bare = Embedder(embedder.config, Bare(LossConfig(), dict(embedder.encoders), 1), embedder.views, "cpu", "none")
    table = bare.embed(folders / "test")[0]
    assert table.image_feature is not None
    unit = table.image_feature / np.linalg.norm(table.image_feature, axis=1, keepdims=True)
    np.testing.assert_allclose(table.image_embedding, unit, atol=1e-6)
