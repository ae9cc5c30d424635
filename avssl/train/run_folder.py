"""How a run begins in its folder: it locks the folder, then it goes on, starts from another run or starts anew."""

from __future__ import annotations

import errno
import json
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from torch.nn import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from avssl import checkpoint, config
from avssl.data.loader import Loader
from avssl.data.statistics import measure_statistics
from avssl.distributed import (
    barrier,
    broadcast_object,
    gather_objects,
    is_active,
    rank,
    seed_of_rank,
    world_size,
)
from avssl.embedding.index import FolderIndex
from avssl.eval import overlap
from avssl.files.json_lines import truncate_log
from avssl.files.locks import LockedError, locked
from avssl.files.plain_text import note, say
from avssl.files.whole import write_whole
from avssl.losses import registry
from avssl.losses.base import Loss
from avssl.losses.configs import TeacherConfig
from avssl.models.registry import ENCODERS
from avssl.plugins import files, required
from avssl.transforms.config import own_augment
from avssl.transforms.own import AUGMENTS
from avssl.types import Progress, View

if TYPE_CHECKING:
    from accelerate import Accelerator

LOCK_FILE, NOTES_FILE = ".lock", "notes.jsonl"
WAIT_SECONDS = 20.0  # a run whose launcher was killed makes its step, saves and ends
WITHOUT_LOCKS = {getattr(errno, name) for name in ("ENOLCK", "ENOSYS", "EOPNOTSUPP") if hasattr(errno, name)}
_held = ExitStack()  # until this process ends, or begins another run


def begin(
    cfg: config.RunConfig,
    accelerator: Accelerator,
    loss: Loss,
    loader: Loader,
    progress: Progress,
    facts: Mapping[str, object],
) -> None:
    """Load the newest checkpoint of `cfg.run` or, in a folder without any, start from `init_from` or from nothing.

    The state is loaded into the objects that the accelerator has prepared, `loss`, the loader's view maker and
    `progress`. A run that starts with new views measures their statistics. Then config.yaml, training_data.safetensors
    and start.json are written, and warnings about the shards of the online probe are printed. A run may go
    on with another number of processes; a line and notes.jsonl say what is not exactly as before.

    facts: what must be equal when a run goes on, as `checkpoint.resume` compares it.

    Raises:
        ValueError: resume=false in a folder with checkpoints, or something differs from the earlier start.
        config.ConfigError: the run has done more steps than `progress.total_steps`.
        LockedError, DamagedCheckpointError: as `hold_run` and `checkpoint.resume`.
    """
    run, views = Path(cfg.run), loader.view_maker
    hold_run(run)
    refuse_unless_shared(run, str(facts["manifest"]))
    cfg.plugins = plugins_of(cfg, loader.views)
    if checkpoint.checkpoints(run):
        if cfg.resume is False:
            raise ValueError(f"resume=false, but {run} holds checkpoints; name another run, or delete that folder")
        config.check_unchanged(cfg, run)
    resumed = checkpoint.resume(accelerator, run, views, progress, facts, strict=cfg.resume == "strict")
    if progress.step > progress.total_steps:
        raise config.ConfigError(
            f"steps={cfg.steps} and epochs={cfg.epochs} end the run at step {progress.total_steps}, but {run} has done "
            f"{progress.step} already; raise them to go on, or name another run"
        )
    if resumed is not None:
        note(f"going on from {resumed} at step {progress.step} of {progress.total_steps}")
        go_on_divided_otherwise(cfg, accelerator, loss, progress, checkpoint.saved_world_size(resumed))
    elif not (cfg.init_from and _inherit(cfg, loss, loader)):
        measure_statistics(views, loader)
    if accelerator.is_main_process:
        config.save(cfg, run / "config.yaml")
        _keep_plugin_files(cfg, run)
        if resumed is None:
            overlap.write_training_data(run, loader.shards, *trained_on(cfg))
            checkpoint.keep_start(run, cfg.init_from)
        for line in (*overlap.mixture_warnings(loader.shards), *overlap.probe_warnings(run, cfg.probe.shards)):
            note(f"warning: {line}", "warning")


def refuse_unless_shared(run: Path, manifest: str) -> None:
    """ValueError if a process sees another folder of the run, or other shards, than the first process does.

    Without this it would be found at the first checkpoint, to which every process adds files. The name of the file that
    is looked for is new, so that no network file system answers from memory.
    """
    if not is_active():
        return
    name = broadcast_object(f".seen-{secrets.token_hex(8)}")
    if rank() == 0:
        (run / name).touch()
    barrier()
    seen = gather_objects((socket.gethostname(), (run / name).exists(), manifest))
    if rank() == 0:
        (run / name).unlink()
    first = f"process 0 on {seen[0][0]}"
    for number, (host, sees_run, own) in enumerate(seen):
        if not sees_run:
            raise ValueError(
                f"process {number} on {host} does not see what {first} writes in {run}; the folder of a run must be "
                "the same one on all hosts: choose one on a disk that they share"
            )
        if own != seen[0][2]:
            raise ValueError(f"process {number} on {host} has other shards than {first}; give all hosts the same ones")


def go_on_divided_otherwise(
    cfg: config.RunConfig, accelerator: Accelerator, loss: Loss, progress: Progress, before: int
) -> None:
    """Draw the random states anew if the checkpoint is of another number of processes, and say what is not exact.

    Order, augmentation, negatives, k-means and the shuffling of MoCo are pure functions of seed and step, the same for
    any number of processes. What networks draw themselves (dropout, drop path) comes from the generators of each
    process; these begin anew from (seed, step, rank).
    """
    from accelerate.utils import set_seed

    if accelerator.is_main_process:
        truncate_log(Path(cfg.run) / NOTES_FILE, progress.step)
    if before == world_size():
        return
    set_seed(seed_of_rank(cfg.seed, progress.step))
    text = describe_processes(cfg, loss, progress.step, before)
    note(f"note: {text}")
    if accelerator.is_main_process:
        with (Path(cfg.run) / NOTES_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": progress.step, "processes": world_size(), "note": text}) + "\n")


def describe_processes(cfg: config.RunConfig, loss: Loss, step: int, before: int) -> str:
    """What is as before, and what is not, in a run of `before` processes that goes on with those of now; one line."""
    rows_before, rows = cfg.data.global_batch_size // before, cfg.data.global_batch_size // world_size()
    parts = [
        f"{before} processes until step {step}, {world_size()} from here on",
        "the global batches are the same; sums over rows are taken in another order, which changes last digits",
        "dropout and drop path are drawn anew from (seed, step, process)",
    ]
    own = [layer for layer in loss.modules() if isinstance(layer, _BatchNorm) and not isinstance(layer, SyncBatchNorm)]
    if own and not getattr(cfg.loss, "shuffle_groups", 0):  # whose groups of rows keep their size
        parts.append(
            f"batch norm is not gathered (sync_batch_norm=false): it sees the {rows} rows of a process, {rows_before} "
            "before, and the training is another one from here on"
        )
    return "; ".join(parts)


def plugins_of(cfg: config.RunConfig, views: Sequence[View]) -> list[dict[str, str]]:
    """The records of the plugins that the configuration names, and of those that registered what the run uses.

    ValueError if the processes of the run have different ones.
    """
    used = [registry.plugin_of(cfg.loss.name)]
    for view in views:
        encoder = cfg.encoders[view.modality]["name"]
        used += [ENCODERS.plugin_of(encoder), AUGMENTS.plugin_of(own_augment(view, cfg.views))]
    by_name = {next(iter(record.values())): record for record in (*cfg.plugins, *filter(None, used))}
    records = [by_name[name] for name in sorted(by_name)]
    of_ranks = gather_objects(records)
    for number, others in enumerate(of_ranks):
        if others != of_ranks[0]:
            raise ValueError(
                f"the processes of this run have different plugins: {required.described(of_ranks[0])} in process 0, "
                f"{required.described(others)} in process {number}; give all the same files and packages"
            )
    return records


def _keep_plugin_files(cfg: config.RunConfig, run: Path) -> None:
    """Write the files of the plugins, as they ran, to RUN/plugins: nothing reads them but the user and the probe."""
    for plugin in files.ran():
        if plugin.record in cfg.plugins:
            (run / files.KEPT_FOLDER).mkdir(exist_ok=True)
            write_whole(run / files.KEPT_FOLDER / plugin.name, plugin.content)


def _inherit(cfg: config.RunConfig, loss: Loss, loader: Loader) -> bool:
    """Start from the run `init_from`; return whether the statistics of its views could be taken over, too."""
    report = checkpoint.inherit(loss, cfg.init_from, loader.shards.fingerprint)
    loss.after_inherit(report["loaded"])
    note(checkpoint.describe_matching(report, cfg.init_from))
    is_same_audio = config.load_run(cfg.init_from).views.audio == cfg.views.audio
    return is_same_audio and checkpoint.inherit_views(loader.view_maker, cfg.init_from)


def trained_on(cfg: config.RunConfig) -> list[str]:
    """Folders of the runs that a run learns from: that which it starts from, and its teacher's, if it is one here."""
    given = getattr(cfg.loss, "teacher", None)
    runs = []
    if isinstance(given, TeacherConfig):
        runs = [given.run, FolderIndex.read(Path(given.embeddings)).run_folder if given.embeddings else ""]
    return [cfg.init_from, *(run for run in runs if run and Path(run).is_dir())]


def is_at_work(run: Path) -> bool:
    """Whether a process is training in this folder: it holds the lock of the folder as long as it lives."""
    if not (run / LOCK_FILE).is_file():
        return False
    try:
        with locked(run / LOCK_FILE, shared=True, wait_seconds=0.0):
            return False
    except LockedError:
        return True


def release_run() -> None:
    """Unlock the folder of the run that this process held last."""
    _held.close()


def hold_run(run: Path) -> None:
    """Make the folder of a run and lock it until this process ends or holds another one.

    The first rank locks it for all. LockedError on every rank while another run holds it. On a file system without
    locks there is a warning instead.
    """
    _held.close()
    problem: Exception | None = None
    if rank() == 0:
        busy = f"{run}: another run is at work in this folder; wait for it, end it, or name another run"
        try:
            run.mkdir(parents=True, exist_ok=True)
            _held.enter_context(locked(run / LOCK_FILE, wait_seconds=WAIT_SECONDS, busy=busy))
        except (LockedError, OSError) as error:
            if getattr(error, "errno", None) in WITHOUT_LOCKS:
                say(f"warning: {run}: no locks on this file system; two runs at once here would mix", sys.stderr)
            else:
                problem = error
    problem = broadcast_object(problem)
    if problem is not None:
        raise problem
