"""Export of a run as one folder to share: config.json, provenance.json, model.safetensors, README.md.

Embedding, evaluation and `init_from` read it as a run folder. Paths of the machine that trained the run are removed; so
is the state with a row per sample, unless with_state is given.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from avssl import config
from avssl.checkpoint.hub import CONFIG_FILE, FILES
from avssl.checkpoint.weights import EXCHANGE_FILE, PROVENANCE_FILE, read_provenance, read_weights
from avssl.embedding.loading import EMBEDDING_MODULES
from avssl.exchange.card import write_card
from avssl.files.tensors import write_tensors
from avssl.files.whole import whole_path
from avssl.losses.configs import TeacherConfig

WEIGHTS_NAME = re.compile(r"[A-Z0-9_]+")  # of torchvision's weights, which anyone can download
SOURCES = ("run", "encoder", "embeddings")  # of a teacher
PUBLIC_NAME = re.compile(r"(timm|hf)/[^/~.][^/]*(/[^/]+)?")  # hf/ORG/NAME@REVISION, timm/NAME
PREFIXES = ("views.", *(f"loss.{name}." for name in EMBEDDING_MODULES))  # of the tensors that embeddings depend on


def export_folder(run: str | Path, out: str | Path, *, with_state: bool = False, license: str = "") -> Path:
    """Write the exchange folder `out` of a finished run, or of another exchange folder.

    with_state: also banks, queues, teachers and constants, for a run that starts from it on the same samples.
    license: of the weights, for the card (an SPDX name such as `apache-2.0`). Raises ValueError if `out` is not empty,
    or if the weights of the run have another license.
    """
    run, out = Path(run), Path(out)
    weights, provenance = read_weights(run), read_provenance(run)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} exists and is not empty; give --out a new folder")
    if license and str(provenance.get("license", license)).lower() != license.lower():
        raise ValueError(
            f"the weights of {run} are licensed {provenance['license']}, or come from such weights; "
            f"--license {license} cannot change that"
        )
    if license:
        provenance.setdefault("license", license)
    cfg = config.load_run(run)
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIG_FILE).write_text(json.dumps(dataclasses.asdict(_without_paths(cfg)), indent=1), encoding="utf-8")
    (out / PROVENANCE_FILE).write_text(json.dumps(_facts(provenance), indent=1), encoding="utf-8")
    kept = {key: value for key, value in weights.items() if with_state or key.startswith(PREFIXES)}
    with whole_path(out / EXCHANGE_FILE) as temporary:  # last: if this file exists, the folder is complete
        # A single entry of metadata, because several would be written in random order.
        write_tensors(kept, temporary, {"format": "pt"})
        write_card(run, out, title=out.resolve().name)
    return out


def check_folder(folder: str | Path) -> Path:
    """The path of an exchange folder; ValueError with the names of the files that it lacks."""
    folder = Path(folder)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} has no {', '.join(missing)}; write it first: `avssl exchange export RUN --out {folder}`"
        )
    return folder


def _without_paths(cfg: config.RunConfig) -> config.RunConfig:
    data = dataclasses.replace(cfg.data, shards="", cache_dir="")
    encoders = {
        modality: {
            key: value for key, value in options.items() if key != "weights" or WEIGHTS_NAME.fullmatch(str(value))
        }
        for modality, options in cfg.encoders.items()
    }
    loss = cfg.loss
    if isinstance(teacher := getattr(loss, "teacher", None), TeacherConfig):
        changes: dict[str, Any] = {"teacher": dataclasses.replace(teacher, run="", encoder={}, embeddings="")}
        loss = dataclasses.replace(loss, **changes)
    return dataclasses.replace(cfg, run="", init_from="", data=data, encoders=encoders, loss=loss)


def _named(data: dict[str, Any]) -> dict[str, Any]:
    """The facts about shards with names in place of paths: of one folder, or of a list of folders."""
    shards = data.get("shards", "")
    return {**data, "shards": [*map(_named, shards)] if isinstance(shards, list) else Path(shards).name}


def _facts(provenance: dict[str, Any]) -> dict[str, Any]:
    """The provenance with the last component of every path in place of the path."""
    facts = {**provenance, "data": _named(provenance["data"])}
    for key in ("init_from", "audio_statistics"):
        if facts.get(key):
            facts[key] = Path(str(facts[key])).name
    if facts.get("teacher"):
        paths = {key: _without_path(facts["teacher"][key]) for key in SOURCES if key in facts["teacher"]}
        facts["teacher"] = {**facts["teacher"], **paths}
    return facts


def _without_path(value: Any) -> Any:
    """A text that is a path as its last component, but for names of public models; also in a mapping."""
    if isinstance(value, dict):
        return {key: _without_path(part) for key, part in value.items()}
    is_path = isinstance(value, str) and "/" in value and not PUBLIC_NAME.fullmatch(value)
    return Path(value).name if is_path else value
