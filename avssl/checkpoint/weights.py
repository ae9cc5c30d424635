"""The exported tensors of a finished run as safetensors, and its provenance; each file is whole or absent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from avssl.checkpoint.step_folders import checkpoints
from avssl.files.checked_json import Fields
from avssl.files.plain_text import note
from avssl.files.tensors import write_tensors
from avssl.files.whole import whole_path, write_whole

WEIGHTS_FILE = "encoders.safetensors"
EXCHANGE_FILE = "model.safetensors"
PROVENANCE_FILE = "provenance.json"
START_FILE = "start.json"
LICENSE_KEYS = ("license", "license_note")
OLD_PROVENANCE_KEYS = {"licence": "license", "licence_note": "license_note"}  # of earlier versions


def export(
    run: Path,
    modules: Mapping[str, nn.Module],
    provenance: Mapping[str, Any],
    extra: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write encoders.safetensors: the state of each module under `<name>.`; call on the main process only.

    extra: tensors that are in the state of no module, by their full names.
    The provenance of a run that started from licensed weights has their license, too, which holds for derived weights.
    """
    state = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    state.update(extra or {})
    return write_weights(run, state, {**provenance, **_licenses(run, provenance)})


def write_weights(run: Path, state: Mapping[str, torch.Tensor], provenance: Mapping[str, Any]) -> Path:
    """Write provenance.json, then encoders.safetensors, each whole or absent."""
    path = run / WEIGHTS_FILE
    write_whole(run / PROVENANCE_FILE, json.dumps(dict(provenance), indent=1))
    with whole_path(path) as temporary:  # last: a run is finished when this file exists
        write_tensors(state, temporary, {"format": "avssl-run", "version": "1"})
    return path


def keep_start(run: Path, init_from: str) -> None:
    """Write RUN/start.json: the license of the run that this one starts from, whose folder may be gone at the end.

    init_from: "" of a run that starts from none, which has no such file.
    """
    if not init_from:
        (run / START_FILE).unlink(missing_ok=True)
        return
    facts = read_provenance(init_from)
    write_whole(run / START_FILE, json.dumps({key: facts[key] for key in LICENSE_KEYS if facts.get(key)}, indent=1))


def _licenses(run: Path, provenance: Mapping[str, Any]) -> dict[str, str]:
    """{"license", "license_note"} of a run: its own, and those of the run that it started from."""
    start = str(provenance.get("init_from", ""))
    inherited: Mapping[str, Any] = {}
    if (run / START_FILE).is_file():
        inherited = Fields.read(run / START_FILE).record
    elif start and (Path(start) / PROVENANCE_FILE).is_file():  # the run was begun by an earlier version
        inherited = read_provenance(start)
    elif start:
        name = Path(start.partition("?")[0]).name
        text = f"the license of {name}, from which these weights began, is not known: its folder was gone at the end"
        note(f"warning: {run}: {text}", "warning")
        inherited = {"license_note": text}
    licenses = [str(facts["license"]) for facts in (provenance, inherited) if facts.get("license")]
    notes = dict.fromkeys(str(facts["license_note"]) for facts in (provenance, inherited) if facts.get("license_note"))
    found = {"license": joined_licenses(licenses), "license_note": "; ".join(notes)}
    return {key: text for key, text in found.items() if text}


def joined_licenses(licenses: Sequence[str]) -> str:
    """The license of weights that come from others, whose licenses all hold; "" without one.

    >>> joined_licenses(["cc-by-nc-4.0", "apache-2.0 and CC-BY-NC-4.0"])
    'apache-2.0 and cc-by-nc-4.0'
    """
    if len(set(licenses)) == 1:
        return licenses[0]  # a text of its own may have the word
    names: dict[str, str] = {}
    for name in (name for text in licenses for name in text.split(" and ")):
        names.setdefault(name.lower(), name)
    return " and ".join(names[name] for name in sorted(names))


def read_provenance(run: str | Path) -> dict[str, Any]:
    """provenance.json of a finished run or of an exchange folder, with the keys of this version.

    FileNotFoundError if there is none.
    """
    path = Path(run) / PROVENANCE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {run} is not a finished run")
    return {OLD_PROVENANCE_KEYS.get(key, key): value for key, value in Fields.read(path).record.items()}


def save_module(module: nn.Module, path: Path) -> None:
    """Write the state of one module as safetensors, whole or not at all."""
    with whole_path(path) as temporary:
        write_tensors(module.state_dict(), temporary, {})


def load_module(module: nn.Module, path: Path) -> None:
    """Load a file of `save_module`, strictly. For a module without state no file is read."""
    if module.state_dict():
        module.load_state_dict(load_file(str(path)))


def weights_path(run: str | Path) -> Path:
    """The file of the tensors: encoders.safetensors of a run, model.safetensors of an exchange folder."""
    exchanged = Path(run) / EXCHANGE_FILE
    return exchanged if exchanged.is_file() else Path(run) / WEIGHTS_FILE


def read_weights(run: str | Path) -> dict[str, torch.Tensor]:
    """The exported tensors of a finished run. FileNotFoundError: there are none; ValueError: the file is damaged."""
    path = weights_path(run)
    if not path.is_file():
        if not Path(run).is_dir():
            raise FileNotFoundError(f"{run}: no such run folder")
        newest = ", or let embed and evaluate take its newest checkpoint: --checkpoint latest"
        hint = newest if checkpoints(Path(run)) else ""
        raise FileNotFoundError(
            f"{path} is missing: {run} has not finished; run the `avssl pretrain` command of run={run} again{hint}"
        )
    try:
        return load_file(str(path))
    except SafetensorError as error:
        remedy = "export or download it again" if path.name == EXCHANGE_FILE else "write it again by resuming the run"
        raise ValueError(f"{path} is damaged ({error}); {remedy}") from error
