"""What a run will do, said before its first step; after it, and once more after some, how long it takes and why."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from avssl.distributed import local_processes
from avssl.files.progress import duration
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
    """Measures the first steps of a run and says how long the run will take: after the first step, and after some more.

    The very first step, which starts workers and picks kernels, does not count in the second estimate. Later it says,
    once, that the run waits for data. clock: seconds of any origin.
    """

    def __init__(
        self, cfg: RunConfig, loader: Loader, progress: Progress, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.cfg, self.loader, self.clock, self.total_steps = cfg, loader, clock, progress.total_steps
        self._due = progress.step + max(1, min(MEASURED_STEPS, (progress.total_steps - progress.step) // 4))
        self._warm = min(progress.step + 1, self._due - 1)
        self._starts: list[float] = []  # seconds before epochs
        self._has_said_that_it_waits = False
        self._filled = self._step_with_all_decoded(progress.step)
        self._begin(progress.step)

    def _begin(self, step: int) -> None:
        self._from, self._since, self._waited = step, self.clock(), self.loader.waited_seconds
        self._starts_within = 0.0

    def epoch_starts(self, seconds: float) -> None:
        """Count the time that a loss took before an epoch, for example to cluster all samples."""
        self._starts.append(seconds)
        self._starts_within += seconds

    def step_done(self, step: int) -> str:
        """An estimate at the steps at which one is due; "" at all others."""
        if step not in (self._warm, self._due):
            return ""
        if self.loader.device.type == "cuda":
            torch.cuda.synchronize(self.loader.device)
        elapsed = max(1e-9, self.clock() - self._since - self._starts_within)
        waited = min(elapsed, self.loader.waited_seconds - self._waited)
        if step == self._warm:
            self._begin(step)
            return self._first(step, elapsed, waited)
        step_seconds, share = elapsed / (step - self._from), waited / elapsed
        return (
            f"step {step} of {self.total_steps}: {precise(step_seconds)} per step, about "
            f"{duration(self._seconds_left(step, step_seconds))} to go; {self._bound(share, self._from)}"
        )

    def _step_with_all_decoded(self, begin: int) -> float:
        """The step at which the first whole epoch has filled the cache of decoded samples; 0 without one, or if no
        step is left then."""
        accumulated, epoch = self.cfg.gradient_accumulation_steps, self.loader.steps_per_epoch
        filled = (-(-begin * accumulated // epoch) + 1) * epoch / accumulated
        return filled if self.cfg.data.cache_decoded and filled < self.total_steps else 0

    def _first(self, step: int, elapsed: float, waited: float) -> str:
        """What the first step says: its time, and how long the run takes if all others take as long as it computed."""
        seconds = self._seconds_left(step, elapsed - waited)
        return (
            f"step {step} of {self.total_steps}: {precise(elapsed)}, {precise(waited)} of it until the first batch was "
            f"read; {duration(seconds)} to go if all take as long, but the first one is slow: a better estimate follows"
        )

    def _seconds_left(self, step: int, step_seconds: float) -> float:
        left = self.total_steps - step
        epochs_left = left * self.cfg.gradient_accumulation_steps / self.loader.steps_per_epoch
        return left * step_seconds + epochs_left * sum(self._starts) / max(1, len(self._starts))

    def stretch_done(self, step: int, share: float) -> str:
        """A line, once in a run, if a stretch of steps after the estimate has waited for data for this share of it."""
        begin = max(0, step - self.cfg.log_every_steps)
        if step <= self._due or begin < self._filled or share < WAITING_SHARE or self._has_said_that_it_waits:
            return ""
        return f"step {step} of {self.total_steps}: {self._bound(share, begin)}"

    def _bound(self, share: float, begin: int) -> str:
        """What bounds the run, which has waited for data for this share of its time since a step, and what helps."""
        workers, cores = self.cfg.data.num_workers, default_num_workers()
        waits, on_cpu = f"waits for data {share:.0%}", self.loader.device.type == "cpu"
        if share < WAITING_SHARE:
            return f"{waits}: computing bounds the run{self._cheaper(workers, cores) if on_cpu else ''}"
        if begin < self._filled:
            return f"{waits} while one epoch fills data.cache_decoded; later ones take less time"
        self._has_said_that_it_waits = True
        if workers * local_processes() < cores:
            return f"{waits}: raise data.num_workers ({workers} now, {cores} cores here)"
        if on_cpu and self.cfg.data.views_in_workers:
            return f"{waits}: data.views_in_workers=false lets the workers read alone"
        return f"{waits}, and all cores read already: shards of smaller frames (--short-side-px) are read faster"

    def _cheaper(self, workers: int, cores: int) -> str:
        """What makes a run on the CPU quicker that computing bounds."""
        visual, words = _visual(self.loader), ""
        if workers and not self.cfg.data.views_in_workers and torch.get_num_threads() * local_processes() < cores:
            words = "; data.views_in_workers=true gives a part of it to the workers"
        if not visual:
            return words
        size_px = getattr(self.cfg.views, visual).size_px
        example = f"views.{visual}.size_px={size_px // 2}"
        return f"{words}; a GPU would help, or in a new run smaller views, for example {example}"


def _visual(loader: Loader) -> str:
    """Which of "video" and "image" is among the views; "" if none is."""
    return next((view.modality for view in loader.views if view.modality != "audio"), "")


def precise(seconds: float) -> str:
    """A short time in words.

    >>> precise(0.1234), precise(2.0), precise(100.0)
    ('0.12 s', '2 s', '2 min')
    """
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds)
