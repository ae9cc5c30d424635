"""A batch as a worker of the loader makes it and the training process receives it: stacked raw views and failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import default_collate, get_worker_info

from avssl.data.shared_memory import BufferRange, SharedBuffer, SharedBuffers, open_buffer, padded, range_of
from avssl.transforms.raw_view import RawView
from avssl.types import MediaError

if TYPE_CHECKING:
    from avssl.transforms.raw_view import RawView
from avssl.transforms.geometry import to_device


def stack_raw_views(rows: Sequence[Mapping[str, RawView]], buffer: SharedBuffer | None = None) -> dict[str, RawView]:
    """A batch of raw views (B, ...) from those of single samples, in a buffer of shared memory if one is given.

    Images and frames with channels last in memory keep that order.
    """
    result = {}
    for name, first in rows[0].items():
        stacked: dict[str, Any] = {
            field: _stacked([getattr(row[name], field) for row in rows], buffer) for field in first.tensors()
        }
        result[name] = replace(first, **stacked)
    return result


def stacked_bytes(rows: Sequence[Mapping[str, RawView]]) -> int:
    """The bytes that a batch of these rows takes in a buffer of shared memory."""
    views = rows[0].values()
    return sum(padded(len(rows) * tensor.nbytes) for view in views for tensor in view.tensors().values())


def _stacked(tensors: list[torch.Tensor], buffer: SharedBuffer | None) -> torch.Tensor:
    has_channels_last = tensors[0].ndim >= 4 and tensors[0].shape[-3] == 3 and tensors[0].stride(-3) == 1
    if has_channels_last:
        tensors = [tensor.movedim(-3, -1) for tensor in tensors]
    if buffer is None:
        batch: torch.Tensor = default_collate(tensors)
    else:
        batch = torch.stack(tensors, out=buffer.empty((len(tensors), *tensors[0].shape), tensors[0].dtype))
    return batch.movedim(-1, -3) if has_channels_last else batch


@dataclass
class RawBatch:
    """The message of a worker: stacked raw views, sample indices (B,), and (index, reason, message) of each failure.

    buffer: in the worker, the shared memory in which the views lie.
    """

    views: dict[str, RawView]
    index: torch.Tensor
    failures: Sequence[tuple[int, str, str]]
    buffer: SharedBuffer | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the descriptor of the buffer to another process instead of a copy of its content."""
        if self.buffer is None:
            return RawBatch, (self.views, self.index, self.failures)
        modalities = {name: view.modality for name, view in self.views.items()}
        ranges = {(name, field): range_of(tensor) for name, view in self.views.items()
                  for field, tensor in view.tensors().items()}  # fmt: skip
        return _received, (self.buffer.sent(), modalities, ranges, self.index.tolist(), self.failures)

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
) -> RawBatch:
    """Rebuild a batch in the process that receives it."""
    tensors = dict(zip(ranges, open_buffer(*sent, list(ranges.values())), strict=True))
    views = {
        name: RawView(modality, **{field: tensor for (of, field), tensor in tensors.items() if of == name})
        for name, modality in modalities.items()
    }
    return RawBatch(views, torch.tensor(index), failures)


class Collate:
    """Makes a batch of samples. An unreadable sample is replaced by the nearest readable one before it, or the first.

    In a worker, batches lie in shared memory, which is used again once the training process has let go of it.
    """

    def __init__(self) -> None:
        self.buffers = SharedBuffers()

    def __call__(self, samples: list[tuple[int, dict[str, RawView] | MediaError]]) -> RawBatch:
        readable = [place for place, (_, views) in enumerate(samples) if not isinstance(views, MediaError)]
        failures = [(index, views.reason, views.message) for index, views in samples if isinstance(views, MediaError)]
        if not readable:
            return RawBatch({}, torch.tensor([index for index, _ in samples]), failures)
        chosen = [max((p for p in readable if p <= place), default=readable[0]) for place in range(len(samples))]
        index = torch.tensor([samples[place][0] for place in chosen])
        rows: list[dict[str, RawView]] = [samples[place][1] for place in chosen]  # type: ignore[misc]
        buffer = None if get_worker_info() is None else self.buffers.take(stacked_bytes(rows))
        try:
            views = stack_raw_views(rows, buffer)
        except BaseException:
            if buffer is not None:
                buffer.let_go()  # it will not be sent, so no reader would let go of it
            raise
        return RawBatch(views, index, failures, buffer)


class Copies:
    """Copies the media of raw views to the device. Without a GPU it returns them unchanged."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def ahead(self, views: dict[str, RawView]) -> dict[str, RawView]:
        """The views with media and background on the device, ready for the current stream.

        The drawn parameters stay in host memory, where the views read them without waiting for the device.
        """
        if self.stream is None:
            return views
        computing = torch.cuda.current_stream(self.device)
        moved = {}
        with torch.cuda.stream(self.stream):
            for name, view in views.items():
                media = to_device(view.media, self.device)
                background = view.background
                if background is not None:
                    background = to_device(background, self.device)
                moved[name] = replace(view, media=media, background=background)
        computing.wait_stream(self.stream)
        for view in moved.values():
            for tensor in (view.media, view.background):
                if tensor is not None:
                    tensor.record_stream(computing)  # so that its memory is not reused before the views have read it
        return moved
