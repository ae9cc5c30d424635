"""XDC: cross-modal deep clustering (Alwassel et al. 2020, arXiv 1911.12667).

This is DeepCluster with labels swapped between the modalities: clusters of the audio features are the video network's
labels and the other way round. Only this idea is taken from the paper. How many clusters its authors use, when they
cluster again and what they then do with the classifiers could not be verified; all of this is as in DeepCluster here
(deepcluster.py), so do not expect the published numbers from these defaults.
"""

from __future__ import annotations

from typing import ClassVar

from avssl.losses.configs import XDCConfig
from avssl.losses.deepcluster import DeepCluster
from avssl.losses.registry import register
from avssl.types import LossConfig, Modality


@register("xdc")
class XDC(DeepCluster):
    """Each modality classifies the other's clusters. State: DeepCluster's.

    >>> video, audio = create_encoder("avid_video", depth=10, width=4), create_encoder("avid_audio", width=4)
    >>> loss = XDC(XDC.Config(num_clusters=2, pca_dim=4), {"video": video, "audio": audio}, num_samples=8)
    >>> views = {"first": torch.rand(4, 3, 4, 32, 32), "second": torch.rand(4, 1, 50, 20)}
    >>> loss.loss(loss(views), torch.arange(4), Progress()).total.item() < torch.inf
    True
    """

    Config: ClassVar[type[LossConfig]] = XDCConfig
    paper: ClassVar[str] = "Alwassel et al. 2020, arXiv 1911.12667"
    pairs: ClassVar[tuple[tuple[Modality, ...], ...]] = (("video", "audio"),)
