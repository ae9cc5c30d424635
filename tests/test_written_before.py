"""What commit 8b62841 wrote, before files, words and keys moved, is read as before: tests/golden/commit_8b62841."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

import avssl
from avssl import config
from avssl.embedding.table import EmbeddingTable
from data_prep.inspect.verify import verify_folder
from recipes import pretrain
from tests.conftest import losses_of
from tests.written_before import GOLDEN, written_run

SHARDS = GOLDEN / "shards"


@pytest.fixture
def run(tmp_path):
    return written_run(tmp_path / "run")


def test_shards_are_whole(capsys):
    report = verify_folder(SHARDS)
    assert not report.problems
    assert report.num_samples == 6


def test_a_run_folder_with_old_keys_is_refused_with_their_new_names():
    with pytest.raises(config.ConfigError) as refusal:
        config.load_run(GOLDEN / "run")
    for old, new in config.RENAMED_KEYS.items():
        if f" {old}: " in (GOLDEN / "run" / "config.yaml").read_text():
            assert f"{old} is now {new}" in str(refusal.value)


def test_its_encoders_give_the_rows_that_they_gave(run):
    before = EmbeddingTable.read(GOLDEN / "embeddings")
    now, failures = avssl.load_embedder(str(run)).embed(SHARDS, window_seconds=0.5)
    assert not failures
    assert now.keys == before.keys
    for column in (
        "start_seconds",
        "end_seconds",
        "video_embedding",
        "audio_embedding",
        "video_feature",
        "audio_feature",
    ):
        np.testing.assert_allclose(getattr(now, column), getattr(before, column), rtol=0, atol=1e-5, err_msg=column)


@pytest.mark.slow
def test_its_checkpoint_goes_on_to_the_weights_that_it_came_to(run):
    finished = load_file(run / "encoders.safetensors")
    (run / "encoders.safetensors").unlink()
    cfg = config.parse(config.RunConfig, [str(run / "config.yaml"), f"run={run}", f"data.shards={SHARDS}"])
    assert pretrain.main(cfg) == 0
    again = load_file(run / "encoders.safetensors")
    assert again.keys() == finished.keys()
    for name, value in finished.items():
        if name.startswith("loss.projectors.") and name.endswith(".bias"):
            continue  # a batch norm follows: the gradient is rounding alone, which Adam makes as large as any other
        # Three steps of Adam move a weight by up to 6e-3; convolutions that sum in another order by less than this.
        np.testing.assert_allclose(again[name], value, rtol=0, atol=2e-4, err_msg=name)
    np.testing.assert_allclose(losses_of(run), losses_of(GOLDEN / "run"), rtol=1e-4)
