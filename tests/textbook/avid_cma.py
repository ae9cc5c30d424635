"""AVID + CMA in NumPy, float64."""

import numpy as np

from tests.textbook.avid import nce, unit, unit_gradient


def positive_set(video_bank, audio_bank, num_positives, agreement):
    combine = {
        "consensus": np.minimum,
        "union": np.maximum,
        "video": lambda v, a: v,
        "audio": lambda v, a: a,
    }[agreement]
    rows = []
    for i in range(len(video_bank)):
        rho = combine(video_bank @ video_bank[i], audio_bank @ audio_bank[i])
        rho[i] = -np.inf
        rows.append(np.sort(np.argsort(-rho, kind="stable")[:num_positives]))
    return np.stack(rows)


def avid_cma(raw, banks, index, positives, negatives, num_within, temperature, partition):
    """(cross-AVID + within-modality positives) / 2: value and gradients with respect to the raw embeddings."""
    z = {name: unit(x.astype(np.float64)) for name, x in raw.items()}
    banks = {name: bank.astype(np.float64) for name, bank in banks.items()}
    gradients = {name: np.zeros_like(x) for name, x in z.items()}
    total = 0.0
    other = {"video": "audio", "audio": "video"}
    for name in ("video", "audio"):
        cross = banks[other[name]]
        value, gradient = nce(z[name], cross[index[:, None]], cross[negatives], temperature, partition)
        own = banks[name]
        within, within_gradient = nce(z[name], own[positives], own[negatives[:, :num_within]], temperature, partition)
        total += (value + within) / 4
        gradients[name] += (gradient + within_gradient) / 4
    return total, {name: unit_gradient(raw[name].astype(np.float64), g) for name, g in gradients.items()}
