"""The embeddings by which samples are compared after training are those that the loss pulls together."""

import numpy as np
import pytest
import torch

from avssl import losses
from tests.tiny import Run

PREDICTING = ["byol", "moco_v3", "simsiam"]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@torch.no_grad()
@pytest.mark.parametrize("name", PREDICTING)
def test_across_modalities_a_cosine_is_the_mean_of_both_predictors_similarities(name):
    loss = Run(name, ("video", "audio")).loss.eval()
    generator = torch.Generator().manual_seed(3)
    features = {m: torch.randn(5, loss.feature_dim(m), generator=generator) for m in ("video", "audio")}
    rows = {m: loss.embedding(m, f).numpy() for m, f in features.items()}
    projections = {m: loss.projectors[m](f) for m, f in features.items()}
    predictions = {m: unit(loss.predictors[m](z).numpy()) for m, z in projections.items()}
    projections = {m: unit(z.numpy()) for m, z in projections.items()}
    by_video = predictions["video"] @ projections["audio"].T
    by_audio = projections["video"] @ predictions["audio"].T
    # Cosines of n numbers: each program is within n + 4 roundings of 1.
    allowed = 2 * (rows["video"].shape[1] + 4) * 2.0**-24
    np.testing.assert_allclose(rows["video"] @ rows["audio"].T, (by_video + by_audio) / 2, atol=allowed)
    assert not np.allclose(by_video, by_audio, atol=1e-2)
    np.testing.assert_allclose(np.linalg.norm(rows["video"], axis=1), 1, atol=allowed)


@pytest.mark.quick(5)
@torch.no_grad()
@pytest.mark.parametrize("name", losses.names())
def test_without_a_predictor_or_within_a_modality_embeddings_are_the_unit_projections(name):
    pair = next(pair for pair in losses.get(name).pairs if name not in PREDICTING or len(set(pair)) == 1)
    loss = Run(name, pair).loss.eval()
    modality = pair[0]
    features = torch.randn(4, loss.encoders[modality].dim)
    head = loss.projectors[modality] if modality in loss.projectors else torch.nn.Identity()
    np.testing.assert_allclose(loss.embedding(modality, features).numpy(), unit(head(features).numpy()), atol=1e-6)
