"""Embeddings of media with a finished run: one row per window, all modalities on one time grid, or one row per image.

    embedder = avssl.load_embedder("runs/avid_cma")
    table, failures = embedder.embed(["holiday.mp4"], window_seconds=2.0, stride_seconds=1.0)
    table.video_embedding, table.audio_embedding, table.start_seconds
    table, failures = avssl.load_embedder("runs/simclr").embed("holiday.jpg")  # table.image_embedding

The embedding of a window is the mean of the unit embeddings of the clips that fill it, divided by its length: a window
of 2 s holds four of AVID's video clips of 0.5 s and one audio clip of 2 s, evenly spaced; a clip longer than the window
is centered on it. Nothing is random: the same input gives the same rows for any batch size and number of workers.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from avssl import checkpoint
from avssl.config import RunConfig
from avssl.device import usable_device
from avssl.embedding.loading import load_networks, load_public
from avssl.embedding.media import WindowBatch
from avssl.embedding.public import names_public_model, public_config
from avssl.embedding.rows import FinishedSource, RowMaker, RowSpool
from avssl.embedding.sources import Sources, resolve_sources
from avssl.embedding.table import MODALITIES, VECTOR_COLUMNS, EmbeddingTable, concatenate
from avssl.embedding.windows import WindowReader
from avssl.files.checked_json import parse
from avssl.files.progress import Bar
from avssl.losses import registry
from avssl.losses.base import Loss
from avssl.losses.configs import CaptionConfig
from avssl.models import public
from avssl.processes.limits import Limits
from avssl.processes.streams import SandboxedStreams
from avssl.shards.shard_set import ShardSet
from avssl.transforms.config import clip_lengths
from avssl.transforms.raw_view import RawView
from avssl.transforms.view_maker import ViewMaker
from avssl.types import HUB_SCHEME, MediaError
from avssl.version import __version__

PRELOAD = ("avssl.embedding.embedder",)  # imported by the server from which decoding processes are forked


class Embedder:
    """Encoders, projectors and view statistics of a run, in eval mode. Build it with `from_run`.

    Attributes: config (of the run), loss, views, encoders, projectors, modalities, device, weights_hash ("untrained"
    for random weights), run_folder (None unless it was loaded from a folder), checkpoint_step (None for finished runs).

    >>> embedder = Embedder.from_run(run)
    >>> table, failures = embedder.embed([clip], window_seconds=0.5)
    >>> len(table), table.video_embedding.shape, failures
    (2, (2, 8), {})
    """

    run_folder: Path | None = None
    checkpoint_step: int | None = None
    _text: Any = None  # the TextTower of a public model, once it was needed

    def __init__(self, config: RunConfig, loss: Loss, views: ViewMaker, device: str, weights_hash: str) -> None:
        self.config, self.views, self.weights_hash = config, views.to(device).eval(), weights_hash
        self.device = torch.device(device)
        self.loss = loss.to(device).eval()
        self.encoders, self.projectors = loss.encoders, loss.projectors
        self.modalities = tuple(m for m in MODALITIES if m in loss.encoders)

    @classmethod
    def from_run(
        cls,
        run: str | Path,
        *,
        device: str = "cpu",
        untrained: bool = False,
        changes: Sequence[str] = (),
        checkpoint_name: str = "",
    ) -> Embedder:
        """Load a finished run folder, an exchange folder, `hf://owner/name` of a hub, or a public model.

        untrained=True takes random weights from the run's seed: a baseline. changes: of how a public model embeds, such
        as views.video.fps=2 (embedding/public.py). checkpoint_name: "latest" or the number of a step, of a run that
        goes on or was stopped.
        """
        usable_device(device)  # before files are read
        if names_public_model(run):
            if checkpoint_name:
                raise ValueError(f"{run} is a public model and has no checkpoints; leave out {checkpoint_name!r}")
            return cls(*_in_order(load_public(public_config(str(run), changes), untrained=untrained), device))
        if changes:
            raise ValueError(f"{run} is a run, which embeds as it was trained; {changes[0]} is for public models")
        folder = checkpoint.locate(run) if str(run).startswith(HUB_SCHEME) else Path(run)
        config, loss, views, weights_hash, step = load_networks(
            folder, untrained=untrained, checkpoint_name=checkpoint_name
        )
        embedder = cls(config, loss, views, device, weights_hash)
        embedder.run_folder, embedder.checkpoint_step = folder, step
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
        """(rows of all windows of all sources, in the order of the sources; {key: error} of sources that failed).

        Args:
            sources: a shard folder, files, or folders of files.
            window_seconds: default the run's audio clip, or its video clip if it has no audio;
                stride_seconds: default the window. Images have neither.
            modalities: default all that the run has.
            batch_size: clips per forward pass; num_workers: decoding processes; 0 decodes in this process, where a file
                that crashes its decoder ends everything. limits: of a source in a decoding process.

        Raises ValueError if nothing could be embedded, or the error of the only source.
        """
        settings = self.settings(window_seconds, stride_seconds, modalities)
        reader = self.window_reader(resolve_sources(sources, settings["modalities"]), settings)
        spool, failures, finished = RowSpool(), {}, []
        with Bar("embed", len(reader), "clip", shown=progress) as bar:
            for source in self.embed_windows(reader, batch_size, num_workers, spool, limits=limits):
                bar.update()
                if source.error is not None:
                    failures[source.key] = source.error
                else:
                    finished.append(source)
        tables = list(spool.take_all(finished))
        if not any(table.has(name).any() for table in tables for name in settings["modalities"]):
            if len(failures) == 1 and not finished:
                raise next(iter(failures.values()))
            raise nothing_embedded(settings["modalities"], len(finished), failures)
        return with_settings(concatenate(tables), settings), failures

    def settings(
        self, window_seconds: float | None, stride_seconds: float | None, modalities: Sequence[str] | None
    ) -> dict[str, Any]:
        """The metadata of a table: everything, besides the sources, that its rows are a function of.

        window_seconds defaults to the run's audio clip, or its video clip if it has no audio; stride_seconds to the
        window; modalities to those of the run. ValueError for a modality that the run lacks, and for windows of images
        alone.
        """
        names = tuple(modalities or self.modalities)
        unknown = [name for name in names if name not in self.modalities]
        if unknown:
            raise ValueError(f"this run has no {', '.join(unknown)} encoder; it has {', '.join(self.modalities)}")
        grid: dict[str, float] = {}
        if names != ("image",):
            lengths = clip_lengths(self.config.views)
            window = window_seconds or (lengths.audio_seconds if "audio" in self.modalities else lengths.video_seconds)
            grid = {"window_seconds": window, "stride_seconds": stride_seconds or window}
        elif window_seconds or stride_seconds:
            raise ValueError(
                f"window_seconds={window_seconds} and stride_seconds={stride_seconds} are given, but this run embeds "
                "images, which have no windows; leave both out"
            )
        is_public = self.config.loss.name == registry.PUBLIC_MODEL
        return {
            "run": str(self.config.run),
            "weights": self.weights_hash,
            **({} if self.checkpoint_step is None else {"checkpoint_step": self.checkpoint_step}),
            **({"inputs": inputs_of(self.config, names), **encoders_of(self.config, names)} if is_public else {}),
            **grid,
            "normalized": True,
            "modalities": list(names),
            "avssl_version": __version__,
        }

    def window_reader(
        self, sources: Sources, settings: dict[str, Any], blocks: Sequence[range] | None = None
    ) -> WindowReader:
        """Windows of sources, with the grid and modalities of `settings`; blocks: numbers of the sources to read."""
        grid = settings.get("window_seconds", 0.0), settings.get("stride_seconds", 0.0)
        return WindowReader(sources, self.config.views, settings["modalities"], *grid, blocks)

    def embed_windows(
        self,
        reader: WindowReader,
        batch_size: int,
        num_workers: int,
        spool: RowSpool,
        *,
        for_folder: bool = False,
        limits: Limits | None = None,
    ) -> Iterator[FinishedSource]:
        """Embed all windows of a reader; yields every source when it is finished and its rows are in the spool. See
        RowMaker.
        """
        maker = RowMaker(self.encode, self.dims(reader.modalities), batch_size, spool, for_folder=for_folder)
        for number, item in read_windows(reader, num_workers, limits or Limits()):
            key = item.media.key if isinstance(item, WindowBatch) else reader.name_of(number)
            maker.add(number, key, item)
            while maker.finished:
                yield maker.finished.popleft()
        maker.flush()
        yield from maker.finished

    def text_modalities(self) -> tuple[str, ...]:
        """The modalities that text can be compared with: those of a public model that reads text, or of a run that was
        trained on captions; otherwise none.
        """
        if isinstance(self.config.loss, CaptionConfig):
            return () if self.weights_hash == "untrained" else self.modalities
        if self.config.loss.name != registry.PUBLIC_MODEL:
            return ()
        return public.text_modalities(self.config.encoders[self.modalities[0]]["name"])

    def embed_text(self, texts: Sequence[str], modality: str) -> NDArray[np.float32]:
        """Unit rows float32 (n, D) of n texts, comparable with the embeddings of a modality.

        The text tower is that of the public model, or of the run's captions, with the same weights; it is loaded with
        the first call. ValueError for a run that was not trained on captions; for a model without a text tower or
        tokenizer; for texts that are empty or too long; for a modality that text is not compared with.
        """
        loss, section = self.config.loss, self.config.encoders[self.modalities[0]]
        head = modality
        if isinstance(loss, CaptionConfig):
            section = loss.text_encoder
            head = str(section["modality"])
        elif loss.name != registry.PUBLIC_MODEL:
            section = {}
        if not section or self.weights_hash == "untrained":
            raise ValueError(
                f"{self.config.run} is random, or a training without captions, and reads no text: text is compared "
                "with the embeddings of a run of clip_frozen_text, or of a public model, hf/ORG/NAME or hf/FOLDER, if "
                f"its type is {', '.join(public.TEXT_KINDS)}"
            )
        if isinstance(loss, CaptionConfig) and modality not in self.modalities:
            raise ValueError(
                f"{self.config.run} compares text with {' and '.join(self.modalities)}, and not with {modality}"
            )
        if self._text is None:
            self._text = public.text_tower(section["name"], section, str(self.device))
        rows: NDArray[np.float32] = self._text.embed(texts, head).numpy()
        return rows

    @torch.inference_mode()
    def dims(self, modalities: Sequence[str]) -> dict[str, tuple[int, int]]:
        """{modality: (dim of its features, dim of its embeddings)}."""
        result = {}
        for name in modalities:
            feature = torch.zeros(1, int(self.loss.encoders[name].dim), device=self.device)  # type: ignore[arg-type]
            result[name] = feature.shape[1], self.loss.embedding(name, feature).shape[1]
        return result

    @torch.inference_mode()
    def encode(self, modality: str, clips: RawView) -> tuple[np.ndarray, np.ndarray]:
        """Raw clips -> (features (n, F), unit embeddings (n, D)), float32."""
        view = self.views({"view": clips}, self.device)["view"]
        feature = self.loss.encoders[modality](view)
        return feature.float().cpu().numpy(), self.loss.embedding(modality, feature).cpu().numpy()


def _in_order(
    loaded: tuple[RunConfig, Loss, ViewMaker, str], device: str
) -> tuple[RunConfig, Loss, ViewMaker, str, str]:
    """The arguments of an Embedder."""
    config, loss, views, weights_hash = loaded
    return config, loss, views, device, weights_hash


def encoders_of(config: RunConfig, modalities: Sequence[str]) -> dict[str, Any]:
    """{"encoders": {modality: its section}} as plain values: options such as `pool` change rows without any weight."""
    return {"encoders": parse(json.dumps({name: config.encoders[name] for name in modalities}), "encoders")}


def inputs_of(config: RunConfig, modalities: Sequence[str]) -> dict[str, Any]:
    """{modality: settings of its views} as plain values."""
    views: dict[str, Any] = parse(json.dumps(asdict(config.views)), "views")  # as the index of a folder has them
    return {modality: views[modality] for modality in modalities}


def read_windows(
    reader: WindowReader, num_workers: int, limits: Limits
) -> Generator[tuple[int, WindowBatch | MediaError], None, None]:
    """(number of the source, its next windows or its error), decoded by killable processes.

    num_workers=0 decodes in this process, without protection.
    """
    if num_workers == 0:
        yield from reader
        return
    with closing(SandboxedStreams(reader, num_workers, limits, PRELOAD).run(reader.numbers)) as messages:
        for number, item in messages:
            yield number, item if isinstance(item, MediaError) else reader.read(item)


def with_settings(table: EmbeddingTable, settings: dict[str, Any]) -> EmbeddingTable:
    """The table with its settings as metadata, and without the vectors of modalities that no row has."""
    modalities = table.modalities()
    absent: dict[str, Any] = {name: None for name in VECTOR_COLUMNS if name.split("_")[0] not in modalities}
    return replace(table, metadata=settings, **absent)


def nothing_embedded(modalities: Sequence[str], num_opened: int, failures: dict[str, MediaError]) -> ValueError:
    """The error for a table without a single embedding."""
    if num_opened:
        return ValueError(
            f"nothing could be embedded: none of the {num_opened} sources that could be opened has "
            f"{' or '.join(modalities)}, which this run reads"
        )
    reasons = "; ".join(str(error) for error in list(failures.values())[:3])
    return ValueError(f"nothing could be embedded: {len(failures)} sources failed ({reasons})")
