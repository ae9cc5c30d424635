"""Banks split over two processes equal replicated ones, in value and negatives."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from avssl import distributed
from avssl.checkpoint.bank_rows import save_rows, whole_banks
from avssl.ops import sharded_memory
from avssl.ops.memory import MemoryBank
from avssl.ops.sampling import draw_negatives
from avssl.ops.sharded_memory import ShardedMemoryBank, make_bank
from tests.conftest import ROOT, TINY_CMA, run_ranks
from tests.test_distributed import TINY_WITHOUT_BATCH_NORM


def pretend(monkeypatch, rank, world_size):
    for module in (distributed, sharded_memory):
        monkeypatch.setattr(module, "rank", lambda: rank)
        monkeypatch.setattr(module, "world_size", lambda: world_size)


@pytest.mark.parametrize(("num_samples", "dim"), [(101, 3), (101, 16), (96, 5), (32, 8), (3, 4), (129, 7)])
def test_shards_start_as_the_rows_of_one_bank_bit_for_bit(num_samples, dim, monkeypatch):
    monkeypatch.setattr(sharded_memory, "ROWS_AT_ONCE", 16)
    whole = MemoryBank(num_samples, dim, seed=3).rows
    found = []
    for rank in range(4):
        pretend(monkeypatch, rank, 4)
        bank = ShardedMemoryBank(num_samples, dim, seed=3)
        assert bank.rows.shape == (-(-num_samples // 4), dim)
        found.append(bank.rows[: bank.last - bank.first])
    assert torch.equal(torch.cat(found), whole)


def test_a_shard_writes_its_own_rows_and_the_last_of_two_equal_indices_counts(monkeypatch):
    index, rows = torch.tensor([1, 7, 9, 7, 5]), normalize(torch.randn(5, 4), dim=1)
    whole = MemoryBank(10, 4, seed=0)
    whole.update(index, rows, 0.5)
    found = []
    for rank in range(3):
        pretend(monkeypatch, rank, 3)
        bank = ShardedMemoryBank(10, 4, seed=0)
        bank.update(index, rows, 0.5)
        found.append(bank.rows[: bank.last - bank.first])
    torch.testing.assert_close(torch.cat(found), whole.rows, rtol=0, atol=1e-7)


def test_one_process_holds_a_plain_bank_whatever_the_key_says():
    assert type(make_bank(10, 4, 0, sharded=True)) is MemoryBank


def test_the_rows_of_a_shard_are_not_in_the_state_that_all_ranks_share(monkeypatch):
    pretend(monkeypatch, 0, 2)
    assert ShardedMemoryBank(10, 4, seed=0).state_dict() == {}


def test_draws_for_all_ranks_are_those_of_one_process_on_the_whole_batch(monkeypatch):
    index = torch.arange(8)[:, None]
    alone = draw_negatives(index, 20, 50, 0, 3)
    pretend(monkeypatch, 1, 2)
    assert torch.equal(draw_negatives(index, 20, 50, 0, 3, for_all_ranks=True), alone)


@pytest.mark.slow
def test_each_loss_with_sharded_banks_equals_itself_with_replicated_ones(tmp_path):
    """Six steps over an epoch's end: losses, terms, weights, partition constant, positive sets, and the banks."""
    run_ranks(2, "sharded", str(tmp_path))
    differences = json.loads((tmp_path / "differences.json").read_text())
    assert {case.split("-")[0] for case in differences} == {"avid", "avid_cma", "npid", "pirl"}
    wrong = [
        f"{case} {key}: {value:.1e}"
        for case, all_of in differences.items()
        for key, value in all_of.items()
        if not value < 1e-5
    ]
    assert not wrong


@pytest.mark.slow
def test_bytes_sent_do_not_depend_on_the_number_of_negatives_and_rows_are_not_sent(tmp_path):
    run_ranks(2, "sharded_bytes", str(tmp_path))
    sent = json.loads((tmp_path / "bytes.json").read_text())
    anchors, width = 2 * 4, 8
    assert (
        sent["16"] == sent["512"] == {"all_gather": 4 * anchors * width, "all_to_all_single": 4 * anchors * (width + 3)}
    )


def test_whole_banks_are_those_of_the_newest_checkpoint_and_not_of_copies_of_the_user(tmp_path):
    loss = torch.nn.Module()
    loss.bank = ShardedMemoryBank(5, 3, seed=0)
    for name in ("step_000099", "step_000100"):
        (tmp_path / name).mkdir()
        loss.bank.rows += 1
        save_rows([loss], None, tmp_path / name)
    shutil.copytree(tmp_path / "step_000099", tmp_path / "step_000100_backup")
    shutil.copytree(tmp_path / "step_000099", tmp_path / "step_000100 (copy)")
    (rows,) = (tmp_path / "step_000100").iterdir()
    shutil.copyfile(rows, rows.with_stem(f"{rows.stem}_copy"))
    found = whole_banks(tmp_path, loss)
    assert found.keys() == {"loss.bank.rows"}
    assert torch.equal(found["loss.bank.rows"], loss.bank.rows)


@pytest.mark.slow
def test_a_run_with_sharded_banks_resumes_exactly_and_exports_whole_ones(shards, tmp_path):
    arguments = [
        "pretrain", str(ROOT / "recipes/configs/avid_cma.yaml"), *TINY_WITHOUT_BATCH_NORM, *TINY_CMA,
        f"data.shards={shards['train']}", "loss.shard_banks=true",
    ]  # fmt: skip
    run_ranks(2, *arguments, "steps=6", f"run={tmp_path}/straight")
    run_ranks(2, *arguments, "steps=3", f"run={tmp_path}/stopped")
    run_ranks(2, *arguments, "steps=6", f"run={tmp_path}/stopped")
    straight, stopped = (load_file(tmp_path / name / "encoders.safetensors") for name in ("straight", "stopped"))
    assert straight["loss.banks.video.rows"].shape[0] == 18
    torch.testing.assert_close(straight["loss.banks.video.rows"].norm(dim=1), torch.ones(18))
    for key, expected in straight.items():
        assert torch.equal(stopped[key], expected), key
    # and another run starts from it, with banks split or not
    for sharded, num_processes in (("true", 2), ("false", 1)):
        report = run_ranks(
            num_processes, *arguments[:-1], f"loss.shard_banks={sharded}", "steps=3",
            f"init_from={tmp_path}/straight", f"run={tmp_path}/next_{sharded}",
        )  # fmt: skip
        assert "not taken: 0 tensors" in report.stdout
