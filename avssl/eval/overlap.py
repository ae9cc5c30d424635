"""Whether a test set was trained on, by digests of media and sources (avssl/shards/sample_digests.py), not by keys.

The test samples are looked up in the training split of the task and in the training data of the run. Beside its weights
a run keeps RUN/training_data.safetensors: sorted 64-bit digests, each once (at most 16 MB per million samples), with
those of the run that it began from, and of its teacher.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from avssl.eval.configs import LabelTaskConfig, TaskConfig
from avssl.eval.outcome import ANCHORS, Outcome
from avssl.files.whole import whole_path
from avssl.shards.sample_digests import Digests, SampleDigests, sample_digests
from avssl.shards.shard_set import ShardSet

TRAINING_DATA_FILE = "training_data.safetensors"
KINDS = ("media", "sources")
NAMED_KEYS = 5  # in a message
NEAR = "For copies that were encoded anew see `avssl prep stats`, which finds near-duplicates"


@dataclass(frozen=True)
class DigestSet:
    """The training data of a run. media, sources: sorted uint64 digests. is_complete: whether all of it is known."""

    media: Digests
    sources: Digests
    is_complete: bool = True

    def union(self, other: DigestSet | None) -> DigestSet:
        """The digests of both; not complete if `other` is None, that is, unknown."""
        if other is None:
            return DigestSet(self.media, self.sources, is_complete=False)
        media, sources = np.union1d(self.media, other.media), np.union1d(self.sources, other.sources)
        return DigestSet(media, sources, self.is_complete and other.is_complete)

    def holds(self, digests: SampleDigests) -> NDArray[np.bool_]:
        """bool (N,): whether a sample's media or source is in the set."""
        return np.isin(digests.media, self.media) | np.isin(digests.sources, self.sources)

    def num_sources(self, digests: SampleDigests) -> int:
        """How many source files of the samples are in the set."""
        return int(np.isin(np.unique(digests.sources), self.sources).sum())


EMPTY = DigestSet(np.zeros(0, np.uint64), np.zeros(0, np.uint64))


def _digest_set(shards: ShardSet) -> DigestSet | None:
    """The digests of a shard folder; None if it is of an earlier version, without digests."""
    digests = sample_digests(shards)
    return None if digests is None else DigestSet(np.unique(digests.media), np.unique(digests.sources))


def write_training_data(run: Path, shards: ShardSet, *others: str) -> Path:
    """Write RUN/training_data.safetensors: the digests of the shards, and of the runs that this one learns from."""
    training_data = EMPTY
    for part in shards.parts:
        training_data = training_data.union(_digest_set(part))
    for other in filter(None, others):
        training_data = training_data.union(read_training_data(other))
    path = run / TRAINING_DATA_FILE
    with whole_path(path) as temporary:
        complete = {"is_complete": "true" if training_data.is_complete else "false"}
        save_file({kind: getattr(training_data, kind) for kind in KINDS}, temporary, metadata=complete)
        temporary.chmod(0o644)
    return path


def mixture_warnings(shards: ShardSet) -> list[str]:
    """Warnings if a sample of one of several folders has the same media as one of another; [] for a single folder."""
    lines = []
    parts = [(part, sample_digests(part)) for part in shards.parts] if len(shards.parts) > 1 else []
    for number, (part, digests) in enumerate(parts):
        for other, others in parts[:number]:
            count = 0 if digests is None or others is None else int(np.isin(digests.media, others.media).sum())
            if count:
                lines.append(
                    f"{count} of {part.num_samples} samples of {part.location} have the same media as samples of "
                    f"{other.location}; they are trained on as different samples. {NEAR}"
                )
    return lines


def read_training_data(run: str | Path) -> DigestSet | None:
    """The training data of a run; None for imported runs and those of earlier versions. ValueError: a damaged file."""
    path = Path(run) / TRAINING_DATA_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            media, sources = (file.get_tensor(kind) for kind in KINDS)
            is_complete = (file.metadata() or {}).get("is_complete") == "true"
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or remove it to evaluate without it") from error
    if any(array.dtype != np.uint64 or array.ndim != 1 for array in (media, sources)):
        raise ValueError(f"{path}: media and sources must be lists of uint64, not {media.dtype} and {sources.dtype}")
    return DigestSet(media, sources, is_complete)


def data_folders(config: TaskConfig) -> Iterator[tuple[str, str]]:
    """(train folder or "", test folder) of every fold of a task's configuration; with `fold_field` ("", train).

    It yields nothing for a configuration without a test set, which the task refuses.
    """
    if not isinstance(config, LabelTaskConfig):
        if config.test:
            yield config.train, config.test
        return
    for number in [str(number) for number in config.folds] or [""]:
        train, test = (folder.replace("{fold}", number) for folder in (config.train, config.test))
        if test:
            yield train, test
        elif config.fold_field:
            yield "", train


def with_sources(outcome: Outcome, config: TaskConfig) -> Outcome:
    """The outcome with the sources of the rows that are samples of the folders of the task.

    Shards of earlier versions, without digests in their side-cars, are not read for them; there sources stay None.
    """
    known: dict[str, dict[str, int]] = {}
    repeats = []
    for repeat in outcome.repeats:
        folder = _folder_of_rows(repeat.name, config)
        if folder and folder not in known:
            shards = ShardSet(folder)
            has_digests = all(side_car.sources for part in shards.parts for side_car in part.side_cars())
            digests = sample_digests(shards) if has_digests else None
            known[folder] = {} if digests is None else dict(zip(shards.keys, digests.sources.tolist(), strict=True))
        of_key = known.get(folder, {})
        if repeat.sources is None and all(key in of_key for key in repeat.keys):
            repeat = replace(repeat, sources=np.array([of_key[key] for key in repeat.keys], np.uint64))  # noqa: PLW2901
        repeats.append(repeat)
    return replace(outcome, repeats=repeats)


def _folder_of_rows(name: str, config: TaskConfig) -> str:
    """The shard folder whose samples are the rows of the repeat of this name."""
    if name == ANCHORS or (isinstance(config, LabelTaskConfig) and config.fold_field):
        return config.train
    number = re.match(r"fold (\d+)", name)
    return config.test.replace("{fold}", number[1]) if number else config.test


def _in_other_folds(shards: ShardSet, digests: SampleDigests, fold_field: str) -> tuple[NDArray[np.bool_], int]:
    """(bool (N,): whether the media or source of a sample is in another fold too, the number of such sources)."""
    labels = [shards.read_info(position).labels.get(fold_field, []) for position in range(shards.num_samples)]
    folds = np.unique([" | ".join(names) for names in labels], return_inverse=True)[1]
    masks = []
    for values in (digests.media, digests.sources):
        group = np.unique(values, return_inverse=True)[1]
        pairs = np.unique(np.stack([group, folds]), axis=1)
        masks.append((np.bincount(pairs[0]) > 1)[group])
    return masks[0] | masks[1], len(np.unique(digests.sources[masks[1]]))


def measure_overlap(run: str | Path, folders: Sequence[tuple[str, str]], fold_field: str = "") -> dict[str, Any]:
    """The overlap as a result has it: {"by_run": "known", "incomplete" or "unknown", "tests": [{"test", "train",
    "fingerprint", "num_test", "num_in_train", "num_in_run" (None: unknown), "keys" (at most 5 of them), "num_sources",
    "num_sources_in_train", "num_sources_in_run", "test_parts", "train_parts" (of a split)}, ...]}.

    fold_field: the label field whose folds are tested on each other; "in_train" is then "in another fold", and each
    entry has the field.
    """
    run_data = read_training_data(run)
    tests = []
    for train, test in folders:
        shards = ShardSet(test)
        digests = sample_digests(shards)
        train_shards = ShardSet(train) if train else None
        known = EMPTY if train_shards is None else _digest_set(train_shards), run_data
        in_train, in_run = (None if digests is None or data is None else data.holds(digests) for data in known)
        sources_in_train, sources_in_run = (
            None if digests is None or data is None else data.num_sources(digests) for data in known
        )
        if fold_field and digests is not None:
            in_train, sources_in_train = _in_other_folds(shards, digests, fold_field)
        elif fold_field:
            in_train, sources_in_train = None, None
        was_trained_on = np.zeros(shards.num_samples, np.bool_)
        for mask in (in_train, in_run):
            if mask is not None:
                was_trained_on |= mask
        tests.append(
            {
                "test": test,
                "train": train,
                "fingerprint": shards.fingerprint,
                "num_test": shards.num_samples,
                "num_in_train": None if in_train is None else int(in_train.sum()),
                "num_in_run": None if in_run is None else int(in_run.sum()),
                "keys": [shards.keys[row] for row in np.flatnonzero(was_trained_on)[:NAMED_KEYS]],
                "num_sources": None if digests is None else len(np.unique(digests.sources)),
                "num_sources_in_train": sources_in_train,
                "num_sources_in_run": sources_in_run,
                "test_parts": shards.index.split_parts,
                "train_parts": [] if train_shards is None else train_shards.index.split_parts,
                **({"fold_field": fold_field} if fold_field else {}),
            }
        )
    if run_data is None or any(entry["num_in_run"] is None for entry in tests):
        return {"by_run": "unknown", "tests": tests}
    return {"by_run": "known" if run_data.is_complete else "incomplete", "tests": tests}


def describe_overlap(measured: dict[str, Any]) -> list[str]:
    """A line for every test set that was trained on, and one if it is not known."""
    lines = []
    for entry in measured["tests"]:
        train = f"other folds of {entry['fold_field']}" if entry.get("fold_field") else f"train={entry['train']}"
        for where, by in (("train", train), ("run", "the run's training")):
            if count := entry[f"num_in_{where}"]:
                keys = ", ".join(entry["keys"]) + (" ..." if count > len(entry["keys"]) else "")
                sources = f"{entry[f'num_sources_in_{where}']} of {entry['num_sources']} test sources"
                samples = f"{count} of {entry['num_test']} test samples of {entry['test']}"
                lines.append(f"{samples} are in {by} too, and {sources} ({keys})")
    if measured["by_run"] != "known":
        lines.append(
            "unknown whether the run was trained on the test set: it, or what it began from, does not say what it was "
            "trained on (imported, or made by an earlier version), or the shards are older ones without digests"
        )
    return lines


def describe_parts(measured: dict[str, Any]) -> list[str]:
    """A line for every folder that holds the wrong part of a split: test= that of training, train= that of testing."""
    lines = []
    for entry in measured["tests"]:
        for key, wrong in (("test", "train"), ("train", "test")):
            if wrong in entry[f"{key}_parts"]:
                parts = " and ".join(entry[f"{key}_parts"])
                lines.append(f"{key}={entry[key]} holds the part {parts} of a split (`avssl prep split`)")
    return lines


def refuse_overlap(measured: dict[str, Any], *, allowed: bool) -> None:
    """Raise ValueError if a test sample was trained on, unless that is allowed."""
    lines = [line for line in describe_overlap(measured) if not line.startswith("unknown")]
    if lines and not allowed:
        raise ValueError(
            "the test set was trained on, by media or by source file: " + "; ".join(lines) + ". Take another test set, "
            f"or add allow_overlap=true: the result then says how many. {NEAR}"
        )


def probe_warnings(run: Path, shards: str) -> list[str]:
    """Warnings if a run is trained on samples of the shards of its online probe, or if these are the test part of a
    split; [] for shards "".
    """
    if not shards:
        return []
    measured = measure_overlap(run, [("", shards)])
    lines = [f"probe.shards: {line}; its curve says less about other data" for line in describe_overlap(measured)]
    if "test" in measured["tests"][0]["test_parts"]:
        lines.append(
            f"probe.shards: {shards} holds the test part of a split; what is looked at while training is no test any "
            "more. Take the validation part (`avssl prep split --validation-share`)"
        )
    return lines
