"""Writes a shard folder from a manifest, parallel over processes and machines; their number does not change the bytes.

1. The manifest is scanned once (rows.py) and shuffled with the seed (job.py), both at constant memory.
2. The files of every samples_per_shard shuffled rows are read and stored as a part below .parts (parts.py). A part that
   is done is not made again.
3. When all parts are done, the number of samples of each is known, hence every sample's index: parts become shards.
4. index.json is written last. A folder without it is unfinished, and the same command continues.

A process that does a share (job.py) makes only the parts and shards of its share, and no index.json.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from avssl.files.checked_json import Fields, parse
from avssl.files.disk_errors import clear_errors
from avssl.files.locks import locked
from avssl.files.scratch import remove_leftovers, temporary_folder
from avssl.processes.limits import Limits
from avssl.processes.pool import in_processes
from avssl.shards.format import INDEX_NAME, SKIPPED_NAME, ShardIndex, ShardRecord, SideCar, dump_json
from data_prep.transcode.file import transcode
from data_prep.transcode.options import WriteOptions
from data_prep.write.executors import PART_RUNNERS, MissingParts, PartRunner
from data_prep.write.folder import OutputFolder
from data_prep.write.job import Job, Share, identity, refuse_unless_same
from data_prep.write.pack import ShardTask, finished_shard, make_shard, shard_tasks
from data_prep.write.parts import PARTS, PartSummary, part_name
from data_prep.write.progress import WriteProgress
from data_prep.write.reading import FileOptions, Transcode
from data_prep.write.repair import check_repair, has_skipped, prepare_repair, proven_shards, whole_shards
from data_prep.write.retry_failed import begin_retry, current_attempt, has_new_shards, unpack_shards
from data_prep.write.rows import parent_of, scanned

OPTIONS_NAME = f"{PARTS}/options.json"
OWN_NAMES = r"shard-\d+\.(tar|json)|index\.json|skipped\.jsonl"  # of files in a shard folder


def write_shards(
    manifest: str | Path,
    folder: str | Path,
    options: WriteOptions,
    num_workers: int = 1,
    transcode: Transcode = transcode,
    *,
    limits: Limits | None = None,
    share: Share | None = None,
    executor: str = "local",
    retry_failed: bool = False,
) -> ShardIndex | None:
    """Write all shards, or continue where an earlier run was stopped.

    Args:
        manifest, folder: paths or URLs. num_workers: processes (of this machine, or of the Ray cluster).
        transcode: how a file becomes a sample's media; another function must be importable by name.
        limits: time and memory that one file may take. share: do only this share of the work. executor: "local" or
            "ray". retry_failed: read files that were skipped once more.

    Returns:
        The finished index.json; None if only a share was done.

    Raises:
        ValueError, FileNotFoundError: the manifest does not fit, or the folder holds shards of other options.
        PolicyError: a file for which the options say that it ends the run.
        OSError: the disk is full or the folder cannot be written; what is finished is kept.
    """
    output = OutputFolder.open(folder)
    # A write that was stopped among its shards, or lost index.json, is finished first: only whole folders are unpacked.
    if retry_failed and has_new_shards(output) and not _has_index(output):
        first = write_shards(
            manifest, folder, options, num_workers, transcode, limits=limits, share=share, executor=executor
        )
        if first is None:
            return None
    with clear_errors(str(output), "written"), ExitStack() as stack:
        finished = _has_index(output)
        near = output.path(PARTS) if output.is_local else stack.enter_context(temporary_folder())
        rows = scanned(manifest, near, num_workers)
        file_options = FileOptions(parent_of(manifest), options, limits or Limits(), transcode)
        job = Job(output, rows, file_options, num_workers, share or Share(), executor)
        if finished:
            index = _repaired(job, _already_written(job))
            if not (retry_failed and index.num_skipped):
                _remove_parts(output)
                return index
            job = replace(job, rows=scanned(manifest, near, num_workers))  # a repair has removed the parts
        proven = _begin(job)
        stack.enter_context(_locked(output, job.share))
        if proven:
            return _run(prepare_repair(job, proven, None), proven)
        if retry_failed:
            begin_retry(output, index.shards if finished else [])
        unpack_shards(output, job.num_parts, job.entries)
        return _run(job)


def _run(job: Job, whole: Mapping[str, SideCar] | None = None) -> ShardIndex | None:
    """Make parts, then shards, then index.json, as far as the share allows. whole: {name: side-car} of the undamaged
    shards if the folder is being repaired.
    """
    attempt = current_attempt(job.folder)
    _forget_parts_without_data(job)
    missing = [n for n in range(job.num_parts) if job.share.holds(n) and not _is_done(job.folder, n, attempt)]
    run_parts = _executor(job.executor)
    parts = MissingParts(job.folder, job.file_options, missing, lambda number: job.part_task(number, attempt))
    num_files = sum(job.num_rows(number) for number in range(job.num_parts) if job.share.holds(number))
    with WriteProgress(num_files, sum(map(job.num_rows, missing))) as progress:
        for _ in run_parts(parts, job.num_workers, progress):
            pass
    counts = _counts(job, attempt)
    if counts is None:
        if job.share.count == 1:
            raise _vanished(job)
        return None
    if whole is not None:
        check_repair(job, counts, whole)
    shards = _pack(job, counts)
    if job.share.count > 1:
        return None
    index = _finish(job, shards)
    _remove_parts(job.folder)
    return index


def _executor(name: str) -> PartRunner:
    if name not in PART_RUNNERS:
        raise ValueError(f"--executor is {name!r}; allowed: {', '.join(PART_RUNNERS)}, slurm")
    return PART_RUNNERS[name]


def _is_done(folder: OutputFolder, number: int, attempt: int) -> bool:
    summary = PartSummary.load(folder, number)
    return summary is not None and summary.is_done(attempt)


def _counts(job: Job, attempt: int) -> list[int] | None:
    """The number of samples of every part; None while a part is not done."""
    counts = []
    for number in range(job.num_parts):
        summary = PartSummary.load(job.folder, number)
        if summary is None or not summary.is_done(attempt):
            return None
        counts.append(summary.num_written)
    return counts


def _vanished(job: Job) -> RuntimeError:
    return RuntimeError(
        f"{job.folder}: a part in {job.folder.where(PARTS)} went away while it was being written; run the same command "
        "again: it makes that part anew"
    )


def _forget_parts_without_data(job: Job) -> None:
    """Remove the summaries of parts of this share that have neither media nor a shard, so that they are made again.

    A packed part has a shard instead of media. Which shard that is, is known only if all parts are done.
    """
    summaries = [PartSummary.load(job.folder, number) for number in range(job.num_parts)]
    tasks: dict[int, ShardTask] = {}
    if all(summaries):
        counts = [summary.num_written for summary in summaries if summary is not None]
        tasks = {task.part_number: task for task in shard_tasks(job.folder, counts)}
    for number, summary in enumerate(summaries):
        if summary is None or not job.share.holds(number) or summary.has_data(job.folder, number):
            continue
        if number not in tasks or finished_shard(tasks[number], summary.num_written) is None:
            job.folder.remove(part_name(number, "json"))


def _pack(job: Job, counts: list[int]) -> list[ShardRecord]:
    tasks = [task for task in shard_tasks(job.folder, counts) if job.share.holds(task.shard_number)]
    sizes = [counts[task.part_number] for task in tasks]
    done: Iterator[tuple[ShardTask, ShardRecord]] = in_processes(make_shard, tasks, job.num_workers, "pack", sizes)
    return sorted((record for _, record in done), key=lambda record: record.first_index)


def _finish(job: Job, shards: list[ShardRecord]) -> ShardIndex:
    """Write skipped.jsonl in the order of the parts, then index.json, which is returned."""
    reasons: Counter[str] = Counter()
    labels: dict[str, set[str]] = {}
    with job.folder.whole_file(SKIPPED_NAME) as file:
        for number in range(job.num_parts):
            summary = PartSummary.load(job.folder, number)
            if summary is None:
                raise _vanished(job)
            for skip in summary.skipped:
                file.write(dump_json(skip))
                reasons[skip["reason"]] += 1
            for field, names in summary.label_names.items():
                labels.setdefault(field, set()).update(names)
    index = ShardIndex(
        shards=shards,
        num_samples=sum(shard.num_samples for shard in shards),
        num_listed=len(job.rows),
        num_skipped=reasons.total(),
        skipped_by_reason=dict(sorted(reasons.items())),
        label_names={field: sorted(names) for field, names in sorted(labels.items())},
        options=job.recorded_options,
        manifest_sha256=job.rows.sha256,
        split_parts=job.rows.split_parts,
        has_captions=job.rows.has_captions,
    )
    if index.num_listed != index.num_samples + index.num_skipped:  # an error of the program, or .parts was edited
        raise RuntimeError(
            f"{index.num_listed} files are listed, but {index.num_samples} were written and {index.num_skipped} "
            f"skipped; delete {job.folder.where(PARTS)} and write again"
        )
    job.folder.write_bytes(INDEX_NAME, index.to_json())
    return index


# --- what exists already ---------------------------------------------------------------------------------------------


def _has_index(folder: OutputFolder) -> bool:
    """Whether there is an index.json. One beside shards that is no json was cut, and counts as missing."""
    if not folder.exists(INDEX_NAME):
        return False
    try:
        parse(folder.read_bytes(INDEX_NAME), INDEX_NAME)
    except ValueError:
        return not folder.names("shard-")
    return True


def _already_written(job: Job) -> ShardIndex:
    """The index.json of the finished folder. ValueError if it is of another manifest or other options."""
    with job.folder.local_file(INDEX_NAME) as path:
        index = ShardIndex.load(path.parent)
    refuse_unless_same({"manifest_sha256": index.manifest_sha256, "options": index.options}, job)
    return index


def _repaired(job: Job, index: ShardIndex) -> ShardIndex:
    """The index of a finished folder, whose damaged files are written again if there are any."""
    whole = whole_shards(job.folder, index)
    if len(whole) == len(index.shards) and has_skipped(job.folder, index):
        return index
    if job.share.count > 1:
        raise ValueError(f"{job.folder}: was finished and is damaged; run the same command without --part to repair it")
    _begin(job)
    with _locked(job.folder, job.share):
        repaired = _run(prepare_repair(job, whole, index.label_names), whole)
    assert repaired is not None  # of a single share
    return repaired


def _begin(job: Job) -> dict[str, SideCar]:
    """Record the identity of this job in the folder, or check that it is the recorded one.

    Returns {name: side-car} of the undamaged shards if this command finished the folder and index.json was lost,
    otherwise {}.
    """
    if job.folder.exists(OPTIONS_NAME):
        fields = Fields.parse(job.folder.read_bytes(OPTIONS_NAME), job.folder.where(OPTIONS_NAME))
        recorded = {"manifest_sha256": fields.text("manifest_sha256"), "options": fields.mapping("options")}
        refuse_unless_same(recorded, job)
        return {}
    proven: dict[str, SideCar] = {}
    if not _has_index(job.folder) and job.folder.names("shard-") and not (proven := proven_shards(job)):
        raise ValueError(
            f"{job.folder.location}: holds shards but no {INDEX_NAME}, and they are not what this command writes; "
            "choose another --out, or delete the folder"
        )
    job.folder.write_bytes(OPTIONS_NAME, dump_json(identity(job)))
    return proven


@contextmanager
def _locked(folder: OutputFolder, share: Share) -> Iterator[None]:
    """Lock the share, so that no other process does it in this folder. The lock ends with the process.

    Remote folders have no locks: two writers of the same share there do the same work twice.
    """
    if not folder.is_local:
        yield
        return
    is_alone = share.count == 1
    with ExitStack() as stack:
        busy = f"{folder.location}: another process is writing here; wait for it"
        names = ["lock"] if is_alone else ["lock", f"lock-{share.number}-of-{share.count}"]
        for name in names:
            is_shared = name == "lock" and not is_alone
            path = folder.path(f"{PARTS}/{name}")
            stack.enter_context(locked(path, shared=is_shared, wait_seconds=0, busy=busy))
        yield


def _remove_parts(folder: OutputFolder) -> None:
    if folder.is_local:
        remove_leftovers(folder.path(), OWN_NAMES)  # of a process that was killed while it packed
        shutil.rmtree(folder.path(PARTS), ignore_errors=True)
        return
    for name in folder.names(f"{PARTS}/"):
        folder.remove(name)
