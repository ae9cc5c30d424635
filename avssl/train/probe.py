"""The online probe: kNN and a linear classifier on the features of a run while it trains, in another process.

    avssl pretrain avid ... probe.shards=shards/held_out

Every `probe.every_steps` optimizer steps, before the first and after the last, the training loop writes encoders,
heads and statistics of the views to RUN/probe/ and goes on. A process beside it embeds the labeled samples of
probe.shards, fits the classifiers on one half of them and scores them on the other. A hash of the source file says
in which half its samples are: segments of one film would find each other (of the key where no source is known).
RUN/probe.jsonl gets a line per snapshot. The run is not changed: its weights, order and random numbers are those of a
run without a probe. While the process is busy, one snapshot waits. A newer one replaces it, and the line of the older
one says so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from avssl import checkpoint
from avssl.config import ProbeConfig
from avssl.data.every_sample import ClipPlan
from avssl.device import usable_device
from avssl.distributed import from_first_rank
from avssl.embedding.embedder import Embedder
from avssl.embedding.loading import EMBEDDING_MODULES
from avssl.eval.classifiers import FitAndScore, classify_layer, knn_scores, logistic_scores, require_sklearn
from avssl.eval.configs import LabelTaskConfig
from avssl.eval.features import extract
from avssl.eval.labels import FeatureSet, make_fold
from avssl.files.checked_json import Fields, dump
from avssl.files.disk_errors import clear_errors
from avssl.files.json_lines import truncate_log
from avssl.plugins import files, required
from avssl.processes.stopping import signals_blocked
from avssl.shards.format import SampleInfo
from avssl.shards.sample_digests import source_digest
from avssl.shards.shard_set import ShardSet

RESULTS_FILE = "probe.jsonl"
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
WAIT_SECONDS = 24 * 3600.0  # for so long the other processes of a run wait for the last result
MIN_SAMPLES = 4  # labeled samples per field: two of each half


class OnlineProbe:
    """Starts the processes of the probe and collects their results, on the main process; elsewhere it does nothing."""

    def __init__(self, config: ProbeConfig, run: Path, *, step: int, is_main: bool) -> None:
        self.config, self.run, self.is_active = config, run, bool(config.shards) and is_main
        self.process: subprocess.Popen[bytes] | None = None
        self.busy_with = -1
        self.waiting = -1  # step of the snapshot that is next
        self.last_due = -1  # the last step that has a line, or a snapshot
        if config.shards:
            require_sklearn()
            check(config)
        if self.is_active:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob("step_*"):  # of a run that was killed
                shutil.rmtree(leftover)
            path = run / RESULTS_FILE
            truncate_log(path, step)
            rows = path.read_bytes().splitlines() if path.is_file() else []
            self.last_due = max((Fields.parse(row, str(path)).count("step") for row in rows), default=-1)

    @property
    def folder(self) -> Path:
        """The folder of snapshots that are not evaluated yet."""
        return self.run / "probe"

    def step_done(
        self, step: int, modules: Mapping[str, nn.Module], provenance: Callable[[], Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Write a snapshot if due; call it before the first and after each optimizer step. Returns new results."""
        if not self.is_active:
            return []
        if step % self.config.every_steps == 0 and step > self.last_due:
            return self._snapshot(step, modules, provenance) + self._collect()
        return self._collect()

    def finish(
        self, step: int, modules: Mapping[str, nn.Module], provenance: Callable[[], Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """At the end of the run: evaluate the last state too, and wait for all results.

        All processes of the run call it: the others wait as long as it takes, and not as long as for a message.
        """
        if not self.config.shards:
            return []
        results = from_first_rank(partial(self._finish, step, modules, provenance), WAIT_SECONDS)
        return results if self.is_active else []

    def _finish(
        self, step: int, modules: Mapping[str, nn.Module], provenance: Callable[[], Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        results = self._snapshot(step, modules, provenance) if step > self.last_due else []
        results += self._collect()
        while self.process is not None:
            self.process.wait()
            results += self._collect()
        self.folder.rmdir()
        return results

    def stop(self) -> list[dict[str, Any]]:
        """Stop before the end of the run: the evaluation in progress is killed; a later start makes new snapshots."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        return []

    def _snapshot(
        self, step: int, modules: Mapping[str, nn.Module], provenance: Callable[[], Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Write a snapshot; returns the result of a waiting one that it replaced, if any."""
        dropped = []
        if self.waiting >= 0:
            shutil.rmtree(self._path(self.waiting))
            error = f"not evaluated: the probe was still busy with step {self.busy_with} at step {step}"
            dropped.append(self._write_result({"step": self.waiting, "error": error}))
        path = self._path(step)
        path.mkdir()
        shutil.copy(self.run / "config.yaml", path)
        # Licenses belong to the end of the run: without init_from none is looked for.
        checkpoint.export(path, modules, {**provenance(), "init_from": ""})
        self.last_due = self.waiting = step
        return dropped

    def _write_result(self, result: dict[str, Any]) -> dict[str, Any]:
        path = self.run / RESULTS_FILE
        with clear_errors(path, "written"), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        return result

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}"

    def _collect(self) -> list[dict[str, Any]]:
        """The result of a process that has ended; then start a process for the waiting snapshot."""
        results = []
        if self.process is not None and self.process.poll() is not None:
            path = self._path(self.busy_with)
            result: dict[str, Any] = {"step": self.busy_with}
            try:  # a probe that fails must be reported, and must not end the run
                result["samples_seen"] = checkpoint.read_provenance(path)["samples_seen"]
                if self.process.returncode == 0:
                    result |= Fields.read(path / "result.json").record
                else:
                    tail = (path / "log").read_text(errors="replace", encoding="utf-8").strip().splitlines()[-1:]
                    result["error"] = f"status {self.process.returncode}: {''.join(tail)}"
            except (OSError, ValueError) as error:
                result["error"] = f"its result cannot be read: {error}"
            shutil.rmtree(path)
            self.process = None
            results.append(self._write_result(result))
        if self.process is None and self.waiting >= 0:
            self.busy_with, self.waiting = self.waiting, -1
            self._start(self._path(self.busy_with))
        return results

    def _plugins(self) -> list[Path]:
        """The files of the run's own plugins; this process may have run others."""
        kept = (self.run / files.KEPT_FOLDER / plugin.name for plugin in files.ran())
        return [path for path in kept if path.is_file()]

    def _start(self, path: Path) -> None:
        config = self.config
        environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
        environment["OMP_NUM_THREADS"] = str(config.num_threads)
        command = [
            sys.executable, "-m", "avssl.train.probe", str(path), config.shards, "--device", config.device,
            "--num-neighbors", str(config.num_neighbors), "--temperature", str(config.temperature),
            *(f"--plugin={path}" for path in self._plugins()),
        ]  # fmt: skip
        with (path / "log").open("wb") as log, signals_blocked():  # `stop` ends it
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def embedding_modules(loss: nn.Module) -> nn.Module:
    """The modules of a loss that embeddings depend on, by their names in the loss; without memory banks."""
    return nn.ModuleDict({name: getattr(loss, name) for name in EMBEDDING_MODULES})


def check(config: ProbeConfig) -> None:
    """Raise ValueError, before the first step, for a folder without labels and for a device that is not there."""
    try:
        usable_device(config.device)
    except ValueError as error:
        raise ValueError(f"probe.{error}") from error
    shards = ShardSet(config.shards)
    if not shards.index.label_names:
        raise ValueError(
            f"probe.shards={config.shards} has no labels; index it with labels (avssl prep index "
            "--labels), or leave probe.shards out"
        )


def is_train_sample(info: SampleInfo) -> bool:
    """True for the half of the samples that the classifiers are fitted on: all those of one source are in one half."""
    has_source = info.source.get("content") or info.source.get("path")
    origin = source_digest(info) if has_source else info.key
    return hashlib.sha256(origin.encode()).digest()[0] % 2 == 0


def evaluate(
    embedder: Embedder, shards: str, *, num_neighbors: int, temperature: float, batch_size: int = 32
) -> dict[str, float]:
    """{"<modality>_<knn or linear>_<field>": accuracy} on one half of the shards, with classifiers of the other half.

    A field with several labels per sample has the mean average precision instead ("..._map").
    """
    scores: dict[str, float] = {}
    samples = ShardSet(shards)
    is_train = np.array([is_train_sample(samples.read_info(index)) for index in range(samples.num_samples)])
    for modality in embedder.modalities:
        features = extract(embedder, samples, (modality,), ("feature",), ClipPlan(), batch_size=batch_size)
        for field in sorted({name for labels in features.labels for name in labels}):
            scores |= scores_of(features, is_train, modality, field, num_neighbors, temperature)
    return scores


def scores_of(
    features: FeatureSet, is_train: np.ndarray, modality: str, field: str, num_neighbors: int, temperature: float
) -> dict[str, float]:
    """The scores of both classifiers on one label field; {} if a half has fewer than two samples that can be used."""
    labeled = np.array([bool(labels.get(field)) for labels in features.labels]) & features.present[modality]
    if min((labeled & is_train).sum(), (labeled & ~is_train).sum()) < MIN_SAMPLES // 2:
        return {}
    multi_label = any(len(labels.get(field, [])) > 1 for labels in features.labels)
    config = LabelTaskConfig(label_field=field, modality=modality, multi_label=multi_label)
    fold = make_fold("", features.select(is_train), features.select(~is_train), config, (modality,))
    classifiers: dict[str, FitAndScore] = {
        "knn": partial(knn_scores, num_neighbors=num_neighbors, temperature=temperature),
        "linear": logistic_scores,
    }
    metric, suffix = ("mean_average_precision", "_map") if multi_label else ("top1_accuracy", "")
    scores = {}
    for name, fit_and_score in classifiers.items():
        values = classify_layer(fold, modality, "feature", fit_and_score).values()
        scores[f"{modality}_{name}_{field}{suffix}"] = values[f"{modality}_feature_{metric}"]
    return scores


def main() -> None:
    """The program that a run starts: write the result.json of a snapshot, without scores that do not exist."""
    parser = argparse.ArgumentParser(description="Evaluate one snapshot of a run; `avssl pretrain` starts this.")
    parser.add_argument("snapshot", type=Path)
    parser.add_argument("shards")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num-neighbors", type=int, default=20)
    parser.add_argument("--temperature", type=float, default=0.07)
    required.add_options(parser)
    arguments = parser.parse_args()
    required.use(arguments.plugin)
    os.nice(10)  # the run comes first
    embedder = Embedder.from_run(arguments.snapshot, device=arguments.device)
    scores = evaluate(
        embedder, arguments.shards, num_neighbors=arguments.num_neighbors, temperature=arguments.temperature
    )
    # NaN: a score that does not exist, as the mean average precision where all samples have the same labels.
    finite = {name: score for name, score in scores.items() if math.isfinite(score)}
    (arguments.snapshot / "result.json").write_text(dump(finite), encoding="utf-8")


if __name__ == "__main__":
    main()
