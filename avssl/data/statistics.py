"""Mean and standard deviation per bin of the spectrograms of a corpus, measured at the start of a run."""

from __future__ import annotations

import torch

from avssl.data.loader import Loader
from avssl.distributed import gather_uneven, rank
from avssl.files.progress import track
from avssl.transforms.spectrogram import BinStatistics
from avssl.transforms.view_maker import ViewMaker
from avssl.types import View


@torch.no_grad()
def measure_statistics(view_maker: ViewMaker, loader: Loader) -> None:
    """Set the statistics of `view_maker`, if it makes audio, from evenly spaced samples; the same on every rank."""
    if not hasattr(view_maker, "normalize_audio"):
        return
    statistics = BinStatistics(view_maker.spectrogram.num_bins)
    count = view_maker.config.statistics_samples
    batches = loader.raw_subset(count, (View("audio", "audio", "test"),))
    for raw in track(batches, "audio statistics", None, "batch", shown=rank() == 0, delay_seconds=2):
        statistics.update(view_maker.spectrogram(raw["audio"].media.to(loader.device)))
    packed = gather_uneven(statistics.pack()[None].to(loader.device))
    view_maker.normalize_audio.set_statistics(BinStatistics.unpack(packed.cpu()))
