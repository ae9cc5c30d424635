"""AVID and AVID+CMA against golden values of a published implementation and against textbook NumPy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from avssl import losses
from avssl.losses.avid import AVID, AVIDConfig
from avssl.losses.avid_cma import AVIDCMA, AVIDCMAConfig, positive_set
from avssl.losses.base import EpochContext
from avssl.types import Progress
from tests.small_encoders import Identity
from tests.textbook import avid as textbook_avid
from tests.textbook import avid_cma as textbook_cma

GOLDEN = np.load(Path(__file__).parent / "golden" / "avid_cma_loss.npz")
TEMPERATURE, MOMENTUM = float(GOLDEN["temperature"]), float(GOLDEN["momentum"])
BANKS = {"video": GOLDEN["video_bank"], "audio": GOLDEN["audio_bank"]}
RAW = {"video": GOLDEN["video"], "audio": GOLDEN["audio"]}
NUM_SAMPLES = len(BANKS["video"])
NUM_WITHIN = int(GOLDEN["config"][-1])


def loss_with_stored_banks(cls, config, negatives, monkeypatch):
    """The loss with golden banks, identity heads, and the stored negatives in place of drawn ones."""
    loss = cls(config, {"video": Identity(16), "audio": Identity(16)}, NUM_SAMPLES)
    for modality in ("video", "audio"):
        loss.projectors[modality] = nn.Identity()
        loss.banks[modality].rows.copy_(torch.from_numpy(BANKS[modality]))
    monkeypatch.setattr(loss, "draw_negatives", lambda excluded, progress: torch.from_numpy(negatives))
    return loss


def run(loss, progress=None):
    """Value, gradients with respect to the raw embeddings, terms; then the update of state."""
    raw = {name: torch.from_numpy(x).requires_grad_() for name, x in RAW.items()}
    index = torch.from_numpy(GOLDEN["index"])
    outputs = loss(raw)
    result = loss.loss(outputs, index, progress or Progress())
    result.total.backward()
    loss.update(outputs, index)
    return result, {name: x.grad.numpy() for name, x in raw.items()}


def assert_close(actual, expected, relative=1e-5):
    """Largest error relative to the largest expected magnitude."""
    expected = np.asarray(expected)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=relative * scale)


@pytest.mark.parametrize("variant", ["cross", "self", "joint"])
def test_avid_equals_the_published_implementation_in_value_gradient_and_state(variant, monkeypatch):
    config = AVIDConfig(variant=variant, temperature=TEMPERATURE, bank_momentum=MOMENTUM, embedding_dim=16)
    loss = loss_with_stored_banks(AVID, config, GOLDEN[f"avid_{variant}_negatives"], monkeypatch)
    result, gradients = run(loss)
    assert_close(result.total.item(), GOLDEN[f"avid_{variant}_loss"])
    assert_close(loss.partition.item(), GOLDEN[f"avid_{variant}_z"])
    for modality in ("video", "audio"):
        assert_close(gradients[modality], GOLDEN[f"avid_{variant}_grad_{modality}"])
        assert_close(loss.banks[modality].rows, GOLDEN[f"avid_{variant}_{modality}_bank_after"])
    for short, name in {
        "v2a": "video_to_audio",
        "a2v": "audio_to_video",
        "v2v": "video_to_video",
        "a2a": "audio_to_audio",
    }.items():
        if f"avid_{variant}_{short}" in GOLDEN:
            assert_close(result.terms[name].item(), GOLDEN[f"avid_{variant}_{short}"])


@pytest.mark.parametrize("variant", ["cross", "self", "joint"])
def test_avid_equals_textbook_numpy(variant, monkeypatch):
    config = AVIDConfig(variant=variant, temperature=TEMPERATURE, bank_momentum=MOMENTUM, embedding_dim=16)
    negatives = GOLDEN[f"avid_{variant}_negatives"]
    loss = loss_with_stored_banks(AVID, config, negatives, monkeypatch)
    result, gradients = run(loss)
    value, expected, partition = textbook_avid.avid(RAW, BANKS, GOLDEN["index"], negatives, TEMPERATURE, variant)
    assert_close(result.total.item(), value)
    assert_close(loss.partition.item(), partition)
    for modality in ("video", "audio"):
        assert_close(gradients[modality], expected[modality])
        after = textbook_avid.updated_bank(BANKS[modality], GOLDEN["index"], RAW[modality], MOMENTUM)
        assert_close(loss.banks[modality].rows, after)


def cma_loss(monkeypatch, num_within=NUM_WITHIN):
    negatives = GOLDEN["cma_negatives"]
    config = AVIDCMAConfig(
        temperature=TEMPERATURE,
        bank_momentum=MOMENTUM,
        embedding_dim=16,
        num_positives=4,
        num_negatives=negatives.shape[1],
        num_negatives_within=num_within,
    )
    loss = loss_with_stored_banks(AVIDCMA, config, negatives, monkeypatch)
    loss.positives[torch.from_numpy(GOLDEN["index"])] = torch.from_numpy(GOLDEN["cma_positives"])
    loss.partition.fill_(float(GOLDEN["cma_z"]))
    return loss


def test_avid_cma_equals_the_published_implementation_in_value_and_gradient(monkeypatch):
    result, gradients = run(cma_loss(monkeypatch))
    assert_close(result.total.item(), GOLDEN["cma_loss"])
    for modality in ("video", "audio"):
        assert_close(gradients[modality], GOLDEN[f"cma_grad_{modality}"])
    assert_close(result.terms["instance_video_to_audio"].item(), GOLDEN["cma_inst_v2a"])
    assert_close(result.terms["instance_audio_to_video"].item(), GOLDEN["cma_inst_a2v"])
    assert_close(result.terms["positive_video_to_video"].item(), GOLDEN["cma_pos_v2v"])
    assert_close(result.terms["positive_audio_to_audio"].item(), GOLDEN["cma_pos_a2a"])


@pytest.mark.parametrize("num_within", [4, 24])
def test_avid_cma_equals_textbook_numpy(num_within, monkeypatch):
    loss = cma_loss(monkeypatch, num_within)
    result, gradients = run(loss)
    value, expected = textbook_cma.avid_cma(
        RAW,
        BANKS,
        GOLDEN["index"],
        GOLDEN["cma_positives"],
        GOLDEN["cma_negatives"],
        num_within,
        TEMPERATURE,
        float(GOLDEN["cma_z"]),
    )
    assert_close(result.total.item(), value)
    for modality in ("video", "audio"):
        assert_close(gradients[modality], expected[modality])


@pytest.mark.parametrize("agreement", ["consensus", "union", "video", "audio"])
def test_positive_sets_equal_the_published_ones(agreement):
    video, audio = torch.from_numpy(BANKS["video"]), torch.from_numpy(BANKS["audio"])
    found = positive_set(video, audio, 4, agreement)
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found, GOLDEN[f"positives_{agreement}"])
    np.testing.assert_array_equal(found, textbook_cma.positive_set(BANKS["video"], BANKS["audio"], 4, agreement))


def test_a_sample_is_not_its_own_positive_even_among_exact_copies():
    rows = nn.functional.normalize(torch.ones(10, 4), dim=1)
    found = positive_set(rows, rows, 3, "consensus")
    assert not (found == torch.arange(10)[:, None]).any()
    assert all(len(set(row.tolist())) == 3 for row in found)


def test_asking_for_more_positives_than_other_samples_is_refused_with_the_numbers():
    rows = torch.eye(4)
    with pytest.raises(ValueError, match="num_positives is 4; it must be from 1 to 3"):
        positive_set(rows, rows, 4, "consensus")


def make(name, num_samples=50, **options):
    cls = losses.get(name)
    config = cls.Config(name=name, embedding_dim=16, projector_hidden_dims=(), **options)
    return cls(config, {"video": Identity(16), "audio": Identity(16)}, num_samples)


def test_avid_negatives_never_contain_the_anchor_and_reach_everything_else():
    loss = make("avid", num_samples=12, num_negatives=4000)
    index = torch.arange(12)
    drawn = loss.draw_negatives(index[:, None], Progress(batch=3))
    for i, row in enumerate(drawn):
        assert set(row.tolist()) == set(range(12)) - {i}


def test_cma_negatives_exclude_the_anchor_and_its_positives_and_are_uniform_on_the_rest():
    loss = make("avid_cma", num_samples=12, num_negatives=60_000, num_negatives_within=16, num_positives=3)
    excluded = torch.tensor([[4, 2, 5, 9]])  # anchor 4, positives {2, 5, 9}
    drawn = loss.draw_negatives(excluded, Progress(batch=1))
    counts = torch.bincount(drawn[0], minlength=12)
    assert (counts[excluded[0]] == 0).all()
    rest = counts[counts > 0].double()
    assert len(rest) == 8
    expected = 60_000 / 8
    chi_square = ((rest - expected) ** 2 / expected).sum().item()
    assert chi_square < 24.3  # 99.9 % of the chi-square distribution with 7 degrees of freedom


def test_draws_are_a_function_of_seed_and_batch_alone():
    index = torch.arange(8)[:, None]
    first = make("avid").draw_negatives(index, Progress(batch=5))
    assert torch.equal(first, make("avid").draw_negatives(index, Progress(batch=5)))
    assert not torch.equal(first, make("avid").draw_negatives(index, Progress(batch=6)))
    assert not torch.equal(first, make("avid", seed=1).draw_negatives(index, Progress(batch=5)))


def test_the_partition_constant_of_random_banks_is_the_known_one_and_the_loss_starts_where_theory_says():
    """E[exp(s)] = exp(1 / (2 D T^2)) = 2.22 for D = 128, T = 0.07; the loss starts at 7.73 + 1.00."""
    cls = losses.get("avid")
    loss = cls(cls.Config(projector_hidden_dims=()), {"video": Identity(128), "audio": Identity(128)}, 4096)
    for modality in ("video", "audio"):
        loss.projectors[modality] = nn.Identity()
    generator = torch.Generator().manual_seed(9)
    outputs = loss({name: torch.randn(256, 128, generator=generator) for name in ("video", "audio")})
    result = loss.loss(outputs, torch.arange(256), Progress())
    assert loss.partition.item() == pytest.approx(2.22, abs=0.03)
    assert result.total.item() == pytest.approx(8.75, abs=0.15)


def test_the_partition_constant_is_measured_in_the_first_batch_only_and_kept_when_it_was_inherited():
    loss = make("avid")
    outputs = loss({name: torch.randn(4, 16) for name in ("video", "audio")})
    loss.loss(outputs, torch.arange(4), Progress(batch=0))
    measured = loss.partition.item()
    loss.loss(loss({name: torch.ones(4, 16) for name in ("video", "audio")}), torch.arange(4), Progress(batch=1))
    assert loss.partition.item() == measured
    inherited = make("avid")
    inherited.partition.fill_(3.5)
    inherited.loss(outputs, torch.arange(4), Progress(batch=0))
    assert inherited.partition.item() == 3.5


def test_loss_reads_the_banks_and_only_update_writes_them():
    loss = make("avid")
    before = {name: bank.rows.clone() for name, bank in loss.banks.items()}
    outputs = loss({name: torch.randn(4, 16) for name in ("video", "audio")})
    index = torch.tensor([7, 3, 7, 1])
    loss.loss(outputs, index, Progress())
    for name, bank in loss.banks.items():
        assert torch.equal(bank.rows, before[name])
    loss.update(outputs, index)
    for name, bank in loss.banks.items():
        untouched = [i for i in range(50) if i not in (7, 3, 1)]
        assert torch.equal(bank.rows[untouched], before[name][untouched])
        expected = nn.functional.normalize(before[name][7] * 0.5 + outputs[name][2] * 0.5, dim=0)  # the last 7 counts
        torch.testing.assert_close(bank.rows[7], expected)
        torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(50))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_and_extreme_scores_give_finite_float32_losses(dtype):
    loss = make("avid", temperature=0.05)
    for bank in loss.banks.values():
        bank.rows.copy_(nn.functional.normalize(torch.ones(50, 16), dim=1))
    outputs = {
        name: nn.functional.normalize(torch.ones(4, 16), dim=1).to(dtype).requires_grad_() for name in loss.banks
    }
    result = loss.loss(outputs, torch.arange(4), Progress())
    result.total.backward()
    assert result.total.dtype == torch.float32
    assert result.total.isfinite()
    assert all(z.grad.isfinite().all() for z in outputs.values())


def test_positives_are_searched_at_the_epochs_that_the_config_names():
    loss = make("avid_cma", num_positives=3, search_every_epochs=2, num_negatives_within=8)
    searched = []
    for epoch in range(4):
        loss.positives.fill_(-1)
        loss.on_epoch_start(EpochContext(epoch=epoch, embed_all=lambda *names: iter(())))
        searched.append(bool((loss.positives >= 0).all()))
    assert searched == [True, False, True, False]


def test_cma_with_all_weights_zero_is_an_error_that_says_what_to_set():
    loss = make(
        "avid_cma", num_positives=3, num_negatives_within=8, instance_across_weight=0.0, positive_within_weight=0.0
    )
    outputs = loss({name: torch.randn(4, 16) for name in ("video", "audio")})
    with pytest.raises(ValueError, match="_weight"):
        loss.loss(outputs, torch.arange(4), Progress())


@pytest.mark.parametrize("weight", ["instance_within_weight", "positive_across_weight"])
def test_optional_cma_terms_enter_the_weighted_mean(weight, monkeypatch):
    base = {"num_positives": 3, "num_negatives_within": 8, "instance_across_weight": 0.0, "positive_within_weight": 0.0}
    loss = make("avid_cma", **base, **{weight: 2.0})
    loss.partition.fill_(2.0)
    outputs = loss(
        {name: torch.randn(4, 16, generator=torch.Generator().manual_seed(1)) for name in ("video", "audio")}
    )
    loss.on_epoch_start(EpochContext(epoch=0, embed_all=lambda *names: iter(())))
    result = loss.loss(outputs, torch.arange(4), Progress())
    names = [name for name in result.terms if not name.endswith("_score")]
    assert len(names) == 2
    assert result.total.item() == pytest.approx(sum(result.terms[n].item() for n in names) / 2, rel=1e-5)


def test_an_unknown_loss_is_refused_with_the_nearest_name():
    with pytest.raises(KeyError, match=r"Did you mean 'avid_cma'\?"):
        losses.get("avid_cme")


def test_a_taken_name_cannot_be_registered_again():
    with pytest.raises(ValueError, match="taken"):

        @losses.register("avid")
        class Other(AVID):
            pass
