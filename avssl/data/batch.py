"""A batch as a loader's worker makes it and the training process receives it: stacked raw views and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import get_worker_info

from avssl.data.shared_memory import Piece, Pieces, Place, open_piece, place_of
from avssl.transforms.view_maker import RawView, stack_raw_views, stacked_bytes
from avssl.types import MediaError


@dataclass
class RawBatch:
    """What a worker sends: stacked raw views, sample indices (B,), and (index, reason, message) of failures.

    piece: the shared memory in which the views lie, in the worker.
    """

    views: dict[str, RawView]
    index: torch.Tensor
    failures: Sequence[tuple[int, str, str]]
    piece: Piece | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process goes the piece of memory, not what it holds."""
        if self.piece is None:
            return RawBatch, (self.views, self.index, self.failures)
        modalities = {name: view.modality for name, view in self.views.items()}
        places = {(name, field): place_of(tensor) for name, view in self.views.items()
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
    places: dict[tuple[str, str], Place],
    index: list[int],
    failures: Sequence[tuple[int, str, str]],
) -> RawBatch:
    """A batch in the process that it was sent to."""
    tensors = dict(zip(places, open_piece(*sent, list(places.values())), strict=True))
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
        self.pieces = Pieces()

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
