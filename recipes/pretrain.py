"""Pretrain encoders of video, audio or images with any loss of the registry.

    avssl pretrain avid run=runs/avid data.shards=shards/
    avssl pretrain avid data.shards=VIDEOS data.global_batch_size=auto data.num_workers=auto
    accelerate launch -m avssl.recipes.pretrain avid run=runs/avid data.shards=shards/
    torchrun --nproc_per_node 8 -m avssl.recipes.pretrain avid_cma init_from=runs/avid ...

`--plugin my_loss.py` runs a file of your own first, with a loss, an encoder or a transform (docs/plugins.md).
A folder of media in place of shards is prepared first, in RUN/shards. `auto` fits a recipe to a small corpus and to the
machine (docs/first_hour.md). RUN is runs/RECIPE unless run= names another. The same command goes on from the newest
undamaged checkpoint. After SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C the run finishes its step, saves a checkpoint and exits
with status 0, or `stopped_status`; docs/checkpoints.md says more.
`avssl recipes` lists the recipes, and `--help` prints every key, behind a recipe with the values there.
"""

import os
import sys
import warnings
from functools import partial
from pathlib import Path

from avssl import config
from avssl.errors import end_now, one_line_errors
from avssl.files.plain_text import begin_command, emit, note
from avssl.files.progress import Stages
from avssl.options.counts import check_counts
from avssl.plugins.required import take_options
from avssl.processes.slurm import take_ranks_of_slurm
from avssl.processes.stopping import StoppedError, StopSignal, end_with_launcher
from avssl.processes.worker_server import start_worker_server
from avssl.recipe_files import replace_names


def main(cfg: config.RunConfig) -> int:
    end_with_launcher()
    with Stages(shown=os.environ.get("RANK", "0") == "0") as stages:
        return pretrain(cfg, stages)


def pretrain(cfg: config.RunConfig, stages: Stages) -> int:
    check_counts(cfg)  # once more, for one that was made in Python
    stages.now("loading PyTorch")
    if cfg.data.num_workers:
        start_worker_server()  # first: it imports for the loader's workers while this process does
    # Imported here, so that --help and errors in keys come at once, and that the loader's workers do not import them.
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import set_seed

    from avssl import checkpoint, device
    from avssl.data.loader import Loader
    from avssl.files import storage
    from avssl.losses import registry
    from avssl.losses.base import EpochContext
    from avssl.models.create import create_encoder, without_weights
    from avssl.ops import kernels
    from avssl.optim.build import build_optimizer, forget, set_schedules
    from avssl.prepared import shards_of
    from avssl.processes.peers import unwatch_processes, watch_processes
    from avssl.public_models import settle
    from avssl.shards.mixture import check_modalities, open_shards, refuse_test_part
    from avssl.train import estimate, fitting
    from avssl.train.captions import captions_of
    from avssl.train.monitor import Monitor, provenance
    from avssl.train.probe import OnlineProbe, embedding_modules
    from avssl.train.run_folder import begin
    from avssl.train.teacher import open_teacher
    from avssl.transforms.view_maker import ViewMaker
    from avssl.types import Progress

    run = Path(cfg.run)
    loss_class = registry.get(cfg.loss.name)
    modalities = loss_class.modalities(cfg.loss)
    view_list = loss_class.views(cfg.loss)
    model_lines = settle(cfg, view_list)  # config.yaml has what public models demand of the views
    fitting.keep_precision(cfg)
    device.settle_precision(cfg, modalities)  # config.yaml has the result of "auto"
    accelerator = Accelerator(
        cpu=cfg.cpu or device.keeps_off_apple_gpu(),
        mixed_precision=cfg.mixed_precision.replace("fp32", "no"),
        gradient_accumulation_steps=cfg.gradient_accumulation_steps,
        log_with=cfg.trackers or None,
        project_dir=str(run),
        # The state of losses is replicated by construction; to send banks at every step would cost more than the step.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    device.use_threads(accelerator.device, cfg.num_cpu_threads)
    watch_processes(cfg.process_timeout_seconds, end_now)
    note("\n".join(model_lines))
    storage.allow_redirects(list(cfg.data.redirect_hosts))
    stages.now("")
    cfg.data.shards = shards_of(cfg, modalities)  # media become shards first
    stages.now("opening the index of the shards")
    shards = open_shards(cfg.data.shards, cfg.data.cache_dir, cfg.data.cache_bytes)
    refuse_test_part(shards, allowed=cfg.data.allow_test_part)
    check_modalities(shards, modalities, getattr(cfg.loss, "modalities", ()))
    stages.now("opening the teacher" if hasattr(cfg.loss, "teacher") else "")
    teacher, teacher_line = open_teacher(cfg, shards, accelerator.device, accelerator.autocast)
    note(teacher_line)
    stages.now("reading captions" if hasattr(cfg.loss, "text_encoder") else "")
    captions = captions_of(cfg, shards, accelerator.device)  # for losses that compare samples with theirs
    stages.now("fitting the recipe to the corpus and the machine" if cfg.auto else "")
    note("\n".join(fitting.fit(cfg, loss_class, shards, accelerator)))  # config.yaml has the result of "auto"
    note(fitting.workers_advice(cfg.data.num_workers, accelerator.device.type))
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # the line above says it
    stages.now("making the networks")
    set_seed(cfg.seed)

    views = ViewMaker(cfg.views, modalities).to(accelerator.device)
    # A run that goes on has its weights in its checkpoint.
    begun = without_weights if checkpoint.checkpoints(run) else dict
    encoders = {name: create_encoder(modality=name, **begun(cfg.encoders[name])) for name in modalities}
    with fitting.few_samples_advised(cfg, loss_class, shards.num_samples):
        loader = Loader(shards, cfg.data, view_list, views, seed=cfg.seed, device=accelerator.device, targets=teacher)
        loss = loss_class(cfg.loss, encoders, shards.num_samples)
        loss.check_batch_size(cfg.data.global_batch_size)
    if captions is not None:
        loss.take_captions(captions)
    device.use_channels_last(loss, cfg.channels_last, accelerator.device)
    kernels.refuse_wrong_kernels(loss, cfg.mixed_precision, accelerator.device)
    if cfg.sync_batch_norm:
        loss = device.synced_batch_norms(loss, accelerator.device)
    optimizer = build_optimizer(cfg.optim, loss.param_groups(), loss)

    micro_batches = cfg.epochs * loader.steps_per_epoch
    total_steps = min(cfg.steps or micro_batches, micro_batches // cfg.gradient_accumulation_steps)
    if total_steps == 0:
        raise ValueError(
            f"no optimizer step fits: {micro_batches} micro-batches, gradient_accumulation_steps="
            f"{cfg.gradient_accumulation_steps}; raise epochs or lower it"
        )
    facts = {"manifest": shards.fingerprint, "num_samples": shards.num_samples, **loader.order_facts()}
    progress = Progress(total_steps=total_steps)
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)  # its successor is to come
    model, optimizer = accelerator.prepare(loss, optimizer)  # not the loader: it splits by rank itself
    set_seed(cfg.seed, device_specific=True)  # the weights are equal now; from here on each rank draws its own noise
    if cfg.compile:
        device.compile_encoders(loss)
    stages.now("beginning the run: its folder, a checkpoint to go on from, statistics of audio")
    begin(cfg, accelerator, loss, loader, progress, facts)

    monitor = Monitor(accelerator, cfg, total_steps, loader, progress, stages)
    monitor.tell(estimate.describe_run(cfg, loader, total_steps, accelerator.num_processes))
    monitor.tell(estimate.warm_up_warning(cfg, total_steps))
    monitor.tell(fitting.advice(cfg, shards.num_samples))
    probe = OnlineProbe(cfg.probe, run, step=progress.step, is_main=accelerator.is_main_process)
    snapshot = {"loss": embedding_modules(loss), "views": views}, partial(provenance, cfg, shards, progress)
    monitor.probed(probe.step_done(progress.step, *snapshot))
    model.train()
    stop, saved_step = StopSignal(accelerator.device), progress.step
    whole_pass = partial(loader.embed_all, model)
    stoppable_pass = stop.interruptible(whole_pass, loader.least_batches)
    while progress.step < total_steps and not stop.is_agreed:
        if progress.batch_in_epoch == 0:
            # Gradients that still wait for their step are in no checkpoint: then the run stops after that step.
            waits = progress.batch % cfg.gradient_accumulation_steps > 0
            embed_all = whole_pass if waits else stoppable_pass
            try:
                with monitor.epoch_start():
                    loss.on_epoch_start(EpochContext(progress.epoch, embed_all, forget(optimizer)))
            except StoppedError:
                break
        for batch in loader.epoch(progress.epoch, progress.batch_in_epoch):
            with accelerator.accumulate(model):
                outputs = model(batch.views)  # under DDP and autocast
                result = loss.loss(outputs, batch.index, progress)  # float32, reads state
                accelerator.backward(result.total)
                if accelerator.sync_gradients:
                    if cfg.optim.clip_norm:
                        accelerator.clip_grad_norm_(model.parameters(), cfg.optim.clip_norm)
                    loss.before_step(progress)
                    set_schedules(optimizer, cfg.optim, progress.step, total_steps)
                optimizer.step()
                optimizer.zero_grad()
                loss.update(outputs, batch.index)
                if accelerator.sync_gradients:
                    progress.step += 1
                    loss.after_step(progress)
            progress.batch += 1
            progress.batch_in_epoch += 1
            monitor.batch_done(batch, result, loss, outputs)
            if accelerator.sync_gradients:
                monitor.probed(probe.step_done(progress.step, *snapshot))
                due = progress.step % cfg.checkpoint_every_steps == 0
                if stop.poll() or due or progress.step == total_steps:
                    monitor.require_finite(result, batch, loss)
                    checkpoint.save(accelerator, run, views, progress, facts, cfg.keep_checkpoints)
                    saved_step = progress.step
                if stop.is_agreed or progress.step == total_steps:
                    break
        else:
            progress.epoch, progress.batch_in_epoch = progress.epoch + 1, 0

    if progress.step > saved_step:  # stopped before an epoch
        monitor.require_finite(result, batch, loss)
        checkpoint.save(accelerator, run, views, progress, facts, cfg.keep_checkpoints)
    loader.close()
    monitor.probed(probe.finish(progress.step, *snapshot) if progress.step == total_steps else probe.stop())
    monitor.close()
    if progress.step == total_steps and accelerator.is_main_process:
        modules, facts = {"loss": loss, "views": views}, provenance(cfg, shards, progress)
        checkpoint.export(run, modules, facts, checkpoint.whole_banks(run, loss))
        note(f"finished: {run / checkpoint.WEIGHTS_FILE}")
    elif stop.is_agreed:
        note(f"stopped by signal at step {progress.step}; the same command goes on from there")
    emit("result", run=run, steps=progress.step, total_steps=total_steps, is_finished=progress.step == total_steps)
    accelerator.wait_for_everyone()
    unwatch_processes()
    accelerator.end_training()
    return 0 if progress.step == total_steps else cfg.stopped_status


def name_run(cfg: config.RunConfig, arguments: list[str]) -> None:
    """Without run= the folder of the run is runs/NAME, by the last YAML among the arguments or else by the loss."""
    names = [Path(argument).stem for argument in arguments if config.is_file(argument)]
    cfg.run = cfg.run or str(Path("runs", [cfg.loss.name, *names][-1]))


def command(arguments: list[str]) -> int:
    """The program: its exit status."""
    arguments = begin_command("pretrain", arguments)
    take_ranks_of_slurm()
    with one_line_errors():
        arguments, files, is_changed = take_options(arguments)
        arguments = replace_names(arguments)
        if not set(config.HELP).intersection(arguments):  # first: the keys have names that plugins register
            arguments = config.run_plugins(arguments, files, may_differ=is_changed)
        about = f"{__doc__}\n"
        cfg = config.load(config.RunConfig, arguments, usage="avssl pretrain", about=about, required=config.REQUIRED)
        name_run(cfg, arguments)
        return main(cfg)


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
