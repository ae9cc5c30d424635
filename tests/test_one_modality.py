"""Runs on one modality alone, audio or silent videos; rows of media with an image; weights that a run began with."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from avssl import checkpoint, config, losses
from avssl.embedding.embedder import Embedder
from avssl.embedding.media import Media
from avssl.embedding.table import EmbeddingTable
from avssl.embedding.windows import MediaReader
from avssl.eval.configs import StandardConfig
from avssl.models import create_encoder
from avssl.shards.shard_set import ShardSet
from avssl.transforms.config import ViewsConfig
from avssl.transforms.view_maker import ViewMaker
from avssl.types import Span
from data_prep.transcode.encode import write_media
from recipes import embed as embed_recipe
from recipes import evaluate as evaluate_recipe
from recipes import report as report_recipe
from tests.conftest import TINY
from tests.test_embed import sine


def make_run(folder: Path, modality: str, shards: Path) -> Path:
    """A finished run on two views of one modality, with its initial weights."""
    changes = [change for change in TINY if not change.startswith("loss.num_negatives")]
    given = ["loss.name=simclr", f"loss.modalities=[{modality},{modality}]", f"run={folder}", f"data.shards={shards}"]
    cfg = config.parse(config.RunConfig, [*changes, *given])
    torch.manual_seed(cfg.seed)
    encoders = {modality: create_encoder(**cfg.encoders[modality])}
    library = ShardSet(shards)
    loss = losses.get("simclr")(cfg.loss, encoders, library.num_samples)
    facts = {"data": {"num_samples": library.num_samples, "fingerprint": library.fingerprint}}
    folder.mkdir(parents=True)
    config.save(cfg, folder / "config.yaml")
    checkpoint.export(folder, {"loss": loss, "views": ViewMaker(cfg.views, [modality])}, facts)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modality", "window_seconds", "metrics"),
    # 4 frames at 16 per second; TINY's audio clips last 0.5 s
    [("video", 0.25, {"video_knn_visual", "video_knn_sound"}), ("audio", 0.5, {"audio_knn_visual", "audio_knn_sound"})],
)
def test_a_run_on_one_modality_embeds_evaluates_and_reports(
    shards: Any, tmp_path: Path, modality: str, window_seconds: float, metrics: set[str]
) -> None:
    run = make_run(tmp_path / "run", modality, shards["train"])
    out = tmp_path / "embeddings"
    command = [run, shards["test"], "--out", out, "--num-workers", "0", "--device", "cpu"]
    assert embed_recipe.main(embed_recipe.parse(list(map(str, command)))) == 0
    table = EmbeddingTable.read(out / "embeddings.parquet")
    assert table.modalities() == [modality]
    assert (table.metadata["window_seconds"], table.metadata["stride_seconds"]) == (window_seconds, window_seconds)
    np.testing.assert_allclose(table.end_seconds[0] - table.start_seconds[0], window_seconds)

    task = StandardConfig(train=str(shards["train"]), test=str(shards["test"]), num_neighbors=3, num_workers=0)
    evaluation = json.loads(evaluate_recipe.evaluate(run, task).read_text())
    assert evaluation["results"]["trained"].keys() == evaluation["results"]["untrained"].keys() == metrics
    assert evaluation["results"]["trained"] == evaluation["results"]["untrained"], "the weights are as they began"
    page = report_recipe.main(run, [], str(shards["test"])).read_text()
    article = {"video": "a", "audio": "an"}[modality]
    name = {"video": "video", "audio": "audio clip"}[modality]
    assert f"From {article} {name} to the closest other {name}s" in page
    assert "No clip has both modalities" not in page


@pytest.mark.slow
def test_weights_that_a_run_began_with_are_not_needed_to_load_it(
    tmp_path: Path,
) -> None:
    """They are needed only for the untrained baseline, the run's initial weights."""
    start = create_encoder("resnet10", width=4, small_stem=True)
    torch.save(start.state_dict(), tmp_path / "start.pth")
    encoder = f"{{name: resnet10, width: 4, small_stem: true, weights: {tmp_path / 'start.pth'}}}"
    given = ["loss.name=simclr", f"encoders.image={encoder}", f"run={tmp_path / 'run'}"]
    cfg = config.parse(config.RunConfig, given)
    loss = losses.get("simclr")(cfg.loss, {"image": create_encoder(**cfg.encoders["image"])}, 12)
    with torch.no_grad():
        loss.encoders["image"].conv1.weight.add_(1.0)  # as if trained
    (tmp_path / "run").mkdir()
    config.save(cfg, tmp_path / "run" / "config.yaml")
    facts = {"data": {"num_samples": 12, "fingerprint": ""}}
    checkpoint.export(tmp_path / "run", {"loss": loss, "views": ViewMaker(cfg.views, ["image"])}, facts)
    untrained = Embedder.from_run(tmp_path / "run", untrained=True)
    assert torch.equal(untrained.encoders["image"].conv1.weight, start.conv1.weight)
    (tmp_path / "start.pth").unlink()
    trained = Embedder.from_run(tmp_path / "run")
    assert torch.equal(trained.encoders["image"].conv1.weight, start.conv1.weight + 1.0)
    with pytest.raises(FileNotFoundError, match="no such file"):
        Embedder.from_run(tmp_path / "run", untrained=True)


def test_an_image_belongs_to_the_first_window_of_its_media() -> None:
    """An image has no time; the other windows have none."""
    stream, audio = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (40, 30), (230, 20, 20)).save(stream, "PNG")
    write_media(audio, audio=sine(3.0), audio_rate_hz=24_000, audio_codec="flac", container_format="flac")
    media = Media("k", 0, {"image": stream.getvalue(), "audio": audio.getvalue()}, {"audio": Span(0.0, 3.0)})
    grid = np.array([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]])
    with MediaReader(media, ViewsConfig(), ("audio", "image")) as reader:
        found = reader.read(grid, grid[3:])
    assert {name: rows.tolist() for name, rows in found.has.items()} == {
        "video": [False] * 3,
        "audio": [True] * 3,
        "image": [True, False, False],
    }
    assert (found.owners["image"], found.owners["audio"], found.clips["video"]) == ([[0]], [[0], [1], [2]], None)
    image = found.clips["image"]
    assert image is not None
    assert image.media.shape == (1, 1, 3, 224, 224)
    with MediaReader(media, ViewsConfig(), ("audio", "image")) as reader:
        later = reader.read(grid[1:], grid[3:])
    assert (later.has["image"].tolist(), later.clips["image"]) == ([False, False], None)
