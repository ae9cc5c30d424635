"""CLIP's two cross-entropies of samples against captions, written from the paper with loops, in float64."""

import numpy as np

from tests.textbook.simclr import two_way_cross_entropy, unit


def caption_contrast(z, text, captions, scale):
    """Both directions; a sample of the same caption is no candidate of another one. captions: None for a sample without
    one, which takes no part.
    """
    rows = [row for row, caption in enumerate(captions) if caption is not None]
    a, t = unit(np.asarray(z, np.float64)[rows]), unit(np.asarray(text, np.float64)[rows])
    names = [captions[row] for row in rows]
    total = 0.0
    for i in range(len(rows)):
        candidates = [j for j in range(len(rows)) if j == i or names[j] != names[i]]
        total -= np.log(np.exp(scale * a[i] @ t[i]) / sum(np.exp(scale * a[i] @ t[j]) for j in candidates))
        total -= np.log(np.exp(scale * t[i] @ a[i]) / sum(np.exp(scale * t[i] @ a[j]) for j in candidates))
    return total / (2 * len(rows)) if rows else 0.0


def clip_frozen_text(video, audio, text, captions, log_scale, across_weight):
    """The whole loss of video and audio."""
    scale = np.exp(float(log_scale))
    of_text = sum(caption_contrast(z, text, captions, scale) for z in (video, audio))
    return of_text + across_weight * two_way_cross_entropy(video, audio, 1 / scale)
