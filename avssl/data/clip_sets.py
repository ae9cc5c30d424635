"""Several clips of every sample, evenly spaced, each sample exactly once over all processes: what classifiers are
tested on.

Of n clips the first begins and the last ends where the media does (`clips.uniform_windows`); clips of video and sound
share their instants. A clip is its centre crop, or three squares of the whole short side: at the beginning, the middle
and the end of the longer side (Wang et al. 2018, arXiv 1711.07971). A picture has no time and is one clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from avssl.data.augment import Box, centre_crop_box
from avssl.data.clip_reading import decode_audio_clip, decode_video_clip, spans
from avssl.data.clips import snap_to_frames, uniform_windows
from avssl.data.pictures import read_image
from avssl.data.shards import Sample, ShardSet
from avssl.data.video import crop_resize
from avssl.data.view_config import ViewsConfig, clip_lengths
from avssl.data.views import RawView, raw_audio, stack_raw_views
from avssl.distributed import rank, world_size
from avssl.types import MediaError

NUM_CROPS = (1, 3)


class ClipSets(Dataset[Any]):
    """number -> (index, {modality: RawView of its clips x crops} or MediaError) of this process's share of the samples.

    Clips come one after the other, of each its crops; all modalities of a sample have as many.
    """

    def __init__(
        self, shards: ShardSet, config: ViewsConfig, modalities: Sequence[str], num_clips: int, num_crops: int
    ) -> None:
        if num_crops not in NUM_CROPS or num_clips < 1:
            raise ValueError(f"num_clips must be at least 1 and num_crops 1 or 3, got {num_clips} and {num_crops}")
        self.shards, self.config, self.modalities = shards, config, tuple(modalities)
        self.num_clips, self.num_crops = num_clips, num_crops
        self.indices = range(rank(), shards.num_samples, world_size())

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> tuple[int, dict[str, RawView] | MediaError]:
        index = self.indices[number]
        try:
            sample = self.shards.read(index)
            return index, clip_set(sample, self.config, self.modalities, self.num_clips, self.num_crops)
        except MediaError as error:
            return index, error

    def load(self, num_workers: int) -> Iterator[tuple[int, dict[str, RawView] | MediaError]]:
        """All of this process's samples in order, decoded by that many workers (0: here)."""
        loader: DataLoader[Any] = DataLoader(
            self,
            batch_size=None,
            num_workers=num_workers,
            multiprocessing_context="forkserver" if num_workers else None,
            worker_init_fn=_start_worker,
            generator=torch.Generator().manual_seed(0),  # the global one belongs to the networks
        )
        yield from loader


def clip_set(
    sample: Sample, config: ViewsConfig, modalities: Sequence[str], num_clips: int, num_crops: int = 1
) -> dict[str, RawView]:
    """{modality: raw view of num_clips * num_crops clips}; MediaError for a modality that the sample has not."""
    key = sample.info.key
    here = {"video": sample.video, "audio": sample.audio, "image": sample.image}
    for modality in modalities:
        if here[modality] is None:
            raise MediaError(f"no_{modality}", f"sample {key} has no {modality}")  # type: ignore[arg-type]
    video_span, audio_span = spans(sample)
    video_span = video_span if "video" in modalities else None
    audio_span = audio_span if "audio" in modalities else None
    clips: dict[str, list[dict[str, RawView]]] = {modality: [] for modality in modalities}
    if sample.image is not None and "image" in modalities:
        picture = read_image(sample.image, name=key)[None]
        clips["image"] = _crops("image", picture, config.image.size_px, num_crops)
    if video_span is not None or audio_span is not None:
        lengths = replace(clip_lengths(config), max_offset_seconds=0.0)
        for plain in uniform_windows(video_span, audio_span, lengths, num_clips):
            window = plain if video_span is None else snap_to_frames(plain, video_span, sample.info.video_fps)
            if sample.video is not None and video_span is not None and window.video_start_seconds is not None:
                video = decode_video_clip(sample.video, window.video_start_seconds, config.video, video_span, key)
                clips["video"] += _crops("video", video, config.video.size_px, num_crops)
            if sample.audio is not None and audio_span is not None and window.audio_start_seconds is not None:
                audio = decode_audio_clip(sample.audio, window.audio_start_seconds, config.audio, audio_span, key)
                copies = num_crops if video_span is not None else 1  # one for each crop of the video beside it
                clips["audio"] += [{"view": raw_audio(audio, config.audio, None)}] * copies
    return {modality: stack_raw_views(rows)["view"] for modality, rows in clips.items()}


def _crops(modality: str, clip: torch.Tensor, size_px: int, num_crops: int) -> list[dict[str, RawView]]:
    boxes = crop_boxes(clip.shape[2], clip.shape[3], num_crops)
    return [{"view": RawView(modality, crop_resize(clip, box, size_px))} for box in boxes]


def crop_boxes(height: int, width: int, num_crops: int) -> list[Box]:
    """The centre crop of evaluation, or three squares of the short side along the longer one."""
    if num_crops == 1:
        return [centre_crop_box(height, width)]
    side = min(height, width)
    places = [round((max(height, width) - side) * share) for share in (0.0, 0.5, 1.0)]
    return [Box(place, 0, side, side) if height > width else Box(0, place, side, side) for place in places]


def _start_worker(worker: int) -> None:  # noqa: ARG001  (DataLoader passes it)
    torch.set_num_threads(1)
