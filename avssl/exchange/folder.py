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
from avssl.exchange.paths import without_paths
from avssl.files.tensors import write_tensors
from avssl.files.whole import whole_path
from avssl.losses.configs import TeacherConfig

WEIGHTS_NAME = re.compile(r"[A-Z0-9_]+")  # of torchvision's weights, which anyone can download
NO_PATHS = ("license", "license_note", "imported")  # of a provenance: words of others, which may hold a /
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
    (out / CONFIG_FILE).write_text(json.dumps(_shared_config(cfg), indent=1), encoding="utf-8")
    (out / PROVENANCE_FILE).write_text(json.dumps(_shared_facts(provenance), indent=1), encoding="utf-8")
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


def _shared_config(cfg: config.RunConfig) -> dict[str, Any]:
    """The configuration without what says where files lay: such keys are empty, and no other value is a path."""
    content: dict[str, Any] = dataclasses.asdict(cfg) | {"run": "", "init_from": ""}
    content["data"] |= {"shards": "", "cache_dir": "", "cache_decoded_dir": "", "redirect_hosts": []}
    content["probe"]["shards"] = ""
    for options in content["encoders"].values():
        if not WEIGHTS_NAME.fullmatch(str(options.get("weights", ""))):
            options.pop("weights", None)
    if "text_rows" in content["loss"]:
        content["loss"]["text_rows"] = ""
    if isinstance(getattr(cfg.loss, "teacher", None), TeacherConfig):
        content["loss"]["teacher"] |= {"run": "", "encoder": {}, "embeddings": ""}
    result: dict[str, Any] = without_paths(content)
    return result


def _shared_facts(provenance: dict[str, Any]) -> dict[str, Any]:
    """The provenance with the last part of every path and URL in place of it."""
    return {key: value if key in NO_PATHS else without_paths(value) for key, value in provenance.items()}
