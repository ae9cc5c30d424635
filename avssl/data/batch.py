"""A batch as a loader's worker makes it and the training process receives it: stacked raw views and what failed."""

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


def stack_raw_views(rows: Sequence[Mapping[str, RawView]], piece: SharedBuffer | None = None) -> dict[str, RawView]:
    """Batch of raw views from single samples, in a piece of shared memory if one is given.

    Pictures whose memory has channels last keep it so.
    """
    result = {}
    for name, first in rows[0].items():
        stacked: dict[str, Any] = {
            field: _stacked([getattr(row[name], field) for row in rows], piece) for field in first.tensors()
        }
        result[name] = replace(first, **stacked)
    return result


def stacked_bytes(rows: Sequence[Mapping[str, RawView]]) -> int:
    """What a batch of them takes of a piece of shared memory."""
    views = rows[0].values()
    return sum(padded(len(rows) * tensor.nbytes) for view in views for tensor in view.tensors().values())


def _stacked(parts: list[torch.Tensor], piece: SharedBuffer | None) -> torch.Tensor:
    has_channels_last = parts[0].ndim >= 4 and parts[0].shape[-3] == 3 and parts[0].stride(-3) == 1
    if has_channels_last:
        parts = [part.movedim(-3, -1) for part in parts]
    if piece is None:
        batch: torch.Tensor = default_collate(parts)
    else:
        batch = torch.stack(parts, out=piece.empty((len(parts), *parts[0].shape), parts[0].dtype))
    return batch.movedim(-1, -3) if has_channels_last else batch


@dataclass
class RawBatch:
    """What a worker sends: stacked raw views, sample indices (B,), and (index, reason, message) of failures.

    piece: the shared memory in which the views lie, in the worker.
    """

    views: dict[str, RawView]
    index: torch.Tensor
    failures: Sequence[tuple[int, str, str]]
    piece: SharedBuffer | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process goes the piece of memory, not what it holds."""
        if self.piece is None:
            return RawBatch, (self.views, self.index, self.failures)
        modalities = {name: view.modality for name, view in self.views.items()}
        places = {(name, field): range_of(tensor) for name, view in self.views.items()
                  for field, tensor in view.tensors().items()}  # fmt: skip
        return _received, (self.piece.sent(), modalities, places, self.index.tolist(), self.failures)

    def pin_memory(self) -> RawBatch:
        """Called by DataLoader when it pins."""
        self.views = {name: view.pin_memory() for name, view in self.views.items()}
        self.index = self.index.pin_memory()
        return self


def _received(
    sent: tuple[Any, int],
    modalities: dict[str, str],
    places: dict[tuple[str, str], BufferRange],
    index: list[int],
    failures: Sequence[tuple[int, str, str]],
) -> RawBatch:
    """A batch in the process that it was sent to."""
    tensors = dict(zip(places, open_buffer(*sent, list(places.values())), strict=True))
    views = {
        name: RawView(modality, **{field: tensor for (of, field), tensor in tensors.items() if of == name})
        for name, modality in modalities.items()
    }
    return RawBatch(views, torch.tensor(index), failures)


class Collate:
    """Samples -> a batch. What could not be read is a repeat of the nearest readable row before (or the first).

    In a worker batches lie in shared memory, that of earlier ones once the training process has let go of it.
    """

    def __init__(self) -> None:
        self.pieces = SharedBuffers()

    def __call__(self, samples: list[tuple[int, dict[str, RawView] | MediaError]]) -> RawBatch:
        readable = [place for place, (_, views) in enumerate(samples) if not isinstance(views, MediaError)]
        failures = [(index, views.reason, views.message) for index, views in samples if isinstance(views, MediaError)]
        if not readable:
            return RawBatch({}, torch.tensor([index for index, _ in samples]), failures)
        places = [max((p for p in readable if p <= place), default=readable[0]) for place in range(len(samples))]
        index = torch.tensor([samples[place][0] for place in places])
        rows: list[dict[str, RawView]] = [samples[place][1] for place in places]  # type: ignore[misc]
        piece = None if get_worker_info() is None else self.pieces.take(stacked_bytes(rows))
        try:
            views = stack_raw_views(rows, piece)
        except BaseException:
            if piece is not None:
                piece.let_go()  # it will not be sent: no reader would
            raise
        return RawBatch(views, index, failures, piece)


class Copies:
    """Moves the media of raw views to the device. Without a GPU it hands them on as they are."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def ahead(self, views: dict[str, RawView]) -> dict[str, RawView]:
        """The views with media and background on the device, for the current stream to use.

        What was drawn stays in host memory, where the views look at it without waiting.
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
                    tensor.record_stream(computing)  # its memory is not given to another copy before it was used
        return moved
