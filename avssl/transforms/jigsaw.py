"""Jigsaws of a 3 x 3 grid: patches of an image or clip, tiles of a spectrogram.

They are cut as in PIRL (Misra & van der Maaten 2020, arXiv 1912.01991): the crop is resized to 255 px, each of its nine
cells of 85 px gives a patch of 64 px at a random offset, and the order of the patches is uniformly random. Other sizes
keep these proportions. The patches are never put together again: the network reads nine small images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import torch

GRID = 3
NUM_TILES = GRID * GRID


class JigsawSize(NamedTuple):
    """Sides in pixels of a cell and of the patch in it; the crop is resized to 3 x 3 cells."""

    cell_px: int
    patch_px: int


class Jigsaw(NamedTuple):
    """offsets: (top, left) of the patch in each cell, row by row. Patch k of the jigsaw is from cell permutation[k]."""

    offsets: list[tuple[int, int]]
    permutation: list[int]


def jigsaw_size(size_px: int) -> JigsawSize:
    """85 and 64 px for images of 224 px, in proportion for other sizes. Raises ValueError for images below 3 px."""
    cell_px = round(size_px * 255 / 224) // GRID
    patch_px = round(cell_px * 64 / 85)
    if patch_px < 1:
        raise ValueError(f"a jigsaw of images of {size_px} px has no patches; size_px must be at least 3")
    return JigsawSize(cell_px, patch_px)


def draw_jigsaw(generator: np.random.Generator, size: JigsawSize) -> Jigsaw:
    """A jigsaw with uniformly random offsets and a uniformly random permutation."""
    offsets = generator.integers(size.cell_px - size.patch_px + 1, size=(NUM_TILES, 2)).tolist()
    return Jigsaw([(top, left) for top, left in offsets], generator.permutation(NUM_TILES).tolist())


def centered_jigsaw(size: JigsawSize) -> Jigsaw:
    """The jigsaw of evaluation: patches from the middle of their cells, in the order of the cells."""
    offset = (size.cell_px - size.patch_px) // 2
    return Jigsaw([(offset, offset)] * NUM_TILES, list(range(NUM_TILES)))


def cut_patches(clip: torch.Tensor, jigsaw: Jigsaw, size: JigsawSize) -> torch.Tensor:
    """(T, 3, 3 * cell_px, 3 * cell_px) -> patches (9, T, 3, patch_px, patch_px), alike in all frames; any dtype."""
    import torch

    patches = []
    for cell in jigsaw.permutation:
        top = cell // GRID * size.cell_px + jigsaw.offsets[cell][0]
        left = cell % GRID * size.cell_px + jigsaw.offsets[cell][1]
        patches.append(clip[..., top : top + size.patch_px, left : left + size.patch_px])
    return torch.stack(patches)


def cut_tiles(spectrogram: torch.Tensor, permutation: torch.Tensor) -> torch.Tensor:
    """(B, 1, frames, bins) -> (B, 9, 1, frames // 3, bins // 3): tile k of sample b is permutation[b, k].

    The tiles are numbered along the bins first, then along the frames. If a side is no multiple of 3, the remainder is
    left out, half of it at each end. permutation: int64 (B, 9). Raises ValueError if a side is shorter than 3.
    """
    import torch

    num_frames, num_bins = spectrogram.shape[-2:]
    frames, bins = num_frames // GRID, num_bins // GRID
    if not frames or not bins:
        raise ValueError(f"nine tiles need at least 3 frames and 3 bins, got a spectrogram {tuple(spectrogram.shape)}")
    first_frame, first_bin = (num_frames - GRID * frames) // 2, (num_bins - GRID * bins) // 2
    inner = spectrogram[..., first_frame : first_frame + GRID * frames, first_bin : first_bin + GRID * bins]
    grid = inner.unflatten(-1, (GRID, bins)).unflatten(-3, (GRID, frames))  # (B, 1, 3, frames, 3, bins)
    tiles = grid.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    samples = torch.arange(len(tiles), device=tiles.device)[:, None]
    permuted: torch.Tensor = tiles[samples, permutation]
    return permuted
