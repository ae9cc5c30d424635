"""Weight decay and layer-wise learning rates of public models are those of timm; other networks keep theirs."""

from __future__ import annotations

import pytest
import timm.optim
import torch

from avssl.models import create_encoder
from avssl.optim.build import build_optimizer, set_schedules
from avssl.optim.config import OptimConfig
from tests.public_folders import save_public


def groups_of(networks, **changes):
    """{name of a parameter: (weight decay, learning rate)} in the optimizer of all parameters."""
    options = {"name": "adamw", "lr": 0.5, "weight_decay": 0.05, **changes}
    config = OptimConfig(**options)
    optimizer = build_optimizer(config, [{"params": list(networks.parameters())}], networks)
    set_schedules(optimizer, config, 0, 1)
    placed = {id(p): (group["weight_decay"], group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(networks.parameters()))
    return {name: placed[id(parameter)] for name, parameter in networks.named_parameters()}


@pytest.mark.parametrize("kind", ["test_vit", "test_vit3", "test_convnext"])
def test_groups_are_those_of_timm(kind):
    encoder = create_encoder(f"timm/{kind}", "image")
    theirs = timm.optim.param_groups_layer_decay(
        encoder.net, weight_decay=0.05, layer_decay=0.75,
        no_weight_decay_list=[*encoder.net.no_weight_decay(), "reg_token"] if "vit" in kind else [],
    )  # fmt: skip
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    expected = {
        names[id(parameter)]: (group["weight_decay"], 0.5 * group["lr_scale"])
        for group in theirs
        for parameter in group["params"]
    }
    ours = groups_of(encoder, layer_decay=0.75)
    assert ours.keys() == expected.keys()
    for name, values in expected.items():
        assert ours[name] == pytest.approx(values), name


def test_biases_norms_and_embeddings_do_not_decay_and_linear_layers_do(tmp_path):
    save_public(tmp_path, "dinov2_with_registers")
    networks = torch.nn.ModuleDict(
        {"encoder": create_encoder(f"hf/{tmp_path}", "image"), "head": torch.nn.Linear(3, 3)}
    )
    decays = {name: decay > 0 for name, (decay, _) in groups_of(networks).items()}
    embeddings = ("cls_token", "mask_token", "register_tokens", "position_embeddings")
    for name, parameter in networks["encoder"].named_parameters():
        is_left_out = parameter.ndim <= 1 or name.endswith(embeddings)
        assert decays[f"encoder.{name}"] == (not is_left_out), name
    assert decays["encoder.net.embeddings.patch_embeddings.projection.weight"]
    assert decays["head.bias"]  # as ever; optim.exclude_biases=true leaves it out
    assert not groups_of(networks, exclude_biases=True)["head.bias"][0]
    assert all(decay > 0 for decay, _ in groups_of(networks, exclude_biases=False).values())


def test_learning_rates_fall_from_the_last_layer_to_the_embeddings(tmp_path):
    save_public(tmp_path, "vit")
    networks = torch.nn.ModuleDict(
        {"encoder": create_encoder(f"hf/{tmp_path}", "image"), "head": torch.nn.Linear(3, 3)}
    )
    rates = {name: rate for name, (_, rate) in groups_of(networks, layer_decay=0.5).items()}
    assert rates["head.weight"] == rates["encoder.net.layers.1.mlp.fc1.weight"] == 0.5
    assert rates["encoder.net.layernorm.weight"] == 0.5
    assert rates["encoder.net.layers.0.mlp.fc1.weight"] == 0.25
    assert rates["encoder.net.embeddings.cls_token"] == 0.125


def test_networks_that_know_no_layers_have_the_groups_of_before():
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    groups = [{"params": list(network.parameters()), "lr_scale": 0.3}]
    config = OptimConfig(name="sgd", exclude_biases=True)
    with_networks, without = (build_optimizer(config, groups, given).param_groups for given in (network, None))
    assert [dict(group, params=len(group["params"])) for group in with_networks] == [
        dict(group, params=len(group["params"])) for group in without
    ]
    with pytest.raises(ValueError, match="no encoder of this run knows its layers"):
        build_optimizer(OptimConfig(layer_decay=0.5), groups, network)
    with pytest.raises(ValueError, match="layer_decay is 0"):
        build_optimizer(OptimConfig(layer_decay=0.0), groups, network)
