"""Embeddings of media with a finished run: one row per window, all modalities on one time grid, or one per picture.

    embedder = avssl.load_embedder("runs/avid_cma")
    table, failures = embedder.embed(["holiday.mp4"], window_seconds=2.0, stride_seconds=1.0)
    table.video_embedding, table.audio_embedding, table.start_seconds
    table, failures = avssl.load_embedder("runs/simclr").embed("holiday.jpg")  # table.image_embedding

A window's embedding is the mean of the unit embeddings of the clips that fill it, made unit again: a window of 2 s
holds four of AVID's video clips of 0.5 s and one audio clip of 2 s, evenly spaced; a clip longer than the window is
centered on it. Nothing is random: the same input gives the same rows, whatever the batch size or the number of workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from avssl import checkpoint, losses
from avssl.config import RunConfig, load_run
from avssl.device import usable_device
from avssl.embedding.media import WindowBatch
from avssl.embedding.rows import Finished, RowMaker, RowSpool, in_order
from avssl.embedding.sources import Sources, resolve_sources
from avssl.embedding.table import MODALITIES, VECTOR_COLUMNS, EmbeddingTable, concatenate
from avssl.embedding.windows import WindowStream
from avssl.models import create_encoder
from avssl.processes.limits import Limits
from avssl.processes.streams import SandboxedStreams
from avssl.shards.shard_set import ShardSet
from avssl.transforms.raw_view import RawView
from avssl.transforms.view_maker import ViewMaker
from avssl.types import MediaError
from avssl.version import __version__

EMBEDDING_PARTS = ("encoders", "projectors", "predictors")  # of a loss: what embeddings are a function of
PRELOAD = ("avssl.embedding.embedder",)  # of decoding processes: what this module's importers import in them
MAX_STATE_ROWS = 2**17  # more than any number of clusters or neighbors that a loss asks the samples for


class Embedder:
    """Encoders, projectors and view statistics of a run, in eval mode. Build it with `from_run`.

    Attributes: config (the run's), modalities, device, weights_hash ("untrained" for random weights), run_folder (None
    unless it was loaded from one).
    """

    run_folder: Path | None = None

    def __init__(self, config: RunConfig, loss: losses.Loss, views: ViewMaker, device: str, weights_hash: str) -> None:
        self.config, self.views, self.weights_hash = config, views.to(device).eval(), weights_hash
        self.device = torch.device(device)
        self.loss = loss.to(device).eval()
        self.encoders, self.projectors = loss.encoders, loss.projectors
        self.modalities = tuple(m for m in MODALITIES if m in loss.encoders)

    @classmethod
    def from_run(cls, run: str | Path, *, device: str = "cpu", untrained: bool = False) -> Embedder:
        """Load a finished run folder, an exchange folder, or `hf://owner/name` of a hub.

        untrained=True takes random weights from its seed: a baseline.
        """
        usable_device(device)  # before files are read
        run = checkpoint.locate(run) if str(run).startswith(checkpoint.HUB_SCHEME) else Path(run)
        config = load_run(run)
        weights = checkpoint.read_weights(run)
        loss_class = losses.get(config.loss.name)
        modalities = loss_class.modalities(config.loss)
        torch.manual_seed(config.seed)
        # A file of weights that the run began with was needed then; it is again only to begin as the run did.
        unneeded = () if untrained else ("weights",)
        options = {m: {k: v for k, v in config.encoders[m].items() if k not in unneeded} for m in modalities}
        encoders = {modality: create_encoder(**options[modality]) for modality in modalities}
        # State with a row per sample is not loaded here: millions of rows would only fill the memory.
        num_samples = min(checkpoint.read_provenance(run)["data"]["num_samples"], MAX_STATE_ROWS)
        loss = loss_class(config.loss, encoders, num_samples)
        views = ViewMaker(config.views, modalities)
        parts: list[tuple[nn.Module, str]] = []
        if not untrained:
            parts += [(getattr(loss, name), f"loss.{name}.") for name in EMBEDDING_PARTS]
        if "audio" in modalities and not any(key.startswith("views.") for key in weights):
            views.normalize_audio = checkpoint.UnmeasuredStatistics(views.spectrogram.num_bins, run)
        else:
            parts.append((views, "views."))
        for module, prefix in parts:
            own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
            module.load_state_dict(own)
        digest = "untrained" if untrained else _digest(weights)
        embedder = cls(config, loss, views, device, digest)
        embedder.run_folder = run
        return embedder

    def embed(
        self,
        sources: ShardSet | str | Path | Sequence[str | Path],
        *,
        window_seconds: float | None = None,
        stride_seconds: float | None = None,
        modalities: Sequence[str] | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        limits: Limits | None = None,
        progress: bool = False,
    ) -> tuple[EmbeddingTable, dict[str, MediaError]]:
        """Rows of every window of every source, in the sources' order, and what failed by key.

        Args:
            sources: a shard folder, files, or folders of files.
            window_seconds: default the run's audio clip length, or its video clip's if it has no sound;
                stride_seconds: default the window. Pictures have neither.
            modalities: default all that the run has.
            batch_size: clips per forward pass; num_workers: decoding processes, 0 decodes here, where a file that
                crashes its decoder ends everything. limits: of a source in such a process.
        """
        wanted, metadata = self.settings(window_seconds, stride_seconds, modalities)
        stream = self.stream(resolve_sources(sources, wanted), metadata)
        spool, failures, finished = RowSpool(), {}, []
        with tqdm(total=len(stream), unit="clip", desc="embed", disable=not progress, mininterval=1.0) as bar:
            for source in self.rows(stream, batch_size, num_workers, spool, limits=limits):
                bar.update()
                if source.error is not None:
                    failures[source.key] = source.error
                else:
                    finished.append(source)
        tables = list(in_order(spool, finished))
        if not any(table.has(name).any() for table in tables for name in wanted):
            raise _explain_nothing(failures, len(finished), wanted)
        table = concatenate(tables)
        absent = {name: None for name in VECTOR_COLUMNS if name.split("_")[0] not in table.modalities()}
        columns: dict[str, Any] = {"metadata": metadata, **absent}
        return replace(table, **columns), failures

    def settings(
        self, window_seconds: float | None, stride_seconds: float | None, modalities: Sequence[str] | None
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """(modalities, metadata of the table): what the rows are a function of, besides the sources.

        ValueError for a modality that the run has not, and for windows of pictures.
        """
        wanted = self._checked(modalities or self.modalities)
        grid = self._grid(wanted, window_seconds, stride_seconds)
        facts = {"run": str(self.config.run), "weights": self.weights_hash, **grid, "normalized": True}
        return wanted, facts | {"modalities": list(wanted), "avssl_version": __version__}

    def stream(self, sources: Sources, settings: dict[str, Any], blocks: Sequence[range] | None = None) -> WindowStream:
        """The windows of sources, as `settings` gave them; blocks: numbers of the sources to read."""
        grid = settings.get("window_seconds", 0.0), settings.get("stride_seconds", 0.0)
        return WindowStream(sources, self.config.views, settings["modalities"], *grid, blocks)

    def rows(
        self,
        stream: WindowStream,
        batch_size: int,
        num_workers: int,
        spool: RowSpool,
        *,
        for_folder: bool = False,
        limits: Limits | None = None,
    ) -> Iterator[Finished]:
        """Embed a stream: every source as it is finished, its rows in the spool. See embed_rows.RowMaker."""
        maker = RowMaker(self.encode, self.widths(stream.modalities), batch_size, spool, for_folder=for_folder)
        for number, item in decoded(stream, num_workers, limits or Limits()):
            key = item.media.key if isinstance(item, WindowBatch) else stream.name_of(number)
            maker.add(number, key, item)
            while maker.finished:
                yield maker.finished.popleft()
        maker.flush()
        yield from maker.finished

    @torch.inference_mode()
    def widths(self, modalities: Sequence[str]) -> dict[str, tuple[int, int]]:
        """{modality: (width of its features, of its embeddings)}."""
        found = {}
        for name in modalities:
            feature = torch.zeros(1, int(self.loss.encoders[name].dim), device=self.device)  # type: ignore[arg-type]
            found[name] = feature.shape[1], self.loss.embedding(name, feature).shape[1]
        return found

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

    @torch.inference_mode()
    def encode(self, modality: str, raw: RawView) -> tuple[np.ndarray, np.ndarray]:
        """Raw clips -> (features (n, F), unit embeddings (n, D)), float32."""
        view = self.views({"view": raw}, self.device)["view"]
        feature = self.loss.encoders[modality](view)
        return feature.float().cpu().numpy(), self.loss.embedding(modality, feature).cpu().numpy()


def decoded(
    stream: WindowStream, num_workers: int, limits: Limits
) -> Generator[tuple[int, WindowBatch | MediaError], None, None]:
    """A stream's windows: decoded here, without protection, if num_workers is 0, else by so many killable processes."""
    if num_workers == 0:
        yield from stream
        return
    with closing(SandboxedStreams(stream, num_workers, limits, PRELOAD).run(stream.numbers)) as pieces:
        for number, item in pieces:
            yield number, item if isinstance(item, MediaError) else stream.read(item)


def _explain_nothing(failures: dict[str, MediaError], num_opened: int, wanted: Sequence[str]) -> Exception:
    """The error for a table without a single embedding; of one source that failed, its own."""
    if num_opened:
        return ValueError(
            f"nothing could be embedded: none of the {num_opened} sources that could be opened has "
            f"{' or '.join(wanted)}, which this run reads"
        )
    if len(failures) == 1:
        return next(iter(failures.values()))
    reasons = "; ".join(str(error) for error in list(failures.values())[:3])
    return ValueError(f"nothing could be embedded: {len(failures)} sources failed ({reasons})")


def _digest(weights: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(weights):
        if key.startswith(("views.", *(f"loss.{name}." for name in EMBEDDING_PARTS))):
            digest.update(key.encode() + weights[key].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
