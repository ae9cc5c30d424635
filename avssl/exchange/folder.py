"""A run as one folder to pass on: config.json, provenance.json, model.safetensors, README.md.

It is a run folder to everything here that reads one: embedding, evaluation, `init_from`. Paths of the machine that
trained it stay behind; so does the state with a row per sample, unless it is asked for.
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
from avssl.exchange.card import write_card
from avssl.files.tensors import write_tensors
from avssl.files.whole import whole_path

NAME = re.compile(r"[A-Z0-9_]+")  # of torchvision's weights, which anyone can get
# Of a loss: what embeddings are a function of (avssl/embedding/embedder.py).
PARTS = ("views.", "loss.encoders.", "loss.projectors.", "loss.predictors.")


def export_folder(run: str | Path, out: str | Path, *, with_state: bool = False, license: str = "") -> Path:
    """Write the exchange folder `out` of a finished run, or of another exchange folder.

    with_state: also banks, queues, teachers and constants, for a run that shall start from it on the same samples.
    license: of the weights, for the card (an SPDX name such as `apache-2.0`). Raises ValueError if `out` is not empty,
    or if the run's weights have a license of their own and another one is given.
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
    kept = {key: value for key, value in weights.items() if with_state or key.startswith(PARTS)}
    with whole_path(out / EXCHANGE_FILE) as temporary:  # last: the folder is whole when this is there
        # One entry of metadata: the order of several, so the bytes, would be chance.
        write_tensors(kept, temporary, {"format": "pt"})
        write_card(run, out, title=out.resolve().name)
    return out


def check_folder(folder: str | Path) -> Path:
    """The folder; ValueError naming what is missing unless it is an exchange folder."""
    folder = Path(folder)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} has no {', '.join(missing)}; write it first: python -m avssl.exchange export RUN --out {folder}"
        )
    return folder


def _without_paths(cfg: config.RunConfig) -> config.RunConfig:
    data = dataclasses.replace(cfg.data, shards="", cache_dir="")
    encoders = {
        modality: {key: value for key, value in options.items() if key != "weights" or NAME.fullmatch(str(value))}
        for modality, options in cfg.encoders.items()
    }
    return dataclasses.replace(cfg, run="", init_from="", data=data, encoders=encoders)


def _facts(provenance: dict[str, Any]) -> dict[str, Any]:
    """Provenance with the last part of every path alone."""
    facts = {**provenance, "data": {**provenance["data"], "shards": Path(provenance["data"].get("shards", "")).name}}
    for key in ("init_from", "audio_statistics"):
        if facts.get(key):
            facts[key] = Path(str(facts[key])).name
    return facts
