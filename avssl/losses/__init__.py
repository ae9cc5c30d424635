"""The losses: pure functions of embeddings, and learning objectives for the recipe, one file per loss.

    from avssl.losses import nt_xent, info_nce, barlow_twins, vicreg, swapped_prediction, nce   # for a loop of your own
    from avssl.losses import SimCLR, AVID, register                                             # for the recipe

A class is found by its name in `loss.name` (registry.py); `register` adds one of yours. base.py has the contract.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from avssl.exports import offer

if TYPE_CHECKING:
    from avssl.losses.avid import AVID as AVID
    from avssl.losses.avid_cma import AVIDCMA as AVIDCMA
    from avssl.losses.barlow_twins import BarlowTwins as BarlowTwins
    from avssl.losses.barlow_twins import barlow_twins as barlow_twins
    from avssl.losses.base import EpochContext as EpochContext
    from avssl.losses.base import Loss as Loss
    from avssl.losses.base import PairLoss as PairLoss
    from avssl.losses.byol import BYOL as BYOL
    from avssl.losses.byol import regression as regression
    from avssl.losses.clip_frozen_text import CLIPFrozenText as CLIPFrozenText
    from avssl.losses.clip_frozen_text import caption_contrast as caption_contrast
    from avssl.losses.configs import CaptionConfig as CaptionConfig
    from avssl.losses.configs import PairConfig as PairConfig
    from avssl.losses.deepcluster import DeepCluster as DeepCluster
    from avssl.losses.deepcluster_v2 import DeepClusterV2 as DeepClusterV2
    from avssl.losses.dino import DINO as DINO
    from avssl.losses.distil import Distil as Distil
    from avssl.losses.distil import similarity_divergence as similarity_divergence
    from avssl.losses.lejepa import LeJEPA as LeJEPA
    from avssl.losses.lejepa import sigreg as sigreg
    from avssl.losses.moco import MoCo as MoCo
    from avssl.losses.moco import info_nce as info_nce
    from avssl.losses.moco_v3 import MoCoV3 as MoCoV3
    from avssl.losses.npid import NPID as NPID
    from avssl.losses.pirl import PIRL as PIRL
    from avssl.losses.registry import get as get
    from avssl.losses.registry import names as names
    from avssl.losses.registry import register as register
    from avssl.losses.sela import SeLa as SeLa
    from avssl.losses.simclr import SimCLR as SimCLR
    from avssl.losses.simclr import nt_xent as nt_xent
    from avssl.losses.simclr import two_way_cross_entropy as two_way_cross_entropy
    from avssl.losses.simsiam import SimSiam as SimSiam
    from avssl.losses.simsiam import negative_cosine as negative_cosine
    from avssl.losses.swav import SwAV as SwAV
    from avssl.losses.swav import swapped_prediction as swapped_prediction
    from avssl.losses.vicreg import VICReg as VICReg
    from avssl.losses.vicreg import vicreg as vicreg
    from avssl.losses.xdc import XDC as XDC
    from avssl.ops.nce import nce as nce
    from avssl.types import CaptionRows as CaptionRows
    from avssl.types import LossConfig as LossConfig
    from avssl.types import LossOutput as LossOutput
    from avssl.types import Progress as Progress
    from avssl.types import View as View

offer(
    __name__,
    {
        "avid": "AVID",
        "avid_cma": "AVIDCMA",
        "avssl.ops.nce": "nce",
        "avssl.types": "CaptionRows LossConfig LossOutput Progress View",
        "barlow_twins": "BarlowTwins barlow_twins",
        "base": "EpochContext Loss PairLoss",
        "byol": "BYOL regression",
        "clip_frozen_text": "CLIPFrozenText caption_contrast",
        "configs": "CaptionConfig PairConfig",
        "deepcluster": "DeepCluster",
        "deepcluster_v2": "DeepClusterV2",
        "dino": "DINO",
        "distil": "Distil similarity_divergence",
        "lejepa": "LeJEPA sigreg",
        "moco": "MoCo info_nce",
        "moco_v3": "MoCoV3",
        "npid": "NPID",
        "pirl": "PIRL",
        "registry": "get names register",
        "sela": "SeLa",
        "simclr": "SimCLR nt_xent two_way_cross_entropy",
        "simsiam": "SimSiam negative_cosine",
        "swav": "SwAV swapped_prediction",
        "vicreg": "VICReg vicreg",
        "xdc": "XDC",
    },
)
