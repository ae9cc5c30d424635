"""Was a test set trained on? By the samples' media and sources (avssl/shards/sample_digests.py), never by keys alone.

Three sides: what is tested; what classifiers and neighbors learn from; what the run itself was trained on, which it
keeps beside its weights (RUN/training_data.safetensors: 64-bit digests, sorted, each once; at most 16 MB a million
samples) with those of the run that it began from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from avssl.eval.outcome import LabelTaskConfig, TaskConfig
from avssl.files.whole import whole_path
from avssl.shards.sample_digests import Digests, SampleDigests, sample_digests
from avssl.shards.shard_set import ShardSet

TRAINING_DATA_FILE = "training_data.safetensors"
KINDS = ("media", "sources")
NAMED_KEYS = 5  # in a message
NEAR = "For copies that were encoded anew see `python -m data_prep stats`, which finds near-duplicates"


@dataclass(frozen=True)
class DigestSet:
    """What a run was trained on. media, sources: uint64, sorted. is_complete: is nothing of it unknown?"""

    media: Digests
    sources: Digests
    is_complete: bool = True

    @classmethod
    def of(cls, digests: SampleDigests) -> DigestSet:
        """Of the samples of a shard folder."""
        return cls(np.unique(digests.media), np.unique(digests.sources))

    def union(self, other: DigestSet | None) -> DigestSet:
        """Both; not complete if the other is unknown."""
        if other is None:
            return DigestSet(self.media, self.sources, is_complete=False)
        media, sources = np.union1d(self.media, other.media), np.union1d(self.sources, other.sources)
        return DigestSet(media, sources, self.is_complete and other.is_complete)

    def holds(self, digests: SampleDigests) -> NDArray[np.bool_]:
        """bool (N,): samples whose media or whose source is in here."""
        return np.isin(digests.media, self.media) | np.isin(digests.sources, self.sources)


EMPTY = DigestSet(np.zeros(0, np.uint64), np.zeros(0, np.uint64))


def write_training_data(run: Path, shards: ShardSet, init_from: str) -> Path:
    """RUN/training_data.safetensors at the start of a training: its shards', and those of the run it begins from."""
    own = sample_digests(shards)
    found = DigestSet(EMPTY.media, EMPTY.sources, is_complete=False) if own is None else DigestSet.of(own)
    if init_from:
        found = found.union(read_training_data(init_from))
    path = run / TRAINING_DATA_FILE
    with whole_path(path) as temporary:
        complete = {"is_complete": "true" if found.is_complete else "false"}
        save_file({kind: getattr(found, kind) for kind in KINDS}, temporary, metadata=complete)
        temporary.chmod(0o644)
    return path


def read_training_data(run: str | Path) -> DigestSet | None:
    """None of runs that do not say: imported ones, and those of earlier versions. ValueError for a damaged file."""
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
    """(train folder or "", test folder) of every fold of a task's configuration; of `fold_field` ("", train).

    None of a configuration without any test, which the task refuses.
    """
    if not isinstance(config, LabelTaskConfig):
        if config.test:
            yield config.train, config.test
        return
    for number in [str(number) for number in config.folds] or [""]:
        train, test = (side.replace("{fold}", number) for side in (config.train, config.test))
        if test:
            yield train, test
        elif config.fold_field:
            yield "", train


def measure_overlap(run: str | Path, folders: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What stands in a result: {"by_run": "known", "incomplete" or "unknown", "tests": [{"test",
    "train", "fingerprint", "num_test",
    "num_in_train", "num_in_run" (None: unknown), "keys" (a few of them)}, ...]}.
    """
    seen = read_training_data(run)
    tests = []
    for train, test in folders:
        shards = ShardSet(test)
        asked = sample_digests(shards)
        known = sample_digests(ShardSet(train)) if train else None
        nowhere = np.zeros(shards.num_samples, np.bool_)
        in_train = DigestSet.of(known).holds(asked) if asked is not None and known is not None else nowhere
        in_run = seen.holds(asked) if asked is not None and seen is not None else nowhere
        is_known = asked is not None and seen is not None
        tests.append(
            {
                "test": test,
                "train": train,
                "fingerprint": shards.fingerprint,
                "num_test": shards.num_samples,
                "num_in_train": int(in_train.sum()) if asked is not None and (known is not None or not train) else None,
                "num_in_run": int(in_run.sum()) if is_known else None,
                "keys": [shards.keys[place] for place in np.flatnonzero(in_train | in_run)[:NAMED_KEYS]],
            }
        )
    is_known = seen is not None and all(one["num_in_run"] is not None for one in tests)
    by_run = "unknown" if not is_known or seen is None else "known" if seen.is_complete else "incomplete"
    return {"by_run": by_run, "tests": tests}


def describe_overlap(found: dict[str, Any]) -> list[str]:
    """A line for every test set that was trained on, and one if nobody can know."""
    lines = []
    for one in found["tests"]:
        for count, by in ((one["num_in_train"], f"train={one['train']}"), (one["num_in_run"], "the run's training")):
            if count:
                keys = ", ".join(one["keys"]) + (" ..." if count > len(one["keys"]) else "")
                lines.append(f"{count} of {one['num_test']} test samples of {one['test']} are in {by} too ({keys})")
    if found["by_run"] != "known":
        lines.append(
            "unknown whether the run was trained on the test set: it, or what it began from, does not say what it was "
            "trained on (imported, or made by an earlier version), or the shards are older ones without digests"
        )
    return lines


def refuse_overlap(found: dict[str, Any], *, allowed: bool) -> None:
    """ValueError where a test sample was trained on, unless that is allowed."""
    lines = [line for line in describe_overlap(found) if not line.startswith("unknown")]
    if lines and not allowed:
        raise ValueError(
            "the test set was trained on, by media or by source file: " + "; ".join(lines) + ". Take another test set, "
            f"or add allow_overlap=true: the result then says how many. {NEAR}"
        )


def probe_warnings(run: Path, shards: str) -> list[str]:
    """What the owner of a run should know about the shards that its online probe judges by; "" has none."""
    if not shards:
        return []
    found = measure_overlap(run, [("", shards)])
    return [f"probe.shards: {line}; its curve says less about other data" for line in describe_overlap(found)]
