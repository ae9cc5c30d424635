"""A run with fixed lanes goes on with another number of processes: the same batches and, to rounding, weights."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from avssl import config, distributed
from avssl.checkpoint import bank_rows
from avssl.data.order import check_lanes
from avssl.ops.memory import MemoryBank
from avssl.ops.sharded_memory import ShardedMemoryBank
from avssl.train import run_folder
from tests.conftest import TINY, losses_of, run_python
from tests.ranks import LOSSES_OF_PAIRS
from tests.test_sharded_memory import pretend

LANES = 4
KEYS = [
    *(change for change in TINY if not change.startswith(("encoders.", "loss.", "data.", "optim."))),
    "encoders.video={name: sum_video}", "encoders.audio={name: sum_audio}", "sync_batch_norm=true", "steps=6",
    "epochs=9", "checkpoint_every_steps=3",
    "data.global_batch_size=8", f"data.order_lanes={LANES}", "data.num_workers=0",
    "optim.name=sgd", "optim.lr=0.05", "optim.warmup_steps=0", "optim.schedule=constant",
]  # fmt: skip


def train(num_processes, folder, names, shards, *changes, check=True):
    given = "pretrain_each", folder, ",".join(names), *KEYS, f"data.shards={shards['train']}", *changes
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", num_processes]
    environment = {"EXPECTED_WORLD_SIZE": str(num_processes)}
    return run_python(*launcher, "-m", "tests.ranks", *given, check=check, **environment)


def cut(straight, stopped, names):
    """Copies of runs as they were at their checkpoint of step 3, in the middle of the second epoch."""
    for name in names:
        shutil.copytree(straight / name, stopped / name)
        shutil.rmtree(stopped / name / "step_000006")
        for file in ("encoders.safetensors", "provenance.json", "indices.jsonl"):
            (stopped / name / file).unlink()


def weights(run):
    return load_file(run / "encoders.safetensors")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_run(straight, changed, before, now):
    """The same batches and values after step 3, and the same weights and state at the end."""
    assert lines(changed / "indices.jsonl") == lines(straight / "indices.jsonl")[3:]
    expected, found = weights(straight), weights(changed)
    assert found.keys() == expected.keys()
    begun = load_file(straight / "step_000003" / "model.safetensors")
    moved = [
        (begun[key] - expected[f"loss.{name}"]).abs().max()
        for key in begun
        if f"loss.{(name := key.removeprefix('module.'))}" in expected and "encoders" in key
    ]
    assert max(moved) > 1e-3  # a comparison to 1e-5 would fail had step 4 to 6 been others
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    assert losses_of(straight) == pytest.approx(losses_of(changed), rel=1e-5)
    (note,) = lines(changed / "notes.jsonl")
    assert (note["step"], note["processes"]) == (3, now)
    assert note["note"].startswith(f"{before} processes until step 3, {now} from here on; the global batches are the")
    assert not (straight / "notes.jsonl").exists()
    assert len(list((changed / "step_000006").glob("random_states_*.pkl"))) == now


def go_on(tmp_path, shards, before, now, names):
    straight = tmp_path / f"straight_{before}"
    if not straight.exists():
        train(before, straight, names, shards)
    changed = tmp_path / f"{before}_to_{now}"
    cut(straight, changed, names)
    process = train(now, changed, names, shards)
    for name in names:
        assert_same_run(straight / name, changed / name, before, now)
    assert process.stdout.count(f"note: {before} processes until step 3, {now} from here on") == len(names)


@pytest.mark.slow
def test_a_run_with_a_bank_goes_on_with_two_processes_and_the_bank_is_split(shards, tmp_path):
    go_on(tmp_path, shards, 1, 2, ["avid"])
    assert len(list((tmp_path / "1_to_2" / "avid" / "step_000006").glob("rows_of_rank_*"))) == 2


@pytest.mark.slow
def test_runs_of_all_kinds_of_state_go_on_with_more_and_fewer_processes(shards, tmp_path):
    for before, now in ((1, 2), (2, 1), (2, 4)):
        go_on(tmp_path, shards, before, now, list(LOSSES_OF_PAIRS))


@pytest.mark.slow
def test_one_lane_a_process_goes_on_with_fewer_when_the_lanes_are_named(shards, tmp_path):
    """Without the key, the error says which value keeps the order, and of a number that does not fit which would."""
    names, own = ["byol"], "data.order_lanes=0"
    straight, changed = tmp_path / "straight", tmp_path / "changed"
    train(4, straight, names, shards, own)
    cut(straight, changed, names)
    refused = train(2, changed, names, shards, own, check=False)
    assert refused.returncode != 0
    assert "num_lanes: 4 then, 2 now). Put it back (data.order_lanes=4 keeps the order), or start" in refused.stderr
    refused = train(3, changed, names, shards, "data.global_batch_size=12", check=False)
    assert "4 lanes fit 1, 2, 4 processes" in refused.stderr
    (changed / "byol" / "indices.jsonl").unlink(missing_ok=True)
    train(2, changed, names, shards, "data.order_lanes=4")
    assert_same_run(straight / "byol", changed / "byol", 4, 2)


@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 3), (2, 4), (4, 3), (3, 2), (1, 8)])
def test_rows_of_split_banks_are_divided_anew(before, now, monkeypatch, tmp_path):
    """Ten rows; of eight processes that hold two rows each, the last three hold none."""
    whole = MemoryBank(10, 4, seed=1).rows
    prefix, per_rank = ("module." if before > 1 else ""), -(-10 // before)
    other = {f"{prefix}layer.weight": torch.randn(3, 3), f"{prefix}layer.bias": torch.randn(3)}
    save_file(other if before > 1 else {**other, "bank.rows": whole}, tmp_path / "model.safetensors")
    padded = torch.cat([whole, torch.zeros(per_rank * before - 10, 4)])
    for rank in range(before if before > 1 else 0):
        rows = padded[rank * per_rank : (rank + 1) * per_rank].clone()
        save_file({"bank.rows": rows}, tmp_path / f"rows_of_rank_{rank:05d}.safetensors")
    found = []
    for rank in range(now):
        pretend(monkeypatch, rank, now)
        bank = ShardedMemoryBank(10, 4, seed=2) if now > 1 else MemoryBank(10, 4, seed=2)
        loss = nn.ModuleDict({"bank": bank, "layer": nn.Linear(3, 3)})
        models = [loss]
        bank_rows.load_divided_otherwise(models, str(tmp_path))
        assert models == []
        assert torch.equal(loss["layer"].weight, other[f"{prefix}layer.weight"])
        found.append(bank.rows[: bank.last - bank.first] if now > 1 else bank.rows)
    assert torch.equal(torch.cat(found), whole)


def test_tensors_that_only_one_side_has_are_named(tmp_path):
    save_file({"module.weight": torch.zeros(3, 3), "module.scale": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="do not have the same tensors: bias, scale"):
        bank_rows.load_divided_otherwise([nn.Linear(3, 3)], str(tmp_path))


@pytest.mark.parametrize(
    ("lanes", "world_size", "message"),
    [(4, 3, "4 lanes fit 1, 2, 4 processes"), (6, 4, "6 lanes fit 1, 2, 3, 6 processes"), (1, 2, "1 lanes fit 1 proc")],
)
def test_lanes_that_do_not_divide_say_which_numbers_do(lanes, world_size, message):
    with pytest.raises(ValueError, match=message):
        check_lanes(12, lanes, world_size)


def test_random_states_are_a_function_of_seed_step_and_process(monkeypatch):
    seeds = {}
    for seed in (0, 1, -1):
        for step in (3, 4):
            for rank in range(4):
                monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
                seeds[seed, step, rank] = distributed.seed_of_rank(seed, step)
                assert distributed.seed_of_rank(seed, step) == seeds[seed, step, rank]
    assert len(set(seeds.values())) == len(seeds)
    assert all(0 <= value < 2**32 for value in seeds.values())


def test_what_is_not_exact_is_said_and_batch_norm_only_where_it_is_not_gathered(monkeypatch):
    cfg = config.parse(config.RunConfig, ["data.global_batch_size=24"])
    monkeypatch.setattr(run_folder, "world_size", lambda: 4)
    loss = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    said = run_folder.describe_processes(cfg, loss, 7, before=2)
    assert "2 processes until step 7, 4 from here on" in said
    assert "it sees the 6 rows of a process, 12 before, and the training is another one" in said
    gathered = run_folder.describe_processes(cfg, nn.SyncBatchNorm.convert_sync_batchnorm(loss), 7, before=2)
    assert "batch norm" not in gathered
    assert "dropout and drop path are drawn anew from (seed, step, process)" in gathered
