"""Import of a published checkpoint as a run folder that embedding, evaluation and `init_from` accept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from avssl import config
from avssl.checkpoint.weights import write_weights
from avssl.exchange.avid_release import LICENSE, LICENSE_NOTE, Published, read_published
from avssl.exchange.card import write_card
from avssl.exchange.statistics import statistics_from


def import_published(
    file: str | Path,
    out: str | Path,
    *,
    small: bool = False,
    statistics: str = "",
    banks: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
) -> Published:
    """Write the run folder `out` from a published AVID-CMA checkpoint, and return the content of the file.

    See `read_published` for the arguments; statistics: source for `statistics_from`, "" to add them later.
    Raises ValueError, and writes nothing, unless every tensor of the file matches one of the network, and vice versa.
    """
    run = Path(out)
    if run.exists() and any(run.iterdir()):
        raise ValueError(f"{run} exists and is not empty; give --out a new folder")
    published = read_published(file, small=small, banks=banks, ignore=ignore)
    if not published.matches:
        raise ValueError(f"{file} does not match the network, and nothing was written.\n{published.report()}")
    cfg = run_config(published, run)
    state = {f"loss.{name}": value for name, value in published.tensors.items()}
    if statistics:
        state |= statistics_from(statistics, cfg)
    run.mkdir(parents=True, exist_ok=True)
    config.save(cfg, run / "config.yaml")
    write_weights(run, state, _provenance(published, Path(file), cfg.loss.name, statistics))
    write_card(run, run)
    return published


def run_config(published: Published, run: Path) -> config.RunConfig:
    """The configuration of a run with these networks and the inputs on which they were trained."""
    architecture = published.architecture
    positives = published.tensors.get("positives")
    changes = [
        f"loss.name={'avid' if positives is None else 'avid_cma'}",
        f"loss.projector_hidden_dims=[{','.join(map(str, architecture.hidden_dims))}]",
        f"loss.embedding_dim={architecture.embedding_dim}",
    ]
    if positives is not None:
        changes.append(f"loss.num_positives={positives.shape[1]}")
    if architecture.small:  # 8 frames of 112 px; 50 spectra per second of 129 bins
        changes += ["views.video.size_px=112", "views.audio.window_samples=512", "views.audio.hop_samples=480"]
        changes += ["views.audio.num_frames=100"]
    for modality, options in architecture.encoders.items():
        changes += [f"encoders.{modality}.{key}={value}" for key, value in options.items()]
    cfg = config.parse(config.RunConfig, changes)
    cfg.run = str(run)  # not as a change: a path may hold characters that have a meaning there
    return cfg


def _provenance(published: Published, file: Path, loss: str, statistics: str) -> dict[str, Any]:
    return {
        "versions": {name: metadata.version(name) for name in ("avssl", "torch")},
        "license": LICENSE,
        "license_note": LICENSE_NOTE,
        "imported": {
            "from": "a published AVID-CMA checkpoint",
            "file": file.name,
            "sha256": published.sha256,
            "epoch": published.epoch,
            "tensors": len(published.loaded),
            "ignored": published.ignored,
        },
        "audio_statistics": statistics or None,
        # The rows of the banks follow the authors' file list, which no shard folder is made of.
        "data": {
            "shards": "",
            "fingerprint": f"published:{published.sha256[:16]}",
            "num_samples": published.num_samples,
        },
        "loss": loss,
        "init_from": "",
    }
