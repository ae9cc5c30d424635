"""What is selected: the options of `avssl prep select` that decide its result, and the reasons for leaving out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from avssl.files.plain_text import brief

KEPT = 0
CONDITION_FALSE, CONDITION_UNKNOWN = "condition_false", "condition_unknown"
EXACT, NEAR, SEMANTIC = "exact_duplicate", "near_duplicate", "semantic_duplicate"
CLASS_FULL, HOURS_FULL = "class_full", "hours_full"
REASONS = (CONDITION_FALSE, CONDITION_UNKNOWN, EXACT, NEAR, SEMANTIC, CLASS_FULL, HOURS_FULL)
DUPLICATES = (EXACT, NEAR, SEMANTIC)
NEAR_BITS = 4  # of 64, in which the hashes of near duplicates may differ
KEEP = ("longest", "highest-resolution", "first")  # of a group of duplicates
MODALITIES = ("video", "audio", "image")
DEDUP_ALLOWED = "exact, near, a cosine above 0 and below 1, or MODALITY=COSINE for any of video, audio and image"


@dataclass(frozen=True)
class Rule:
    """Which samples of a corpus are kept. ValueError for a value that is not allowed.

    where: a condition (expression.py), "" for none. exact, near: whether such duplicates are left out. cosines:
    {modality: least cosine of semantic duplicates}, {} if these are not looked for. keep: which one of a group is kept.
    by: the label field of classes. keep_per_class, max_hours: None for no limit. seed: of the order in which samples
    are drawn for both.
    """

    where: str = ""
    exact: bool = False
    near: bool = False
    cosines: dict[str, float] = field(default_factory=dict)
    keep: str = KEEP[0]
    by: str = "label"
    keep_per_class: int | None = None
    max_hours: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.keep not in KEEP:
            raise ValueError(f"--keep is {brief(self.keep)}; it must be one of {', '.join(KEEP)}")
        if self.keep_per_class is not None and self.keep_per_class < 1:
            raise ValueError(f"--keep-per-class is {self.keep_per_class}; it must be at least 1")
        if self.max_hours is not None and not (math.isfinite(self.max_hours) and self.max_hours > 0):
            raise ValueError(f"--max-hours is {self.max_hours}; it must be above 0")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed is {self.seed}; it must be from 0 to {2**32 - 1}")

    def to_json(self) -> dict[str, Any]:
        """The rule as a plain dict for JSON."""
        return asdict(self)


def dedup_options(words: Sequence[str]) -> dict[str, Any]:
    """The fields `exact`, `near` and `cosines` of a rule, of the words of --dedup. ValueError for a word that is none.

    Each level holds those before it: near looks for exact duplicates, too, and a cosine for both.
    """
    cosines: dict[str, float] = {}
    for word in words:
        modality, _, text = word.rpartition("=")
        if word in ("exact", "near"):
            continue
        try:
            cosine = float(text)
        except ValueError:
            cosine = math.nan
        if not 0 < cosine < 1 or modality not in ("", *MODALITIES):
            raise ValueError(f"--dedup has {brief(word)}; it takes {DEDUP_ALLOWED}")
        cosines |= dict.fromkeys((modality,) if modality else MODALITIES, cosine)
    return {"exact": bool(words), "near": "near" in words or bool(cosines), "cosines": cosines}
