"""A kernel that computes wrongly is found before a run rests on it: refused if asked for, else left with a warning."""

import pytest
import torch
from torch import nn

from avssl import config, device_settings, kernels
from avssl.models import create_encoder
from avssl.monitor import ADVICE
from avssl.ops import agreement, bank_scores
from avssl.optim.build import OptimConfig, build_optimizer

CPU = torch.device("cpu")
PROBES = ("autocast_is_right", "channels_last_is_right", "fused_is_right", "products_are_right")


@pytest.fixture(autouse=True)
def asked_anew():
    """Each answer is kept for the process."""
    caches = [*(getattr(kernels, name) for name in PROBES), bank_scores.reads_any_rows]
    for one in caches:
        one.cache_clear()
    yield
    for one in caches:
        one.cache_clear()


class WrongGradient(torch.autograd.Function):
    """The identity on weights, with the gradient of a kernel that reads memory that it does not own."""

    @staticmethod
    def forward(ctx, weight):
        return weight.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.full_like(gradient, 3e37)


def corrupt(monkeypatch, is_wrong):
    """3-D convolutions have a wrong weight gradient wherever `is_wrong(x, weight)`."""
    right = torch.nn.functional.conv3d

    def convolution(x, weight, *rest):
        return right(x, WrongGradient.apply(weight) if is_wrong(x, weight) else weight, *rest)

    monkeypatch.setitem(kernels.CONVOLUTIONS, nn.Conv3d, convolution)


def small_video():
    return nn.ModuleDict({"video": create_encoder("avid_video", depth=10, width=4)})


def two_frames_under_autocast(x, weight):
    return torch.is_autocast_enabled("cpu") and x.dtype != torch.float64 and weight.shape[2] == 3 and x.shape[2] == 2


def test_bf16_is_refused_where_the_gradient_of_a_temporal_convolution_over_two_frames_is_wrong(monkeypatch):
    networks = small_video()
    before = [one.clone() for one in networks.parameters()]
    corrupt(monkeypatch, two_frames_under_autocast)
    with pytest.raises(ValueError, match=r"mixed_precision=bf16.*kernel_size=\(3, .*weight gradient is off.*=fp32"):
        kernels.refuse_wrong_kernels(networks, "bf16", CPU)
    kernels.refuse_wrong_kernels(networks, "fp32", CPU)
    assert all(torch.equal(*pair) for pair in zip(networks.parameters(), before, strict=True))
    assert all(one.grad is None for one in networks.parameters())


def test_the_random_state_is_left_alone():
    state = torch.get_rng_state()
    kernels.wrong_layer(nn.Sequential(nn.Conv2d(3, 4, 16, 16), nn.Linear(5, 2)), torch.bfloat16, CPU)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    kernels.wrong_layer(nn.ModuleList(), torch.bfloat16, CPU)
    assert torch.equal(torch.rand(1), expected)
    torch.set_rng_state(state)


@pytest.mark.parametrize("name", ["avid_video"])
def test_bf16_of_this_machine_is_refused_or_right_and_float32_is_right(name):
    """The judgement of each kind of layer against a bound that is computed by hand from the absolute values."""
    options = {"depth": 10, "width": 16} if name == "avid_video" else {}
    network = create_encoder(name, **options)
    assert kernels.wrong_layer(network, torch.float32, CPU) is None
    judged_wrong = kernels.wrong_layer(network, torch.bfloat16, CPU) is not None
    is_wrong = False
    for _, module in kernels._layers(network):
        if not isinstance(module, nn.Conv3d):
            continue
        x = torch.randn(2, module.in_channels, 2, 3, 3, generator=torch.Generator().manual_seed(1))
        own = [one.detach().clone().requires_grad_() for one in (module.weight, module.weight)]
        for weight, low in zip(own, (True, False), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                kernels._apply(module, x, weight).float().pow(2).sum().backward()
        is_wrong |= not (own[0].grad - own[1].grad).norm() <= 0.1 * own[1].grad.norm()
    assert judged_wrong or not is_wrong


def test_auto_is_float32_with_a_warning_where_bf16_is_wrong(monkeypatch):
    corrupt(monkeypatch, two_frames_under_autocast)
    with pytest.warns(UserWarning, match="mixed_precision=auto is fp32"):
        assert not kernels.autocast_is_right(torch.bfloat16, CPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(kernels, "autocast_is_right", lambda dtype, device: False)
    cfg = config.parse(config.RunConfig, [])
    device_settings.settle_precision(cfg)
    assert cfg.mixed_precision == "fp32"


def test_channels_stay_first_where_channels_last_is_wrong(monkeypatch):
    right = torch.nn.functional.conv2d
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")

    def convolution(x, weight, *rest):
        is_last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        return right(x, weight.contiguous(), *rest) * (1.5 if is_last and x.dtype != torch.float64 else 1)

    monkeypatch.setitem(kernels.CONVOLUTIONS, nn.Conv2d, convolution)
    layer = nn.Conv2d(3, 4, 3)
    with pytest.warns(UserWarning, match="channels stay first"):
        device_settings.use_channels_last(layer, None, CPU)
    assert layer.weight.is_contiguous()
    with pytest.raises(ValueError, match="channels_last=true"):
        device_settings.use_channels_last(layer, True, CPU)


def test_channels_stay_first_on_cpus_whose_backward_writes_beyond_its_memory(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(kernels, "wrong_layer", lambda *given: pytest.fail("it was run"))
    layer = nn.Conv2d(4, 8, 1, stride=2)
    device_settings.use_channels_last(layer, None, CPU)
    assert layer.weight.stride() == (4, 1, 1, 1)
    with pytest.raises(ValueError, match="channels_last=true"):
        device_settings.use_channels_last(layer, True, CPU)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_plain_optimiser_steps_where_the_fused_one_is_wrong(name, monkeypatch):
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    step = kind.step

    def wrong(self, *rest):
        result = step(self, *rest)
        for group in self.param_groups:
            for one in group["params"]:
                one.data.add_(1e-4 if group["fused"] else 0)
        return result

    monkeypatch.setattr(kind, "step", wrong)
    groups = [{"params": [nn.Parameter(torch.ones(3))]}]
    with pytest.warns(UserWarning, match="the plain optimiser is used"):
        assert build_optimizer(OptimConfig(name=name), groups).param_groups[0]["fused"] is False
    with pytest.raises(ValueError, match=r"optim\.fused=true"):
        build_optimizer(OptimConfig(name=name, fused=True), groups)


def test_the_search_leaves_out_products_that_are_wrong(monkeypatch):
    monkeypatch.setattr(agreement, "has_quick_bfloat16", lambda device: True)
    assert agreement.levels(CPU) == [torch.bfloat16, torch.float32, torch.float64]
    monkeypatch.setitem(
        kernels.UNIT_ROUNDOFF, torch.bfloat16, 2.0**-12
    )  # as if bfloat16 were asked for more than it is
    kernels.products_are_right.cache_clear()
    with pytest.warns(UserWarning, match="a slower search"):
        assert agreement.levels(CPU) == [torch.float32, torch.float64]


def test_rows_are_gathered_where_the_bag_is_wrong(monkeypatch):
    right = bank_scores.embedding_bag
    monkeypatch.setattr(bank_scores, "embedding_bag", lambda *given, **options: 2 * right(*given, **options))
    with pytest.warns(UserWarning, match="rows of banks are gathered"):
        assert not bank_scores.reads_any_rows()


def test_the_advice_of_a_loss_that_is_not_finite_is_of_its_precision():
    assert "mixed_precision" not in ADVICE["fp32"]
    for precision in ("bf16", "fp16"):
        assert ADVICE[precision].startswith("first try mixed_precision=")
        assert "fp32" in ADVICE[precision]
