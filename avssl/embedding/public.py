"""A public model as an embedder: the configuration of a run that it would have been, and its networks.

`write_public_run` keeps that configuration in a folder, which commands read like the folder of a run: its weights are
those of the model, which are read again and checked by their SHA-256.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from avssl import config
from avssl.checkpoint.weights import PROVENANCE_FILE
from avssl.config import RunConfig
from avssl.files.whole import write_whole
from avssl.losses.configs import PublicModelConfig
from avssl.losses.public_model import PublicModel
from avssl.models import public
from avssl.public_models import provenance_of, settle

CONFIG_FILE = "config.yaml"


def names_public_model(run: str | Path) -> bool:
    """Whether a command's RUN is the name of a public model, and not a folder of a run that happens to be called so."""
    is_folder_of_run = any((Path(run) / name).is_file() for name in (CONFIG_FILE, PROVENANCE_FILE))
    return public.is_public(str(run)) and not is_folder_of_run


def public_config(name: str, changes: Sequence[str] = ()) -> RunConfig:
    """The configuration with which a public model embeds.

    name: as in a recipe. changes: `key=value` of encoders and views, such as views.video.fps=2 or
    encoders.image.pool=mean. A model of images embeds video, too, as the mean over frames.

    ValueError for values that do not fit the model, FileNotFoundError if there is no such model.
    """
    wrong = [change for change in changes if not change.startswith(("views.", "encoders."))]
    if wrong:
        raise ValueError(f"{wrong[0]}: only keys of views and encoders change how a public model embeds")
    options: dict[str, Any] = {"pretrained": True}
    known = public.modalities(name, **options)
    modalities = [modality for modality in known if modality != "audio" or known[0] == "audio"]
    # By name before the changes: the options of these encoders are not those of a recipe's.
    named = [f"encoders.{modality}.name={json.dumps(name)}" for modality in modalities]
    cfg = config.parse(RunConfig, ["loss.name=public_model", *named, *changes])
    cast("PublicModelConfig", cfg.loss).modalities = tuple(modalities)
    for modality in modalities:
        changed = {key: value for key, value in cfg.encoders.get(modality, {}).items() if key != "name"}
        cfg.encoders[modality] = {"name": name, **options, **changed}
    cfg.encoders = {modality: cfg.encoders[modality] for modality in modalities}
    settle(cfg, PublicModel.views(cfg.loss))
    cfg.run = str(cfg.encoders[modalities[0]]["name"])
    return cfg


def write_public_run(cfg: RunConfig, folder: Path, *, replace: bool = False) -> Path:
    """Write config.yaml and provenance.json of a public model's configuration into a folder, made if needed.

    ValueError if the folder is that of another model or run, unless it may be replaced.
    """
    path = folder / CONFIG_FILE
    if path.is_file() and not replace:
        stored = config.load_run(folder)
        encoders = {modality: stored.encoders[modality] for modality in cfg.encoders}
        if (stored.loss, encoders, stored.views) != (cfg.loss, cfg.encoders, cfg.views):
            raise ValueError(
                f"{folder} belongs to {stored.run or 'another run'} with other settings; name another folder"
            )
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    facts = provenance_of(cfg, cfg.encoders)
    data = {"shards": "", "fingerprint": "", "num_samples": 0}
    write_whole(folder / PROVENANCE_FILE, json.dumps({"loss": cfg.loss.name, "data": data, **facts}, indent=1))
    config.save(cfg, path)
    return folder
