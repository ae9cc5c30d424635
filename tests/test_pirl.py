"""PIRL against the textbook: its two terms, its jigsaw head, its bank."""

import numpy as np
import pytest
import torch
from torch import nn

from avssl.losses.pirl import PIRL, PIRLConfig
from avssl.ops.sampling import draw_negatives
from avssl.types import Progress
from tests.textbook import npid
from tests.textbook import pirl as textbook
from tests.textbook.gradients import gradient

NUM_SAMPLES, DIM, NUM_NEGATIVES, TEMPERATURE = 30, 5, 8, 0.2
RANDOM = np.random.default_rng(0)
WHOLE, JIGSAW = RANDOM.normal(size=(2, 4, DIM))
INDEX = torch.tensor([4, 0, 29, 11])
PAIRS = [("image", "image"), ("video", "video"), ("audio", "audio")]


class Recorder(nn.Module):
    """An encoder that returns its input's mean over all axes after the first two, and records the shapes it saw."""

    def __init__(self, dim=DIM):
        super().__init__()
        self.dim, self.shapes = dim, []

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        return x.flatten(2).mean(dim=2) if x.ndim > 2 else x


def make(pair=("image", "image"), num_samples=NUM_SAMPLES, **options):
    torch.manual_seed(0)
    small = {"num_negatives": NUM_NEGATIVES, "temperature": TEMPERATURE, "embedding_dim": DIM}
    return PIRL(PIRLConfig(modalities=pair, **(small | options)), {pair[0]: Recorder()}, num_samples)


def outputs_of(whole, jigsaw, dtype=torch.float32):
    """Unit outputs as those of forward, and the leaf tensors from which they are computed."""
    leaves = [torch.tensor(x, dtype=dtype, requires_grad=True) for x in (whole, jigsaw)]
    unit = [nn.functional.normalize(leaf.float(), dim=1) for leaf in leaves]
    return dict(zip(("first", "second"), unit, strict=True)), leaves


@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_value_gradient_and_constant_equal_the_textbook(weight):
    loss = make(jigsaw_weight=weight)
    bank = loss.bank.rows.double().numpy()
    outputs, leaves = outputs_of(WHOLE, JIGSAW)
    result = loss.loss(outputs, INDEX, Progress())
    result.total.backward()
    both = draw_negatives(INDEX[:, None], 2 * NUM_NEGATIVES, NUM_SAMPLES, 0, 0).numpy()
    of_jigsaw, of_whole = both[:, :NUM_NEGATIVES], both[:, NUM_NEGATIVES:]
    constant = npid.partition(JIGSAW, bank, of_jigsaw, TEMPERATURE)
    assert loss.partition.item() == pytest.approx(constant, rel=1e-5)

    def expected(whole, jigsaw, constant=constant):
        return textbook.pirl(whole, jigsaw, bank, INDEX, of_whole, of_jigsaw, TEMPERATURE, weight, constant)

    assert result.total.item() == pytest.approx(expected(WHOLE, JIGSAW, constant=None), rel=1e-5)
    for leaf, value in zip(leaves, gradient(expected, WHOLE, JIGSAW), strict=True):
        np.testing.assert_allclose(leaf.grad, value, atol=1e-5 * np.abs(value).max())


def test_the_two_terms_have_negatives_of_their_own():
    """If both embeddings are equal, the terms differ only by their negatives."""
    outputs, _ = outputs_of(WHOLE, WHOLE)
    terms = make().loss(outputs, INDEX, Progress()).terms
    assert terms["jigsaw_positive_score"] == terms["whole_positive_score"]
    assert terms["jigsaw_negative_score"] != terms["whole_negative_score"]


@pytest.mark.parametrize(
    ("pair", "whole", "patches"),
    [
        (("image", "image"), (2, DIM, 12, 12), (2, 9, DIM, 4, 4)),
        (("video", "video"), (2, DIM, 3, 12, 12), (2, 9, DIM, 3, 4, 4)),
        (("audio", "audio"), (2, DIM, 30, 9), (2, 9, DIM, 10, 3)),
    ],
)
def test_the_encoder_sees_every_patch_as_an_input_of_its_own_and_the_head_keeps_their_order(pair, whole, patches):
    loss = make(pair)
    given = {
        "first": torch.randn(whole, generator=torch.Generator().manual_seed(1)),
        "second": torch.randn(patches, generator=torch.Generator().manual_seed(2)),
    }
    outputs = loss(given)
    assert loss.encoders[pair[0]].shapes == [whole, (18, *patches[2:])]
    features = given["second"].double().flatten(3).mean(dim=3).numpy()
    patch, jigsaw = loss.patch_projectors[pair[0]][0], loss.puzzle_projectors[pair[0]][0]
    weights = [x.detach().double().numpy() for x in (patch.weight, patch.bias, jigsaw.weight, jigsaw.bias)]
    expected = textbook.jigsaw_head(features, *weights)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(outputs["second"].detach(), expected, atol=1e-5)
    turned = loss({"second": given["second"].flip(1)})["second"]
    assert not torch.allclose(turned, outputs["second"], atol=1e-3)


def test_heads_have_the_published_shapes():
    def shapes(**options):
        config = PIRLConfig(num_negatives=4, **options)
        loss = PIRL(config, {"image": Recorder(2048)}, NUM_SAMPLES)
        heads = (loss.projectors, loss.patch_projectors, loss.puzzle_projectors)
        return [[tuple(p.shape) for p in head.parameters() if p.ndim == 2] for head in heads]

    assert shapes() == [[(128, 2048)], [(128, 2048)], [(128, 9 * 128)]]
    hidden = [(2048, 2048), (128, 2048)]
    assert shapes(projector_hidden_dims=(2048,)) == [hidden, hidden, [(128, 9 * 128)]]


def test_update_moves_the_bank_by_the_whole_only_and_loss_moves_nothing():
    loss = make()
    outputs, _ = outputs_of(WHOLE, JIGSAW)
    before = loss.bank.rows.clone()
    loss.loss(outputs, INDEX, Progress())
    assert torch.equal(loss.bank.rows, before)
    loss.update(outputs, INDEX)
    np.testing.assert_allclose(loss.bank.rows, npid.moved_bank(before.double().numpy(), INDEX, WHOLE, 0.5), atol=1e-6)
    untouched = [i for i in range(NUM_SAMPLES) if i not in INDEX]
    assert torch.equal(loss.bank.rows[untouched], before[untouched])


def test_the_constant_is_measured_in_the_first_batch_only():
    loss = make()
    outputs, _ = outputs_of(WHOLE, JIGSAW)
    loss.loss(outputs, INDEX, Progress())
    measured = loss.partition.item()
    loss.loss(outputs_of(JIGSAW, -WHOLE)[0], INDEX, Progress(batch=1))
    assert loss.partition.item() == measured > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_equal_rows_at_a_low_temperature_stay_finite(dtype):
    loss = make(temperature=0.05)
    loss.bank.rows.fill_(DIM**-0.5)
    outputs, leaves = outputs_of(np.ones((4, DIM)), np.ones((4, DIM)), dtype)
    result = loss.loss(outputs, INDEX, Progress())
    result.total.backward()
    assert result.total.dtype == torch.float32
    assert result.total.isfinite()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_both_views_are_of_the_same_seconds_and_the_second_is_a_jigsaw():
    def described(pair):
        return [(v.name, v.augment, v.clip) for v in PIRL.views(PIRLConfig(modalities=pair))]

    assert described(("image", "image")) == [("first", "pirl", 0), ("second", "pirl_jigsaw", 0)]
    assert described(("video", "video")) == [("first", "train", 0), ("second", "pirl_jigsaw", 0)]
    assert described(("audio", "audio")) == [("first", "train", 0), ("second", "jigsaw", 0)]


@pytest.mark.parametrize("pair", PAIRS)
def test_a_second_view_that_is_no_jigsaw_is_refused_by_its_name_and_by_its_shape(pair):
    remedy = rf"use loss\.augments=\[train,{'jigsaw' if pair[0] == 'audio' else 'pirl_jigsaw'}\]"
    with pytest.raises(ValueError, match=rf"\['train', 'train'\].*jigsaw.*{remedy}"):
        make(pair, augments=("train", "train"))
    loss = make(pair, augments=("train", "my_jigsaw"))
    with pytest.raises(ValueError, match=r"shape \(2, 3, 8, 8\); it must be a jigsaw \(B, 9"):
        loss({"second": torch.zeros(2, 3, 8, 8)})


def test_what_cannot_work_is_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match=r"joint AVID: use loss\.name=avid loss\.variant=joint"):
        PIRL.views(PIRLConfig(modalities=("video", "audio")))
    with pytest.raises(ValueError, match=r"modalities is \[image\]; loss pirl runs on \[image, image\]"):
        PIRL.views(PIRLConfig(modalities=("image",)))
    with pytest.raises(ValueError, match=r"jigsaw_weight is 1\.5; .*from 0 to 1"):
        make(jigsaw_weight=1.5)
    with pytest.raises(ValueError, match="num_negatives is 0"):
        make(num_negatives=0)
