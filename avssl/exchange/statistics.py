"""Statistics of the spectrogram per bin for an imported run that has none: from shards, or from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from avssl.checkpoint.weights import read_provenance, read_weights, write_weights
from avssl.files.damaged_files import open_npz

if TYPE_CHECKING:
    from avssl.config import RunConfig

STATISTICS_KEYS = ("views.normalize_audio.mean", "views.normalize_audio.std")


def statistics_from(source: str | Path, config: RunConfig) -> dict[str, torch.Tensor]:
    """{"views.normalize_audio.mean", "views.normalize_audio.std"}, float32 (bins,).

    source: an .npz with `mean` and `std` in decibels, one value per bin; otherwise a shard folder or its URL, of which
    views.statistics_samples evenly spaced samples are read. ValueError for another number of bins.
    """
    from avssl.transforms.view_maker import ViewMaker

    views = ViewMaker(config.views, ("audio",))
    if not hasattr(views, "normalize_audio"):
        raise ValueError(
            f"views.audio.transform is {config.views.audio.transform}: the model makes its own input of the waveform, "
            "and there are no statistics to measure"
        )
    if str(source).endswith(".npz"):
        return dict(zip(STATISTICS_KEYS, _read_npz(Path(source), views.spectrogram.num_bins), strict=True))
    from avssl.data.loader import Loader
    from avssl.data.loader_config import LoaderConfig
    from avssl.data.statistics import measure_statistics
    from avssl.shards.shard_set import ShardSet
    from avssl.types import View

    shards = ShardSet(str(source))
    settings = LoaderConfig(global_batch_size=min(64, shards.num_samples), num_workers=config.data.num_workers)
    view_list = (View("audio", "audio", "test"),)
    measure_statistics(views, Loader(shards, settings, view_list, views, seed=0, device=torch.device("cpu")))
    return {f"views.{key}": value for key, value in views.state_dict().items()}


def add_statistics(run: str | Path, source: str | Path) -> Path:
    """Measure or read the statistics and write them into a finished run that has none; return the file of weights.

    Raises ValueError if the run has statistics: new ones would silently change its embeddings and results.
    """
    from avssl.config import load_run

    run = Path(run)
    weights, provenance = read_weights(run), read_provenance(run)
    if any(key.startswith("views.") for key in weights):
        raise ValueError(
            f"{run} has statistics of the spectrograms already, and its embeddings depend on them. For other "
            "statistics, import or train into another folder"
        )
    weights |= statistics_from(source, load_run(run))
    return write_weights(run, weights, {**provenance, "audio_statistics": str(source)})


def _read_npz(path: Path, num_bins: int) -> list[torch.Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of statistics")
    with open_npz(path, "file of statistics") as stored:
        missing = [name for name in ("mean", "std") if name not in stored]
        if missing:
            raise ValueError(f"{path} has no {' and '.join(missing)}; it holds {', '.join(stored) or 'nothing'}")
        values = [torch.from_numpy(stored[name].astype(np.float32).reshape(-1)) for name in ("mean", "std")]
    for name, value in zip(("mean", "std"), values, strict=True):
        if len(value) != num_bins or not value.isfinite().all():
            raise ValueError(f"{path}: {name} must hold {num_bins} finite values, one per bin, and holds {len(value)}")
    if (values[1] <= 0).any():
        raise ValueError(f"{path}: std must be positive in every bin, and is {values[1].min().item()} in one")
    return values
