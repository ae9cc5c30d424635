"""Real files, which packages carry: index -> write -> verify -> two training steps -> embed."""

import json

import numpy as np
import pytest

from avssl.embedding.table import EmbeddingTable
from tests.conftest import TINY, run_python
from tests.fixtures import real_videos  # noqa: F401  (a fixture)


@pytest.mark.slow
def test_real_files_go_all_the_way_to_embeddings(real_videos, tmp_path):  # noqa: F811
    run_python("-m", "data_prep", "index", real_videos, "--out", tmp_path / "corpus.jsonl", "--labels", "none")
    options = ["--short-side-px", "96", "--num-workers", "1", "--samples-per-shard", "3"]
    run_python("-m", "data_prep", "write", tmp_path / "corpus.jsonl", "--out", tmp_path / "shards", *options)
    assert ": ok, " in run_python("-m", "data_prep", "verify", tmp_path / "shards").stdout
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    assert index["num_written"] >= 4
    assert index["num_listed"] == index["num_written"] + index["num_skipped"]

    run = tmp_path / "run"
    changes = [*TINY, "data.order_lanes=0", f"data.shards={tmp_path / 'shards'}", f"run={run}", "steps=2"]
    run_python("recipes/pretrain.py", "recipes/configs/avid.yaml", *changes)
    run_python("recipes/embed.py", run, real_videos, "--out", tmp_path / "embeddings", "--window", "2")
    table = EmbeddingTable.read(tmp_path / "embeddings" / "embeddings.parquet")
    assert len(set(table.keys)) == index["num_listed"]
    assert table.has_video.all()
    assert 4 <= len(set(np.array(table.keys)[table.has_audio])) < index["num_listed"]  # some films have no sound
