"""DeepCluster and XDC: labels against scikit-learn, weights and loss against the textbook, new classifiers."""

import copy

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import normalized_mutual_info_score

from avssl.losses.base import EpochContext
from avssl.losses.deepcluster import DeepCluster, DeepClusterConfig, balanced_cross_entropy, cluster_weights
from avssl.losses.xdc import XDC, XDCConfig
from avssl.ops.sampling import generator_for
from avssl.optim.build import build_optimizer, forget
from avssl.optim.config import OptimConfig
from avssl.types import Progress
from tests.small_encoders import Linear
from tests.textbook import deepcluster as textbook
from tests.textbook.gradients import gradient

RNG = np.random.default_rng(0)
COMBINATIONS = [("image",), ("video",), ("audio",), ("video", "audio")]
NUM_SAMPLES, KINDS = 60, 4
SMALL = {"num_clusters": KINDS, "pca_dim": 3, "projector_dims": (8,)}


def make(modalities=("image",), seed=0, num_samples=NUM_SAMPLES, **options):
    torch.manual_seed(seed)
    config = DeepClusterConfig(modalities=modalities, **(SMALL | options))
    return DeepCluster(config, {modality: Linear(6, num_inputs=5) for modality in modalities}, num_samples)


def samples(name):
    """(N, 5): KINDS kinds of samples, other images of the same kinds for each view."""
    rng = np.random.default_rng({"first": 1, "second": 2}[name])
    kinds = 2 * rng.normal(size=(KINDS, 5))
    return torch.tensor(
        kinds[np.arange(NUM_SAMPLES) % KINDS] + 0.2 * rng.normal(size=(NUM_SAMPLES, 5)), dtype=torch.float32
    )


def context_of(loss, epoch, reset=lambda parameters: None, noise=0.0):
    """The context of the training loop: every sample once, in batches, in eval mode, of the views named."""

    @torch.no_grad()
    def embed_all(view_names):
        loss.eval()
        for index in torch.arange(NUM_SAMPLES).flip(0).split(7):
            yield index, loss({name: samples(name)[index] + noise for name in view_names})
        loss.train()

    return EpochContext(epoch, embed_all, reset)


def features_of(loss, name):
    with torch.no_grad():
        return loss({name: samples(name)})[name].double().numpy()


def loss_of(loss, index):
    return loss.loss(loss({name: samples(name)[index] for name in loss.modality_of}), index, Progress())


def test_weights_equal_the_textbook_and_their_mean_over_the_data_set_is_1():
    labels = torch.tensor([0, 0, 0, 0, 0, 2, 2, 3])
    weights = cluster_weights(labels, 5)
    expected = textbook.weights(labels.numpy())
    assert {k: weights[k].item() for k in expected} == pytest.approx(expected)
    assert weights[labels].mean().item() == pytest.approx(1)
    assert weights[1] == weights[4] == 0
    torch.testing.assert_close(weights[labels][:5].sum(), weights[labels][7])  # all clusters have the same total weight


def test_the_balanced_cross_entropy_equals_the_textbook_in_value_and_gradient():
    logits, labels = RNG.normal(size=(6, 4)), np.array([0, 1, 1, 3, 0, 0])
    weight_of = {0: 0.5, 1: 2.0, 2: 0.0, 3: 4.0}
    ours = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    value = balanced_cross_entropy(ours, torch.tensor(labels), torch.tensor(list(weight_of.values())))
    value.backward()
    assert value.item() == pytest.approx(textbook.balanced_cross_entropy(logits, labels, weight_of), rel=1e-5)
    (expected,) = gradient(lambda x: textbook.balanced_cross_entropy(x, labels, weight_of), logits)
    np.testing.assert_allclose(ours.grad, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extreme_half_precision_logits_give_finite_float32_values_and_gradients(dtype):
    logits = torch.tensor([[6e4, -6e4], [-6e4, 6e4]], dtype=dtype, requires_grad=True)
    value = balanced_cross_entropy(logits, torch.tensor([0, 0]), torch.ones(2))
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("modalities", COMBINATIONS)
def test_the_whole_loss_is_the_textbooks_with_labels_of_the_other_modality_where_there_are_two(modalities):
    loss = make(modalities)
    loss.on_epoch_start(context_of(loss, 0))
    loss.labels.copy_(torch.tensor(RNG.integers(0, KINDS, size=loss.labels.shape)))
    loss.weights.copy_(torch.tensor(RNG.uniform(1, 2, size=loss.weights.shape)))
    index = torch.tensor([3, 58, 3, 20])
    expected = 0.0
    for position, (name, modality) in enumerate(loss.modality_of.items()):
        head = loss.classifiers[modality]
        logits = textbook.classify(features_of(loss, name)[index], head.weight.detach(), head.bias.detach())
        column = position if len(modalities) == 1 else 1 - position
        weight_of = dict(enumerate(loss.weights[column].double().tolist()))
        labels = loss.labels[index, column].numpy()
        expected += textbook.balanced_cross_entropy(logits, labels, weight_of) / len(modalities)
    assert loss_of(loss, index).total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("modalities", COMBINATIONS)
def test_labels_are_scikit_learns_clusters_of_whitened_unit_features_of_each_modality(modalities):
    loss = make(modalities, num_clusters=7)  # more than kinds: where kinds are cut depends on every step before
    loss.on_epoch_start(context_of(loss, 0))
    for column, name in enumerate(loss.modality_of):
        white = PCA(3, whiten=True, svd_solver="full").fit_transform(features_of(loss, name))
        rows = white / np.linalg.norm(white, axis=1, keepdims=True)
        start = torch.randperm(NUM_SAMPLES, generator=generator_for(0, column, torch.device("cpu")))[:7]
        oracle = KMeans(7, init=rows[start], n_init=1, tol=0).fit(rows)
        assert (np.bincount(oracle.labels_, minlength=7) > 0).all()
        np.testing.assert_array_equal(loss.labels[:, column], oracle.labels_)
        torch.testing.assert_close(loss.weights[column], cluster_weights(loss.labels[:, column], 7))


def test_every_epoch_has_a_seed_of_its_own_that_depends_on_the_runs():
    def labels(seed, epoch):
        # More clusters than kinds, so that the outcome depends on the start.
        loss = make(num_clusters=12)
        loss.config.seed = seed
        loss.on_epoch_start(context_of(loss, epoch))
        return loss.labels.clone(), loss.classifiers["image"].weight.detach().clone()

    for one, other in zip(labels(0, 1), labels(0, 1), strict=True):
        assert torch.equal(one, other)
    for seed, epoch in ((0, 2), (1, 1)):
        for one, other in zip(labels(0, 1), labels(seed, epoch), strict=True):
            assert not torch.equal(one, other)


def test_clusters_and_classifiers_stay_in_the_epochs_between():
    loss = make(num_clusters=12, cluster_every_epochs=3)
    seen = []
    for epoch in range(7):
        loss.on_epoch_start(context_of(loss, epoch))
        seen.append((loss.labels.clone(), loss.classifiers["image"].weight.detach().clone()))
    for epoch in range(1, 7):
        stays = [torch.equal(now, before) for now, before in zip(seen[epoch], seen[epoch - 1], strict=True)]
        assert stays == [epoch % 3 != 0] * 2
    with pytest.raises(ValueError, match="cluster_every_epochs is 0"):
        make(num_clusters=12, cluster_every_epochs=0)


def test_the_classifiers_start_anew_in_place_and_their_optimizer_forgets_them_alone():
    loss = make(("video", "audio"), num_clusters=20)
    config = OptimConfig(name="adam", lr=0.1)
    optimizer = build_optimizer(config, loss.param_groups())
    heads = list(loss.classifiers.parameters())
    loss.on_epoch_start(context_of(loss, 0, forget(optimizer)))
    loss_of(loss, torch.arange(8)).total.backward()
    optimizer.step()
    assert all(one in optimizer.state for one in loss.parameters())
    loss.on_epoch_start(context_of(loss, 1, forget(optimizer)))
    forgotten = {one for one in loss.parameters() if one not in optimizer.state}
    assert forgotten == set(heads)
    for one, before in zip(loss.classifiers.parameters(), heads, strict=True):
        assert one is before
    for head in loss.classifiers.values():
        assert head.weight.std().item() == pytest.approx(0.01, rel=0.2)  # 160 draws
        assert (head.bias == 0).all()


def test_outputs_that_are_not_finite_end_a_pass_over_the_samples_with_advice():
    """Otherwise eigenvectors do not converge (DeepCluster), or every sample gets one label without a word (SeLa)."""
    rows = torch.tensor([[1.0, 2.0], [torch.nan, 0.0], [torch.inf, 0.0]])
    context = EpochContext(3, lambda names: [(torch.arange(3), {"first": rows})])
    with pytest.raises(FloatingPointError, match=r"before epoch 3 .* outputs of 2 of 3 samples .* a lower optim\.lr"):
        context.collect("first", 3)


def test_an_output_may_be_one_number_of_each_sample():
    context = EpochContext(0, lambda names: [(torch.tensor([1, 0]), {"length": torch.tensor([1.0, 2.0])})])
    assert context.collect("length", 2).tolist() == [2.0, 1.0]


def test_classifiers_that_start_anew_have_no_gradient_of_the_old_labels():
    """With accumulated micro-batches a step may reach over the end of an epoch."""
    loss = make(("video", "audio"), num_clusters=20)
    optimizer = build_optimizer(OptimConfig(name="sgd", lr=0.1), loss.param_groups())
    loss.on_epoch_start(context_of(loss, 0, forget(optimizer)))
    loss_of(loss, torch.arange(8)).total.backward()
    loss.on_epoch_start(context_of(loss, 1, forget(optimizer)))
    assert all(one.grad is None for one in loss.classifiers.parameters())
    assert all(one.grad is not None for one in loss.encoders.parameters())


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_the_classifiers_have_no_momentum_and_the_rest_has_the_runs(name):
    loss = make()
    optimizer = build_optimizer(OptimConfig(name=name, momentum=0.9, lr=0.1, exclude_biases=True), loss.param_groups())
    heads = set(loss.classifiers.parameters())
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(loss.parameters()))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["momentum"] == (0.0 if parameter in heads else 0.9)


def test_label_health_is_the_mutual_information_with_the_epoch_before_and_the_evenness_of_clusters():
    loss = make(num_clusters=8)
    loss.on_epoch_start(context_of(loss, 0))
    assert loss_of(loss, torch.arange(4)).terms["label_nmi"] == 0  # nothing to compare with yet
    before = loss.labels[:, 0].numpy().copy()
    loss.on_epoch_start(context_of(loss, 1, noise=1.0))
    after = loss.labels[:, 0].numpy()
    terms = loss_of(loss, torch.arange(4)).terms
    expected = normalized_mutual_info_score(before, after, average_method="geometric")
    assert 0.3 < expected < 0.999
    assert terms["label_nmi"].item() == pytest.approx(expected, abs=1e-5)
    share = np.bincount(after, minlength=8) / NUM_SAMPLES
    entropy = -sum(p * np.log(p) for p in share if p > 0) / np.log(8)
    assert terms["label_entropy"].item() == pytest.approx(entropy, abs=1e-5)


@pytest.mark.parametrize("modalities", COMBINATIONS)
def test_within_an_epoch_the_classification_of_the_clusters_is_learned(modalities):
    loss = make(modalities)
    optimizer = build_optimizer(OptimConfig(name="sgd", lr=0.5, weight_decay=0.0), loss.param_groups())
    loss.on_epoch_start(context_of(loss, 0, forget(optimizer)))
    values = []
    for _ in range(40):
        value = loss_of(loss, torch.arange(NUM_SAMPLES)).total
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[0] == pytest.approx(np.log(KINDS), rel=0.02)
    assert values[-1] < 0.3 * values[0]


@pytest.mark.parametrize("modalities", COMBINATIONS)
def test_every_parameter_gets_a_finite_gradient_and_loss_writes_no_state(modalities):
    loss = make(modalities)
    loss.on_epoch_start(context_of(loss, 0))
    before = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
    loss_of(loss, torch.arange(8)).total.backward()
    for name, parameter in loss.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    assert all(torch.equal(tensor, before[name]) for name, tensor in loss.state_dict().items())


def test_a_loaded_state_gives_the_same_loss_and_the_same_next_epoch():
    first, second = make(), make(seed=9)
    first.on_epoch_start(context_of(first, 0))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for epoch in (0, 1):
        if epoch:
            for loss in (first, second):
                loss.on_epoch_start(context_of(loss, epoch))
        ours, theirs = (loss_of(loss, torch.arange(8)) for loss in (first, second))
        assert torch.equal(ours.total, theirs.total)
        assert ours.terms == theirs.terms


def test_views_are_one_per_modality_with_the_papers_set_for_images():
    assert [(v.name, v.modality, v.augment) for v in DeepCluster.views(DeepClusterConfig())] == [
        ("first", "image", "deepcluster")
    ]
    both = DeepCluster.views(DeepClusterConfig(modalities=("video", "audio")))
    assert [(v.name, v.modality, v.augment, v.clip) for v in both] == [
        ("first", "video", "train", 0),
        ("second", "audio", "train", 0),
    ]


def test_impossible_options_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"loss.num_clusters is 61 with 60 samples.*choose 2 to 60"):
        make(num_clusters=61)
    with pytest.raises(ValueError, match=r"loss.pca_dim is 9; 60 samples .* dim 8 allow 1 to 8"):
        make(pca_dim=9)
    with pytest.raises(ValueError, match=r"loss.pca_dim is 7; .* dim 6 .*raise loss.projector_dims"):
        make(pca_dim=7, projector_dims=())
    with pytest.raises(ValueError, match=r"6 samples .* allow 1 to 5"):
        make(num_samples=6, pca_dim=6)
    with pytest.raises(ValueError, match=r"loss.modalities is \[image, image\].*runs on \[image\]"):
        DeepCluster.views(DeepClusterConfig(modalities=("image", "image")))


def test_xdc_is_deepcluster_with_swapped_labels_on_the_encoders_own_features():
    torch.manual_seed(0)
    encoders = {modality: Linear(6, num_inputs=5) for modality in ("video", "audio")}
    xdc = XDC(XDCConfig(num_clusters=KINDS, pca_dim=3), encoders, NUM_SAMPLES)
    xdc.on_epoch_start(context_of(xdc, 0))
    plain = DeepCluster(
        DeepClusterConfig(modalities=("video", "audio"), num_clusters=KINDS, pca_dim=3, projector_dims=()),
        encoders,
        NUM_SAMPLES,
    )
    plain.load_state_dict(xdc.state_dict())
    index = torch.arange(8)
    assert torch.equal(loss_of(xdc, index).total, loss_of(plain, index).total)
    assert torch.equal(xdc({"first": samples("first")})["first"], encoders["video"](samples("first")))
    swapped = xdc.labels.flip(1)
    assert not torch.equal(swapped, xdc.labels)
    with pytest.raises(ValueError, match=r"loss xdc runs on \[video, audio\]"):
        XDC.views(XDCConfig(modalities=("video",)))
