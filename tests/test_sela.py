"""SeLa: its loss, its labels and its schedule against the textbook, across modalities too."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from avssl.losses.base import EpochContext
from avssl.losses.sela import SeLa, SeLaConfig, relabeling_epochs
from avssl.types import Progress
from tests.small_encoders import Linear
from tests.textbook import sela as textbook
from tests.textbook.gradients import gradient

COMBINATIONS = [("image",), ("video",), ("audio",), ("video", "audio")]
NUM_SAMPLES = 60
SMALL = {"num_clusters": 4, "num_heads": 2, "num_relabelings": 3, "relabel_epochs": 8}  # labels at 0 and 2


def make(modalities=("image",), seed=0, num_samples=NUM_SAMPLES, **options):
    torch.manual_seed(seed)
    config = SeLaConfig(modalities=modalities, **(SMALL | options))
    loss = SeLa(config, {modality: Linear(6, num_inputs=5) for modality in modalities}, num_samples)
    for classifier in loss.classifiers.values():  # predictions that differ between samples, and favorites
        nn.init.normal_(classifier.weight, std=2.0)
        nn.init.normal_(classifier.bias, std=1.0)
    return loss


def samples(name):
    """The samples of a view, (N, 5)."""
    rng = np.random.default_rng({"first": 1, "second": 2}[name])
    return torch.tensor(rng.normal(size=(NUM_SAMPLES, 5)), dtype=torch.float32)


def context_of(loss, epoch):
    """The context of the training loop: every sample once, in batches, in eval mode, of the views named."""
    asked = []

    @torch.no_grad()
    def embed_all(view_names):
        asked.append(tuple(view_names))
        loss.eval()
        for index in torch.arange(NUM_SAMPLES).flip(0).split(7):
            yield index, loss({name: samples(name)[index] for name in view_names})
        loss.train()

    return EpochContext(epoch, embed_all), asked


def outputs_of(loss, index):
    return loss({name: samples(name)[index] for name in loss.modality_of})


def probabilities(loss, name):
    """The predictions of a view for all samples, float64 (N, H, K)."""
    with torch.no_grad():
        logits = outputs_of(loss, torch.arange(NUM_SAMPLES))[f"{name}_logits"].double().numpy()
    powers = np.exp(logits - logits.max(axis=2, keepdims=True))
    return powers / powers.sum(axis=2, keepdims=True)


@pytest.mark.parametrize("modalities", COMBINATIONS)
def test_the_loss_equals_the_textbook_in_value_and_gradient_and_modalities_share_the_labels(modalities):
    loss = make(modalities)
    index = torch.tensor([3, 59, 3, 20])
    outputs = outputs_of(loss, index)
    logits = {name: outputs[f"{name}_logits"].detach().double().numpy() for name in loss.modality_of}
    given = {f"{name}_logits": torch.tensor(x, dtype=torch.float32, requires_grad=True) for name, x in logits.items()}
    value = loss.loss(given, index, Progress()).total
    value.backward()
    labels = loss.labels[index].numpy()
    assert value.item() == pytest.approx(textbook.loss(logits.values(), labels), rel=1e-5)
    expected = gradient(lambda *views: textbook.loss(views, labels), *logits.values())
    for mine, wanted in zip(given.values(), expected, strict=True):
        np.testing.assert_allclose(mine.grad, wanted, atol=1e-5 * np.abs(wanted).max())


def test_logits_are_those_of_linear_heads_on_the_encoders_features():
    loss = make()
    outputs = outputs_of(loss, torch.arange(5))
    features = loss.encoders["image"](samples("first")[:5])
    assert torch.equal(outputs["first"], features)
    head = loss.classifiers["image"]
    torch.testing.assert_close(outputs["first_logits"][:, 1], features @ head.weight[4:].T + head.bias[4:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extreme_half_precision_logits_give_finite_float32_values_and_gradients(dtype):
    logits = torch.full((4, 2, 4), -6e4, dtype=dtype)
    logits[..., 0] = 6e4
    logits.requires_grad_()
    value = make().loss({"first_logits": logits}, torch.arange(4), Progress()).total
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert logits.grad.isfinite().all()


def test_labels_start_balanced_at_random_by_the_seed_and_differ_between_heads():
    loss = make(num_samples=62)
    for head in range(2):
        assert sorted(torch.bincount(loss.labels[:, head]).tolist()) == [15, 15, 16, 16]
    assert not torch.equal(loss.labels[:, 0], loss.labels[:, 1])
    assert torch.equal(loss.labels, make(num_samples=62, seed=3).labels)  # not torch's generator
    other = SeLa(SeLaConfig(**SMALL, seed=1), {"image": Linear(6, num_inputs=5)}, 62)
    assert not torch.equal(loss.labels, other.labels)


@pytest.mark.parametrize("modalities", COMBINATIONS)
def test_new_labels_are_each_heads_transport_of_the_product_of_the_modalities(modalities):
    loss = make(modalities, sharpness=10.0)
    context, asked = context_of(loss, 0)
    loss.on_epoch_start(context)
    assert asked == [(name,) for name in loss.modality_of]
    predictions = [probabilities(loss, name) for name in loss.modality_of]
    for head in range(2):
        product = np.prod([one[:, head] for one in predictions], axis=0) ** (1 / len(modalities))
        np.testing.assert_array_equal(loss.labels[:, head], textbook.labels(product, 10.0))


def test_swapped_labels_are_each_heads_transport_of_the_other_modality_and_the_loss_reads_them_so():
    loss = make(("video", "audio"), sharpness=10.0, swap_labels=True)
    assert loss.labels.shape == (NUM_SAMPLES, 4)
    loss.on_epoch_start(context_of(loss, 0)[0])
    video, audio = (probabilities(loss, name) for name in loss.modality_of)
    for head in range(2):
        np.testing.assert_array_equal(loss.labels[:, head], textbook.labels(audio[:, head], 10.0))
        np.testing.assert_array_equal(loss.labels[:, 2 + head], textbook.labels(video[:, head], 10.0))
    index = torch.tensor([3, 59, 3, 20])
    outputs, labels = outputs_of(loss, index), loss.labels[index].numpy()
    logits = [outputs[f"{name}_logits"].detach().double().numpy() for name in loss.modality_of]
    expected = (textbook.loss(logits[:1], labels[:, :2]) + textbook.loss(logits[1:], labels[:, 2:])) / 2
    assert loss.loss(outputs, index, Progress()).total.item() == pytest.approx(expected, rel=1e-5)


def test_labels_of_one_modality_cannot_be_swapped():
    with pytest.raises(ValueError, match="swap_labels is true"):
        make(("image",), swap_labels=True)


@pytest.mark.parametrize(("num_relabelings", "epochs"), [(100, 400), (5, 16), (3, 8), (2, 10), (7, 6)])
def test_the_schedule_is_quadratic_and_merges_times_within_an_epoch(num_relabelings, epochs):
    assert list(relabeling_epochs(num_relabelings, epochs)) == textbook.relabeling_epochs(num_relabelings, epochs)


def test_the_schedule_by_hand():
    assert relabeling_epochs(5, 16) == (0, 1, 4, 9)  # 16 (j / 4)^2 = 0, 1, 4, 9, 16, and the last is the end
    assert relabeling_epochs(4, 6) == (0, 1, 3)  # 6 (j / 3)^2 = 0, 0.67, 2.67, 6
    assert relabeling_epochs(1, 6) == (0,)
    with pytest.raises(ValueError, match="both must be at least 1"):
        relabeling_epochs(0, 6)


def test_labels_stay_in_epochs_without_relabeling():
    loss = make()
    for epoch, relabels in enumerate((True, False, True, False, False, False, False, False)):
        context, asked = context_of(loss, epoch)
        loss.on_epoch_start(context)
        assert bool(asked) == relabels, epoch


def test_terms_tell_predictions_that_have_collapsed_though_labels_are_balanced():
    loss = make()
    loss.on_epoch_start(context_of(loss, 0)[0])
    alive = loss.loss(outputs_of(loss, torch.arange(NUM_SAMPLES)), torch.arange(NUM_SAMPLES), Progress()).terms
    collapsed = torch.zeros(NUM_SAMPLES, 2, 4)
    collapsed[..., 0] = 20.0
    dead = loss.loss({"first_logits": collapsed}, torch.arange(NUM_SAMPLES), Progress()).terms
    assert alive["prediction_entropy"] > 0.5
    assert dead["prediction_entropy"] < 0.01
    assert dead["label_entropy"] > 0.95
    assert 0 <= alive["label_nmi"] < 0.5  # with the random labels of the start
    loss.on_epoch_start(context_of(loss, 2)[0])  # the same network: the same labels
    terms = loss.loss(outputs_of(loss, torch.arange(8)), torch.arange(8), Progress()).terms
    assert terms["label_nmi"].item() == pytest.approx(1)


@pytest.mark.parametrize("modalities", COMBINATIONS)
def test_every_parameter_gets_a_finite_gradient_and_loss_writes_no_state(modalities):
    loss = make(modalities)
    before = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
    loss.loss(outputs_of(loss, torch.arange(8)), torch.arange(8), Progress()).total.backward()
    for name, parameter in loss.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    assert all(torch.equal(tensor, before[name]) for name, tensor in loss.state_dict().items())


def test_a_loaded_state_gives_the_same_loss_and_the_same_next_labels():
    first, second = make(), make(seed=9)
    first.on_epoch_start(context_of(first, 0)[0])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for epoch in (1, 2):
        results = []
        for loss in (first, second):
            loss.on_epoch_start(context_of(loss, epoch)[0])
            results.append(loss.loss(outputs_of(loss, torch.arange(8)), torch.arange(8), Progress()))
        assert torch.equal(results[0].total, results[1].total)
        assert results[0].terms == results[1].terms


def test_views_are_one_per_modality_with_the_papers_set_for_images():
    assert [(v.name, v.modality, v.augment) for v in SeLa.views(SeLaConfig())] == [("first", "image", "sela")]
    both = SeLa.views(SeLaConfig(modalities=("video", "audio")))
    assert [(v.name, v.modality, v.augment) for v in both] == [
        ("first", "video", "train"),
        ("second", "audio", "train"),
    ]


def test_more_clusters_than_samples_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"loss.num_clusters is 61 with 60 samples.*choose 2 to 60"):
        make(num_clusters=61)
