"""No loss: the place of a public model, which was not trained here, among encoders with heads.

Its projectors are the model's own projections into a joint space; without one its features are its embeddings. It is in
no list of losses, and cannot be trained.
"""

from __future__ import annotations

from typing import ClassVar, cast

from avssl.losses.base import Loss
from avssl.losses.configs import PublicModelConfig
from avssl.types import LossConfig, Modality, View


class PublicModel(Loss):
    """Encoders of one public model, in one space. State: none."""

    Config: ClassVar[type[LossConfig]] = PublicModelConfig
    family: ClassVar[str] = "public"
    paper: ClassVar[str] = "see the model's card"

    @classmethod
    def views(cls, config: LossConfig) -> tuple[View, ...]:
        """A deterministic view of each modality, with its name."""
        return tuple(
            View(name, cast("Modality", name), "test") for name in cast("PublicModelConfig", config).modalities
        )
