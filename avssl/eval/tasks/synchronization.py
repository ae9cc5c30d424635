"""Audio-visual synchronization: whether embeddings of video and audio are closer in sync than shifted.

A video clip of every test sample is compared with the audio around it and with audio `shift_seconds` later or earlier
(in turn, so that neither is at the end more often). This is the task of Korbar et al. 2018 (arXiv 1807.00230) for
frozen embeddings, by their cosine: no classifier is trained.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from avssl.data.batch import stack_raw_views
from avssl.data.every_sample import ClipPlan, SampleClips
from avssl.data.read_views import decode_audio_clip, decode_video_clip
from avssl.eval.configs import SynchronizationConfig
from avssl.eval.features import extract_from
from avssl.eval.frozen import FROZEN, modalities_of
from avssl.eval.labels import FeatureSet
from avssl.eval.metrics import best_threshold
from avssl.eval.outcome import Metric, Outcome, Repeat
from avssl.eval.tasks import register
from avssl.ops.nearest import unit
from avssl.shards.shard_set import Sample, ShardSet, spans
from avssl.transforms.config import ViewsConfig, clip_lengths
from avssl.transforms.raw_view import RawView, raw_audio, raw_image
from avssl.transforms.time_sampling import ClipTimes, snap_to_frames
from avssl.types import Span

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder


@register("synchronization", SynchronizationConfig)
def synchronization(embedder: Embedder, config: SynchronizationConfig) -> Outcome:
    """AUC and the share of samples whose aligned audio is closer; with `train`, accuracy at the threshold best there.

    Samples without video or audio, too short for the shifted clip, or silent in all clips are left out and counted.
    """
    if config.modality != "both" or list(config.layers) != ["embedding"] or config.folds or config.fold_field:
        raise ValueError("synchronization compares embeddings of video and audio; leave out modality, layers and folds")
    if not config.test:
        raise ValueError("test is not set; add test=SHARDS to the command or to the YAML")
    modalities_of(config, embedder)
    shift = config.shift_seconds or embedder.config.views.audio.seconds
    kept, aligned, shifted, left_out = _cosines(embedder, config, config.test, shift)
    columns: dict[str, Any] = {"aligned": aligned, "shifted": shifted, "own_closer": aligned > shifted}
    metrics = {
        "synchronization_auc": Metric("pair_auc", ("aligned", "shifted"), 0.5),
        "synchronization_pair_accuracy": Metric("mean", ("own_closer",), 0.5),
    }
    protocol: dict[str, Any] = {**FROZEN, "shift": shift, "num_test": len(kept), "ties": "wrong"}
    protocol["left_out"] = {"test": left_out}
    train_keys: list[str] = []
    if config.train:
        train, train_aligned, train_shifted, protocol["left_out"]["train"] = _cosines(
            embedder, config, config.train, shift
        )
        threshold = best_threshold(train_aligned, train_shifted)
        columns["right_at_threshold"] = ((aligned >= threshold).astype(float) + (shifted < threshold)) / 2
        metrics["synchronization_accuracy"] = Metric("mean", ("right_at_threshold",), 0.5)
        train_keys = train.keys
    return Outcome([Repeat("", kept.keys, columns, metrics, train_keys)], protocol)


def _cosines(
    embedder: Embedder, config: SynchronizationConfig, shards: str, shift_seconds: float
) -> tuple[FeatureSet, np.ndarray, np.ndarray, dict[str, int]]:
    """(the samples that are not left out; their cosines in sync and shifted (n,); {reason: number left out})."""
    clips = ShiftedClips(shards, embedder.config.views, config.test_clips, shift_seconds, config.silence_dbfs)
    features = extract_from(
        embedder, clips, ["embedding"], batch_size=config.batch_size, num_workers=config.num_workers
    )
    left_out = dict(sorted(Counter(reason for reason in features.reasons if reason).items()))
    kept = features.select(np.array([not reason for reason in features.reasons]))
    video, audio = (unit(kept.rows[modality]["embedding"]) for modality in ("video", "audio"))
    if video.shape[2] != audio.shape[2]:
        raise ValueError(
            f"embeddings of video have {video.shape[2]} dims and of audio {audio.shape[2]}: this run did not train "
            "them together, so that they cannot be compared"
        )
    aligned, shifted = (
        (video * clips).sum(axis=2, dtype=np.float64).mean(axis=1) for clips in np.split(audio, 2, axis=1)
    )
    return kept, aligned, shifted, left_out


class ShiftedClips(SampleClips):
    """Of every sample P video clips and 2 P audio clips: first those around the video clips, then the shifted ones."""

    def __init__(
        self,
        shards: str | ShardSet,
        config: ViewsConfig,
        num_positions: int,
        shift_seconds: float,
        silence_dbfs: float,
    ) -> None:
        super().__init__(shards, config, ("video", "audio"), ClipPlan(num_positions))
        if shift_seconds <= 0:
            raise ValueError(f"shift_seconds is {shift_seconds}; it must be above 0")
        self.shift_seconds, self.silence_dbfs = shift_seconds, silence_dbfs

    def decode(self, sample: Sample) -> tuple[dict[str, RawView], str]:
        """({modality: raw view}, ""), or ({}, reason) for a sample without video or audio, too short, or silent."""
        video, audio = spans(sample)
        if video is None or sample.video is None:
            return {}, "no video"
        if audio is None or sample.audio is None:
            return {}, "no audio"
        lengths, key = clip_lengths(self.config), sample.info.key
        starts = shifted_starts(
            video,
            audio,
            lengths.video_seconds,
            lengths.audio_seconds,
            self.shift_seconds,
            self.plan.num_clips,
            first_backward=bool(sample.info.index % 2),
        )
        if not starts:
            return {}, "too short"
        videos, aligned, shifted = [], [], []
        for start, shift in starts:
            around = start + (lengths.audio_seconds - lengths.video_seconds) / 2
            window = snap_to_frames(ClipTimes(around, start), video, sample.info.video_fps)
            video_start = float(window.video_start_seconds or 0.0)
            audio_start = float(window.audio_start_seconds or 0.0)
            frames = decode_video_clip(sample.video, video_start, self.config.video, video, key)
            videos.append({"view": raw_image("video", frames, self.config.video, None, None)})
            aligned.append(decode_audio_clip(sample.audio, audio_start, self.config.audio, audio, key))
            shifted.append(decode_audio_clip(sample.audio, audio_start + shift, self.config.audio, audio, key))
        waveforms = torch.stack([*aligned, *shifted])
        level_dbfs = 20 * torch.log10(waveforms.square().nanmean(dim=(1, 2)).sqrt().clamp_min(1e-10))
        if bool((level_dbfs < self.silence_dbfs).all()):
            return {}, "silent"
        audio_views = stack_raw_views(
            [{"view": raw_audio(waveform, self.config.audio, None)} for waveform in waveforms]
        )
        return {"video": stack_raw_views(videos)["view"], "audio": audio_views["view"]}, ""


def shifted_starts(
    video: Span,
    audio: Span,
    video_seconds: float,
    audio_seconds: float,
    shift_seconds: float,
    num_starts: int,
    *,
    first_backward: bool,
) -> list[tuple[float, float]]:
    """num_starts times (start of the aligned audio clip, shift of the other one), both in seconds; [] if none fits.

    The aligned audio clip is centered on the video clip; all clips lie within their streams. The directions of the
    shift alternate, unless only one fits. The starts of a direction are spread evenly over the range that fits.
    """
    half = (audio_seconds - video_seconds) / 2
    first, last = audio.start_seconds, audio.end_seconds - audio_seconds
    low = max(first, video.start_seconds - half)
    high = min(last, video.end_seconds - video_seconds - half)
    ranges = {1: (low, min(high, last - shift_seconds)), -1: (max(low, first + shift_seconds), high)}
    fitting = {sign: limits for sign, limits in ranges.items() if limits[0] <= limits[1] + 1e-9}
    if not fitting:
        return []
    starts = []
    for number in range(num_starts):
        sign = -1 if (number % 2 == 1) != first_backward else 1
        sign = sign if sign in fitting else -sign
        begin, end = fitting[sign]
        fraction = (number + 0.5) / num_starts
        starts.append((begin + fraction * max(0.0, end - begin), sign * shift_seconds))
    return starts
