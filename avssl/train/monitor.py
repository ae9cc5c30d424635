"""The log of a run (metrics.jsonl, trackers, progress, warnings of collapse), and its provenance."""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from avssl.distributed import all_finite, all_sum, world_size
from avssl.files.disk_errors import clear_errors
from avssl.files.json_lines import truncate_log
from avssl.files.location import redacted
from avssl.files.plain_text import emit, note
from avssl.files.progress import Bar, Stages
from avssl.losses import registry
from avssl.losses.base import Loss
from avssl.losses.configs import TeacherConfig
from avssl.public_models import provenance_of
from avssl.train.collapse import CollapseWatch
from avssl.train.estimate import Pace
from avssl.types import FAILURE_REASONS, Batch, LossConfig, LossOutput, Progress

if TYPE_CHECKING:
    from accelerate import Accelerator

    from avssl.config import RunConfig
    from avssl.data.loader import Loader
    from avssl.shards.shard_set import ShardSet

# The advice for a loss that is not finite: first rule out the precision as the cause.
IN_FLOAT32 = "lower optim.lr, set optim.clip_norm, or look at those samples (`avssl prep show`)"
ADVICE = {
    "fp32": IN_FLOAT32,
    "bf16": f"first try mixed_precision=fp32 from the last checkpoint; if it is the same there, {IN_FLOAT32}",
    "fp16": f"first try mixed_precision=bf16 or fp32 from the last checkpoint; if it is the same there, {IN_FLOAT32}",
}


FIRST_STAGE = "starting the workers, reading the first batch and computing the first step"


class Monitor:
    """Counts time and failures, and writes a row of metrics every `log_every_steps` optimizer steps.

    stages: those of the run until its first step.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        cfg: RunConfig,
        total_steps: int,
        loader: Loader,
        progress: Progress,
        stages: Stages,
    ) -> None:
        self.accelerator, self.cfg, self.loader, self.progress = accelerator, cfg, loader, progress
        self.path = Path(cfg.run) / "metrics.jsonl"
        self.last_logged = self.counted = progress.step
        self.stages, self.has_stepped = stages, False
        self.since = time.perf_counter()
        self.batches_since = 0
        self.failures: Counter[str] = Counter()
        self.collapse = CollapseWatch(total_steps)
        self.pace = Pace(cfg, loader, progress)
        if accelerator.is_main_process:
            truncate_log(self.path, progress.step)
        self.bar = Bar(Path(cfg.run).name, total_steps, "step", done=progress.step, shown=accelerator.is_main_process)
        stages.bar, self.bar.is_quiet = self.bar, True
        stages.now(FIRST_STAGE)
        if cfg.trackers:
            missing = sorted(
                set(cfg.trackers) - {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}
            )
            if missing:
                raise ValueError(f"trackers={missing}: not installed; pip install 'avssl[{','.join(missing)}]'")
            with clear_errors(cfg.run, "written"):
                accelerator.init_trackers("avssl", config={"run": cfg.run, "loss": cfg.loss.name})

    def batch_done(self, batch: Batch, result: LossOutput, loss: Loss, outputs: dict[str, torch.Tensor]) -> None:
        """Count a micro-batch, and write a row on logging steps; only these synchronize with the device."""
        self.batches_since += 1
        self.failures.update(batch.failures)
        step = self.progress.step
        if step > self.counted:
            self.stages.now("")
            self.has_stepped, self.bar.is_quiet = True, False
            self.bar.update(step - self.counted)
            self.counted = step
            self.tell(self.pace.step_done(step))
        if step == self.last_logged:
            return
        if step % self.cfg.log_every_steps and step != self.bar.total:
            return
        scalars = {"loss": result.total.detach(), **result.terms, **loss.diagnostics(outputs)}
        names = sorted(scalars)
        values = all_sum(torch.stack([scalars[name].float() for name in names])) / world_size()
        self._write(dict(zip(names, values.tolist(), strict=True)), batch)

    def _write(self, scalars: dict[str, float], batch: Batch) -> None:
        now = time.perf_counter()
        elapsed = now - self.since
        batch_size = self.loader.config.global_batch_size
        record: dict[str, Any] = {
            "step": self.progress.step,
            "epoch": self.progress.epoch,
            "samples_seen": self.progress.batch * batch_size,
            "lr": self.accelerator._optimizers[0].param_groups[0]["lr"],
            "data_wait_share": min(1.0, self.loader.take_wait_seconds() / elapsed),
            "samples_per_second": self.batches_since * batch_size / elapsed,
            "seconds": round(elapsed, 4),
            **scalars,
            **{f"failures/{reason}": count for reason, count in self._failures_of_all_ranks().items() if count},
        }
        self.since, self.batches_since = now, 0
        share = record["data_wait_share"]
        self.bar.show(
            f"loss {scalars['loss']:.3f}, waits for data {share:.0%}", loss=scalars["loss"], data_wait_share=share
        )
        self.last_logged = self.progress.step
        emit("metrics", **record)
        if self.accelerator.is_main_process:
            with clear_errors(self.path, "written"), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        if self.cfg.trackers:
            numbers = {name: value for name, value in record.items() if name != "step"}
            with clear_errors(self.cfg.run, "written"):
                self.accelerator.log(numbers, step=self.progress.step)
        self._refuse_unless_finite(scalars["loss"], batch)
        for finding in self.collapse.check(self.progress.step, scalars):
            note(f"warning: {finding}", "warning")
        self.tell(self.pace.stretch_done(self.progress.step, share))

    @contextmanager
    def epoch_start(self) -> Iterator[None]:
        """A context that measures what a loss does before an epoch."""
        start = time.perf_counter()
        self.stages.now(f"what the loss does before epoch {self.progress.epoch}")
        yield
        self.stages.now("" if self.has_stepped else FIRST_STAGE)
        self.pace.epoch_starts(time.perf_counter() - start)

    def tell(self, line: str) -> None:
        """Print a line of the first process, above its progress bar; none for ""."""
        if line:
            note(line)

    def probed(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Show and track the results of the online probe, which has written them to its own file."""
        for result in results:
            scores = {name: value for name, value in result.items() if isinstance(value, float)}
            shown = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
            shown = shown or result.get("error", "a half has too few labels for a score")
            note(f"probe of step {result['step']}: {shown}")
            emit("probe", **result)
            if self.cfg.trackers and scores:
                numbers = {f"probe/{name}": value for name, value in scores.items()}
                self.accelerator.log(numbers | {"probe/step": result["step"]}, step=self.progress.step)

    def _failures_of_all_ranks(self) -> dict[str, int]:
        counts = torch.tensor([self.failures[reason] for reason in FAILURE_REASONS], device=self.loader.device)
        return dict(zip(FAILURE_REASONS, all_sum(counts).tolist(), strict=True))

    def require_finite(self, result: LossOutput, batch: Batch, loss: Loss) -> None:
        """Raise FloatingPointError on every rank if the last loss, or a weight, of any rank is not finite.

        Such a state is not saved. Weights break after a loss that is finite if its gradient is not.
        """
        self._refuse_unless_finite(float(all_sum(result.total)), batch)
        if not all_finite(loss.parameters()):
            raise self._not_finite("a weight is not finite after", batch)

    def _refuse_unless_finite(self, loss: float, batch: Batch) -> None:
        if not math.isfinite(loss):
            raise self._not_finite(f"the loss is {loss} at", batch)

    def _not_finite(self, what: str, batch: Batch) -> FloatingPointError:
        return FloatingPointError(
            f"{what} step {self.progress.step}, samples {batch.index.tolist()[:8]} ..., "
            f"mixed_precision={self.cfg.mixed_precision}; {ADVICE[self.cfg.mixed_precision]}"
        )

    def close(self) -> None:
        """End the display of progress."""
        self.bar.close()


def provenance(cfg: RunConfig, shards: ShardSet, progress: Progress) -> dict[str, Any]:
    """The origin of a run as plain values: versions, data, number of processes, steps and samples."""
    packages = ("torch", "torchvision", "torchaudio", "av", "webdataset", "accelerate")
    return {
        "versions": {name: version(name) for name in ("avssl", *packages)},
        "python": sys.version.split()[0],
        "machine": platform.machine(),
        "world_size": world_size(),
        "data": data_facts(shards),
        "loss": cfg.loss.name,
        "init_from": cfg.init_from,
        **_teacher_facts(cfg.loss),
        "plugins": cfg.plugins,
        "steps": progress.step,
        "samples_seen": progress.batch * cfg.data.global_batch_size,
        **provenance_of(cfg, registry.get(cfg.loss.name).modalities(cfg.loss)),
    }


def _teacher_facts(loss: LossConfig) -> dict[str, Any]:
    """{"teacher": what is known of it} of a loss that has one."""
    teacher = getattr(loss, "teacher", None)
    if not isinstance(teacher, TeacherConfig):
        return {}
    return {"teacher": {name: value for name, value in asdict(teacher).items() if value}}


def data_facts(shards: ShardSet) -> dict[str, Any]:
    """{"shards": path, "fingerprint", "num_samples", "split_parts" if there are some}; of several folders "shards" is a
    list of such, with weights.
    """
    facts: dict[str, Any] = {"fingerprint": shards.fingerprint, "num_samples": shards.num_samples}
    if len(shards.parts) == 1:
        facts |= {"split_parts": shards.index.split_parts} if shards.index.split_parts else {}
        return {"shards": redacted(shards.location), **facts}
    weights: Sequence[float | None] = shards.weights or len(shards.parts) * [None]
    folders = [{**data_facts(part), "weight": weight} for part, weight in zip(shards.parts, weights, strict=True)]
    return {"shards": folders, **facts}
