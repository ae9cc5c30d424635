"""Precision, TF32, memory order, compilation and fused optimizers: each by one key, and none of them another result."""

import pytest
import torch

from avssl import config, losses
from avssl import device as device_settings
from avssl.calls import own_run
from avssl.models import create_encoder
from avssl.ops import kernels
from avssl.optim.build import build_optimizer
from avssl.optim.config import OptimConfig
from tests.tiny import Run


@pytest.fixture(autouse=True)
def own_backends():
    """TF32 is a setting of the process."""
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


def settled(*changes):
    cfg = config.parse(config.RunConfig, list(changes))
    device_settings.settle_precision(cfg, ["video"])
    return cfg.mixed_precision


def test_auto_is_bf16_only_where_a_gpu_has_it(monkeypatch):
    assert settled() == ("bf16" if torch.cuda.is_available() else "fp32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernels, "autocast_is_right", lambda networks, dtype, device: True)
    for has_bf16, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, found=has_bf16: found)
        assert settled() == expected
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert settled("cpu=true") == "fp32"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # Accelerate's own word for it
    assert settled() == "fp32"
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    assert settled("mixed_precision=fp32") == "fp32"


@pytest.mark.parametrize(
    ("asked", "convolutions", "products"),
    [("none", "ieee", "ieee"), ("convolutions", "tf32", "ieee"), ("all", "tf32", "tf32")],
)
def test_tf32_is_set_by_name_and_not_left_to_the_library(asked, convolutions, products):
    settled(f"tf32={asked}")
    found = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    assert found == (convolutions, products)


def test_threads_are_those_asked_for_on_a_cpu_alone_and_as_before_after_a_run():
    before = torch.get_num_threads()
    with own_run():
        device_settings.use_threads(torch.device("cpu"), before + 2)
        assert torch.get_num_threads() == before + 2
        for device, count in (("cpu", 0), ("cuda", 1)):
            device_settings.use_threads(torch.device(device), count)
            assert torch.get_num_threads() == before + 2
        with pytest.raises(ValueError, match="num_cpu_threads is -1; it is a number of threads, or 0"):
            device_settings.use_threads(torch.device("cpu"), -1)
    assert torch.get_num_threads() == before


def test_channels_last_changes_strides_and_nothing_else(monkeypatch):
    monkeypatch.setattr(kernels, "wrong_channels_last", lambda networks, dimensions, device: None)
    torch.manual_seed(0)
    encoders = torch.nn.ModuleDict(
        {
            "video": create_encoder("avid_video", depth=10, width=2),
            "audio": create_encoder("avid_audio", width=2),
        }
    )
    media = {"video": torch.randn(2, 3, 2, 16, 16), "audio": torch.randn(2, 1, 24, 33)}
    before = {name: encoders[name](one).detach() for name, one in media.items()}
    state = {name: tensor.clone() for name, tensor in encoders.state_dict().items() if "running" not in name}
    device_settings.use_channels_last(encoders, True, torch.device("cpu"))
    assert encoders["video"].conv1[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    for name, one in media.items():
        torch.testing.assert_close(encoders[name](one).detach(), before[name], rtol=1e-4, atol=1e-5)
    for name, tensor in state.items():
        if "num_batches" not in name:
            assert torch.equal(encoders.state_dict()[name], tensor)


def test_gradients_have_the_strides_of_their_weights_as_ddp_wants_them():
    encoders = torch.nn.ModuleDict({"image": create_encoder("resnet10", width=16, small_stem=True)})
    device_settings.use_channels_last(encoders, None, torch.device("cpu"))
    encoders["image"](torch.randn(2, 3, 16, 16)).sum().backward()
    convolutions = [weight for weight in encoders.parameters() if weight.ndim == 4]
    assert any(weight.shape[2:] == (1, 1) for weight in convolutions)
    assert all(weight.grad.stride() == weight.stride() for weight in convolutions)


@pytest.mark.parametrize(
    ("wanted", "device", "moved"),
    [(None, "cpu", {4}), (None, "cuda", set()), (True, "cuda", {4, 5}), (False, "cpu", set())],
)
def test_left_to_itself_it_is_two_dimensional_convolutions_on_a_cpu(wanted, device, moved, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(kernels, "wrong_channels_last", lambda networks, dimensions, device: None)
    encoders = torch.nn.ModuleDict({"picture": torch.nn.Conv2d(2, 16, 3), "clip": torch.nn.Conv3d(2, 16, 3)})
    device_settings.use_channels_last(encoders, wanted, torch.device(device))
    weights = [layer.weight for layer in encoders.values()]
    assert {weight.ndim for weight in weights if not weight.is_contiguous()} == moved


@pytest.mark.grid(4)
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [one if one in ("avid", "byol") else pytest.param(one, marks=pytest.mark.slow) for one in losses.names()]
)
def test_compiled_encoders_train_as_plain_ones_do(name):
    """Through torch.compile's capture and its own backward, with PyTorch's operations as the backend."""
    found = []
    for is_compiled in (False, True):
        torch._dynamo.reset()
        run = Run(name, losses.get(name).pairs[0])
        if is_compiled:
            names = list(run.loss.state_dict())
            device_settings.compile_encoders(run.loss, backend="aot_eager")
            assert list(run.loss.state_dict()) == names
        found.append([run.step()[0].total.detach() for _ in range(2)])
    torch.testing.assert_close(torch.stack(found[1]), torch.stack(found[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_fused_optimizer_makes_the_same_step(name):
    results = []
    for fused in (False, True):
        weights = torch.nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4))
        optimizer = build_optimizer(OptimConfig(name=name, lr=0.1, fused=fused), [{"params": [weights]}])
        assert all(bool(group["fused"]) == fused for group in optimizer.param_groups)
        for _ in range(3):
            weights.grad = weights.detach().sin()
            optimizer.step()
        results.append(weights.detach())
    torch.testing.assert_close(results[1], results[0])


def test_gathered_batch_norm_of_several_processes_on_cpus_is_refused_with_what_to_do(monkeypatch):
    """PyTorch says at the first batch that its input is not on a GPU, and nothing of the key."""
    normed, plain = torch.nn.Sequential(torch.nn.BatchNorm1d(2)), torch.nn.Sequential(torch.nn.Linear(2, 2))
    cpu = torch.device("cpu")
    assert isinstance(device_settings.synced_batch_norms(normed, cpu)[0], torch.nn.SyncBatchNorm)
    monkeypatch.setattr(device_settings, "world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"gathers batch norm on GPUs alone\. .* add sync_batch_norm=false"):
        device_settings.synced_batch_norms(normed, cpu)
    assert device_settings.synced_batch_norms(plain, cpu) is plain
