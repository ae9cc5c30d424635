"""The frozen teacher of a loss that has one (`loss.teacher`): opened before a run begins, and in no state of it.

    loss.teacher.run=runs/simclr             a run or a public model: it looks at every batch, with views of its own
    loss.teacher.encoder={name: resnet50, weights: FILE}          the same with an encoder of the registry
    loss.teacher.embeddings=embeddings/      what `avssl embed` wrote for these samples: read once, by key

Batches then have its outputs beside their views (data/loader.py). A teacher that looks sees the test view of the
seconds that the students see. config.yaml gets its modality, the dim of its output and a fingerprint of its weights or
rows; a run that goes on opens it again and refuses another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avssl import config
from avssl.config import RunConfig
from avssl.data.loader import Targets
from avssl.embedding.embedder import Embedder
from avssl.embedding.index import FolderIndex
from avssl.embedding.loading import hash_of_weights
from avssl.embedding.parquet import read_row_groups
from avssl.embedding.public import names_public_model
from avssl.embedding.table import MODALITIES
from avssl.files.plain_text import brief
from avssl.losses.configs import TeacherConfig
from avssl.losses.distil import TEACHER
from avssl.losses.public_model import PublicModel
from avssl.models import public
from avssl.models.create import create_encoder
from avssl.models.registry import ENCODERS
from avssl.shards.shard_set import ShardSet
from avssl.transforms.config import ViewsConfig
from avssl.transforms.frame_tensors import to_device
from avssl.transforms.raw_view import RawView
from avssl.transforms.view_maker import ViewMaker
from avssl.types import View

NAMED_KEYS = 5  # in a message
SOURCES = ("run", "encoder", "embeddings")


class NetworkTeacher:
    """Outputs of a network for the views of a batch: its features, or what its head makes of them.

    autocast: the context in which it computes. Attributes: name, beside: as of Targets; dim, fingerprint.
    """

    name = TEACHER

    def __init__(
        self, embedder: Embedder, modality: str, output: str, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.embedder, self.modality, self.output, self.autocast = embedder, modality, output, autocast
        embedder.loss.requires_grad_(False)
        view = View(TEACHER, modality, "test")  # type: ignore[arg-type]
        self.beside: tuple[View, ViewsConfig] | None = (view, embedder.config.views)
        self.dim = embedder.dims([modality])[modality][0 if output == "feature" else 1]
        self.fingerprint = embedder.weights_hash

    @torch.no_grad()
    def rows(self, index: torch.Tensor, raw: RawView | None, device: torch.device) -> torch.Tensor:  # noqa: ARG002
        """float32 (B, dim) of the raw views of a batch."""
        assert raw is not None  # the loader reads what `beside` names
        view = self.embedder.views({TEACHER: raw}, device)[TEACHER]
        with self.autocast():
            features: torch.Tensor = self.embedder.loss.encoders[self.modality](view)
        features = features.float()
        return features if self.output == "feature" else self.embedder.loss.embedding(self.modality, features)


class StoredTeacher:
    """Outputs that were computed beforehand: float32 (N, dim) in host memory, a row per sample of the shards."""

    name = TEACHER
    beside: tuple[View, ViewsConfig] | None = None

    def __init__(self, table: torch.Tensor, fingerprint: str) -> None:
        self.table, self.dim, self.fingerprint = table, table.shape[1], fingerprint

    def rows(self, index: torch.Tensor, raw: RawView | None, device: torch.device) -> torch.Tensor:  # noqa: ARG002
        """float32 (B, dim) of these samples."""
        return to_device(self.table[index], device)


def open_teacher(
    cfg: RunConfig, shards: ShardSet, device: torch.device, autocast: Callable[[], AbstractContextManager[Any]]
) -> tuple[Targets | None, str]:
    """(the teacher of cfg.loss, a line that says what it is); (None, "") for a loss without one.

    Completes cfg.loss.teacher. ValueError for none or several sources, for a teacher that does not read what it is to
    read, or that is another one than the configuration says; for samples without rows, some of which it names.
    """
    given = getattr(cfg.loss, "teacher", None)
    if not isinstance(given, TeacherConfig):
        return None, ""
    named = [source for source in SOURCES if getattr(given, source)]
    if len(named) != 1:
        raise ValueError(
            f"loss.teacher has {' and '.join(named) or 'no source'}; give one of loss.teacher.run=RUN (or a public "
            "model), loss.teacher.encoder={name: ..., weights: FILE} and loss.teacher.embeddings=FOLDER (of "
            "`avssl embed`)"
        )
    students = list(getattr(cfg.loss, "modalities", ()))
    if given.embeddings:
        teacher: NetworkTeacher | StoredTeacher = _stored(given, students, shards)
        what = f"rows of {shards.num_samples} samples in {given.embeddings}"
    else:
        embedder = _network(given, students, str(device))
        modality = _modality(given, students, embedder.modalities, str(embedder.config.run))
        teacher = NetworkTeacher(embedder, modality, given.output, autocast)
        what = f"{embedder.config.run}, which looks at every batch"
    for name in ("dim", "fingerprint"):
        known, found = getattr(given, name), getattr(teacher, name)
        if known not in (0, "", found):
            raise ValueError(f"loss.teacher.{name} is {known}, and the teacher has {found}: it is another teacher")
        setattr(given, name, found)
    return teacher, f"teacher: {what}; its {given.modality} {given.output} has {given.dim} dimensions"


def _modality(given: TeacherConfig, students: Sequence[str], known: Sequence[str], name: str) -> str:
    """What the teacher looks at; also set in the configuration."""
    if given.modality and given.modality not in known:
        raise ValueError(
            f"loss.teacher.modality is {brief(given.modality)}; {name} has {', '.join(known) or 'nothing of the kind'}"
        )
    given.modality = given.modality or next((student for student in students if student in known), known[0])
    return given.modality


def _network(given: TeacherConfig, students: Sequence[str], device: str) -> Embedder:
    """The networks of a run, a public model or an encoder, on the device. Sets the license of a public model."""
    section = dict(given.encoder)
    name = given.run or str(section.pop("name", ""))
    if not name:
        raise ValueError("loss.teacher.encoder has no name; write {name: resnet50, weights: FILE}")
    if given.encoder and not public.is_public(name):
        return _registered(given, name, section, device)
    if names_public_model(name):
        known = [name for name in public.modalities(name, pretrained=True) if name in MODALITIES]
        modality = given.modality or next((student for student in students if student in known), known[0])
        changes = [f"encoders.{modality}.{key}={json.dumps(value)}" for key, value in section.items()]
        embedder = Embedder.from_run(name, device=device, changes=[*changes, *_view_changes(given, modality)])
        given.license = str(embedder.config.encoders.get(modality, {}).get("license", ""))
        return embedder
    return Embedder.from_run(name, device=device, changes=_view_changes(given, given.modality or students[0]))


def _registered(given: TeacherConfig, name: str, section: dict[str, Any], device: str) -> Embedder:
    """An encoder of the registry with weights that a file or its own code gives it."""
    entry = ENCODERS.find(name)
    if not section.get("weights") and not ENCODERS.plugin_of(name):
        how = "add weights: FILE" if "weights" in entry.options else "it takes no weights by itself"
        raise ValueError(
            f"loss.teacher.encoder: {name} has random weights; {how}, or name a run with it, loss.teacher.run=RUN"
        )
    modality = entry.modality
    if modality == "audio":
        raise ValueError(
            f"loss.teacher.encoder: {name} reads spectrograms, which are normalized by the statistics of its training; "
            "name a run or a public model, which has them: loss.teacher.run=RUN"
        )
    encoder = create_encoder(name, modality, **section)
    changes = [f"loss.modalities=[{modality}]", f"encoders.{modality}.name={json.dumps(name)}"]
    cfg = config.parse(RunConfig, ["loss.name=public_model", *changes, *_view_changes(given, modality)])
    cfg.run = name
    loss = PublicModel(cfg.loss, {modality: encoder}, 1)
    state = {f"loss.{key}": value for key, value in loss.state_dict().items()}
    return Embedder(cfg, loss, ViewMaker(cfg.views, [modality]), device, hash_of_weights(state))


def _view_changes(given: TeacherConfig, modality: str) -> list[str]:
    return [f"views.{modality}.{key}={json.dumps(value)}" for key, value in given.views.items()]


def _stored(given: TeacherConfig, students: Sequence[str], shards: ShardSet) -> StoredTeacher:
    """The rows of a folder for the samples of the shards."""
    folder = Path(given.embeddings)
    if given.views:
        raise ValueError("loss.teacher.views: rows of loss.teacher.embeddings were computed; embed with other views")
    index = FolderIndex.read(folder)
    known = [modality for modality in MODALITIES if f"{modality}_{given.output}" in index.widths]
    modality = _modality(given, students, known, str(folder)) if known else ""
    if not modality:
        raise ValueError(f"{folder} has no {given.output}s; its columns are {', '.join(index.widths) or 'none'}")
    sums, counts = _sums_by_key(folder, index, f"{modality}_{given.output}", shards)
    if missing := [key for key, count in zip(shards.keys, counts, strict=True) if not count]:
        names = ", ".join(missing[:NAMED_KEYS]) + (", ..." if len(missing) > NAMED_KEYS else "")
        skipped = f"; it skipped {index.num_skipped} sources, {folder}/skipped.jsonl says why" * (index.num_skipped > 0)
        raise ValueError(
            f"loss.teacher.embeddings={folder} has no {modality} {given.output} for {len(missing)} of {len(counts)} "
            f"samples of {shards.location}: {names}{skipped}. Embed these shards with the teacher "
            f"(avssl embed RUN {shards.location} --out FOLDER), or leave the samples out (data.shards=[{{path: ..., "
            "keys: FILE}])"
        )
    digest = hashlib.sha256("".join([*(record.sha256 for record in index.files), modality, given.output]).encode())
    return StoredTeacher(torch.from_numpy(sums / counts[:, None].astype(np.float32)), digest.hexdigest()[:16])


def _sums_by_key(
    folder: Path, index: FolderIndex, column: str, shards: ShardSet
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(sums over the windows of each sample, float32 (N, D); the number of its windows, int64 (N,)) of a column."""
    rows = {key: row for row, key in enumerate(shards.keys)}
    if len(rows) != shards.num_samples:
        raise ValueError(
            f"{shards.location} has several samples of one key, so that rows by key are ambiguous; name a network: "
            "loss.teacher.run=RUN"
        )
    sums = np.zeros((shards.num_samples, index.widths[column]), np.float32)
    counts = np.zeros(shards.num_samples, np.int64)
    for path in index.paths(folder):
        for _, columns in read_row_groups(path, ["key", column]):
            vectors = columns[column]
            if vectors.ndim != 2 or vectors.shape[1] != sums.shape[1]:
                raise ValueError(f"{path}: {column} has another dim than index.json says; embed again with --overwrite")
            numbers = np.array([rows.get(key, -1) for key in columns["key"]], np.int64)
            is_used = (numbers >= 0) & np.isfinite(vectors).all(axis=1)
            np.add.at(sums, numbers[is_used], vectors[is_used])
            np.add.at(counts, numbers[is_used], 1)
    return sums, counts
