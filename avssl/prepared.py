"""Shards of media in one step: what `avssl prep index` and `avssl prep write` do, with the options of both by name.

`avssl.prepare` is this for Python; `avssl pretrain` does it where data.shards is a folder of media files or images.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from avssl.distributed import from_first_rank
from avssl.files.location import is_remote, local_path, redacted
from avssl.files.plain_text import PlainParser, brief, plain, say, say_lines
from avssl.shards.folders import shard_folders
from avssl.shards.format import INDEX_NAME

if TYPE_CHECKING:
    from avssl.config import RunConfig

FOREIGN = re.compile(r"\.(tar|parquet|arrow)(\?.*)?$", re.IGNORECASE)  # names of archives and tables of others
WAIT_SECONDS = 24 * 3600.0  # for so long the other processes of a run wait for the one that prepares
# What is decided by the call itself, or concerns several machines or shard folders, for which there is `avssl prep`.
NO_OPTIONS = {
    "command", "json", "redirect_host", "source", "manifest", "out", "part", "executor", "slurm_tasks",
    "slurm_partition", "test_share", "validation_share", "by", "group", "near_duplicates", "plugin",
}  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """Shards that were made of media, and the accounting: num_listed = num_samples + num_skipped.

    shards: the folder. manifest: the list of what was found, also of what cannot be read. skipped_by_reason: why files
    were skipped; skipped.jsonl in the folder names them. lines: the accounting as the commands print it, also str().
    """

    shards: Path
    manifest: Path
    num_listed: int
    num_samples: int
    num_skipped: int
    skipped_by_reason: dict[str, int]
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


class _Parser(PlainParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(plain(message))


def prepare(source: str | os.PathLike[str], out: str | os.PathLike[str], options: Mapping[str, Any]) -> Prepared:
    """List the media of a folder or a list, then write them as shards, or go on where that was stopped.

    If the folder `out` is finished and the media have not changed, nothing is written. The manifest is `out`.jsonl.

    Raises:
        ValueError: an unknown option or a wrong value; media or options that are not those of which `out` was made; no
            media; every file was skipped. FileNotFoundError: there is no such source.
        OSError: the disk is full or the folder cannot be written; what is finished is kept.
    """
    if is_remote(out):
        raise ValueError(f"{out}: shards are written to a local folder here; `avssl prep write` takes URLs")
    # By name, as `avssl prep` finds them: data_prep builds on avssl.
    commands, index_command = import_module("data_prep.__main__"), import_module("data_prep.index.command")
    shards = local_path(out)
    manifest = shards.with_name(f"{shards.name}.jsonl")
    parser = commands.build_parser("avssl.prepare", _Parser, ["index"])
    given = (["index", str(source), "--out", str(manifest)], ["write", str(manifest), "--out", str(shards)])
    defaults = [vars(parser.parse_args(arguments)) for arguments in given]
    _refuse_unknown(options, {name for known in defaults for name in known} - NO_OPTIONS)
    index_arguments, write_arguments = (
        parser.parse_args([*arguments, *_flags(options, known)])
        for arguments, known in zip(given, defaults, strict=True)
    )
    if index_arguments.num_workers < 1:
        raise ValueError(f"num_workers is {index_arguments.num_workers}; it must be at least 1")
    summary = index_command.make_manifest(index_arguments)
    index = commands.make_shards(write_arguments)
    lines = (
        *index_command.describe(summary, manifest, index_arguments.split),
        *commands.describe_shards(index, str(shards)),
    )
    if not index.num_samples:
        raise ValueError("\n".join([f"{source}: nothing could be used, every file was skipped", *lines]))
    counts = index.num_listed, index.num_samples, index.num_skipped, index.skipped_by_reason
    return Prepared(shards, manifest, *counts, lines)


def _refuse_unknown(options: Collection[str], known: Collection[str]) -> None:
    for name in options:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(sorted(known))}"
            raise ValueError(f"prepare has no option {brief(name)}; {hint}")


def _flags(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Options by name as arguments of the command whose options have these defaults; those of others are left out."""
    flags = []
    for name, value in options.items():
        if name in defaults and value is not None and value is not False:
            flag = f"--{name.replace('_', '-')}"
            flags.append(flag if value is True else f"{flag}={os.fspath(value) if isinstance(value, Path) else value}")
    return flags


def shards_of(cfg: RunConfig, modalities: Collection[str]) -> Any:
    """data.shards of a run, with the shards RUN/shards in place of a folder of media, of which they are made.

    In a list of folders, those of entry i are RUN/shards-i. The first process prepares, the others wait for it, at most
    WAIT_SECONDS. Frame sizes and rates are those that the run needs.

    Raises FileNotFoundError or ValueError for what is neither a shard folder nor a folder of media, as `prepare`.
    """
    if isinstance(cfg.data.shards, str | os.PathLike):
        return _shards_at(os.fspath(cfg.data.shards), cfg, modalities, "shards")
    entries: list[Any] = []
    for number, folder in enumerate(shard_folders(cfg.data.shards)):
        path = _shards_at(folder.path, cfg, modalities, f"shards-{number}")
        options = {"weight": folder.weight, "keys": folder.keys}
        given = {name: value for name, value in options.items() if value not in (None, "")}
        entries.append({"path": path, **given} if given else path)
    return entries


def _shards_at(location: str, cfg: RunConfig, modalities: Collection[str], name: str) -> str:
    """The location if it is one of shards; the shards RUN/`name` of media. ValueError for what others wrote."""
    if FOREIGN.search(location) and not (not is_remote(location) and local_path(location).is_dir()):
        raise _foreign(location)
    if is_remote(location):
        return location
    folder = local_path(location)
    if not folder.exists():
        raise FileNotFoundError(f"data.shards={location}: no such folder; give a shard folder, or one of media")
    if not folder.is_dir():
        raise ValueError(
            f"data.shards={location}: is a file; give a shard folder, or a folder of media. `avssl prep index` takes "
            "lists of files, `avssl prep write` manifests"
        )
    if _holds_shards(folder):
        return location
    if import_module("data_prep.index.lists.formats").detect(folder) != "folder":
        raise _foreign(location)
    work = partial(_prepare_for, cfg, folder, modalities, Path(cfg.run) / name)
    return str(from_first_rank(work, WAIT_SECONDS).shards)


def _foreign(location: str) -> ValueError:
    """The error for archives or tables of other programs in place of shards."""
    source = shlex.quote(location)
    return ValueError(
        f"data.shards={redacted(location)}: holds archives or tables of another program, and a run needs shards, in "
        f"which every sample keeps its number. Prepare them once: avssl prep index {source} --out corpus.jsonl && "
        "avssl prep write corpus.jsonl --out shards"
    )


def _holds_shards(folder: Path) -> bool:
    """Whether shards were written there, be they unfinished or damaged. ValueError if they lie one level below."""
    if (folder / INDEX_NAME).exists() or (folder / ".parts").exists() or any(folder.glob("shard-*.tar")):
        return True
    below = sorted(path.parent.name for path in folder.glob(f"*/{INDEX_NAME}"))
    if below:
        raise ValueError(
            f"data.shards={folder}: holds no shards itself, but these folders in it do: {', '.join(below)}"
        )
    return False


def _prepare_for(cfg: RunConfig, media: Path, modalities: Collection[str], shards: Path) -> Prepared:
    was_finished = (shards / INDEX_NAME).exists()
    options = options_for(cfg, modalities)
    chosen = ", ".join(f"{name}={value}" for name, value in options.items())
    say(f"{media} holds no shards: they are made of its media in {shards} ({chosen})")
    try:
        prepared = prepare(media, shards, options)
    except ValueError as error:
        if not was_finished:
            raise
        raise ValueError(
            f"{media}, or what the recipe makes of it, is no longer that of which {shards} was made ({error}). To go "
            f"on with what was made then: data.shards={shards}; for new shards: another run=..."
        ) from error
    say_lines(prepared)
    say(f"data.shards={shards} reads them without another look at {media}")
    return prepared


def options_for(cfg: RunConfig, modalities: Collection[str]) -> dict[str, Any]:
    """The options of `prepare` that suit the views of a run, by name.

    Frames and images are a seventh larger than the views that are cut out of them, as 256 px for 224; frames and
    samples per second are those of the views. Files are skipped that lack a modality of the run.
    """
    views = cfg.views
    if "image" in modalities:
        return {"kind": "images", "short_side_px": _short_side_px(views.image.size_px)}
    options: dict[str, Any] = {"kind": "media"}
    if "video" in modalities:
        options |= {"short_side_px": _short_side_px(views.video.size_px), "fps": views.video.fps}
    if "audio" in modalities:
        options["audio_rate_hz"] = views.audio.rate_hz
    for modality in ("video", "audio"):
        options[f"on_missing_{modality}"] = "skip" if modality in modalities else "keep"
    return options


def _short_side_px(size_px: int) -> int:
    return max(16, 2 * -(-size_px * 8 // 14))
