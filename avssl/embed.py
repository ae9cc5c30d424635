"""Embeddings of media with a finished run: one row per window, all modalities on one time grid, or one per picture.

    embedder = avssl.load_embedder("runs/avid_cma")
    table, failures = embedder.embed(["holiday.mp4"], window_seconds=2.0, stride_seconds=1.0)
    table.video_embedding, table.audio_embedding, table.start_seconds
    avssl.load_embedder("runs/simclr").embed_image("holiday.jpg").image_embedding

A window's embedding is the mean of the unit embeddings of the clips that fill it, made unit again: a window of 2 s
holds four of AVID's video clips of 0.5 s and one audio clip of 2 s, evenly spaced; a clip longer than the window is
centred on it. Nothing is random: the same input gives the same rows, whatever the batch size or the number of workers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from avssl import checkpoint, losses
from avssl.config import RunConfig, load_run
from avssl.data.shards import ShardSet
from avssl.data.views import RawView, ViewMaker
from avssl.data.windows import Media, Windows, WindowStream, open_media, resolve_sources
from avssl.models import create_encoder
from avssl.tables import MODALITIES, EmbeddingTable
from avssl.types import MediaError

EMBEDDING_PARTS = ("encoders", "projectors", "predictors")  # of a loss: what embeddings are a function of


class Embedder:
    """Encoders, projectors and view statistics of a run, in eval mode. Build it with `from_run`.

    Attributes: config (the run's), modalities, device, weights_hash.
    """

    def __init__(self, config: RunConfig, loss: losses.Loss, views: ViewMaker, device: str, weights_hash: str) -> None:
        self.config, self.views, self.weights_hash = config, views.to(device).eval(), weights_hash
        self.device = torch.device(device)
        self.loss = loss.to(device).eval()
        self.encoders, self.projectors = loss.encoders, loss.projectors
        self.modalities = tuple(m for m in MODALITIES if m in loss.encoders)

    @classmethod
    def from_run(cls, run: str | Path, *, device: str = "cpu", untrained: bool = False) -> Embedder:
        """Load a finished run folder. untrained=True takes random weights from its seed: a baseline."""
        config = load_run(run)
        weights = checkpoint.read_weights(run)
        loss_class = losses.get(config.loss.name)
        modalities = loss_class.modalities(config.loss)
        torch.manual_seed(config.seed)
        # A file of weights that the run began with was needed then; it is again only to begin as the run did.
        unneeded = () if untrained else ("weights",)
        options = {m: {k: v for k, v in config.encoders[m].items() if k not in unneeded} for m in modalities}
        encoders = {modality: create_encoder(**options[modality]) for modality in modalities}
        provenance = json.loads((Path(run) / checkpoint.PROVENANCE_FILE).read_text())
        loss = loss_class(config.loss, encoders, provenance["data"]["num_samples"])
        views = ViewMaker(config.views, modalities)
        parts: list[tuple[nn.Module, str]] = [(views, "views.")]
        if not untrained:
            parts += [(getattr(loss, name), f"loss.{name}.") for name in EMBEDDING_PARTS]
        for module, prefix in parts:
            own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
            module.load_state_dict(own)
        digest = "untrained" if untrained else _digest(weights)
        return cls(config, loss, views, device, digest)

    def embed(
        self,
        sources: ShardSet | str | Path | Sequence[str | Path],
        *,
        window_seconds: float | None = None,
        stride_seconds: float | None = None,
        modalities: Sequence[str] | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        progress: bool = False,
    ) -> tuple[EmbeddingTable, dict[str, MediaError]]:
        """Rows of every window of every source, in the sources' order, and what failed by key.

        Args:
            sources: a shard folder, files, or folders of files.
            window_seconds: default the run's audio clip length, or its video clip's if it has no sound;
                stride_seconds: default the window. Pictures have neither.
            modalities: default all that the run has.
            batch_size: clips per forward pass; num_workers: decoding processes, 0 decodes here.
        """
        wanted = self._checked(modalities or self.modalities)
        grid = self._grid(wanted, window_seconds, stride_seconds)
        found = resolve_sources(sources, wanted)
        stream = WindowStream(
            found, self.config.views, wanted, grid.get("window_seconds", 0.0), grid.get("stride_seconds", 0.0)
        )
        loader = DataLoader(
            stream,
            batch_size=None,
            num_workers=num_workers,
            multiprocessing_context="forkserver" if num_workers else None,
        )
        collector = _Collector(self, wanted, batch_size)
        with tqdm(total=len(stream), unit="clip", desc="embed", disable=not progress, mininterval=1.0) as bar:
            seen = -1
            for number, item in loader:
                bar.update(int(number != seen))
                seen = number
                key = item.media.key if isinstance(item, Windows) else stream.name_of(number)
                collector.add(number, key, item)
        metadata = {
            "run": str(self.config.run),
            "weights": self.weights_hash,
            **grid,
            "normalised": True,
        }
        return collector.table(metadata), collector.failures

    def _checked(self, modalities: Sequence[str]) -> tuple[str, ...]:
        """The modalities; ValueError for one that the run has not."""
        unknown = [name for name in modalities if name not in self.modalities]
        if unknown:
            raise ValueError(f"this run has no {', '.join(unknown)} encoder; it has {', '.join(self.modalities)}")
        return tuple(modalities)

    def _grid(self, wanted: Sequence[str], window: float | None, stride: float | None) -> dict[str, float]:
        """{"window_seconds", "stride_seconds"}, nothing for pictures alone. ValueError for windows of pictures."""
        if tuple(wanted) == ("image",):
            if window or stride:
                raise ValueError(
                    f"window_seconds={window} and stride_seconds={stride} are given, but this run embeds pictures, "
                    "which have no windows; leave both out"
                )
            return {}
        views = self.config.views
        clip_seconds = views.audio.seconds if "audio" in self.modalities else views.video.num_frames / views.video.fps
        return {"window_seconds": window or clip_seconds, "stride_seconds": stride or window or clip_seconds}

    def embed_image(self, path: str | Path, **options: Any) -> EmbeddingTable:
        """The row of one picture; raises MediaError where `embed` reports."""
        return self._embed_one(path, "image", options)

    def embed_video(self, path: str | Path, **options: Any) -> EmbeddingTable:
        """Video rows of one file; raises MediaError where `embed` reports."""
        return self._embed_one(path, "video", options)

    def embed_audio(self, path: str | Path, **options: Any) -> EmbeddingTable:
        """Audio rows of one file; raises MediaError where `embed` reports."""
        return self._embed_one(path, "audio", options)

    def _embed_one(self, path: str | Path, modality: str, options: dict[str, Any]) -> EmbeddingTable:
        self._checked([modality])
        media = open_media(path, str(path), [modality])  # what cannot be opened at all raises here, with its reason
        if modality not in media.sources:
            raise MediaError(f"no_{modality}", f"{path}: has no {modality}")  # type: ignore[arg-type]
        table, failures = self.embed(path, modalities=[modality], **options)
        for error in failures.values():
            raise error
        return table

    @torch.inference_mode()
    def encode(self, modality: str, raw: RawView) -> tuple[np.ndarray, np.ndarray]:
        """Raw clips -> (features (n, F), unit embeddings (n, D)), float32."""
        view = self.views({"view": raw}, self.device)["view"]
        feature = self.loss.encoders[modality](view)
        return feature.float().cpu().numpy(), self.loss.embedding(modality, feature).cpu().numpy()


class _Collector:
    """Gathers decoded windows into batches of clips, runs them, and keeps the rows."""

    def __init__(self, embedder: Embedder, modalities: Sequence[str], batch_size: int) -> None:
        self.embedder, self.modalities, self.batch_size = embedder, modalities, batch_size
        self.failures: dict[str, MediaError] = {}
        self.rows: list[tuple[int, Media, np.ndarray, dict[str, np.ndarray]]] = []
        self.waiting: dict[str, list[RawView]] = {name: [] for name in modalities}
        self.owners: dict[str, list[int]] = {name: [] for name in modalities}
        self.outputs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in modalities}
        self.num_windows = 0

    def add(self, number: int, key: str, item: Windows | MediaError) -> None:
        """Take the next decoded windows of a source, or its failure."""
        if isinstance(item, MediaError):
            self.failures[key] = item
            return
        # Media travel with their bytes no further than this.
        media = Media(key, item.media.index, labels=item.media.labels)
        self.rows.append((number, media, item.grid, item.has))
        for name in self.modalities:
            clips = item.clips[name]
            if clips is not None:
                self.waiting[name].append(clips)
                self.owners[name] += [self.num_windows + owner for owner in item.owner[name]]
                if sum(len(view.media) for view in self.waiting[name]) >= self.batch_size:
                    self._run(name)
        self.num_windows += len(item.grid)

    def _run(self, name: str) -> None:
        media = torch.cat([view.media for view in self.waiting[name]])
        self.waiting[name] = []
        for piece in media.split(self.batch_size):
            self.outputs[name].append(self.embedder.encode(name, RawView(name, piece)))

    def table(self, metadata: dict[str, Any]) -> EmbeddingTable:
        """All rows in the order of the sources. ValueError when nothing could be embedded, of one source its own."""
        if not self.rows:
            if len(self.failures) == 1:
                raise next(iter(self.failures.values()))
            reasons = "; ".join(str(error) for error in list(self.failures.values())[:3])
            raise ValueError(f"nothing could be embedded: {len(self.failures)} sources failed ({reasons})")
        if not any(self.owners.values()):
            wanted = " or ".join(self.modalities)
            raise ValueError(
                f"nothing could be embedded: none of the {len({row[0] for row in self.rows})} sources that could be "
                f"opened has {wanted}, which this run reads"
            )
        columns: dict[str, Any] = {}
        for name in self.modalities:
            if self.waiting[name]:
                self._run(name)
            if self.outputs[name]:
                features, embeddings = (np.concatenate(part) for part in zip(*self.outputs[name], strict=True))
                columns[f"{name}_feature"] = _window_means(features, self.owners[name], self.num_windows)
                means = _window_means(embeddings, self.owners[name], self.num_windows)
                columns[f"{name}_embedding"] = means / np.linalg.norm(means, axis=1, keepdims=True)
        grid = np.concatenate([row[2] for row in self.rows])
        counts = [len(row[2]) for row in self.rows]
        medias = [media for (_, media, _, _), count in zip(self.rows, counts, strict=True) for _ in range(count)]
        table = EmbeddingTable(
            keys=[media.key for media in medias],
            index=np.array([media.index for media in medias]),
            start_seconds=grid[:, 0],
            end_seconds=grid[:, 1],
            has_audio=self._has("audio"),
            has_video=self._has("video"),
            has_image=self._has("image"),
            labels=[media.labels for media in medias],
            metadata=metadata,
            **columns,
        )
        numbers = np.repeat([row[0] for row in self.rows], counts)
        order = np.lexsort((table.start_seconds, numbers))
        # A source that failed after some windows is a failure, not a shorter source.
        return table.select(np.array([row for row in order if table.keys[row] not in self.failures], dtype=np.int64))

    def _has(self, name: str) -> np.ndarray:
        return np.concatenate([row[3][name] for row in self.rows])


def _window_means(values: np.ndarray, owners: Sequence[int], num_windows: int) -> np.ndarray:
    """Mean over each window's clips in float64, NaN for windows without any: (n_clips, D) -> (n, D)."""
    sums = np.zeros((num_windows, values.shape[1]))
    np.add.at(sums, owners, values.astype(np.float64))
    count = np.bincount(owners, minlength=num_windows)[:, None]
    return np.divide(sums, count, out=np.full_like(sums, np.nan), where=count > 0)


def _digest(weights: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(weights):
        if key.startswith(("views.", *(f"loss.{name}." for name in EMBEDDING_PARTS))):
            digest.update(key.encode() + weights[key].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
