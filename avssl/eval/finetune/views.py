"""A run's views with some changes: what a classifier is trained and tested on (longer clips, other augmentation)."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from avssl.transforms.config import ViewsConfig
from avssl.transforms.draw import PictureAugment
from avssl.types import View

T = TypeVar("T")
CROP_AND_FLIP = "deepcluster"  # the published set without colours: what classifiers of pictures are trained on


def changed(config: T, changes: Mapping[str, Any], where: str = "views") -> T:
    """A copy of a configuration with nested changes, {"video": {"num_frames": 32}}.

    A dictionary of augmentation sets takes new names. ValueError for a key that is not there, or a value of another
    type than the one before.
    """
    fields = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}  # type: ignore[arg-type]
    new = {}
    for name, value in changes.items():
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where} has no key {name!r}.{hint} It has: {', '.join(fields)}")
        new[name] = _changed_value(fields[name], value, f"{where}.{name}")
    return dataclasses.replace(config, **new)  # type: ignore[type-var]


def _changed_value(before: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(before):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {value!r}; it must be a section with keys of its own")
        return changed(before, value, where)
    if isinstance(before, dict):
        return before | {
            name: _changed_value(before.get(name, PictureAugment()), one, f"{where}.{name}")
            for name, one in value.items()
        }
    if isinstance(before, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(before, tuple) and isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_changed_value(old, one, where) for old, one in zip(before, value, strict=True))
    if type(value) is not type(before):
        raise ValueError(f"{where} is {value!r}; it must be of type {type(before).__name__}, as {before!r}")
    return value


def training_views(modalities: Sequence[str], augment: str) -> tuple[View, ...]:
    """One view a modality, named after it. augment: a set of the views for pictures and video; "" for the usual one.

    Sound has one set of its own. The usual one is the run's (views.video.augment), for pictures crop and flip.
    """
    usual = {"image": CROP_AND_FLIP, "video": "train", "audio": "train"}
    return tuple(
        View(modality, modality, usual[modality] if modality == "audio" or not augment else augment)  # type: ignore[arg-type]
        for modality in modalities
    )


def same_sound(one: ViewsConfig, other: ViewsConfig) -> bool:
    """Are spectrograms made in one way, whatever the augmentation? Then their statistics serve both."""
    plain = [dataclasses.replace(views.audio, augment=other.audio.augment, seconds=0.0) for views in (one, other)]
    frames = [dataclasses.replace(audio, num_frames=0) for audio in plain]
    return frames[0] == frames[1]
