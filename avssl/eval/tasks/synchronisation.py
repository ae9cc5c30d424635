"""Audio-visual synchronisation: are embeddings of a video and its sound closer in sync than shifted against each other?

Of every test sample a video clip is compared with the sound around it and with sound that lies `shift_seconds` later or
earlier (in turn, so that neither lies at the end more often). The task of Korbar et al. 2018 (arXiv 1807.00230), asked
of frozen embeddings by their cosine: no classifier is trained.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from avssl.eval.features import FeatureSet, extract_from, unit
from avssl.eval.labels import FROZEN, FrozenConfig, wanted_modalities
from avssl.eval.metrics import best_threshold
from avssl.eval.outcome import Metric, Outcome, Repeat
from avssl.eval.tasks import register
from avssl.eval.tasks.shifted import ShiftedClips

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder


@dataclass
class Config(FrozenConfig):
    """test_clips positions a sample, evenly spaced; their cosines are averaged."""

    modality: str = "both"
    layers: list[str] = field(default_factory=lambda: ["embedding"])
    label_field: str = ""  # not used
    shift_seconds: float = 0.0  # how far the wrong sound lies from the right one; 0: the run's audio clip
    silence_dbfs: float = -60.0  # samples whose right and wrong sounds are below this level are left out, counted


@register("synchronisation", Config)
def synchronisation(embedder: Embedder, config: Config) -> Outcome:
    """AUC, and the share of samples whose own sound is closer; with `train` also at the threshold that is best there.

    Samples without video or sound, too short for the shifted window, or silent in all windows are left out and counted.
    """
    if config.modality != "both" or list(config.layers) != ["embedding"] or config.folds or config.fold_field:
        raise ValueError("synchronisation compares embeddings of video and sound; leave modality, layers, folds alone")
    if not config.test:
        raise ValueError("test is not set; add test=SHARDS to the command or to the YAML")
    wanted_modalities(config, embedder)
    shift = config.shift_seconds or embedder.config.views.audio.seconds
    kept, aligned, shifted, left_out = _cosines(embedder, config, config.test, shift)
    columns: dict[str, Any] = {"aligned": aligned, "shifted": shifted, "own_closer": aligned > shifted}
    metrics = {
        "synchronisation_auc": Metric("pair_auc", ("aligned", "shifted"), 0.5),
        "synchronisation_pair_accuracy": Metric("mean", ("own_closer",), 0.5),
    }
    protocol: dict[str, Any] = {**FROZEN, "shift": shift, "num_test": len(kept), "ties": "wrong"}
    protocol["left_out"] = {"test": left_out}
    train_keys: list[str] = []
    if config.train:
        known, known_aligned, known_shifted, protocol["left_out"]["train"] = _cosines(
            embedder, config, config.train, shift
        )
        threshold = best_threshold(known_aligned, known_shifted)
        columns["right_at_threshold"] = ((aligned >= threshold).astype(float) + (shifted < threshold)) / 2
        metrics["synchronisation_accuracy"] = Metric("mean", ("right_at_threshold",), 0.5)
        train_keys = known.keys
    return Outcome([Repeat("", kept.keys, columns, metrics, train_keys)], protocol)


def _cosines(
    embedder: Embedder, config: Config, shards: str, shift_seconds: float
) -> tuple[FeatureSet, np.ndarray, np.ndarray, dict[str, int]]:
    """(samples that can tell, their cosines in sync, shifted, what was left out by reason)."""
    clips = ShiftedClips(shards, embedder.config.views, config.test_clips, shift_seconds, config.silence_dbfs)
    found = extract_from(embedder, clips, ["embedding"], batch_size=config.batch_size, num_workers=config.num_workers)
    left_out = dict(sorted(Counter(reason for reason in found.reasons if reason).items()))
    kept = found.select(np.array([not reason for reason in found.reasons]))
    video, sound = (unit(kept.rows[modality]["embedding"]) for modality in ("video", "audio"))
    if video.shape[2] != sound.shape[2]:
        raise ValueError(
            f"embeddings of video are {video.shape[2]} wide and of sound {sound.shape[2]}: this run did not bring them "
            "together, so that they cannot be compared"
        )
    right, wrong = np.split(sound, 2, axis=1)
    aligned, shifted = ((video * one).sum(axis=2, dtype=np.float64).mean(axis=1) for one in (right, wrong))
    return kept, aligned, shifted, left_out
