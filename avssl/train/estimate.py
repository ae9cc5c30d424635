"""What a run will do, said before its first step, and after some steps how long it takes and what bounds it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from avssl.distributed import local_processes
from avssl.processes.limits import default_num_workers

if TYPE_CHECKING:
    from avssl.config import RunConfig
    from avssl.data.loader import Loader
    from avssl.types import Progress

MEASURED_STEPS = 20  # after which the time is estimated; in a shorter run a quarter of it
WAITING_SHARE = 0.2  # of the time, from which on reading bounds a run


def describe_run(cfg: RunConfig, loader: Loader, total_steps: int, num_processes: int) -> str:
    """One line: the data, the steps and the machine."""
    batch, accumulated = cfg.data.global_batch_size, cfg.gradient_accumulation_steps
    batches = f"batch {batch}" + (f" x {accumulated} accumulated" if accumulated > 1 else "")
    epoch_steps, workers = loader.steps_per_epoch / accumulated, cfg.data.num_workers
    what = "images" if _visual(loader) == "image" else "clips"
    return (
        f"{cfg.loss.name}: {loader.num_samples} {what}, {batches}, {epoch_steps:.6g} steps per epoch, "
        f"{total_steps / epoch_steps:.4g} epochs, {total_steps} steps; {loader.device.type}, {cfg.mixed_precision}, "
        f"{num_processes} process{'es' * (num_processes > 1)} with {workers} worker{'s' * (workers != 1)}; {cfg.run}"
    )


def warm_up_warning(cfg: RunConfig, total_steps: int) -> str:
    """A warning if the learning rate is still rising when the run ends; "" otherwise."""
    if cfg.optim.warmup_steps < max(1, total_steps):
        return ""
    return (
        f"warning: the learning rate rises for optim.warmup_steps={cfg.optim.warmup_steps} steps, and the run has only "
        f"{total_steps}; add optim.warmup_steps={total_steps // 10}"
    )


class Pace:
    """Measures the first steps of a run and says once how long the run will take.

    The very first step, which starts workers and picks kernels, does not count. clock: seconds of any origin.
    """

    def __init__(
        self, cfg: RunConfig, loader: Loader, progress: Progress, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.cfg, self.loader, self.clock, self.total_steps = cfg, loader, clock, progress.total_steps
        self._due = progress.step + max(1, min(MEASURED_STEPS, (progress.total_steps - progress.step) // 4))
        self._warm = min(progress.step + 1, self._due - 1)
        self._starts: list[float] = []  # seconds before epochs
        self._begin(progress.step)

    def _begin(self, step: int) -> None:
        self._from, self._since, self._waited = step, self.clock(), self.loader.waited_seconds
        self._starts_within = 0.0

    def epoch_starts(self, seconds: float) -> None:
        """Count the time that a loss took before an epoch, for example to cluster all samples."""
        self._starts.append(seconds)
        self._starts_within += seconds

    def step_done(self, step: int) -> str:
        """The estimate at the step at which it is due; "" at all others."""
        if step not in (self._warm, self._due):
            return ""
        if self.loader.device.type == "cuda":
            torch.cuda.synchronize(self.loader.device)
        if step == self._warm:
            self._begin(step)
            return ""
        elapsed = max(1e-9, self.clock() - self._since - self._starts_within)
        step_seconds = elapsed / (step - self._from)
        left = self.total_steps - step
        epochs_left = left * self.cfg.gradient_accumulation_steps / self.loader.steps_per_epoch
        seconds = left * step_seconds + epochs_left * sum(self._starts) / max(1, len(self._starts))
        share = min(1.0, (self.loader.waited_seconds - self._waited) / elapsed)
        return (
            f"step {step} of {self.total_steps}: {step_seconds:.2g} s per step, about {duration(seconds)} to go; "
            f"{share:.0%} of it waits for data: {self._advice(share)}"
        )

    def _advice(self, share: float) -> str:
        workers, cores = self.cfg.data.num_workers, default_num_workers()
        if share < WAITING_SHARE:
            return f"computing bounds the run{self._smaller_views()}"
        if workers * local_processes() < cores:
            return f"reading bounds the run; raise data.num_workers ({workers} now, {cores} cores here)"
        return "reading bounds the run, and all cores read; shards of smaller frames (--short-side-px) are read faster"

    def _smaller_views(self) -> str:
        visual = _visual(self.loader)
        if self.loader.device.type != "cpu" or not visual:
            return ""
        size_px = getattr(self.cfg.views, visual).size_px
        return f"; a GPU would help, or in a new run smaller views, for example views.{visual}.size_px={size_px // 2}"


def _visual(loader: Loader) -> str:
    """Which of "video" and "image" is among the views; "" if none is."""
    return next((view.modality for view in loader.views if view.modality != "audio"), "")


def duration(seconds: float) -> str:
    """A length of time in words.

    >>> duration(50), duration(700), duration(8000), duration(200_000)
    ('50 s', '12 min', '2 h 13 min', '2 days 8 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"
