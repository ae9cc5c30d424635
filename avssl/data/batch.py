"""A batch as a worker of the loader makes it and the training process receives it: stacked raw views and failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.utils.data import get_worker_info

from avssl.data.shared_memory import BufferRange, SharedBuffer, SharedBuffers, open_buffer, padded, range_of
from avssl.transforms.frame_tensors import to_device
from avssl.transforms.raw_view import RawView
from avssl.types import MediaError

MakeViews = Callable[[Mapping[str, RawView], torch.device], dict[str, torch.Tensor]]
SentViews = tuple[dict[str, RawView], SharedBuffer]


def stack_raw_views(rows: Sequence[Mapping[str, RawView]], buffer: SharedBuffer | None = None) -> dict[str, RawView]:
    """Stack the raw views of single samples to those of a batch (B, ...), in a buffer of shared memory if one is given.

    Images and frames with channels last in memory keep that layout.
    """
    result = {}
    for name, first in rows[0].items():
        stacked: dict[str, Any] = {
            field: _stacked([getattr(row[name], field) for row in rows], buffer) for field in first.tensors()
        }
        result[name] = replace(first, **stacked)
    return result


def stacked_bytes(rows: Sequence[Mapping[str, RawView]]) -> int:
    """The number of bytes that a batch of these rows takes in a buffer of shared memory."""
    views = rows[0].values()
    return sum(padded(len(rows) * tensor.nbytes) for view in views for tensor in view.tensors().values())


def _stacked(tensors: list[torch.Tensor], buffer: SharedBuffer | None) -> torch.Tensor:
    has_channels_last = tensors[0].ndim >= 4 and tensors[0].shape[-3] == 3 and tensors[0].stride(-3) == 1
    if has_channels_last:
        tensors = [tensor.movedim(-3, -1) for tensor in tensors]
    out = None if buffer is None else buffer.empty((len(tensors), *tensors[0].shape), tensors[0].dtype)
    batch = torch.stack(tensors, out=out)
    return batch.movedim(-1, -3) if has_channels_last else batch


@dataclass
class RawBatch:
    """A worker's batch: stacked raw views, sample indices int64 (B,), and (index, reason, message) of each failure.

    made: names of the views whose media are ready for the networks. buffer: in the worker, the shared memory that holds
    the views.
    """

    views: dict[str, RawView]
    index: torch.Tensor
    failures: Sequence[tuple[int, str, str]]
    made: tuple[str, ...] = ()
    buffer: SharedBuffer | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the descriptor of the buffer instead of a copy of its content."""
        if self.buffer is None:
            return RawBatch, (self.views, self.index, self.failures, self.made)
        modalities = {name: view.modality for name, view in self.views.items()}
        ranges = {(name, field): range_of(tensor) for name, view in self.views.items()
                  for field, tensor in view.tensors().items()}  # fmt: skip
        return _received, (self.buffer.sent(), modalities, ranges, self.index.tolist(), self.failures, self.made)

    def pin_memory(self) -> RawBatch:
        """Pin the memory of all tensors, in place; DataLoader calls this."""
        self.views = {name: view.pin_memory() for name, view in self.views.items()}
        self.index = self.index.pin_memory()
        return self


def _received(
    sent: tuple[Any, int],
    modalities: dict[str, str],
    ranges: dict[tuple[str, str], BufferRange],
    index: list[int],
    failures: Sequence[tuple[int, str, str]],
    made: tuple[str, ...],
) -> RawBatch:
    """Rebuild a batch in the process that receives it."""
    tensors = dict(zip(ranges, open_buffer(*sent, list(ranges.values())), strict=True))
    views = {
        name: RawView(modality, **{field: tensor for (view, field), tensor in tensors.items() if view == name})
        for name, modality in modalities.items()
    }
    return RawBatch(views, torch.tensor(index), failures, made)


class Collate:
    """Makes a batch of samples. An unreadable one is replaced by the nearest readable one before it, or by the first.

    In a worker, batches are in shared memory, which is reused once the training process has released it.

    make: makes views ready for the networks, {name: tensor}, in a worker; None leaves that to the training process.
    raw_name: a view that stays raw.
    """

    def __init__(self, make: MakeViews | None = None, raw_name: str = "") -> None:
        self.buffers = SharedBuffers()
        self.make, self.raw_name = make, raw_name

    def __call__(self, samples: list[tuple[int, dict[str, RawView] | MediaError]]) -> RawBatch:
        """The batch of [(index, views or why they cannot be read)]; without views if none can be read."""
        readable = [position for position, (_, views) in enumerate(samples) if not isinstance(views, MediaError)]
        failures = [(index, views.reason, views.message) for index, views in samples if isinstance(views, MediaError)]
        if not readable:
            return RawBatch({}, torch.tensor([index for index, _ in samples]), failures)
        chosen = [max((p for p in readable if p <= position), default=readable[0]) for position in range(len(samples))]
        index = torch.tensor([samples[position][0] for position in chosen])
        rows: list[dict[str, RawView]] = [samples[position][1] for position in chosen]  # type: ignore[misc]
        if get_worker_info() is None:
            return RawBatch(stack_raw_views(rows), index, failures)
        if self.make is None:
            views, buffer = self._sent(stacked_bytes(rows), partial(stack_raw_views, rows))
            return RawBatch(views, index, failures, buffer=buffer)
        views, made = self._made(stack_raw_views(rows), self.make)
        return replace(self.sent(views, index.tolist()), failures=failures, made=made)

    def sent(self, views: Mapping[str, RawView], index: Sequence[int]) -> RawBatch:
        """A batch of views that are stacked already, copied to shared memory."""
        tensors = [tensor for view in views.values() for tensor in view.tensors().values()]
        copies, buffer = self._sent(sum(padded(tensor.nbytes) for tensor in tensors), partial(_copied, views))
        return RawBatch(copies, torch.tensor(index), [], buffer=buffer)

    def _made(self, raw: dict[str, RawView], make: MakeViews) -> tuple[dict[str, RawView], tuple[str, ...]]:
        """The views, and the names of those that are ready for the networks now."""
        kept = {name: view for name, view in raw.items() if name == self.raw_name}
        made = make({name: view for name, view in raw.items() if name not in kept}, torch.device("cpu"))
        return {name: RawView(raw[name].modality, tensor) for name, tensor in made.items()} | kept, tuple(made)

    def _sent(self, num_bytes: int, fill: Callable[[SharedBuffer], dict[str, RawView]]) -> SentViews:
        """The views that `fill` writes to a buffer of so many bytes, and the buffer."""
        buffer = self.buffers.take(num_bytes)
        try:
            return fill(buffer), buffer
        except BaseException:
            buffer.release()  # it will not be sent, so no receiver would release it
            raise


def _copied(views: Mapping[str, RawView], buffer: SharedBuffer) -> dict[str, RawView]:
    """The views with their tensors in the buffer."""
    result = {}
    for name, view in views.items():
        shared: dict[str, Any] = {
            field: buffer.empty(tuple(tensor.shape), tensor.dtype).copy_(tensor)
            for field, tensor in view.tensors().items()
        }
        result[name] = replace(view, **shared)
    return result


class DeviceCopier:
    """Copies the media of raw views to a GPU on a stream of its own; for another device it returns them unchanged."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def copy(self, views: dict[str, RawView]) -> dict[str, RawView]:
        """The views with media and background on the device, ready for the current stream.

        The drawn parameters stay in host memory, where they are read without waiting for the device.
        """
        if self.stream is None:
            return views
        current_stream = torch.cuda.current_stream(self.device)
        copied = {}
        with torch.cuda.stream(self.stream):
            for name, view in views.items():
                background = None if view.background is None else to_device(view.background, self.device)
                copied[name] = replace(view, media=to_device(view.media, self.device), background=background)
        current_stream.wait_stream(self.stream)
        for view in copied.values():
            for tensor in (view.media, view.background):
                if tensor is not None:
                    tensor.record_stream(current_stream)  # so that its memory is not reused before it was read
        return copied
