"""Class scores of every sample: the mean over its clips of the scores of each clip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from avssl import distributed
from avssl.data.every_sample import ClipSets, DecodedClips
from avssl.eval.features import refuse_failures
from avssl.eval.finetune.training import Headed
from avssl.files.progress import track
from avssl.transforms.raw_view import RawView
from avssl.transforms.view_maker import ViewMaker


@dataclass(frozen=True)
class Scores:
    """Scores of N samples in the order of their index: mean float32 (N, C), and of their clips float32 (N, K, C)."""

    mean: NDArray[np.float32]
    clips: NDArray[np.float32]


def clip_probabilities(logits: torch.Tensor, *, multi_label: bool) -> torch.Tensor:
    """Softmax over classes, or with several labels the sigmoid of each class: float32 (B, C)."""
    return logits.float().sigmoid() if multi_label else logits.float().softmax(dim=1)


@torch.no_grad()
def score(
    model: Headed,
    clip_sets: ClipSets,
    view_maker: ViewMaker,
    *,
    multi_label: bool,
    batch_size: int,
    num_workers: int,
    device: torch.device,
    mixed_precision: str = "fp32",
) -> dict[str, Scores]:
    """{head: scores of all samples}, on every process. The model is set to eval mode.

    Every process reads some of the samples. ValueError on all of them if a sample cannot be read: a smaller test set
    would be another test set. RuntimeError unless every sample was read exactly once.
    """
    model.eval()
    collector = _ScoreCollector(multi_label)
    waiting: list[DecodedClips] = []
    failures: list[str] = []

    def run() -> None:
        for raw in batches_of([sample.clips for sample in waiting], batch_size):
            with torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision == "bf16"):
                logits = model(view_maker(raw, device))
            collector.add_clips(logits)
        collector.indices += [sample.index for sample in waiting]
        waiting.clear()

    samples = clip_sets.load(num_workers)
    for sample in track(samples, "test", len(clip_sets), "sample", shown=distributed.rank() == 0):
        if isinstance(sample, str):
            failures.append(sample)
            continue
        waiting.append(sample)
        if sum(len(next(iter(sample.clips.values())).media) for sample in waiting) >= batch_size:
            run()
    run()
    refuse_failures(failures, clip_sets.shards)
    return collector.gathered(clip_sets.shards.num_samples, device)


def batches_of(clips: Sequence[dict[str, RawView]], batch_size: int) -> Iterator[dict[str, RawView]]:
    """The clips of samples, {modality: (K, ...)} each, in batches of batch_size clips; the last one may be smaller."""
    if not clips:
        return
    batches = {name: torch.cat([sample[name].media for sample in clips]).split(batch_size) for name in clips[0]}
    for batch in zip(*batches.values(), strict=True):
        yield {name: RawView(name, media) for name, media in zip(batches, batch, strict=True)}


class _ScoreCollector:
    """Collects the scores of this process, and at the end those of all processes in the order of the samples."""

    def __init__(self, multi_label: bool) -> None:
        self.multi_label = multi_label
        self.indices: list[int] = []
        self.batches: dict[str, list[torch.Tensor]] = {}

    def add_clips(self, logits: Mapping[str, torch.Tensor]) -> None:
        for head, values in logits.items():
            self.batches.setdefault(head, []).append(clip_probabilities(values, multi_label=self.multi_label))

    def gathered(self, num_samples: int, device: torch.device) -> dict[str, Scores]:
        # A process without a sample still has to take part, and must know the shapes.
        shapes = {
            head: (sum(map(len, batches)) // max(1, len(self.indices)), batches[0].shape[1])
            for head, batches in self.batches.items()
        }
        shapes = next(shape for shape in distributed.gather_objects(shapes) if shape)
        indices = distributed.gather_uneven(torch.tensor(self.indices, dtype=torch.int64, device=device))
        order = indices.argsort()
        if indices[order].tolist() != list(range(num_samples)):
            raise RuntimeError(f"{len(indices)} of {num_samples} samples were tested, not each exactly once")
        scores = {}
        for head, (num_clips, num_classes) in shapes.items():
            batches = self.batches.get(head, [])
            rows = torch.cat(batches) if batches else torch.zeros((0, num_classes), device=device)
            clips = distributed.gather_uneven(rows.view(-1, num_clips, num_classes))[order].cpu()
            scores[head] = Scores(average(clips.numpy()), clips.numpy())
        return scores


def average(clips: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean over the clips, computed in float64: (N, K, C) -> (N, C)."""
    result: NDArray[np.float32] = clips.astype(np.float64).mean(axis=1).astype(np.float32)
    return result


def clip_accuracy(clips: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of the clips of each sample whose best class is right: float64 (N,)."""
    right: NDArray[np.float64] = (clips.argmax(axis=2) == targets[:, None]).mean(axis=1)
    return right
