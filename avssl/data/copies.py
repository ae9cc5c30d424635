"""Copies from host memory to the device; those of a batch to a GPU on a stream of their own, beside the computation.

The loop never waits for the GPU in a step, so it asks for the next batch while the GPU still computes this one. On the
stream of the computation the copy would wait for its turn; on its own it is done by then.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from avssl.transforms.view_maker import RawView


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; only CUDA is not waited for.

    Batches are pinned for it, and PyTorch keeps pinned memory until it was read. MPS reads pageable memory some time
    later, when a worker may have written its next batch there.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


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
