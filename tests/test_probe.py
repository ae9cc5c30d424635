"""Linear probes: scikit-learn's optimum, networks that stay bit-equal, probes that are independent of each other."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from avssl.config import parse
from avssl.eval import tasks
from avssl.eval.finetune.layer_probes import LinearProbes
from avssl.eval.finetune.training import Criterion, TrainingOptions, train
from avssl.models import create_encoder
from avssl.models.layers import STAGES, stage_activations
from avssl.optim.config import OptimConfig
from tests.conftest import ROOT
from tests.labeled_runs import MemoryLoader, assert_equal_states, stage, state_of, tiny_embedder, vectors

TASK = tasks.get("linear_probe")
DEVICE = torch.device("cpu")


class Given(nn.Module):
    """An encoder that returns its input."""

    dim = 6

    def forward(self, x):
        return x


class Maps(nn.Module):
    """Two maps and a feature from vectors (B, 6), with a batch norm that training mode would change."""

    dim = 4

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.layer = nn.Linear(6, 4)

    def forward_layers(self, x):
        x = self.norm(x)
        maps = {name: torch.tanh(x[:, :, None, None] * (number + 1)) for number, name in enumerate(STAGES)}
        return {**maps, "pool": self.layer(x)[:, :, None, None]}

    def forward(self, x):
        return self.forward_layers(x)["pool"].flatten(1)


def probes_of(encoder, layers=(), **options):
    torch.manual_seed(0)
    x, _ = vectors()
    return LinearProbes({"audio": encoder}, layers, {"audio": x}, 3, **{"batch_norm": False, **options})


class AudioLoader(MemoryLoader):
    def epoch(self, epoch, first_batch=0):
        for batch in super().epoch(epoch, first_batch):
            batch.views = {"audio": batch.views["video"]}
            yield batch


def trained(probes, folder, num_steps, optim, *, batch_size=6, count=24):
    x, targets = vectors(count)
    stages = [stage(num_steps, False, "frozen", optim)]
    options = TrainingOptions(log_every_steps=1000, checkpoint_every_steps=10_000)
    train(
        probes, AudioLoader(x, batch_size), stages, Criterion(targets), options, folder=folder, facts={}, device=DEVICE
    )
    return probes


@pytest.mark.slow
def test_run_to_the_end_a_probe_is_scikit_learns_logistic_regression(tmp_path):
    """Mean loss + weight_decay / 2 |W|^2 is its objective with C = 1 / (N weight_decay); no bias is decayed."""
    from sklearn.linear_model import LogisticRegression

    count, decay = 60, 0.01
    optim = OptimConfig(name="sgd", lr=0.5, momentum=0.9, weight_decay=decay, exclude_biases=True)
    probes = trained(probes_of(Given()), tmp_path, 1000, optim, batch_size=count, count=count)
    x, targets = vectors(count)
    oracle = LogisticRegression(C=1 / (count * decay), tol=1e-10, max_iter=10_000).fit(x.numpy(), targets.numpy())
    linear = probes.probes["audio_pool"][0]
    np.testing.assert_allclose(linear.weight.detach().numpy(), oracle.coef_, atol=1e-3)
    with torch.no_grad():
        probabilities = probes({"audio": x})["audio_pool"].softmax(dim=1).numpy()
    np.testing.assert_allclose(probabilities, oracle.predict_proba(x.numpy()), atol=1e-3)


def test_the_network_is_bit_equal_afterwards_buffers_and_all(tmp_path):
    probes = probes_of(Maps())
    before = state_of(probes.encoders)
    with torch.no_grad():  # the data would move the statistics if they could move
        copy.deepcopy(probes.encoders["audio"]).train()(vectors()[0])
    trained(probes, tmp_path, 12, OptimConfig(name="sgd", lr=0.5, weight_decay=0.1))
    assert_equal_states(before, state_of(probes.encoders))
    assert not any(parameter.requires_grad for parameter in probes.encoders.parameters())
    probes.train()
    assert not any(module.training for module in probes.encoders.modules())


def test_probes_learn_together_what_each_learns_alone(tmp_path):
    optim = OptimConfig(name="adam", lr=1e-2, weight_decay=0.0)
    encoder = Maps()
    together = probes_of(encoder, ["conv2x", "conv5x", "pool"], batch_norm=True)
    start = copy.deepcopy(together.probes)
    trained(together, tmp_path / "together", 12, optim)
    for layer in ("conv2x", "conv5x", "pool"):
        alone = probes_of(encoder, [layer], batch_norm=True)
        alone.probes[f"audio_{layer}"].load_state_dict(start[f"audio_{layer}"].state_dict())
        trained(alone, tmp_path / layer, 12, optim)
        for name, value in state_of(alone.probes).items():
            torch.testing.assert_close(value, together.probes.state_dict()[name], rtol=1e-6, atol=1e-7)


def test_every_stage_is_probed_unless_layers_are_named():
    assert list(probes_of(Maps()).dims) == [f"audio_{name}" for name in STAGES]
    assert list(probes_of(Given()).dims) == ["audio_pool"]
    with pytest.raises(ValueError, match="no layer conv9x; it has conv2x"):
        probes_of(Maps(), ["conv9x"])


def test_avids_layers_have_the_published_numbers_of_features():
    """9216, 8192, 9216 and 8192 of a clip of 8 x 224 x 224 px and of a spectrogram of 200 x 257."""
    for name, media in (("avid_video", torch.zeros(1, 3, 8, 224, 224)), ("avid_audio", torch.zeros(1, 1, 200, 257))):
        encoder = create_encoder(name, **({"depth": 10} if name == "avid_video" else {}))
        probes = LinearProbes({encoder.modality: encoder}, [], {encoder.modality: media}, 2, batch_norm=True)
        assert list(probes.dims.values()) == [9216, 8192, 9216, 8192]


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet10", (1, 3, 32, 32)),
        ("avid_audio", (1, 1, 50, 65)),
        ("r2plus1d_18", (1, 3, 4, 32, 32)),
        ("mc3_18", (1, 3, 4, 32, 32)),
        ("s3d", (1, 3, 16, 32, 32)),
    ],
)
def test_the_stages_of_every_encoder_end_in_its_own_feature(name, shape):
    torch.manual_seed(0)
    encoder, media = create_encoder(name).eval(), torch.randn(shape)
    with torch.no_grad():
        found, feature = stage_activations(encoder, media), encoder(media)
    assert list(found) == [*STAGES, "pool"]
    assert torch.equal(found["pool"], feature)
    assert all(found[name].ndim == len(shape) for name in STAGES)
    sides = [found[name].shape[-1] for name in STAGES]
    assert sides == sorted(sides, reverse=True)


def test_an_encoder_without_stages_has_its_feature():
    encoder = create_encoder("vit_tiny", depth=1, image_size_px=32).eval()
    assert list(stage_activations(encoder, torch.zeros(1, 3, 32, 32))) == ["pool"]


@pytest.mark.quick(1)
@pytest.mark.parametrize("modality", ["video", "both"])
def test_the_task_reports_every_layer_and_the_best(shards, tmp_path, modality):
    config = parse(
        TASK.Config,
        [
            "task=linear_probe", f"train={shards['train']}", f"test={shards['test']}", "label_field=visual",
            "num_workers=0", "train_batch_size=6", "epochs=1", "test_clips=2", f"folder={tmp_path}",
            f"modality={modality}", "layers=[conv2x,conv5x]",
        ],
    )  # fmt: skip
    embedder = tiny_embedder()
    before = state_of(embedder.loss)
    outcome = TASK.run(embedder, config)
    modalities = ["video", "audio"] if modality == "both" else [modality]
    wanted = {f"{name}_{layer}" for name in modalities for layer in config.layers}
    values = outcome.repeats[0].values()
    assert {name.removesuffix("_top1_accuracy") for name in values if name.endswith("_top1_accuracy")} == wanted
    best = outcome.facts["best_layer"]
    assert values[f"{best}_top1_accuracy"] == max(values[f"{name}_top1_accuracy"] for name in wanted)
    assert outcome.protocol["batch_norm"] == "eval (running statistics)"
    assert_equal_states(before, state_of(embedder.loss))
    config.optim.clip_norm = 1.0
    with pytest.raises(ValueError, match="couple the probes"):
        TASK.run(embedder, config)


def test_the_published_settings_of_kinetics_are_what_the_protocol_says():
    config = parse(TASK.Config, [str(ROOT / "recipes/configs/evaluate/linear_probe_kinetics400.yaml")])
    assert (config.epochs, config.milestone_epochs, config.train_batch_size) == (12, [6, 9], 128)
    assert (config.optim.name, config.optim.lr, config.optim.gamma, config.optim.weight_decay) == ("adam", 1e-4, 0.1, 0)
    assert (config.layers, config.probe_batch_norm, config.test_clips) == (list(STAGES), True, 10)
