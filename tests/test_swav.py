"""SwAV against the textbook: codes, swapped prediction, queues, frozen and unit prototypes, crops."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from avssl.losses.swav import SwAV, SwAVConfig, swapped_prediction
from avssl.types import Progress
from tests.small_encoders import Identity, Pooled
from tests.textbook import swav as textbook
from tests.textbook.gradients import gradient

RNG = np.random.default_rng(0)
PAIRS = [("image", "image"), ("video", "video"), ("audio", "audio"), ("video", "audio")]
SMALL = {"num_prototypes": 6, "projector_hidden_dims": (8,), "embedding_dim": 5, "num_small_crops": 2}


def make(pair=("image", "image"), num_samples=40, seed=0, **options):
    torch.manual_seed(seed)
    config = SwAVConfig(modalities=pair, **(SMALL | options))
    return SwAV(config, {modality: Pooled() for modality in set(pair)}, num_samples)


def bare(pair=("image", "image"), **options):
    """The loss on given embeddings: no encoder, no projector."""
    loss = make(pair, **options)
    loss.encoders = nn.ModuleDict({modality: Identity(5) for modality in set(pair)})
    for modality in set(pair):
        loss.projectors[modality] = nn.Identity()
    return loss


def made_views(loss, seed=1, batch=8):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(batch, 12 if name.startswith("small") else 20, generator=generator)
        for name in loss.modality_of
    }


def embeddings(names, seed=2, batch=8):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(batch, 5)) for name in names}


def tensors(arrays):
    return {name: torch.tensor(x, dtype=torch.float32, requires_grad=True) for name, x in arrays.items()}


def step(loss, optimizer, progress, views):
    """Make one step as the training loop does; return the loss."""
    outputs = loss(views)
    index = torch.arange(len(views["first"]))
    result = loss.loss(outputs, index, progress)
    optimizer.zero_grad()
    result.total.backward()
    loss.before_step(progress)
    optimizer.step()
    loss.update(outputs, index)
    progress.step += 1
    loss.after_step(progress)
    progress.batch += 1
    return result.total.item()


@pytest.mark.parametrize(("num_views", "num_codes"), [(2, 2), (5, 2), (3, 1)])
def test_swapped_prediction_equals_the_textbook_in_value_and_gradient_and_codes_get_none(num_views, num_codes):
    raw = RNG.normal(size=(num_views, 4, 3))
    codes = [textbook.sinkhorn(one, 0.5, 3) for one in raw[:num_codes]]
    scores = [torch.tensor(one, dtype=torch.float32, requires_grad=True) for one in raw]
    targets = [torch.tensor(one, dtype=torch.float32, requires_grad=True) for one in codes]
    value = swapped_prediction(scores, targets, 0.2)
    value.backward()
    assert value.item() == pytest.approx(textbook.swapped_prediction(raw, codes, 0.2), rel=1e-5)
    expected = gradient(lambda *views: textbook.swapped_prediction(views, codes, 0.2), *raw)
    for mine, wanted in zip(scores, expected, strict=True):
        found = np.zeros_like(wanted) if mine.grad is None else mine.grad.numpy()
        np.testing.assert_allclose(found, wanted, atol=1e-5 * max(np.abs(one).max() for one in expected))
    assert all(one.grad is None for one in targets)


def test_with_equal_scores_the_loss_is_the_logarithm_of_the_number_of_prototypes():
    scores = torch.full((4, 3000), 0.3)
    codes = torch.randn(4, 3000, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    assert swapped_prediction([scores, scores], [codes, codes], 0.1).item() == pytest.approx(8.006, abs=1e-3)
    assert math.log(3000) == pytest.approx(8.006, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extreme_half_precision_scores_give_finite_float32_losses_and_gradients(dtype):
    scores = torch.ones(4, 6, dtype=dtype, requires_grad=True)
    codes = torch.eye(6, dtype=dtype)[:4]
    value = swapped_prediction([scores, -scores], [codes, codes], 0.001)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize(("views", "codes"), [(1, 1), (2, 0), (2, 3)])
def test_swapped_prediction_refuses_views_and_codes_that_do_not_pair(views, codes):
    with pytest.raises(ValueError, match=f"{views} views and codes of {codes}"):
        swapped_prediction([torch.zeros(2, 3)] * views, [torch.zeros(2, 3)] * codes, 0.1)


@pytest.mark.quick(2)
@pytest.mark.parametrize("pair", PAIRS)
def test_the_whole_loss_equals_the_textbook_in_value_and_gradient(pair):
    loss = bare(pair)
    raw = embeddings(loss.modality_of)
    views = tensors(raw)
    value = loss.loss(loss(views), torch.arange(8), Progress()).total
    value.backward()
    prototypes = loss.prototypes.weight.detach().double().numpy()
    settings = (loss.config.epsilon, loss.config.sinkhorn_iterations)
    assert value.item() == pytest.approx(textbook.loss(list(raw.values()), prototypes, *settings, 0.1), rel=1e-5)
    codes = textbook.own_codes(list(raw.values()), prototypes, *settings)
    *expected, expected_prototypes = gradient(
        lambda *arrays: textbook.loss(arrays[:-1], arrays[-1], *settings, 0.1, codes=codes),
        *raw.values(),
        prototypes,
    )
    for name, wanted in zip(raw, expected, strict=True):
        np.testing.assert_allclose(views[name].grad, wanted, atol=2e-5 * np.abs(wanted).max())
    scale = np.abs(expected_prototypes).max()
    np.testing.assert_allclose(loss.prototypes.weight.grad, expected_prototypes, atol=2e-5 * scale)


def test_a_full_queue_of_the_crop_enters_the_codes_from_its_epoch_on_and_its_rows_are_dropped():
    loss = bare(queue_size=16, queue_from_epoch=3)
    for seed in (11, 12):
        loss.update(loss(tensors(embeddings(loss.modality_of, seed))), torch.arange(8))
    queues = [loss.queues[name].rows.double().numpy() for name in ("first", "second")]
    for queue, name in zip(queues, ("first", "second"), strict=True):
        pushed = [textbook.unit(embeddings(loss.modality_of, seed)[name]) for seed in (11, 12)]
        np.testing.assert_allclose(queue, np.concatenate(pushed), atol=1e-6)
    raw = embeddings(loss.modality_of)
    prototypes = loss.prototypes.weight.detach().double().numpy()

    def textbook_value(queues):
        return textbook.loss(list(raw.values()), prototypes, 0.05, 3, 0.1, queues)

    value = {epoch: loss.loss(loss(tensors(raw)), torch.arange(8), Progress(epoch=epoch)).total for epoch in (2, 3)}
    assert value[2].item() == pytest.approx(textbook_value((None, None)), rel=1e-5)
    assert value[3].item() == pytest.approx(textbook_value(queues), rel=1e-5)
    assert abs(value[2] - value[3]) > 1e-3


def test_a_queue_that_is_not_full_is_not_used():
    with_queue, without = bare(queue_size=16, queue_from_epoch=0), bare()
    raw = embeddings(without.modality_of)
    with_queue.update(with_queue(tensors(raw)), torch.arange(8))
    values = [loss.loss(loss(tensors(raw)), torch.arange(8), Progress(epoch=5)).total for loss in (with_queue, without)]
    assert torch.equal(*values)


def test_across_modalities_each_has_a_queue():
    loss = bare(("video", "audio"), queue_size=8)
    raw = embeddings(loss.modality_of)
    loss.update(loss(tensors(raw)), torch.arange(8))
    for name in ("first", "second"):
        np.testing.assert_allclose(loss.queues[name].rows, textbook.unit(raw[name]), atol=1e-6)


@pytest.mark.parametrize(("frozen", "moved"), [(3, False), (2, True)])
def test_prototypes_stay_for_the_first_steps_without_decay_or_momentum_and_are_unit_rows_after_each(frozen, moved):
    loss = make(freeze_steps=frozen)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    start, progress = loss.prototypes.weight.detach().clone(), Progress(total_steps=5)
    for number in range(3):
        step(loss, optimizer, progress, made_views(loss, number))
        torch.testing.assert_close(loss.prototypes.weight.norm(dim=1), torch.ones(6))
    assert (not torch.allclose(start, loss.prototypes.weight, atol=1e-6)) == moved
    assert (loss.prototypes.weight in optimizer.state) == moved


@pytest.mark.parametrize("pair", PAIRS)
def test_views_are_two_large_crops_and_small_ones_of_images_from_the_seconds_of_the_large_ones(pair):
    views = SwAV.views(SwAVConfig(modalities=pair, num_small_crops=3))
    small = [view for view in views if view.name.startswith("small")]
    assert [view.name for view in views[:2]] == ["first", "second"]
    if pair == ("audio", "audio"):
        assert not small
        return
    assert [(view.name, view.modality, view.augment) for view in small] == [
        (f"small{number}", pair[0], "swav_small") for number in (1, 2, 3)
    ]
    assert [view.clip for view in small] == ([0, 0, 0] if pair == ("video", "audio") else [0, 1, 0])
    assert views[0].augment == ("swav_large" if pair[0] == "image" else "train")


def test_without_small_crops_images_get_the_set_of_two_crop_runs_unless_sets_are_given():
    names = {view.name: view.augment for view in SwAV.views(SwAVConfig(num_small_crops=0))}
    assert names == {"first": "swav_two_crops", "second": "swav_two_crops"}
    given = SwAV.views(SwAVConfig(num_small_crops=0, augments=("simclr", "swav_large")))
    assert [view.augment for view in given] == ["simclr", "swav_large"]


def test_crops_of_one_size_pass_the_encoder_together_and_all_crops_the_projector():
    loss = make()
    seen = []
    loss.projectors["image"].register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    views = made_views(loss)
    outputs = loss(views)
    assert loss.encoders["image"].rows == [(16, 20), (16, 12)]
    assert seen == [32]
    loss.eval()
    for name in views:  # rows come back under the names of their views
        alone = make().eval()
        alone.load_state_dict(loss.state_dict())
        torch.testing.assert_close(alone({name: views[name]})[name], loss(views)[name])
    assert set(outputs) == {*views, *(f"{name}_scores" for name in views)}


@pytest.mark.parametrize("pair", PAIRS)
def test_every_parameter_gets_a_finite_gradient_and_loss_writes_no_state(pair):
    loss = make(pair, queue_size=16, queue_from_epoch=0)
    for seed in (1, 2):
        loss.update(loss(made_views(loss, seed)), torch.arange(8))
    outputs = loss(made_views(loss, 3))
    before = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
    loss.loss(outputs, torch.arange(8), Progress()).total.backward()
    for name, parameter in loss.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    assert all(torch.equal(tensor, before[name]) for name, tensor in loss.state_dict().items())


def test_a_loaded_state_goes_on_identically():
    options = {"queue_size": 8, "queue_from_epoch": 0, "freeze_steps": 1}
    first, second = make(**options), make(seed=5, **options)
    optimizers = [torch.optim.SGD(loss.parameters(), lr=0.1, momentum=0.9) for loss in (first, second)]
    progress = Progress(total_steps=6)
    for number in range(3):
        step(first, optimizers[0], progress, made_views(first, number))
    second.load_state_dict(first.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    again = Progress(step=progress.step, batch=progress.batch, total_steps=6)
    for number in range(3, 6):
        views = made_views(first, number)
        assert step(first, optimizers[0], progress, views) == step(second, optimizers[1], again, views)


def test_diagnostics_tell_a_collapsed_network_from_one_that_spreads():
    loss = bare(num_prototypes=20, num_small_crops=0)
    spread = {name: torch.randn(32, 5, generator=torch.Generator().manual_seed(7)) for name in ("first", "second")}
    collapsed = {name: torch.ones(32, 5) for name in ("first", "second")}
    alive, dead = (loss.diagnostics(loss(views)) for views in (spread, collapsed))
    assert dead["nearest_prototypes"] == 1
    assert alive["nearest_prototypes"] > 10
    assert dead["prediction_entropy"] < 0.7
    assert alive["prediction_entropy"] > 0.9


def test_more_prototypes_than_samples_and_queues_of_broken_batches_are_refused():
    with pytest.raises(ValueError, match=r"loss.num_prototypes is 6 with 5 samples.*choose 2 to 5"):
        make(num_samples=5)
    with pytest.raises(ValueError, match=r"loss.modalities is \[audio, video\]"):
        SwAV.views(SwAVConfig(modalities=("audio", "video")))
    with pytest.raises(ValueError, match=r"queue_size is 20 .*global_batch_size 8.*such as 16, or 0"):
        make(queue_size=20).check_batch_size(8)
    with pytest.raises(ValueError, match=r"such as 64, or 0"):
        make(queue_size=20).check_batch_size(64)
    make(queue_size=24).check_batch_size(8)
    make().check_batch_size(8)
    with pytest.raises(ValueError, match="needs at least 2"):
        make().check_batch_size(1)
