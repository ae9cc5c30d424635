"""Helpers of the benchmarks of learning: runs of the recipe as subprocesses, frozen features, kNN and linear scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avssl import config, losses
from avssl.data.loader import Loader
from avssl.eval.knn import knn
from avssl.shards.shard_set import ShardSet
from avssl.transforms.view_maker import ViewMaker
from benchmarks.claims import ROOT

CPU = torch.device("cpu")


@dataclass
class Scores:
    """Accuracies in [0, 1] of frozen features, and the seconds that training took."""

    knn: float
    linear: float
    seconds: float = float("nan")


def run_command(command: Sequence[str], log: Path, *, on_cpu: bool = True) -> float:
    """Run a command with one thread and its output in `log`; the wall seconds it took. RuntimeError shows the log's
    end.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if on_cpu:
        environment["ACCELERATE_USE_CPU"] = "true"
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.run(command, cwd=ROOT, env=environment, check=False, stdout=file, stderr=subprocess.STDOUT)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    return time.perf_counter() - began


def pretrain(run: Path, changes: Sequence[str]) -> float:
    """Run recipes/pretrain.py unless this run has finished; the seconds of its steps, from its own log."""
    if not (run / "encoders.safetensors").is_file():
        run_command([sys.executable, "recipes/pretrain.py", *changes, f"run={run}"], run.parent / f"{run.name}.log")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return sum(json.loads(line)["seconds"] for line in lines)


def loader_for(cfg: config.RunConfig, shards: Path) -> Loader:
    """The loader that the recipe would make for these shards."""
    cls = losses.get(cfg.loss.name)
    views = ViewMaker(cfg.views, cls.modalities(cfg.loss))
    return Loader(ShardSet(shards), cfg.data, cls.views(cfg.loss), views, seed=cfg.seed, device=CPU)


@torch.no_grad()
def features(encoder: torch.nn.Module, loader: Loader, modality: str) -> np.ndarray:
    """Encoder features of the deterministic view of every sample, by index: float32 (N, F)."""
    encoder.eval()
    name = next(view.name for view in loader.views if view.modality == modality)
    rows: dict[int, torch.Tensor] = {}
    for batch in loader.every_sample_once((name,)):
        rows.update(zip(batch.index.tolist(), encoder(batch.views[name]).float(), strict=True))
    return torch.stack([rows[index] for index in range(loader.num_samples)]).numpy()


def labels(shards: Path, field: str = "label") -> np.ndarray:
    """Class number of every sample, by index: int64 (N,)."""
    reader = ShardSet(shards)
    names = sorted(reader.index.label_names[field])
    return np.array([names.index(reader.read(index).info.labels[field][0]) for index in range(reader.num_samples)])


def score(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> Scores:
    """Weighted kNN (k = 20) on unit features and logistic regression on standardized ones."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = train.reshape(len(train), -1), test.reshape(len(test), -1)
    neighbors = knn(train, train_labels, test, test_labels, num_neighbors=20, temperature=0.07)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=0.1))
    linear = classifier.fit(train, train_labels).score(test, test_labels)
    return Scores(neighbors.accuracy, float(linear))


def in_parallel(jobs: dict[Any, Callable[[], Any]], num_at_once: int) -> dict[Any, Any]:
    """{name: result} of jobs that start subprocesses, `num_at_once` at a time. A failed job's result is its error."""

    def guarded(job: Callable[[], Any]) -> Any:
        try:
            return job()
        except (RuntimeError, ValueError, FloatingPointError) as error:
            return error

    with ThreadPoolExecutor(num_at_once) as pool:
        waiting = {name: pool.submit(guarded, job) for name, job in jobs.items()}
        return {name: future.result() for name, future in waiting.items()}


def mean_and_spread(values: Sequence[float], scale: float = 100.0) -> str:
    """E.g. "81.2 ± 0.3": mean and standard deviation over seeds; a single value has no ±."""
    array = np.array(values) * scale
    return f"{array.mean():.1f}" + (f" ± {array.std(ddof=1):.1f}" if len(array) > 1 else "")


def markdown(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])
