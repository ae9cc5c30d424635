"""What tests/test_distributed.py starts on one or two processes with torchrun: a claim by name, then its arguments."""

import json
import os
import sys
import time
from datetime import timedelta
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from avssl import distributed


class SumEncoder(nn.Module):
    """An encoder without batch norm: with it, one process on a double batch is another function than two processes."""

    def __init__(self, modality, dim=16):
        super().__init__()
        self.modality, self.dim = modality, dim
        self.layer = nn.Linear(3 if modality == "video" else 65, dim)

    def forward(self, x):
        pooled = x.mean(dim=(2, 3, 4)) if self.modality == "video" else x.mean(dim=(1, 2))
        return torch.tanh(self.layer(pooled))


def assert_replicated(name: str, tensor: torch.Tensor) -> None:
    """Raise RuntimeError unless `tensor` is bit-identical on all ranks (state rule: replicated)."""
    if not distributed.is_active():
        return
    flat = tensor.detach().reshape(-1).contiguous()
    mine = flat.view(torch.uint8).to(torch.int64)
    weight = torch.arange(1, mine.numel() + 1, device=mine.device) % 65_521
    digest = torch.stack([mine.sum(), (mine * weight).sum()])
    digests = distributed.gather(digest[None])
    if not bool((digests == digests[0]).all()):
        raise RuntimeError(f"{name} differs between processes: {digests.tolist()}; it must be the same on every rank")


def collectives():
    """Every function of avssl.distributed against what two ranks must see."""
    rank = distributed.rank()
    rows = torch.arange(3.0) + 10 * rank
    expected = torch.tensor([0.0, 1, 2, 10, 11, 12])
    assert torch.equal(distributed.gather(rows), expected)
    assert torch.equal(distributed.gather_uneven(rows[: 2 + rank]), torch.tensor([0.0, 1, 10, 11, 12]))
    assert distributed.all_sum(rows).tolist() == [10, 12, 14]
    assert distributed.all_mean(rows).tolist() == [5, 6, 7]
    assert distributed.all_finite([rows, torch.ones(())])
    assert not distributed.all_finite([rows, torch.tensor([1.0, float("inf") if rank else 1.0])])
    assert distributed.broadcast_object({"rank": rank}) == {"rank": 0}
    assert distributed.gather_objects({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
    assert_replicated("equal", torch.ones(4))
    with pytest.raises(RuntimeError, match="unequal differs between processes"):
        assert_replicated("unequal", rows)


def gradient():
    """A loss of the gathered batch has, after the mean over ranks, the gradient of one process on all of it."""
    rank = distributed.rank()
    everything = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.ones(4, 4, requires_grad=True, dtype=torch.float64)

    def loss_of(z):
        return (z @ z.T).exp().sum().log()

    mine = everything[3 * rank : 3 * rank + 3] @ weight
    loss_of(distributed.gather_with_grad(0.1 * mine)).backward()
    averaged = distributed.all_mean(weight.grad)
    alone = torch.ones_like(weight, requires_grad=True)
    loss_of(0.1 * (everything @ alone)).backward()
    torch.testing.assert_close(averaged, alone.grad)


def pretrain_each(folder, names, *arguments):
    """`pretrain` in folder/NAME for each loss, with batch norms gathered by sync_batch_norm on CPU, too.

    The first process writes the samples of every global batch to folder/NAME/indices.jsonl.
    """
    from accelerate import Accelerator

    from avssl.data.loader import Loader
    from tests.tiny import gather_batch_norms

    Accelerator.end_training = lambda self: None  # it ends the group of processes, and there are more runs
    torch.nn.SyncBatchNorm.convert_sync_batchnorm = gather_batch_norms  # PyTorch's own is for GPUs
    original = Loader.epoch

    def epoch(self, number, first_batch=0):
        for position, batch in enumerate(original(self, number, first_batch), first_batch):
            index = distributed.gather(batch.index).tolist()
            if distributed.rank() == 0:
                with (Path(folder) / name / "indices.jsonl").open("a") as file:
                    file.write(json.dumps([number, position, index]) + "\n")
            yield batch

    Loader.epoch = epoch
    for name in names.split(","):
        pretrain(f"loss.name={name}", *LOSSES_OF_PAIRS[name], *arguments, f"run={folder}/{name}")
    if distributed.is_active():
        distributed.barrier()
        torch.distributed.destroy_process_group()


# Small losses of video and sound, each with another kind of state.
LOSSES_OF_PAIRS = {
    "avid": ["loss.num_negatives=8", "loss.projector_hidden_dims=[16]", "loss.embedding_dim=8",
             "loss.shard_banks=true"],
    "moco": ["loss.modalities=[video,audio]", "loss.queue_size=16", "loss.embedding_dim=8", "loss.shuffle_groups=0"],
    "swav": ["loss.modalities=[video,audio]", "loss.queue_size=16", "loss.num_prototypes=6", "loss.embedding_dim=8",
             "loss.projector_hidden_dims=[16]", "loss.queue_from_epoch=0", "loss.freeze_steps=1"],
    "byol": ["loss.modalities=[video,audio]", "loss.projector_hidden_dims=[16]", "loss.predictor_hidden_dims=[16]",
             "loss.embedding_dim=8"],
    "barlow_twins": ["loss.modalities=[video,audio]", "loss.projector_hidden_dims=[16]", "loss.embedding_dim=8"],
}  # fmt: skip


def pretrain(*arguments):
    """The real recipe with encoders that have no batch norm; checks that state is the same on all ranks at the end."""
    from avssl import checkpoint, config, models
    from recipes import pretrain as recipe

    for modality in ("video", "audio"):
        build = lambda modality=modality: SumEncoder(modality)  # noqa: E731
        models.ENCODERS[f"sum_{modality}"] = models.EncoderEntry(modality, build, ())
    original = checkpoint.save

    def save(accelerator, *rest):
        for name, tensor in accelerator.unwrap_model(accelerator._models[0]).state_dict().items():
            assert_replicated(name, tensor)
        return original(accelerator, *rest)

    checkpoint.save = save
    recipe.main(config.parse(config.RunConfig, list(arguments)))


def contract_cases(which):
    """{case: (loss name, modalities, options)}: "all", or "few": each loss on the last combination that it names."""
    from tests.tiny import SHARING_OPTIONS, cases

    queues = {"moco": {"queue_size": 24}, "swav": {"queue_size": 24}}  # multiples of the batch
    found = [(name, pair, {}) for name, pair in cases()]
    if which == "few":
        found = list({name: case for case in found for name in case[:1]}.values())
    last = {name: pair for name, pair, _ in found}
    found += [(name, last[name], options) for name, options in SHARING_OPTIONS if which == "all" or name == "moco"]
    return {
        "-".join((name, *pair, *options)): (name, pair, queues.get(name, {}) | options) for name, pair, options in found
    }


def contract(folder, which, micro_batches, seeds):
    """Losses with and without accumulation, over ends of epochs, in float64.

    38 samples in batches of 12: some fill no batch, and ranks have unequal shares of a pass over the data set. One
    process leaves its values, terms, gradients and state in `folder`; W compare theirs with them and write
    differences_W.json: for each case the largest difference of every tensor, relative to its largest entry.
    """
    from tests.tiny import Run

    # Losses call .float() to leave half precision; here that would hide what is compared below rounding.
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    world_size, differences = distributed.world_size(), {}
    for (case, (name, pair, options)), accumulation, seed in product(
        contract_cases(which).items(), (1, 2), map(int, seeds.split(","))
    ):
        label = f"{case}-{accumulation}-{seed}"
        gathered = not options.get("shuffle_groups")  # groups have batch norms of their own
        run = Run(name, pair, gathered_norms=gathered, num_samples=38, batch_size=12, seed=seed,
                  accumulation=accumulation, **options)  # fmt: skip
        for _ in range(int(micro_batches) // accumulation):
            result, _ = run.step()
        state = contract_state(run, result)
        path = Path(folder) / f"{label}.pt"
        if world_size == 1:
            torch.save(state, path)
            continue
        for key, tensor in state.items():
            assert_replicated(f"{label} {key}", tensor)
        expected = torch.load(path, weights_only=True)
        assert expected.keys() == state.keys(), label
        differences[label] = {key: relative_difference(state[key], expected[key]) for key in state}
    if distributed.rank() == 0 and world_size > 1:
        (Path(folder) / f"differences_{world_size}.json").write_text(json.dumps(differences))


def contract_state(run, result):
    """{name: tensor} that must not depend on the number of processes."""
    state = {"values": torch.stack([distributed.all_mean(value) for value in run.values])}
    state |= {f"term {key}": distributed.all_mean(value) for key, value in result.terms.items()}
    state |= {f"gradient of {key}": one.grad for key, one in run.loss.named_parameters() if one.grad is not None}
    # Running statistics of batch norms that are not gathered are each rank's own.
    own = ("running_mean", "running_var", "num_batches_tracked")
    state |= {key: value for key, value in run.loss.state_dict().items() if not key.endswith(own)}
    for modality, bank in getattr(run.loss, "banks", {}).items():
        state[f"banks.{modality}.rows"] = bank.gather_rows(torch.arange(run.loss.num_samples))
    return state


def sharded(folder):
    """Losses with banks split over the ranks against the same with a bank each, for six steps; differences.json."""
    from tests.tiny import Run, cases

    differences = {}
    for name, pair in cases():
        if name not in ("avid", "avid_cma", "npid", "pirl"):
            continue
        states = []
        for is_split in (False, True):
            options = {"variant": "joint"} if name == "avid" else {}
            run = Run(name, pair, gathered_norms=True, shard_banks=is_split, **options)
            results = [run.step()[0] for _ in range(6)]
            state = {f"loss {step}": distributed.all_mean(result.total) for step, result in enumerate(results)}
            state |= {key: distributed.all_mean(value) for key, value in results[-1].terms.items()}
            state |= run.loss.state_dict()
            everything = torch.arange(run.loss.num_samples)
            for modality, bank in run.loss.banks.items():
                assert type(bank).__name__ == ("ShardedMemoryBank" if is_split else "MemoryBank")
                assert len(bank.rows) == run.loss.num_samples // (2 if is_split else 1)
                state[f"banks.{modality}.rows"] = bank.gather_rows(everything)
            states.append(state)
        for key, tensor in states[1].items():
            assert_replicated(f"{name} {key}", tensor)
        assert states[0].keys() == states[1].keys()
        case = "-".join((name, *pair))
        differences[case] = {key: relative_difference(states[1][key], states[0][key]) for key in states[0]}
    if distributed.rank() == 0:
        (Path(folder) / "differences.json").write_text(json.dumps(differences))


def sharded_bytes(folder):
    """What one direction of NCE against a sharded bank hands to torch.distributed: bytes.json."""
    import torch.distributed as dist

    from avssl.ops.nce import bank_nce
    from avssl.ops.sharded_memory import ShardedMemoryBank

    bank, sent = ShardedMemoryBank(100, 8, seed=0), {}
    for num_negatives in (16, 512):
        counted = sent[str(num_negatives)] = {}
        originals = {
            name: getattr(dist, name) for name in ("all_gather", "all_to_all_single", "all_reduce", "broadcast")
        }
        for name, original in originals.items():

            def count(first, second=None, *rest, name=name, original=original, counted=counted, **options):
                pieces = first if isinstance(first, list) else [first]
                counted[name] = counted.get(name, 0) + sum(piece.nbytes for piece in pieces)
                return original(first, *(() if second is None else (second,)), *rest, **options)

            setattr(dist, name, count)
        anchors = torch.ones(4, 8, requires_grad=True)
        negatives = torch.randint(100, (8, num_negatives), generator=torch.Generator().manual_seed(0))
        loss, _ = bank_nce(anchors, bank, torch.arange(8)[:, None], negatives, 0.07, torch.tensor(2.0), measure=False)
        loss.backward()
        for name, original in originals.items():
            setattr(dist, name, original)
    if distributed.rank() == 0:
        (Path(folder) / "bytes.json").write_text(json.dumps(sent))


def late_probe(folder, shards):
    """The last result of the online probe comes long after the limit of a collective, for which the others wait."""
    from avssl.config import ProbeConfig
    from avssl.train.probe import OnlineProbe

    torch.distributed.destroy_process_group()
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=2))
    is_main = distributed.rank() == 0
    probe = OnlineProbe(ProbeConfig(shards=shards), Path(folder), step=4, is_main=is_main)
    probe.last_due, probe._collect = 4, list  # it has its snapshot

    def wait():
        time.sleep(5)
        probe.process = None

    probe.process = SimpleNamespace(wait=wait)
    assert probe.finish(4, {}, dict) == []
    distributed.barrier()
    assert (probe.process is None) == is_main


def relative_difference(actual, expected):
    """Largest difference over the largest expected magnitude (at least 1e-2)."""
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.double(), expected.double()
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-2))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    claim, *rest = sys.argv[1:]
    if not claim.startswith("pretrain"):
        torch.distributed.init_process_group("gloo")
    functions = collectives, gradient, pretrain, pretrain_each, contract, sharded, sharded_bytes, late_probe
    claims = {one.__name__: one for one in functions}
    claims[claim](*rest)
    wanted = int(os.environ["EXPECTED_WORLD_SIZE"])
    if not claim.startswith("pretrain"):
        assert distributed.world_size() == wanted, f"{distributed.world_size()} processes, {wanted} wanted"
        torch.distributed.barrier()  # a process that leaves while another still talks to it makes that one abort
        torch.distributed.destroy_process_group()
