"""The captions of a run as rows of its frozen text encoder: computed once, kept in one file, read by every process.

The file holds `rows`, float32 (U, D), one for each distinct caption in the order of their first samples, and
`numbers`, int64 (N,), for each sample the row of its caption or -1. Its metadata say of which shards and by which text
encoder, and have a digest of the captions; rows of the same ones are read again and not computed.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from avssl.checkpoint.step_folders import checkpoints
from avssl.config import RunConfig
from avssl.distributed import from_first_rank
from avssl.files.plain_text import brief, note
from avssl.files.progress import Bar
from avssl.files.tensors import write_tensors
from avssl.files.whole import whole_path
from avssl.losses.configs import CaptionConfig
from avssl.models import public
from avssl.public_models import settle_text
from avssl.shards.shard_set import ShardSet
from avssl.types import CaptionRows, MediaError

ROWS_FILE = "captions.safetensors"
WAIT_SECONDS = 24 * 3600.0  # for so long the other processes of a run wait for the one that computes
TEXTS_AT_ONCE = 1024
FORMAT = "avssl-captions-1"


def captions_of(cfg: RunConfig, shards: ShardSet, device: torch.device) -> CaptionRows | None:
    """The rows of the captions of a run's shards; None for a loss that reads none.

    Completes `cfg.loss.text_encoder`. The first process computes what is not kept yet, on `device`.

    Raises ValueError: samples lack a caption and may not be skipped; a caption is too long; `loss.text_rows` holds rows
    of others; the text encoder is none, or not that of the earlier start.
    """
    if not isinstance(cfg.loss, CaptionConfig):
        return None
    settle_text(cfg)
    path = from_first_rank(partial(_made, cfg, cfg.loss, shards, device), WAIT_SECONDS)
    captions = _read(path, _identity(cfg.loss, shards))
    if captions is None:
        raise ValueError(f"{path} was changed while the run began; start it again")
    cfg.loss.text_encoder["dim"] = captions.rows.shape[1]
    return captions


def _identity(config: CaptionConfig, shards: ShardSet) -> dict[str, str]:
    """What rows are a function of, but for the last digits, which a device decides."""
    known = {key: config.text_encoder.get(key, "") for key in ("sha256", "files", "modality")}
    how = {"text_encoder": json.dumps(known, sort_keys=True), "cut": str(config.cut_long_captions)}
    return {"format": FORMAT, "shards": shards.fingerprint, "num_samples": str(shards.num_samples), **how}


def _made(cfg: RunConfig, config: CaptionConfig, shards: ShardSet, device: torch.device) -> Path:
    """The run's own file of rows: kept from an earlier start, copied from `text_rows`, or computed now."""
    own, identity = Path(cfg.run) / ROWS_FILE, _identity(config, shards)
    shared = Path(config.text_rows) if config.text_rows else None
    captions = _read(own, identity)
    if captions is not None:
        _check_missing(config, shards, captions.numbers)
        return own
    if own.is_file() and checkpoints(own.parent):
        raise ValueError(
            f"{own} holds rows of other captions, or of another text encoder, than this run is given now; a run goes "
            "on with those that it began with: put them back, or begin another run"
        )
    digest = ""
    if shared is not None and shared.exists():
        captions = _read(shared, identity)
        if captions is None:
            raise ValueError(
                f"loss.text_rows={shared} holds rows of other captions or of another text encoder; name another file, "
                "or delete this one"
            )
        _check_missing(config, shards, captions.numbers)
        digest = _metadata(shared)["captions"]
    else:
        captions, digest = _computed(config, shards, device)
    for path in dict.fromkeys([own, *([shared] if shared and not shared.exists() else [])]):
        with whole_path(path) as temporary:
            tensors = {"rows": captions.rows, "numbers": captions.numbers}
            write_tensors(tensors, temporary, {**identity, "captions": digest, "name": config.text_encoder["name"]})
    return own


def _computed(config: CaptionConfig, shards: ShardSet, device: torch.device) -> tuple[CaptionRows, str]:
    """The rows of all captions, and the digest of these."""
    texts, numbers = _texts(shards)
    _check_missing(config, shards, numbers)
    tower = public.text_tower(config.text_encoder["name"], config.text_encoder, str(device))
    parts = [texts[first : first + TEXTS_AT_ONCE] for first in range(0, len(texts), TEXTS_AT_ONCE)]
    num_long = 0
    for part in parts:  # before hours of computing
        lengths = tower.lengths(part)
        num_long += sum(length > tower.max_tokens for length in lengths)
        if num_long and not config.cut_long_captions:
            text = part[next(place for place, length in enumerate(lengths) if length > tower.max_tokens)]
            raise ValueError(
                f"the caption {brief(text)} has {max(lengths)} tokens; {tower.name} reads at most {tower.max_tokens}. "
                "Shorten it, or add loss.cut_long_captions=true, which reads the beginning of such captions"
            )
    note(
        f"captions: {len(texts)} texts of {int((numbers >= 0).sum())} samples are read by {tower.name}, once"
        + (f"; of {num_long} only the first {tower.max_tokens} tokens" if num_long else "")
    )
    rows = []
    with Bar("captions", len(texts), "text") as bar:
        for part in parts:
            rows.append(tower.embed(part, config.text_encoder["modality"], cut=config.cut_long_captions))
            bar.update(len(part))
    digest = hashlib.sha256(json.dumps(texts).encode() + numbers.numpy().astype("<i8").tobytes()).hexdigest()
    return CaptionRows(torch.cat(rows), numbers), digest


def _texts(shards: ShardSet) -> tuple[list[str], torch.Tensor]:
    """(distinct captions in the order of their first samples, for each sample the number of its own: -1 for none)."""
    found: dict[str, int] = {}
    numbers = torch.full((shards.num_samples,), -1)
    if shards.index.has_captions:
        with Bar("captions of samples", shards.num_samples, "sample") as bar:
            for position in range(shards.num_samples):
                caption = _caption(shards, position)
                if caption:
                    numbers[position] = found.setdefault(caption, len(found))
                bar.update()
    return list(found), numbers


def _caption(shards: ShardSet, position: int) -> str:
    """The caption of a sample; "" of a damaged one, which the loader counts and never gives to a loss."""
    try:
        return shards.read_info(position).caption.strip()
    except MediaError as error:
        if error.reason != "bad_sample":
            raise
        return ""


def _check_missing(config: CaptionConfig, shards: ShardSet, numbers: torch.Tensor) -> None:
    """Raise ValueError for samples without a caption, if they may not be skipped, or if no sample has one."""
    missing = (numbers < 0).nonzero().flatten().tolist()
    if len(missing) == len(numbers):
        raise ValueError(
            f"data.shards: no sample of {shards.location} has a caption, and loss {config.name} compares samples with "
            "theirs; write shards of a list with a column `caption` (docs/foreign_formats.md)"
        )
    if missing and config.without_caption == "error":
        raise ValueError(
            f"data.shards: {len(missing)} of {len(numbers)} samples of {shards.location} have no caption, the first is "
            f"{brief(shards.keys[missing[0]])}; add loss.without_caption=skip, which does not compare these with text, "
            'or train on the others: `avssl prep select SHARDS --where "caption is not null" --out kept.jsonl`, then '
            "data.shards=[{path: SHARDS, keys: kept.jsonl}]"
        )
    if missing:
        note(f"captions: {len(missing)} of {len(numbers)} samples have none and are not compared with text")


def _metadata(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def _read(path: Path, identity: dict[str, str]) -> CaptionRows | None:
    """The rows of a file; None if there is none, or if they are of something else. ValueError for a damaged file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        return None
    try:
        if not identity.items() <= _metadata(path).items():
            return None
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({brief(str(error))}); delete it, and it is computed again") from error
    return CaptionRows(tensors["rows"], tensors["numbers"])
