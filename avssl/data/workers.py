"""The processes in which a loader reads: what each sets before its first sample, what they hold."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from avssl.processes.killable import end_with_parent
from avssl.transforms.audio import AudioParams
from avssl.transforms.color_augment import ColorParams
from avssl.transforms.config import ViewsConfig, image_augment, view_size_px
from avssl.transforms.jigsaw import NUM_TILES, jigsaw_size
from avssl.types import View

# glibc's numbers of these settings, and their values. Its own thresholds move with what a program does: some workers
# then give the memory of every clip back and get it anew, page by page, for up to a quarter of their time.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
KEPT_BYTES = 64 << 20  # freed bytes that a worker may keep
# Of a worker alone: what it changes of the libraries' memory and Python's own, 22 MiB, and a clip as it was decoded.
WORKER_MIB = 40
LEAST_MAPPED_BYTES = 32 << 20  # from here on a piece of memory is the system's again as soon as it is freed


def start_worker(worker: int) -> None:  # noqa: ARG001  (DataLoader passes it)
    """One thread; freed memory is kept for the next clip; signals are the training process' to answer; ends with it.

    DataLoader's own watch looks at the process that forked this one: the server, which lives as long as its workers.
    """
    end_with_parent()
    torch.set_num_threads(1)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Let this process keep up to 64 MiB that it has freed; False where the C library is not glibc."""
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mapped, trimmed = set_option(M_MMAP_THRESHOLD, LEAST_MAPPED_BYTES), set_option(M_TRIM_THRESHOLD, KEPT_BYTES)
    return bool(mapped and trimmed)


def sample_bytes(views: Sequence[View], config: ViewsConfig) -> int:
    """What a worker hands over for one sample in training, all views and its index."""
    return 8 + sum(_audio_bytes(view, config) if view.modality == "audio" else _picture_bytes(view, config)
                   for view in views)  # fmt: skip


def host_mib(views: Sequence[View], config: ViewsConfig, batch_size: int, workers: int, prefetch_batches: int) -> float:
    """An upper bound on the host memory of a training process' workers, without the libraries that all of them share.

    batch_size: samples of a batch of this process. For clips of some ten frames of 340 x 256 px as they are stored:
    docs/loading.md has the formula and how well it holds.
    """
    batch_mib = batch_size * sample_bytes(views, config) / 2**20
    # The rows of a batch in the making, and shared memory: prefetch_batches that wait or are written, one in use.
    return workers * (WORKER_MIB + (2 + prefetch_batches) * batch_mib)


def _picture_bytes(view: View, config: ViewsConfig) -> int:
    """Bytes of a uint8 RGB view and its color parameters."""
    augment = image_augment(view, config)
    settings = config.image if view.modality == "image" else config.video
    side = view_size_px(augment, settings)
    num_patches = 1
    if augment is not None and augment.jigsaw:
        num_patches, side = NUM_TILES, jigsaw_size(side).patch_px
    num_frames = config.video.num_frames if view.modality == "video" else 1
    color_params = 0 if augment is None else 4 * num_patches * len(ColorParams._fields)
    return num_patches * num_frames * 3 * side**2 + color_params


def _audio_bytes(view: View, config: ViewsConfig) -> int:
    """A float32 waveform, what was drawn, and what is mixed in."""
    waveform = 4 * round(config.audio.seconds * config.audio.rate_hz)
    if view.augment == "test":
        return waveform
    mixed_in = waveform if config.audio.augment.mixup_ratio > 0 else 0
    tiles = 8 * NUM_TILES if view.augment == "jigsaw" else 0
    return waveform + 4 * len(AudioParams._fields) + mixed_in + tiles
