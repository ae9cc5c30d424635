"""A wrong kernel is found before a run uses it: an error if it was requested, otherwise a fallback with a warning."""

import json
from dataclasses import asdict

import pytest
import torch
from torch import nn

from avssl import config
from avssl import device as device_settings
from avssl.models import create_encoder
from avssl.ops import agreement, bank_scores, kernels
from avssl.optim.build import build_optimizer
from avssl.optim.config import OptimConfig
from avssl.train.monitor import ADVICE

CPU = torch.device("cpu")
PROBES = ("_first_wrong_cached", "fused_is_right", "products_are_right")


@pytest.fixture(autouse=True)
def uncached():
    """Clear the results, which are cached per process."""
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
    """3-D convolutions have a wrong weight gradient wherever `is_wrong(x, weight)`, all in this process."""
    right = torch.nn.functional.conv3d

    def convolution(x, weight, *rest):
        return right(x, WrongGradient.apply(weight) if is_wrong(x, weight) else weight, *rest)

    monkeypatch.setitem(kernels.CONVOLUTIONS, "Conv3d", convolution)
    monkeypatch.setattr(kernels, "first_wrong_apart", kernels.first_wrong)


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


def temporal_convolution(channels=256):
    return nn.Sequential(nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), bias=False))


def test_a_kernel_that_is_wrong_only_at_the_width_of_the_network_is_found(monkeypatch):
    corrupt(monkeypatch, lambda x, weight: weight.shape[0] == 256 and two_frames_under_autocast(x, weight))
    with pytest.raises(ValueError, match=r"Conv3d\(256, 256, .* on 2 x 256 x 2 x 2 x 2: the weight gradient is off"):
        kernels.refuse_wrong_kernels(temporal_convolution(), "bf16", CPU)
    kernels.refuse_wrong_kernels(temporal_convolution(16), "bf16", CPU)


def test_layers_are_equal_after_another_process_has_read_them():
    network = nn.Sequential(
        nn.Conv3d(6, 4, (3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0), groups=2),
        nn.Conv2d(3, 5, 3, padding="same", dilation=2).to(memory_format=torch.channels_last),
        nn.Conv1d(3, 4, 2),
        nn.Linear(5, 2),
        nn.Linear(5, 2),
    )
    layers = kernels.layers_of(network)
    assert [layer.kind for layer in layers] == ["Conv3d", "Conv2d", "Conv1d", "Linear"]
    assert [kernels.Layer.read(json.loads(json.dumps(asdict(layer)))) for layer in layers] == layers
    for module, layer in zip(network, layers, strict=False):
        x = torch.randn(layer.input_shape(2, 5), dtype=torch.float64)
        weight = module.weight.detach().double()
        assert weight.stride() == layer.weight_strides
        torch.testing.assert_close(layer.apply(x, weight), module.double()(x) - bias_of(module))


def bias_of(module):
    return module.bias.detach().view(1, -1, *[1] * (module.weight.ndim - 2))


def test_a_kernel_that_ends_its_process_is_a_wrong_one(monkeypatch, tmp_path):
    """The process is killed as by such a kernel: by the system, for access to memory that is not its own."""
    program = tmp_path / "crashing.py"
    program.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(kernels, "__file__", str(program))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    layer = nn.Conv2d(3, 16, 3)
    with pytest.warns(UserWarning, match="channels stay first.*SIGSEGV"):
        device_settings.use_channels_last(layer, None, CPU)
    assert layer.weight.is_contiguous()
    with pytest.raises(ValueError, match=r"mixed_precision=bf16.*SIGSEGV"):
        kernels.refuse_wrong_kernels(layer, "bf16", CPU)


def test_the_random_state_does_not_change(monkeypatch):
    monkeypatch.setattr(kernels, "first_wrong_apart", kernels.first_wrong)
    state = torch.get_rng_state()
    kernels.wrong_layer(nn.Sequential(nn.Conv2d(3, 4, 16, 16), nn.Linear(5, 2)), torch.bfloat16, CPU)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    kernels.wrong_layer(nn.ModuleList(), torch.bfloat16, CPU)
    assert torch.equal(torch.rand(1), expected)
    torch.set_rng_state(state)


@pytest.mark.slow
def test_bf16_of_this_machine_is_refused_or_right():
    """The judgment of each kind of layer against the same layer in float32, with another input."""
    wide = (temporal_convolution(channels) for channels in (128, 256))
    networks = nn.ModuleList([create_encoder("avid_video", depth=10, width=16), *wide])
    judged_wrong = kernels.wrong_layer(networks, torch.bfloat16, CPU) is not None
    is_wrong = False
    for module in (one for one in networks.modules() if isinstance(one, nn.Conv3d)):
        x = torch.randn(2, module.in_channels, 2, 3, 3, generator=torch.Generator().manual_seed(1))
        gradients = []
        for is_low in (True, False):
            module.weight.grad = None
            with torch.autocast("cpu", torch.bfloat16, enabled=is_low):
                module(x).float().pow(2).sum().backward()
            gradients.append(module.weight.grad)
        is_wrong |= not (gradients[0] - gradients[1]).norm() <= 0.1 * gradients[1].norm()
    assert judged_wrong or not is_wrong


def test_float32_of_this_machine_is_right():
    networks = nn.ModuleList([create_encoder("avid_video", depth=10, width=16), temporal_convolution()])
    assert kernels.first_wrong(kernels.layers_of(networks), torch.float32, CPU) is None


def test_auto_is_float32_with_a_warning_where_bf16_is_wrong(monkeypatch):
    corrupt(monkeypatch, two_frames_under_autocast)
    with pytest.warns(UserWarning, match="mixed_precision=auto is fp32"):
        assert not kernels.autocast_is_right(small_video(), torch.bfloat16, CPU)


@pytest.mark.parametrize(("wrong", "precision"), [(None, "bf16"), ("it is off", "fp32")])
def test_auto_checks_the_encoders_of_the_run(wrong, precision, monkeypatch, recwarn):
    """As on a machine with a GPU: only the layers of the run's own modalities are tried."""
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(kernels, "first_wrong", lambda layers, dtype, device: asked.extend(layers) or wrong)
    cfg = config.parse(config.RunConfig, ["encoders.video={name: avid_video, depth: 10, width: 4}"])
    device_settings.settle_precision(cfg, ["video"])
    assert cfg.mixed_precision == precision
    assert len(recwarn) == (precision == "fp32")
    assert asked == kernels.layers_of(small_video())


def test_channels_stay_first_where_channels_last_is_wrong(monkeypatch):
    right = torch.nn.functional.conv2d
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")

    def convolution(x, weight, *rest):
        is_last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        return right(x, weight.contiguous(), *rest) * (1.5 if is_last and x.dtype != torch.float64 else 1)

    monkeypatch.setitem(kernels.CONVOLUTIONS, "Conv2d", convolution)
    monkeypatch.setattr(kernels, "first_wrong_apart", kernels.first_wrong)
    layer = nn.Conv2d(3, 16, 3)
    with pytest.warns(UserWarning, match="channels stay first"):
        device_settings.use_channels_last(layer, None, CPU)
    assert layer.weight.is_contiguous()
    with pytest.raises(ValueError, match="channels_last=true"):
        device_settings.use_channels_last(layer, True, CPU)


def test_channels_stay_first_on_cpus_whose_backward_writes_beyond_its_memory(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(kernels, "first_wrong_apart", lambda *given: pytest.fail("it was run"))
    layer = nn.Conv2d(4, 16, 1, stride=2)
    device_settings.use_channels_last(layer, None, CPU)
    assert layer.weight.stride() == (4, 1, 1, 1)
    with pytest.raises(ValueError, match="channels_last=true"):
        device_settings.use_channels_last(layer, True, CPU)


def test_channels_of_narrow_convolutions_stay_first_untried(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(kernels, "first_wrong_apart", lambda *given: pytest.fail("it was run"))
    layers = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3))
    device_settings.use_channels_last(layers, None, CPU)
    assert all(layer.weight.is_contiguous() for layer in layers)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_plain_optimizer_steps_where_the_fused_one_is_wrong(name, monkeypatch):
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
    with pytest.warns(UserWarning, match="the plain optimizer is used"):
        assert build_optimizer(OptimConfig(name=name), groups).param_groups[0]["fused"] is False
    with pytest.raises(ValueError, match=r"optim\.fused=true"):
        build_optimizer(OptimConfig(name=name, fused=True), groups)


def test_the_search_leaves_out_products_that_are_wrong(monkeypatch):
    monkeypatch.setattr(agreement, "has_quick_bfloat16", lambda device: True)
    assert agreement.product_dtypes(CPU, 128) == [torch.bfloat16, torch.float32, torch.float64]
    monkeypatch.setitem(
        kernels.UNIT_ROUNDOFF, torch.bfloat16, 2.0**-12
    )  # as if bfloat16 had to be more precise than it is
    kernels.products_are_right.cache_clear()
    with pytest.warns(UserWarning, match="a slower search"):
        assert agreement.product_dtypes(CPU, 128) == [torch.float32, torch.float64]


def test_rows_are_gathered_where_the_bag_is_wrong(monkeypatch):
    right = bank_scores.embedding_bag
    monkeypatch.setattr(bank_scores, "embedding_bag", lambda *given, **options: 2 * right(*given, **options))
    with pytest.warns(UserWarning, match="rows of banks are gathered"):
        assert not bank_scores.reads_any_rows()


def test_the_advice_for_a_loss_that_is_not_finite_depends_on_its_precision():
    assert "mixed_precision" not in ADVICE["fp32"]
    for precision in ("bf16", "fp16"):
        assert ADVICE[precision].startswith("first try mixed_precision=")
        assert "fp32" in ADVICE[precision]
