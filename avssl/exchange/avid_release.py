"""Published AVID-CMA checkpoints (`*.pth.tar`) -> a finished run under our names.

The file is a dict. Its "model" entry holds the networks, every name under `module.` (nn.DataParallel); another entry
holds the criterion's buffers: two banks with a row per sample, the partition constant `avg_exp_score` and, after CMA,
the positive sets. The architecture is not in the file: the encoders' depths and widths follow from the shapes. Nor are
the per-bin statistics of the spectrogram. Every tensor must be accounted for, or nothing is written.
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

from avssl.models import create_encoder
from avssl.models.heads import mlp
from avssl.models.video import BLOCKS_PER_STAGE

PUBLISHED_DEPTH, PUBLISHED_WIDTH = 18, 64

PUBLISHED_PROJECTOR = (512, 512, 512, 128)


@dataclass(frozen=True)
class Architecture:
    """Options of the two encoders and the projectors' widths after the encoders."""

    encoders: dict[str, dict[str, Any]]  # {modality: {"name": ..., options}}
    hidden_dims: tuple[int, ...]
    embedding_dim: int
    small: bool


def infer(state: Mapping[str, torch.Tensor], *, small: bool) -> Architecture:
    """What the tensors `encoders.*` and `projectors.*` say; the published network where they do not say."""
    width = {modality: _width(state, modality) for modality in ("video", "audio")}
    encoders = {
        "video": {"name": "avid_video", "depth": _depth(state), "width": width["video"], "stem_pool": not small},
        "audio": {"name": "avid_audio", "width": width["audio"], "first_stride": 1 if small else 2},
    }
    widths = _projector_widths(state)
    return Architecture(encoders, widths[1:-1], widths[-1], small)


def skeleton(architecture: Architecture) -> dict[str, torch.Size]:
    """{name: shape} of everything that such a model has."""
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


def _projector_widths(state: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    """Of the video projector, input to output; linear layers are modules 0, 2, 4, ..."""
    layers: dict[int, torch.Tensor] = {}
    for name, value in state.items():
        if (match := re.fullmatch(r"projectors\.video\.(\d+)\.weight", name)) and value.ndim == 2:
            layers[int(match[1])] = value
    places = sorted(layers)
    if not places or places != list(range(0, 2 * len(places), 2)):
        return PUBLISHED_PROJECTOR
    return (layers[0].shape[1], *(layers[place].shape[0] for place in places))


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
# Words in a bank's name that say whose it is; the video is the authors' first view.
BANK_WORDS = {"video": ("video", "view1"), "audio": ("audio", "view2")}
NOT_CRITERION = ("model", "optimizer")


@dataclass
class Published:
    """What was found in a file: tensors under our names without `loss.`, what is ours to expect, and the report."""

    architecture: Architecture
    tensors: dict[str, torch.Tensor]
    num_samples: int  # rows of the banks; 1 when the file has none
    epoch: int | None
    sha256: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    @property
    def matches(self) -> bool:
        """True when nothing is missing, unexpected or of another shape."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def report(self, show: int = 8) -> str:
        """The counts as lines, with the names of what does not match."""
        lines = [f"loaded: {len(self.loaded)} tensors"]
        for title in ("missing", "unexpected", "wrong_shape", "ignored"):
            names = getattr(self, title)
            shown = ": " + ", ".join(names[:show]) + (" ..." if len(names) > show else "") if names else ""
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
        banks: {"video": name, "audio": name} of the banks, where their names do not say whose they are.
        ignore: patterns (`*` and `?`) of tensors that may be left out.

    Raises FileNotFoundError, or ValueError for a file that is not such a checkpoint. What does not match is in the
    result, for the caller to refuse.
    """
    content, digest = _load(Path(file))
    given = _tensors(content["model"])
    model = {_without_module(name): value for name, value in given.items()}
    if len(model) < len(given):
        raise ValueError(
            f"{file}: some tensors of 'model' are there twice, with `module.` before their name and without"
        )
    ours = {_renamed(name): value for name, value in model.items()}
    architecture = infer(ours, small=small)
    expected = skeleton(architecture)
    found = Published(architecture, {}, 1, _epoch(content), digest)
    for name, published_name in zip(ours, model, strict=True):
        if any(fnmatchcase(published_name, pattern) for pattern in ignore):
            found.ignored.append(published_name)
        elif name not in expected:
            found.unexpected.append(published_name)
        elif expected[name] != ours[name].shape:
            shapes = f"{tuple(ours[name].shape)} in place of {tuple(expected[name])}"
            found.wrong_shape.append(f"{published_name} ({shapes})")
        else:
            found.tensors[name] = ours[name]
            found.loaded.append(published_name)
    found.missing = [_published_name(name) for name in expected if name not in ours]
    _match_criterion(found, content, banks or {}, ignore)
    broken = [name for name, value in found.tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ValueError(f"{file}: {len(broken)} tensors hold NaN or infinite values, the first is {broken[0]}")
    return found


def _match_criterion(
    found: Published, content: Mapping[str, Any], banks: Mapping[str, str], ignore: Sequence[str]
) -> None:
    """Sort the criterion's buffers into banks, partition constant and positive sets, or into `unexpected`."""
    state = {
        f"{entry}.{_without_module(key)}": value
        for entry, values in content.items()
        if entry not in NOT_CRITERION and isinstance(values, Mapping)
        for key, value in _tensors(values).items()
    }
    found.ignored += [name for name in state if any(fnmatchcase(name, pattern) for pattern in ignore)]
    left = {name: value for name, value in state.items() if name not in found.ignored}
    for name in [name for name, value in left.items() if name.endswith(PARTITION_NAME) and value.numel() == 1]:
        _take(found, "partition", name, left.pop(name).float().reshape(()))  # one process wrote it with shape (1,)
    _match_banks(found, left, banks)
    for name, value in list(left.items()):
        if value.ndim == 2 and not value.is_floating_point() and value.shape[0] == found.num_samples:
            _take(found, "positives", name, left.pop(name).long())
    found.unexpected += list(left)


def _match_banks(found: Published, left: dict[str, torch.Tensor], banks: Mapping[str, str]) -> None:
    """Move the two banks out of `left`; a name that is given counts, else what the names say."""
    width = found.architecture.embedding_dim
    rows = [name for name, value in left.items() if value.is_floating_point() and value.shape[1:] == (width,)]
    for modality, words in BANK_WORDS.items():
        given = banks.get(modality, "")
        named = [name for name in rows if (name == given if given else any(word in name.lower() for word in words))]
        if len(named) == 1:
            _take(found, f"banks.{modality}.rows", named[0], left.pop(named[0]).float())
        elif given or rows:
            found.missing.append(given or f"a bank whose name says {modality}")
    sizes = {value.shape[0] for name, value in found.tensors.items() if name.startswith("banks.")}
    if len(sizes) > 1:
        found.wrong_shape.append(f"the banks, of {' and '.join(map(str, sorted(sizes)))} rows")
    found.num_samples = max(sizes, default=1)


def _take(found: Published, ours: str, theirs: str, value: torch.Tensor) -> None:
    if ours in found.tensors:
        found.unexpected.append(theirs)
        return
    found.tensors[ours] = value
    found.loaded.append(theirs)


def _load(file: Path) -> tuple[dict[str, Any], str]:
    """The file's dict and the SHA-256 of its bytes. Opened with weights_only: nothing in it is run."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; download the published checkpoint and give its path")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of the archive, of the restricted unpickler, of tensors: they share no base class
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{file} was not opened: it is damaged or no file of torch.save, or it holds objects beside tensors and "
            f"plain values, which could run code ({reason}). Download it again, or ask for a file of plain state dicts"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), Mapping):
        given = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{file} is not an AVID-CMA checkpoint: it must be a dict with a state dict called 'model', and is "
            f"{given[:300] or 'empty'}"
        )
    if not _tensors(content["model"]):
        raise ValueError(f"{file} is not an AVID-CMA checkpoint: its 'model' holds no tensors")
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return content, digest.hexdigest()


def _tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _without_module(name: str) -> str:
    return name.removeprefix("module.")


def _renamed(name: str) -> str:
    """video_model.conv1.0.weight -> encoders.video.conv1.0.weight; an unknown name stays."""
    for theirs, ours in PREFIXES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _published_name(name: str) -> str:
    """The way back, for messages."""
    for theirs, ours in PREFIXES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _epoch(content: Mapping[str, Any]) -> int | None:
    epoch = content.get("epoch")
    return epoch if isinstance(epoch, int) else None
