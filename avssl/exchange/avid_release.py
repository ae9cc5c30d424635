"""Reads published AVID-CMA checkpoints (`*.pth.tar`) and gives their tensors the names of a run.

The file is a dict. Its "model" entry holds the networks, every name prefixed with `module.` (nn.DataParallel); another
entry holds the criterion's buffers: two banks with a row per sample, the partition constant `avg_exp_score` and, after
CMA, the positive sets. The file does not hold the architecture, so that depths and widths of the encoders are inferred
from the shapes, nor the statistics of the spectrogram per bin. Every tensor must match, or nothing is written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from avssl.models.create import create_encoder
from avssl.models.heads import mlp
from avssl.models.video import BLOCKS_PER_STAGE

PUBLISHED_DEPTH, PUBLISHED_WIDTH = 18, 64
PUBLISHED_PROJECTOR = (512, 512, 512, 128)
LICENSE = "CC-BY-NC-4.0"
LICENSE_NOTE = (
    "Published AVID-CMA weights are licensed CC BY-NC 4.0 by their authors: no commercial use, of these weights or of "
    "anything trained from them; name the authors (Morgado, Vasconcelos, Misra, CVPR 2021)."
)
PREFIXES = {
    "video_model.": "encoders.video.",
    "audio_model.": "encoders.audio.",
    "video_proj.projection.": "projectors.video.",
    "audio_proj.projection.": "projectors.audio.",
}
PARTITION_NAME = "avg_exp_score"
# Words in the name of a bank that show its modality; the authors' first view is the video.
BANK_WORDS = {"video": ("video", "view1"), "audio": ("audio", "view2")}
NOT_CRITERION = ("model", "optimizer")
NAMED_TENSORS = 8  # in a report


@dataclass(frozen=True)
class Architecture:
    """Options of the two encoders, and dims of the projectors after the encoder."""

    encoders: dict[str, dict[str, Any]]  # {modality: {"name": ..., options}}
    hidden_dims: tuple[int, ...]
    embedding_dim: int
    small: bool


def infer(state: Mapping[str, torch.Tensor], *, small: bool) -> Architecture:
    """The architecture according to the shapes of `encoders.*` and `projectors.*`; by default the published one."""
    width = {modality: _width(state, modality) for modality in ("video", "audio")}
    encoders = {
        "video": {"name": "avid_video", "depth": _depth(state), "width": width["video"], "stem_pool": not small},
        "audio": {"name": "avid_audio", "width": width["audio"], "first_stride": 1 if small else 2},
    }
    dims = _projector_dims(state)
    return Architecture(encoders, dims[1:-1], dims[-1], small)


def skeleton(architecture: Architecture) -> dict[str, torch.Size]:
    """{name: shape} of all tensors of a model with this architecture."""
    with torch.device("meta"):
        encoders = {modality: create_encoder(**options) for modality, options in architecture.encoders.items()}
        projectors = {
            modality: mlp((int(getattr(encoder, "dim")), *architecture.hidden_dims, architecture.embedding_dim))  # noqa: B009
            for modality, encoder in encoders.items()
        }
        whole = nn.ModuleDict({"encoders": nn.ModuleDict(encoders), "projectors": nn.ModuleDict(projectors)})
    return {name: value.shape for name, value in whole.state_dict().items()}


def _width(state: Mapping[str, torch.Tensor], modality: str) -> int:
    stem = state.get(f"encoders.{modality}.conv1.0.weight")
    return PUBLISHED_WIDTH if stem is None or stem.ndim == 0 else max(1, stem.shape[0])


def _depth(state: Mapping[str, torch.Tensor]) -> int:
    blocks = [set[int]() for _ in range(4)]
    for name in state:
        if match := re.match(r"encoders\.video\.conv([2-5])x\.(\d+)\.", name):
            blocks[int(match[1]) - 2].add(int(match[2]))
    counts = tuple(map(len, blocks))
    return next((depth for depth, numbers in BLOCKS_PER_STAGE.items() if numbers == counts), PUBLISHED_DEPTH)


def _projector_dims(state: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    """Dims of the video projector from input to output; its linear layers are modules 0, 2, 4, ..."""
    layers: dict[int, torch.Tensor] = {}
    for name, value in state.items():
        if (match := re.fullmatch(r"projectors\.video\.(\d+)\.weight", name)) and value.ndim == 2:
            layers[int(match[1])] = value
    numbers = sorted(layers)
    if not numbers or numbers != list(range(0, 2 * len(numbers), 2)):
        return PUBLISHED_PROJECTOR
    return (layers[0].shape[1], *(layers[number].shape[0] for number in numbers))


@dataclass
class Published:
    """Content of a published file: tensors under our names without `loss.`, and which names matched."""

    architecture: Architecture
    tensors: dict[str, torch.Tensor]
    num_samples: int  # rows of the banks; 1 if the file has none
    epoch: int | None
    sha256: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    @property
    def matches(self) -> bool:
        """True if no tensor is missing, unexpected or of another shape."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def report(self) -> str:
        """Lines with the number of tensors of each kind, and up to NAMED_TENSORS names of those that do not match."""
        lines = [f"loaded: {len(self.loaded)} tensors"]
        for title in ("missing", "unexpected", "wrong_shape", "ignored"):
            names = getattr(self, title)
            shown = (
                ": " + ", ".join(names[:NAMED_TENSORS]) + (" ..." if len(names) > NAMED_TENSORS else "")
                if names
                else ""
            )
            lines.append(f"{title.replace('_', ' ')}: {len(names)}{shown}")
        return "\n".join(lines)


def read_published(
    file: str | Path, *, small: bool = False, banks: Mapping[str, str] | None = None, ignore: Sequence[str] = ()
) -> Published:
    """Read and match a published checkpoint.

    Args:
        file: the `.pth.tar`.
        small: the networks of the paper's analysis (no max-pool after the video stem, first audio stride 1), which
            the shapes cannot tell from the large ones.
        banks: {"video": name, "audio": name} of the banks, if their names do not show the modality.
        ignore: patterns (`*` and `?`) of tensors that are not imported.

    Raises FileNotFoundError, or ValueError for a file that is not such a checkpoint. Tensors that do not match are
    listed in the result; the caller refuses them.
    """
    content, digest = _load(Path(file))
    stored = _tensors(content["model"])
    model = {_without_module(name): value for name, value in stored.items()}
    if len(model) < len(stored):
        raise ValueError(
            f"{file}: some tensors of 'model' are stored twice, with `module.` before their name and without"
        )
    ours = {_renamed(name): value for name, value in model.items()}
    architecture = infer(ours, small=small)
    expected = skeleton(architecture)
    published = Published(architecture, {}, 1, _epoch(content), digest)
    for name, published_name in zip(ours, model, strict=True):
        if any(fnmatchcase(published_name, pattern) for pattern in ignore):
            published.ignored.append(published_name)
        elif name not in expected:
            published.unexpected.append(published_name)
        elif expected[name] != ours[name].shape:
            shapes = f"{tuple(ours[name].shape)} in place of {tuple(expected[name])}"
            published.wrong_shape.append(f"{published_name} ({shapes})")
        else:
            published.tensors[name] = ours[name]
            published.loaded.append(published_name)
    published.missing = [_published_name(name) for name in expected if name not in ours]
    _match_criterion(published, content, banks or {}, ignore)
    broken = [
        name for name, value in published.tensors.items() if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise ValueError(f"{file}: {len(broken)} tensors hold NaN or infinite values, the first is {broken[0]}")
    return published


def _match_criterion(
    published: Published, content: Mapping[str, Any], banks: Mapping[str, str], ignore: Sequence[str]
) -> None:
    """Assign the criterion's buffers to banks, partition constant and positive sets; the others are unexpected."""
    state = {
        f"{entry}.{_without_module(key)}": value
        for entry, values in content.items()
        if entry not in NOT_CRITERION and isinstance(values, Mapping)
        for key, value in _tensors(values).items()
    }
    published.ignored += [name for name in state if any(fnmatchcase(name, pattern) for pattern in ignore)]
    rest = {name: value for name, value in state.items() if name not in published.ignored}
    for name in [name for name, value in rest.items() if name.endswith(PARTITION_NAME) and value.numel() == 1]:
        _take(published, "partition", name, rest.pop(name).float().reshape(()))  # one process wrote it with shape (1,)
    _match_banks(published, rest, banks)
    for name, value in list(rest.items()):
        if value.ndim == 2 and not value.is_floating_point() and value.shape[0] == published.num_samples:
            _take(published, "positives", name, rest.pop(name).long())
    published.unexpected += list(rest)


def _match_banks(published: Published, rest: dict[str, torch.Tensor], banks: Mapping[str, str]) -> None:
    """Move the two banks out of `rest`, by the names in `banks`, otherwise by the words in their own names."""
    dim = published.architecture.embedding_dim
    candidates = [name for name, value in rest.items() if value.is_floating_point() and value.shape[1:] == (dim,)]
    for modality, words in BANK_WORDS.items():
        bank = banks.get(modality, "")
        names = [name for name in candidates if (name == bank if bank else any(word in name.lower() for word in words))]
        if len(names) == 1:
            _take(published, f"banks.{modality}.rows", names[0], rest.pop(names[0]).float())
        elif bank or candidates:
            published.missing.append(bank or f"a bank whose name says {modality}")
    sizes = {value.shape[0] for name, value in published.tensors.items() if name.startswith("banks.")}
    if len(sizes) > 1:
        published.wrong_shape.append(f"the banks, of {' and '.join(map(str, sorted(sizes)))} rows")
    published.num_samples = max(sizes, default=1)


def _take(published: Published, name: str, published_name: str, value: torch.Tensor) -> None:
    if name in published.tensors:
        published.unexpected.append(published_name)
        return
    published.tensors[name] = value
    published.loaded.append(published_name)


def _load(file: Path) -> tuple[dict[str, Any], str]:
    """The dict in the file and the SHA-256 of its bytes. It is read with weights_only, so that no code in it runs."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; download the published checkpoint and give its path")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # errors of archive, restricted unpickler and tensors share no base class
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{file} was not opened: it is damaged, or not written by torch.save, or it holds objects besides tensors "
            f"and plain values, which could run code ({reason}). Download it again, or ask for a file of plain state "
            "dicts"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), Mapping):
        keys = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{file} is not an AVID-CMA checkpoint: it must be a dict with a state dict called 'model', and is "
            f"{keys[:300] or 'empty'}"
        )
    if not _tensors(content["model"]):
        raise ValueError(f"{file} is not an AVID-CMA checkpoint: its 'model' holds no tensors")
    with file.open("rb") as stream:
        return content, hashlib.file_digest(stream, "sha256").hexdigest()


def _tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _without_module(name: str) -> str:
    return name.removeprefix("module.")


def _renamed(name: str) -> str:
    """video_model.conv1.0.weight -> encoders.video.conv1.0.weight; an unknown name stays."""
    for published, prefix in PREFIXES.items():
        if name.startswith(published):
            return prefix + name.removeprefix(published)
    return name


def _published_name(name: str) -> str:
    """The inverse of `_renamed`, for messages."""
    for published, prefix in PREFIXES.items():
        if name.startswith(prefix):
            return published + name.removeprefix(prefix)
    return name


def _epoch(content: Mapping[str, Any]) -> int | None:
    epoch = content.get("epoch")
    return epoch if isinstance(epoch, int) else None
