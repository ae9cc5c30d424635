"""NPID against the textbook, against cross-AVID, and its bank."""

import numpy as np
import pytest
import torch
from torch import nn

from avssl.losses.avid import AVID, AVIDConfig
from avssl.losses.npid import NPID, NPIDConfig
from avssl.ops.sampling import draw_negatives
from avssl.types import Progress
from tests.small_encoders import Identity
from tests.textbook import npid as textbook
from tests.textbook.gradients import gradient

NUM_SAMPLES, DIM, NUM_NEGATIVES, TEMPERATURE = 30, 6, 8, 0.2
RAW = dict(zip(("first", "second"), np.random.default_rng(0).normal(size=(2, 5, DIM)), strict=True))
INDEX = torch.tensor([4, 0, 29, 11, 7])


def make(modalities, num_samples=NUM_SAMPLES, dim=DIM, **options):
    """The loss with identity heads."""
    small = {"num_negatives": NUM_NEGATIVES, "temperature": TEMPERATURE, "embedding_dim": dim}
    config = NPIDConfig(modalities=modalities, **(small | options))
    loss = NPID(config, {modality: Identity(dim) for modality in set(modalities)}, num_samples)
    for modality in set(modalities):
        loss.projectors[modality] = nn.Identity()
    return loss


def raw_views(modalities, dtype=torch.float32):
    names = ("first", "second")[: len(modalities)]
    return {name: torch.tensor(RAW[name], dtype=dtype, requires_grad=True) for name in names}


def negatives_of(progress, index=INDEX):
    return draw_negatives(index[:, None], NUM_NEGATIVES, NUM_SAMPLES, 0, progress.batch).numpy()


@pytest.mark.parametrize(
    ("modalities", "memories"),
    [
        (("image",), ("image",)),
        (("audio",), ("audio",)),
        (("video", "video"), ("video", "video")),
        (("video", "audio"), ("audio", "video")),
    ],
)
def test_value_gradient_and_constant_equal_the_textbook(modalities, memories):
    loss, views, progress = make(modalities), raw_views(modalities), Progress()
    banks = [loss.banks[memory].rows.double().numpy() for memory in memories]
    negatives = negatives_of(progress)
    result = loss.loss(loss(views), INDEX, progress)
    result.total.backward()
    names = list(views)
    constant = textbook.partition(RAW["first"], banks[0], negatives, TEMPERATURE)
    assert loss.partition.item() == pytest.approx(constant, rel=1e-5)

    def expected(*raw):
        values = [
            textbook.nce(x, bank, INDEX, negatives, TEMPERATURE, constant) for x, bank in zip(raw, banks, strict=True)
        ]
        return np.mean(values)

    raw = [RAW[name] for name in names]
    assert result.total.item() == pytest.approx(expected(*raw), rel=1e-5)
    for name, value in zip(names, gradient(expected, *raw), strict=True):
        np.testing.assert_allclose(views[name].grad, value, atol=1e-5 * np.abs(value).max())
        assert result.terms[name].item() == pytest.approx(
            textbook.nce(RAW[name], banks[names.index(name)], INDEX, negatives, TEMPERATURE, constant), rel=1e-5
        )


def test_across_modalities_it_is_cross_avid():
    ours = make(("video", "audio"))
    config = AVIDConfig(num_negatives=NUM_NEGATIVES, temperature=TEMPERATURE, embedding_dim=DIM)
    avid = AVID(config, {"video": Identity(DIM), "audio": Identity(DIM)}, NUM_SAMPLES)
    for modality in ("video", "audio"):
        avid.projectors[modality] = nn.Identity()
        avid.banks[modality].load_state_dict(ours.banks[modality].state_dict())
    mine, theirs = raw_views(("video", "audio")), raw_views(("video", "audio"))
    result = ours.loss(outputs := ours(mine), INDEX, Progress())
    expected = avid.loss(other := avid({"video": theirs["first"], "audio": theirs["second"]}), INDEX, Progress())
    result.total.backward()
    expected.total.backward()
    # Two programs for sums of NUM_NEGATIVES exponentials: each within NUM_NEGATIVES + 16 roundings.
    allowed = 2 * (NUM_NEGATIVES + 16) * 2.0**-24
    assert result.total.item() == pytest.approx(expected.total.item(), rel=allowed)
    assert ours.partition.item() == pytest.approx(avid.partition.item(), rel=allowed)
    for name in mine:
        torch.testing.assert_close(mine[name].grad, theirs[name].grad)
    ours.update(outputs, INDEX)
    avid.update(other, INDEX)
    for modality in ("video", "audio"):
        torch.testing.assert_close(ours.banks[modality].rows, avid.banks[modality].rows)


@pytest.mark.parametrize(("num_negatives", "expected"), [(1024, 7.73 + 1.00), (64, 5.02 + 0.97)])
def test_random_embeddings_give_the_known_constant_and_first_loss(num_negatives, expected):
    """E[exp(s)] = exp(1 / (2 D T^2)) = 2.22 for D = 128, T = 0.07."""
    loss = make(("image",), num_samples=4096, dim=128, num_negatives=num_negatives, temperature=0.07)
    outputs = loss({"first": torch.randn(256, 128, generator=torch.Generator().manual_seed(9))})
    result = loss.loss(outputs, torch.arange(256), Progress())
    assert loss.partition.item() == pytest.approx(2.22, abs=0.05)
    assert result.total.item() == pytest.approx(expected, abs=0.15)


def test_a_sample_is_never_its_own_negative():
    """Of two samples the other one is every negative."""
    loss = make(("image",), num_samples=2)
    loss.partition.fill_(2.0)
    views = {"first": torch.tensor(RAW["first"][:2], dtype=torch.float32)}
    result = loss.loss(loss(views), torch.tensor([1, 0]), Progress())
    bank = loss.banks["image"].rows.double().numpy()
    negatives = np.array([[0] * NUM_NEGATIVES, [1] * NUM_NEGATIVES])
    expected = textbook.nce(RAW["first"][:2], bank, [1, 0], negatives, TEMPERATURE, 2.0)
    assert result.total.item() == pytest.approx(expected, rel=1e-5)


def test_draws_change_with_the_batch_and_the_seed():
    outputs = make(("image",))(raw_views(("image",)))

    def value(batch, seed=0):
        loss = make(("image",), seed=seed)
        loss.banks["image"].load_state_dict(make(("image",)).banks["image"].state_dict())
        loss.partition.fill_(2.0)
        return loss.loss(outputs, INDEX, Progress(batch=batch)).total.item()

    assert value(5) == value(5)
    assert len({value(5), value(6), value(5, seed=1)}) == 3


@pytest.mark.parametrize("modalities", [("image",), ("video", "video"), ("video", "audio")])
def test_update_moves_each_bank_by_the_first_view_of_its_modality_and_loss_moves_none(modalities):
    loss = make(modalities)
    outputs = loss(raw_views(modalities))
    index = torch.tensor([4, 0, 4, 11, 7])
    before = {modality: bank.rows.clone() for modality, bank in loss.banks.items()}
    loss.loss(outputs, index, Progress())
    for modality, bank in loss.banks.items():
        assert torch.equal(bank.rows, before[modality])
    loss.update(outputs, index)
    for modality, bank in loss.banks.items():
        name = ("first", "second")[modalities.index(modality)]
        expected = textbook.moved_bank(before[modality].double().numpy(), index, RAW[name], 0.5)
        np.testing.assert_allclose(bank.rows, expected, atol=1e-6)
        untouched = [i for i in range(NUM_SAMPLES) if i not in index]
        assert torch.equal(bank.rows[untouched], before[modality][untouched])


def test_the_constant_is_measured_in_the_first_batch_only_and_an_inherited_one_stays():
    loss, inherited = make(("image",)), make(("image",))
    outputs = loss(raw_views(("image",)))
    loss.loss(outputs, INDEX, Progress())
    measured = loss.partition.item()
    assert measured > 0
    loss.loss({"first": -outputs["first"]}, INDEX, Progress(batch=1))
    assert loss.partition.item() == measured
    inherited.partition.fill_(3.5)
    inherited.loss(outputs, INDEX, Progress())
    assert inherited.partition.item() == 3.5
    later = make(("image",))
    later.loss(outputs, INDEX, Progress(batch=1))
    assert later.partition.item() < 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_equal_rows_at_a_low_temperature_stay_finite(dtype):
    loss = make(("image",), temperature=0.05)
    loss.banks["image"].rows.fill_(DIM**-0.5)
    z = torch.ones(5, DIM, dtype=dtype, requires_grad=True)
    outputs = loss({"first": z})
    assert outputs["first"].dtype == torch.float32
    result = loss.loss(outputs, INDEX, Progress())
    result.total.backward()
    assert result.total.dtype == torch.float32
    assert result.total.isfinite()
    assert z.grad.isfinite().all()


def test_a_single_modality_has_one_view_and_images_get_the_papers_set():
    def described(*modalities):
        return [(v.name, v.modality, v.augment, v.clip) for v in NPID.views(NPIDConfig(modalities=modalities))]

    assert described("image") == [("first", "image", "npid", 0)]
    assert described("audio") == [("first", "audio", "train", 0)]
    assert described("image", "image") == [("first", "image", "npid", 0), ("second", "image", "npid", 1)]
    assert described("video", "audio") == [("first", "video", "train", 0), ("second", "audio", "train", 0)]


def test_what_cannot_work_is_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match=r"modalities is \[audio, image\].*\[image\]; \[video\]; \[audio\]"):
        NPID.views(NPIDConfig(modalities=("audio", "image")))
    with pytest.raises(ValueError, match=r"augments is \['a', 'b'\]; give one set for each view"):
        NPID.views(NPIDConfig(augments=("a", "b")))
    with pytest.raises(ValueError, match=r"num_negatives is 0; .*at least 1"):
        make(("image",), num_negatives=0)
    with pytest.raises(ValueError, match="has 1 samples with an index, and negatives are other samples"):
        make(("image",), num_samples=1)
