"""DeepCluster-v2: its loss and its clusters against the textbook, its memories, and the heads that take turns."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from avssl.losses.base import EpochContext
from avssl.losses.deepcluster_v2 import DeepClusterV2, DeepClusterV2Config
from avssl.ops.sampling import generator_for
from avssl.types import Progress
from tests.small_encoders import Identity, Pooled
from tests.textbook import deepcluster_v2 as textbook
from tests.textbook import kmeans as textbook_kmeans
from tests.textbook.gradients import gradient

PAIRS = [("image", "image"), ("video", "video"), ("audio", "audio"), ("video", "audio")]
NUM_SAMPLES = 24
SMALL = {
    "num_prototypes": 5,
    "projector_hidden_dims": (8,),
    "embedding_dim": 4,
    "num_small_crops": 2,
    "kmeans_iterations": 3,
}


def make(pair=("image", "image"), num_samples=NUM_SAMPLES, seed=0, **options):
    torch.manual_seed(seed)
    config = DeepClusterV2Config(modalities=pair, **(SMALL | options))
    return DeepClusterV2(config, {modality: Pooled() for modality in set(pair)}, num_samples)


def bare(pair=("image", "image"), **options):
    """The loss on given embeddings: no encoder, no projector."""
    loss = make(pair, **options)
    loss.encoders = nn.ModuleDict({modality: Identity() for modality in set(pair)})
    for modality in set(pair):
        loss.projectors[modality] = nn.Identity()
    return loss


def context_of(loss, epoch, data=None):
    """The context of the training loop on data {view: (N, ...)}."""
    asked = []

    @torch.no_grad()
    def embed_all(view_names):
        asked.append(tuple(view_names))
        loss.eval()
        for index in torch.arange(NUM_SAMPLES).flip(0).split(5):
            yield index, loss({name: data[name][index] for name in view_names})
        loss.train()

    context = EpochContext(epoch, embed_all)
    return context, asked


def rows(seed, shape=(NUM_SAMPLES, 4)):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape), dtype=torch.float32)


def whole_set(seed=1):
    return {"first": rows(seed), "second": rows(seed + 1)}


def made_views(loss, seed=1, batch=8):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(batch, 12 if name.startswith("small") else 20, generator=generator)
        for name in loss.modality_of
    }


def clustered(pair, epoch=0, **options):
    loss = bare(pair, **options)
    loss.on_epoch_start(context_of(loss, epoch, whole_set())[0])
    return loss


@pytest.mark.parametrize("pair", PAIRS)
def test_the_loss_equals_the_textbook_in_value_and_gradient_with_labels_of_the_other_modality(pair):
    loss = clustered(pair)
    index = torch.tensor([3, 20, 3, 7, 0])
    raw = {name: np.random.default_rng(9 + n).normal(size=(5, 4)) for n, name in enumerate(loss.modality_of)}
    views = {name: torch.tensor(x, dtype=torch.float32, requires_grad=True) for name, x in raw.items()}
    value = loss.loss(loss(views), index, Progress()).total
    value.backward()
    # Source 0 are the clusters of "first"'s memory (of both in turn within a modality), source 1 those of "second"'s.
    sources = [int(pair == ("video", "audio") and loss.modality_of[name] == "video") for name in raw]
    prototypes = [loss.prototypes[source].double().numpy() for source in sources]
    labels = [loss.labels[index, :, source].numpy() for source in sources]
    assert value.item() == pytest.approx(textbook.loss(raw.values(), prototypes, labels, 0.1), rel=1e-5)
    expected = gradient(lambda *z: textbook.loss(z, prototypes, labels, 0.1), *raw.values())
    for name, wanted in zip(raw, expected, strict=True):
        np.testing.assert_allclose(views[name].grad, wanted, atol=1e-5 * np.abs(wanted).max())


def test_small_video_crops_are_labeled_by_the_audio_and_the_audio_by_the_video():
    loss = clustered(("video", "audio"))
    assert {name: loss.source_of(name) for name in loss.modality_of} == {
        "first": 1,
        "small1": 1,
        "small2": 1,
        "second": 0,
    }
    within = make()
    assert {within.source_of(name) for name in within.modality_of} == {0}


def test_heads_take_the_memories_in_turn_and_draw_starts_of_their_own():
    loss = clustered(("image", "image"), num_heads=3)
    loss.memories["second"].rows.copy_(nn.functional.normalize(rows(50), dim=1))
    loss.on_epoch_start(context_of(loss, 4)[0])  # no pass over the data after the first epoch
    for head, name in enumerate(("first", "second", "first")):
        memory = loss.memories[name].rows.double().numpy()
        generator = generator_for(loss.config.seed, 4 * 3 + head, torch.device("cpu"))
        start = memory[torch.randperm(NUM_SAMPLES, generator=generator)[:5]]
        centroids, labels = textbook_kmeans.spherical_kmeans(memory, start, 3)
        np.testing.assert_allclose(loss.prototypes[0, head], centroids, atol=1e-5)
        np.testing.assert_array_equal(loss.labels[:, head, 0], labels)
    assert not torch.allclose(loss.prototypes[0, 0], loss.prototypes[0, 2])


def test_across_modalities_every_head_clusters_both_memories():
    loss = clustered(("video", "audio"), num_heads=2)
    for source, name in enumerate(("first", "second")):
        memory = loss.memories[name].rows.double().numpy()
        for head in range(2):
            generator = generator_for(loss.config.seed, head * 2 + source, torch.device("cpu"))
            start = memory[torch.randperm(NUM_SAMPLES, generator=generator)[:5]]
            centroids, labels = textbook_kmeans.spherical_kmeans(memory, start, 3)
            np.testing.assert_allclose(loss.prototypes[source, head], centroids, atol=1e-5)
            np.testing.assert_array_equal(loss.labels[:, head, source], labels)


@pytest.mark.parametrize("pair", [("image", "image"), ("video", "audio")])
def test_before_the_first_epoch_one_pass_fills_the_memories_and_later_ones_make_none(pair):
    loss, data = bare(pair), whole_set()
    context, asked = context_of(loss, 0, data)
    loss.on_epoch_start(context)
    cross_modal = pair == ("video", "audio")
    assert asked == ([("first",), ("second",)] if cross_modal else [("first",)])
    for name in ("first", "second"):
        expected = data[name if cross_modal else "first"]
        torch.testing.assert_close(loss.memories[name].rows, nn.functional.normalize(expected, dim=1))
    context, asked = context_of(loss, 1)
    loss.on_epoch_start(context)
    assert asked == []


def test_update_puts_the_batchs_unit_embeddings_into_both_memories_and_of_equal_samples_the_last():
    loss = clustered(("image", "image"))
    before = {name: loss.memories[name].rows.clone() for name in ("first", "second")}
    labels = loss.labels.clone()
    raw = {name: rows(30 + n, (4, 4)) for n, name in enumerate(loss.modality_of)}
    index = torch.tensor([3, 9, 3, 0])
    loss.update(loss(raw), index)
    for name in ("first", "second"):
        expected = before[name].numpy()
        for place, row in zip(index.tolist(), textbook_kmeans.unit(raw[name].numpy()), strict=True):
            expected[place] = row
        np.testing.assert_allclose(loss.memories[name].rows, expected, atol=1e-6)
    assert torch.equal(labels, loss.labels)


def test_terms_say_how_much_of_the_labels_an_epoch_kept_and_how_even_they_are():
    loss = clustered(("image", "image"), num_heads=1)
    data = {name: rows(3, (4, 4)) for name in loss.modality_of}

    def terms():
        return loss.loss(loss(data), torch.arange(4), Progress()).terms

    assert terms()["label_nmi"] == 0
    assert 0.7 < terms()["label_entropy"] <= 1
    loss.on_epoch_start(context_of(loss, 1)[0])
    assert 0.2 < terms()["label_nmi"] < 1
    loss.memories["first"].rows.copy_(loss.memories["first"].rows[:1].expand(NUM_SAMPLES, -1))  # collapse
    loss.on_epoch_start(context_of(loss, 2)[0])
    assert terms() == {"label_nmi": 0, "label_entropy": 0}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_on_a_centroid_give_finite_float32_values_and_gradients(dtype):
    loss = clustered(("image", "image"), temperature=0.01)
    z = loss.prototypes[0, 0, :4].to(dtype).requires_grad_()
    value = loss.loss(dict.fromkeys(loss.modality_of, z), torch.arange(4), Progress()).total
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("pair", PAIRS)
def test_every_parameter_gets_a_finite_gradient_and_loss_writes_no_state(pair):
    loss = make(pair)
    loss.on_epoch_start(
        context_of(loss, 0, {name: rows(n, (NUM_SAMPLES, 20)) for n, name in enumerate(("first", "second"))})[0]
    )
    outputs = loss(made_views(loss, 3))
    before = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
    loss.loss(outputs, torch.arange(8), Progress()).total.backward()
    for name, parameter in loss.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert sum(parameter.grad.abs().sum() for parameter in loss.encoders.parameters()) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in loss.state_dict().items())


def test_a_loaded_state_goes_on_identically_over_the_end_of_an_epoch():
    first, second = make(), make(seed=5)
    first.on_epoch_start(context_of(first, 0, {"first": rows(1, (NUM_SAMPLES, 20))})[0])
    first.update(first(made_views(first, 1)), torch.arange(8))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for number, epoch in enumerate((None, 1)):
        values = []
        for loss in (first, second):
            if epoch:
                loss.on_epoch_start(context_of(loss, epoch)[0])
            outputs = loss(made_views(loss, 10 + number))
            values.append(loss.loss(outputs, torch.arange(8), Progress()).total)
            loss.update(outputs, torch.arange(8))
        assert torch.equal(*values)


def test_more_prototypes_than_samples_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"loss.num_prototypes is 25 with 24 samples.*choose 2 to 24"):
        make(num_prototypes=25)
