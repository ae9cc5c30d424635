"""Classifiers on stored features of clips: scikit-learn's logistic regression and linear SVM, and weighted kNN.

Each takes train rows (n, K, D) with targets int64 (n,) or bool (n, C), and test rows (m, K', D), and gives scores (m,
C). Logistic regression and SVM are fitted on single clips, each with the label of its sample; the scores of a test
sample are the mean over its clips.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.eval.knn import weighted_knn
from avssl.eval.labels import FeatureSet, Fold, Rows, Targets
from avssl.eval.outcome import Repeat, classified
from avssl.ops.nearest import nearest, unit

Array = NDArray[Any]
# (train rows (n, K, D), targets, test rows (m, K', D), C) -> scores (m, C) of samples, not of clips
FitAndScore = Callable[[Rows, Targets, Rows, int], Array]


def fused(features: FeatureSet, modality: str, layer: str, fuse: str = "concatenate") -> list[Rows]:
    """The rows (n, K, D) that a classifier is fitted on; two of them if the scores of two classifiers are averaged."""
    if modality != "both":
        return [features.rows[modality][layer]]
    video, audio = (features.rows[name][layer] for name in ("video", "audio"))
    if fuse == "average":
        return [video, audio]
    if fuse != "concatenate":
        raise ValueError(f"fuse is {fuse!r}; allowed are concatenate and average")
    return [np.concatenate([unit(video), unit(audio)], axis=2)]


def classify_layer(
    fold: Fold,
    modality: str,
    layer: str,
    fit_and_score: FitAndScore,
    *,
    fuse: str = "concatenate",
    prefix: str = "",
) -> Repeat:
    """A classifier on one layer of one fold. prefix: of the metrics' names, before <modality>_<layer>_<metric>."""
    train, test = (fused(split.features, modality, layer, fuse) for split in (fold.train, fold.test))
    scores = [
        fit_and_score(train_rows, fold.train.targets, test_rows, len(fold.classes))
        for train_rows, test_rows in zip(train, test, strict=True)
    ]
    return classified(
        fold.test.features.keys,
        np.mean(scores, axis=0),
        fold.test.targets,
        fold.classes,
        name=fold.name,
        prefix=f"{prefix}{modality}_{layer}_",
        train_keys=fold.train.features.keys,
        train_targets=fold.train.targets if fold.train.targets.ndim == 1 else None,
    )


def require_sklearn() -> None:
    """Raise ModuleNotFoundError that says what to install, unless scikit-learn is installed."""
    try:
        import sklearn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("this task needs scikit-learn: pip install 'avssl[eval]'") from error


def standardizer(rows: Array, offset: float) -> Callable[[Array], Array]:
    """A function x -> (x - mean) / (standard deviation + offset), in float32, with mean and deviation of rows (n, D).

    Constant columns stay 0, whatever the offset.
    """
    mean, deviation = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64) + offset
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    return lambda x: ((x - mean) * scale).astype(np.float32)


def _over_clips(
    train: Array, targets: Array, test: Array, fit: Callable[[Array, Array], Callable[[Array], Array]], offset: float
) -> Array:
    """Scores (m, C) of a classifier fitted on standardized training clips: the mean over the clips of a test sample."""
    clips = train.reshape(-1, train.shape[2])
    scale = standardizer(clips, offset)
    scores = fit(scale(clips), np.repeat(targets, train.shape[1], axis=0))(scale(test.reshape(-1, test.shape[2])))
    averaged: Array = scores.reshape(len(test), test.shape[1], -1).mean(axis=1)
    return averaged


def logistic_scores(
    train: Array,
    targets: Array,
    test: Array,
    num_classes: int,
    *,
    costs: Sequence[float] = (1.0,),
    max_iterations: int = 1000,
    seed: int = 0,
    report: dict[str, Any] | None = None,
) -> Array:
    """Multinomial logistic regression (L2, L-BFGS) on standardized rows: probabilities, averaged over clips.

    With bool targets (n, C), one logistic regression per class. costs: values of scikit-learn's C. Of several values,
    the best one on a held-out, stratified fifth of the training samples (never on the test set) is used to fit all of
    them. report: gets "cost", a list with an entry per call, and "not_converged", the number of fits.
    """
    from sklearn.linear_model import LogisticRegression

    def scores_with(cost: float, train_rows: Array, train_targets: Array, test_rows: Array) -> Array:
        def fit(rows: Array, labels: Array) -> Callable[[Array], Array]:
            return _fit_each(
                rows, labels, num_classes, lambda: LogisticRegression(C=cost, max_iter=max_iterations), report
            )

        return _over_clips(train_rows, train_targets, test_rows, fit, 0.0)

    chosen = costs[0]
    if len(costs) > 1:
        is_held_out = _held_out(targets, seed)
        results = []
        for cost in costs:
            scores = scores_with(cost, train[~is_held_out], targets[~is_held_out], train[is_held_out])
            results.append(-_log_loss(scores, targets[is_held_out]))
        chosen = costs[int(np.argmax(results))]
    if report is not None:
        report.setdefault("cost", []).append(chosen)
    return scores_with(chosen, train, targets, test)


def svm_scores(
    train: Array,
    targets: Array,
    test: Array,
    num_classes: int,
    *,
    cost: float = 1.0,
    max_iterations: int = 200,
    deviation_offset: float = 1e-2,
    seed: int = 0,
    report: dict[str, Any] | None = None,
) -> Array:
    """One-vs-all linear SVM (hinge loss): decision values, averaged over clips.

    Rows are standardized with (standard deviation + deviation_offset); 1e-2, C = 10 or 1 and 200 iterations are AVID's
    (Morgado et al. 2021, evaluation on ESC-50 and DCASE).
    """
    from sklearn.svm import LinearSVC

    def fit(rows: Array, labels: Array) -> Callable[[Array], Array]:
        def make_model() -> Any:
            return LinearSVC(C=cost, loss="hinge", max_iter=max_iterations, random_state=seed)

        one_hot = labels if labels.ndim == 2 else labels[:, None] == np.arange(num_classes)
        return _fit_each(rows, one_hot, num_classes, make_model, report)

    return _over_clips(train, targets, test, fit, deviation_offset)


def _fit_each(
    rows: Array, labels: Array, num_classes: int, make_model: Callable[[], Any], report: dict[str, Any] | None
) -> Callable[[Array], Array]:
    """Fit one model to class numbers (n,), or one per class to bool (n, C); the result gives scores of rows (m, D)."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        models: list[tuple[Array, Any]] = []
        if labels.ndim == 1:
            present = np.unique(labels)
            models.append((present, make_model().fit(rows, labels) if len(present) > 1 else None))
        else:
            models = [
                (np.array([number]), make_model().fit(rows, column))
                for number, column in enumerate(labels.T)
                if column.any() and not column.all()
            ]
    unfinished = [warning for warning in caught if issubclass(warning.category, ConvergenceWarning)]
    if report is not None:
        report["not_converged"] = report.get("not_converged", 0) + len(unfinished)

    def scores(test_rows: Array) -> Array:
        if labels.ndim == 1:
            result = np.zeros((len(test_rows), num_classes))
            present, model = models[0]
            result[:, present] = 1.0 if model is None else model.predict_proba(test_rows)
            return result
        # A class of no training sample, or of all, cannot be learned and gets the lowest value.
        result = np.full((len(test_rows), num_classes), -np.inf)
        for numbers, model in models:
            result[:, numbers[0]] = (
                model.predict_proba(test_rows)[:, 1]
                if hasattr(model, "predict_proba")
                else model.decision_function(test_rows)
            )
        finite = result[np.isfinite(result)]
        return np.where(np.isfinite(result), result, finite.min() - 1.0 if finite.size else 0.0)

    return scores


def _held_out(targets: Array, seed: int) -> Array:
    """bool (n,): a fifth of the rows, drawn per class (at least one of two); with several labels, of all rows."""
    order = np.random.default_rng(seed).permutation(len(targets))
    is_held_out = np.zeros(len(targets), np.bool_)
    if targets.ndim == 2:
        is_held_out[order[: max(1, len(targets) // 5)]] = True
        return is_held_out
    for number in np.unique(targets):
        rows = order[targets[order] == number]
        is_held_out[rows[: max(1, len(rows) // 5) if len(rows) > 1 else 0]] = True
    if not is_held_out.any():
        raise ValueError(
            "costs has several values, but no class has two training samples to choose with; give one cost"
        )
    return is_held_out


def _log_loss(scores: Array, targets: Array) -> float:
    clipped = np.clip(scores, 1e-12, 1 - 1e-12)
    if targets.ndim == 2:
        return float(-np.where(targets, np.log(clipped), np.log(1 - clipped)).mean())
    return float(-np.log(clipped[np.arange(len(targets)), targets]).mean())


def knn_scores(
    train: Array, targets: Array, test: Array, num_classes: int, *, num_neighbors: int = 200, temperature: float = 0.07
) -> Array:
    """Scores of weighted kNN (avssl/eval/knn.py) between samples, each the mean of its clips made unit.

    With bool targets (n, C) the score of a class is the sum of the weights of the neighbors that have it.
    """
    train_rows, test_rows = (unit(rows).mean(axis=1) for rows in (train, test))
    options: dict[str, Any] = {"num_neighbors": num_neighbors, "temperature": temperature}
    if targets.ndim == 1:
        return weighted_knn(train_rows, targets, test_rows, num_classes=num_classes, **options)
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    rows, cosines = nearest(test_rows, train_rows, num_neighbors)
    weights = np.exp((cosines - cosines.max(axis=1, keepdims=True)) / temperature)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.stack([weight @ targets[neighbors] for weight, neighbors in zip(weights, rows, strict=True)])
