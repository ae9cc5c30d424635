"""Base of the losses on several crops of a sample (multi-crop): two large ones, and small ones of images and videos.

The two large views are PairLoss's "first" and "second"; "small1", "small2", ... are cut from the same image, or in turn
from the seconds of "first" and "second" (Caron et al. 2020, arXiv 2006.09882).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import nn
from torch.nn.functional import normalize

from avssl.losses.base import VIEW_NAMES, Outputs, PairLoss
from avssl.losses.configs import CropConfig, MultiCropConfig, PairConfig
from avssl.models.heads import mlp
from avssl.ops.clusters import check_num_clusters, fitted_num_clusters
from avssl.types import LossConfig, Modality, View

VISUAL_MODALITIES: tuple[Modality, ...] = ("image", "video")  # modalities that have small crops


class MultiCropLoss(PairLoss):
    """The crops of a sample and their embeddings."""

    augments: ClassVar[tuple[str, str]] = ("swav_large", "swav_large")
    small_augment: ClassVar[str] = "swav_small"
    large_views: ClassVar[tuple[str, str]] = VIEW_NAMES  # from which codes, memories and centers are computed

    @classmethod
    def views(cls, config: LossConfig) -> tuple[View, ...]:
        """The two large views and the small ones."""
        large = super().views(config)
        visual = [view for view in large if view.modality in VISUAL_MODALITIES]
        count = cast("MultiCropConfig", config).num_small_crops if visual else 0
        sources = [visual[number % len(visual)] for number in range(count)]
        return large + tuple(
            View(f"small{number}", source.modality, cls.small_augment, source.clip)
            for number, source in enumerate(sources, start=1)
        )

    @classmethod
    def checked_augments(cls, config: PairConfig) -> tuple[str, ...]:
        """As in PairLoss; without small crops, images get the paper's set for two-crop runs."""
        names = super().checked_augments(config)
        if config.augments or cast("MultiCropConfig", config).num_small_crops:
            return names
        return tuple(name.replace("swav_large", "swav_two_crops") for name in names)

    @property
    def modality_of(self) -> dict[str, str]:
        """{view name: modality} of all crops, the two large ones first."""
        return {view.name: view.modality for view in self.views(self.config)}

    def project_crops(self, views: Mapping[str, torch.Tensor]) -> Outputs:
        """Embeddings by view, float32 (B, D), not normalized, of the encoders and projectors."""
        return self._through(views, dict(self.encoders.items()), dict(self.projectors.items()))

    @torch.no_grad()
    def teach_crops(self, views: Mapping[str, torch.Tensor]) -> Outputs:
        """As `project_crops`, with the teachers in place of encoders and projectors."""
        teachers: dict[str, Any] = dict(self.teachers.items())
        encoders, projectors = ({name: teacher[part] for name, teacher in teachers.items()} for part in (0, 1))
        return self._through(views, encoders, projectors)

    def _through(
        self, views: Mapping[str, torch.Tensor], encoders: dict[str, nn.Module], projectors: dict[str, nn.Module]
    ) -> Outputs:
        """Projections by view, float32 (B, D).

        Crops of one modality and size pass through the encoder together, and all crops of a modality through the
        projector: batch norms see the same batches as in the paper.
        """
        modality_of = self.modality_of
        groups: dict[tuple[str, torch.Size], list[str]] = {}
        for name, view in views.items():
            groups.setdefault((modality_of[name], view.shape), []).append(name)
        features: dict[str, list[torch.Tensor]] = {}
        names_of: dict[str, list[str]] = {}
        for (modality, _), names in groups.items():
            stacked = encoders[modality](torch.cat([views[name] for name in names]))
            features.setdefault(modality, []).append(stacked)
            names_of.setdefault(modality, []).extend(names)
        outputs: Outputs = {}
        for modality, groups_of_rows in features.items():
            stacked = projectors[modality](torch.cat(groups_of_rows))
            names = names_of[modality]
            outputs.update(zip(names, stacked.float().chunk(len(names)), strict=True))
        return {name: outputs[name] for name in views}

    def diagnostics(self, outputs: Outputs) -> Outputs:
        """As in the base class, of the two large views."""
        return super().diagnostics({name: outputs[name] for name in self.large_views})


class CropLoss(MultiCropLoss):
    """Unit embeddings of every crop, and the check of the number of clusters."""

    def __init__(self, config: CropConfig, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__(config, encoders, num_samples)
        check_num_clusters("num_prototypes", config.num_prototypes, num_samples)
        for modality in encoders:
            dims = (self.feature_dim(modality), *config.projector_hidden_dims, config.embedding_dim)
            self.projectors[modality] = mlp(dims, batch_norm=True, final_batch_norm=config.projector_final_batch_norm)

    @classmethod
    def fitted(cls, config: LossConfig, num_samples: int, global_batch_size: int) -> dict[str, int]:  # noqa: ARG003
        """Prototypes for some samples each."""
        return fitted_num_clusters("num_prototypes", cast("CropConfig", config).num_prototypes, num_samples)

    def embed(self, views: Mapping[str, torch.Tensor]) -> Outputs:
        """Unit embeddings by view, float32 (B, D)."""
        return {name: normalize(z, dim=1) for name, z in self.project_crops(views).items()}
