"""The published augmentation sets of images by name: the defaults of `views.augments`.

A YAML can change a set (`views.augments.simclr.blur_probability: 0`) or add one (`views.augments.mine: {hue: 0.1}`),
which starts from ImageAugment's defaults. Where a set states no crop, the crop has 0.08 to 1 of the area and an aspect
of 3/4 to 4/3. All sets flip with probability 0.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches

from avssl.transforms.image_augment import ImageAugment


def published_sets() -> dict[str, ImageAugment]:
    """Every published set by name.

    >>> published_sets()["simclr"].blur_probability
    0.5
    """
    no_jitter = ImageAugment(brightness=0, contrast=0, saturation=0, hue=0)
    # Wu et al. 2018 (NPID; the authors' lemniscate): crops from 0.2, grayscale 0.2, all four jitter strengths 0.4,
    # always.
    npid = ImageAugment(crop_scale=(0.2, 1.0), hue=0.4, grayscale_probability=0.2)
    # Chen et al. 2020 (SimCLR; the authors' code), color strength 1.
    simclr = ImageAugment(
        brightness=0.8,
        contrast=0.8,
        saturation=0.8,
        hue=0.2,
        color_jitter_probability=0.8,
        grayscale_probability=0.2,
        blur_probability=0.5,
    )
    # Chen et al. 2020 (MoCo v2; the authors' code): SimCLR's operations with weaker colors.
    moco_v2 = replace(simclr, crop_scale=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    # Grill et al. 2020 (BYOL; the authors' code): one view is always blurred, the other seldom blurred or solarized.
    byol_first = replace(moco_v2, crop_scale=(0.08, 1.0), saturation=0.2, blur_probability=1.0)
    byol_second = replace(byol_first, blur_probability=0.1, solarize_probability=0.2)
    # Misra & van der Maaten 2020 (PIRL; vissl): the same for the whole image and, one by one, for the patches.
    pirl = ImageAugment(grayscale_probability=0.2, photometric_probability=0.66)
    return {
        "npid": npid,
        "moco_v1": npid,  # He et al. 2020, the authors' code: as NPID
        "moco_v2": moco_v2,
        # Chen, Xie, He 2021, the authors' code: BYOL's pair, cropped from 0.2 for ResNets.
        "moco_v3_first": replace(byol_first, crop_scale=(0.2, 1.0)),
        "moco_v3_second": replace(byol_second, crop_scale=(0.2, 1.0)),
        "simclr": simclr,
        "byol_first": byol_first,
        "byol_second": byol_second,
        # Caron et al. 2020 (SwAV): SimCLR's colors; two large and six small crops, or two crops alone.
        "swav_large": replace(simclr, crop_scale=(0.14, 1.0)),
        "swav_small": replace(simclr, crop_scale=(0.05, 0.14), small=True),
        "swav_two_crops": simclr,
        # Caron et al. 2021 (DINO; the authors' code): BYOL's pair, and small crops that are blurred half of the time.
        "dino_first": replace(byol_first, crop_scale=(0.4, 1.0)),
        "dino_second": replace(byol_second, crop_scale=(0.4, 1.0)),
        "dino_small": replace(byol_first, crop_scale=(0.05, 0.4), blur_probability=0.5, small=True),
        "pirl": pirl,
        "pirl_jigsaw": replace(pirl, crop_scale=(0.6, 1.0), jigsaw=True),
        # Caron et al. 2018 (DeepCluster): only crop and flip.
        "deepcluster": no_jitter,
        # Asano, Rupprecht, Vedaldi 2020 (SeLa; the authors' code).
        "sela": ImageAugment(hue=0.4, grayscale_probability=0.2),
        # Feichtenhofer et al. 2021 (video; SlowFast's configurations). These also name MoCo v2's scheme, taken here as
        # its probabilities of jitter and blur.
        "rho": replace(moco_v2, crop_scale=(0.2, 0.766), brightness=0.6, contrast=0.6, saturation=0.6, hue=0.15),
    }


def unknown_set(view: str, name: str, allowed: Iterable[str]) -> ValueError:
    """The error for a view with an unknown set: the set's name, the nearest allowed one and all allowed ones."""
    names = list(allowed)
    near = get_close_matches(name, names, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"view {view!r} asks for the augmentation set {name!r}.{hint} Allowed: {', '.join(names)}")
