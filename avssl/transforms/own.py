"""Augments of the user's own: functions on decoded frames and waveforms that a worker calls, found by their name.

    @register_augment("frozen_frame", "video")
    def frozen_frame(frames, generator):            # uint8 (T, 3, H, W) -> uint8 (T, 3, H, W)
        return frames[generator.integers(len(frames))].expand_as(frames)

A view whose `augment` is that name has this one random change; after it comes the crop at the center. The name may also
be the `operation` of any augmentation set (`views.video.augment.operation=frozen_frame`): then it comes before all
other changes of the set.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args

from avssl.plugins.files import PluginError
from avssl.plugins.registry import Registry
from avssl.transforms.published_sets import published_sets
from avssl.types import MediaError, Modality

if TYPE_CHECKING:  # the configuration imports this file, and `--help` does without torch
    import numpy as np
    import torch

Function = TypeVar("Function", bound=Callable[..., Any])


class Augment(NamedTuple):
    """An augment of the user's own and the modalities that it is for."""

    function: Callable[[Any, Any], Any]
    modalities: tuple[str, ...]


AUGMENTS: Registry[Augment] = Registry("augment")


def register_augment(name: str, *modalities: Modality) -> Callable[[Function], Function]:
    """Decorator: makes `function(media, generator)` an augment that views and augmentation sets can name.

    media: for "video" and "image" the decoded frames, uint8 (T, 3, H, W) with T = 1 for an image, RGB; for "audio" the
    waveform, float32 (1, samples) in [-1, 1]. The function returns the same kind with the same T or number of samples;
    height and width may change. generator: numpy.random.Generator that depends on (seed, epoch, index, view) alone. The
    global generators of random, NumPy and torch are seeded from it during the call, so transforms of torchvision are
    reproducible too; that is what exact resume needs. What does not come from the arguments (the clock, a file that
    changes, a counter) would break it.

    Raises ValueError for a taken name or an unknown modality.

    >>> @register_augment("negative", "image", "video")
    ... def negative(frames, generator):
    ...     return 255 - frames
    """
    unknown = [str(modality) for modality in modalities if modality not in get_args(Modality)]
    if unknown or not modalities:
        raise ValueError(
            f"augment {name!r} is for {', '.join(unknown) or 'no modality'}; name one or several of "
            f"{', '.join(get_args(Modality))}, such as @register_augment({name!r}, 'video')"
        )
    if name in ("train", "test", "jigsaw", *published_sets()):
        raise ValueError(
            f"the augment name {name!r} is taken by the program's own set of that name; choose another name"
        )

    def add(function: Function) -> Function:
        AUGMENTS.add(name, Augment(function, modalities), function)
        return function

    return add


def check_augment(name: str, modality: str) -> None:
    """Raise ValueError unless an augment of that name is registered for the modality."""
    allowed = AUGMENTS.find(name).modalities
    if modality not in allowed:
        raise ValueError(f"the augment {name!r} is for {' and '.join(allowed)}, not for {modality}")


def apply_augment(
    name: str, modality: str, media: torch.Tensor, generator: np.random.Generator, key: str
) -> torch.Tensor:
    """The media of a sample after an augment. key: of the sample, for errors, which are PluginErrors."""
    function = AUGMENTS.find(name).function
    what = f"the augment {name!r} on the {modality} of sample {key}"
    # A copy, for other views are made of the same frames; silence after the end of a stream that NaN marks there.
    given = media.clone() if modality != "audio" else media.nan_to_num(0.0)
    with _seeded(generator):
        try:
            result = function(given, generator)
        except MediaError:
            raise
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise PluginError(
                f"{what}: {last.filename}, line {last.lineno}: {type(error).__name__}: {error}"
            ) from error
    _check_result(what, modality, media, result)
    return result if modality != "audio" else result.where(~media.isnan(), media)  # type: ignore[no-any-return]


def _check_result(what: str, modality: str, media: torch.Tensor, result: Any) -> None:
    import torch

    is_tensor = isinstance(result, torch.Tensor) and result.dtype == media.dtype
    shape = tuple(media.shape)
    fits = is_tensor and result.ndim == media.ndim
    fits = fits and result.shape == media.shape if modality == "audio" else fits and result.shape[:2] == media.shape[:2]
    if fits and result.numel() and (modality != "audio" or bool(result.isfinite().all())):
        return
    allowed = shape if modality == "audio" else f"({shape[0]}, {shape[1]}, height, width)"
    given = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, torch.Tensor) else type(result).__name__
    if fits and modality == "audio":
        given = "numbers that are not finite"
    raise PluginError(f"{what} gave {given}; it must give {media.dtype} {allowed}")


@contextmanager
def _seeded(generator: np.random.Generator) -> Iterator[None]:
    """A context in which the global generators of random, NumPy and torch (CPU) follow from this one."""
    import numpy as np
    import torch

    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    seed = int(generator.integers(2**32))
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.default_generator.set_state(before[2])
