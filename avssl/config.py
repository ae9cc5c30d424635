"""Configuration: dataclasses are the schema, OmegaConf the parser. The only module that imports OmegaConf.

`load(RunConfig, argv)` reads `RECIPE.yaml a.b=c ...`; the rest of the code sees ordinary dataclass instances.
An unknown key, a wrong type or a missing value is an error that names the key. The type of the `loss` section follows
`loss.name`. YAML holds only what differs from the defaults below.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from omegaconf import OmegaConf, errors

from avssl.data.loader_config import LoaderConfig
from avssl.files.checked_json import MAX_DEPTH
from avssl.files.plain_text import brief, emit, plain, say, say_lines
from avssl.files.whole import write_whole
from avssl.help_text import keys_text, other_loss
from avssl.losses.configs import CONFIGURATIONS
from avssl.optim.config import OptimConfig
from avssl.options.counts import check_counts
from avssl.options.encoders import check_encoders
from avssl.plugins import required
from avssl.shards.cache import DEFAULT_CACHE_BYTES
from avssl.shards.folders import shard_folders
from avssl.transforms.config import ViewsConfig
from avssl.types import LossConfig

T = TypeVar("T")
MAX_YAML_BYTES = 1 << 20
HELP = ("-h", "--help")
structured: Callable[[type], Any] = functools.cache(OmegaConf.structured)  # slow: copies take a fifth of its time
# Earlier names of keys: a configuration or run folder with them is refused with an error that has the new names.
RENAMED_KEYS = {
    "centre_embeddings": "projector_final_batch_norm",
    "colour_probability": "color_jitter_probability",
    "grey_probability": "grayscale_probability",
    "num_neighbours": "num_neighbors",
    "puzzle": "jigsaw",
    "puzzle_weight": "jigsaw_weight",
    "synchronise_batch_norm": "sync_batch_norm",
}


@dataclass
class DataConfig(LoaderConfig):
    """The shards to read and their cache; the other fields are those of data/loader_config.py."""

    shards: Any = ""  # folder or URL of shards, folder of media, or a list of these: [{path: a/, weight: 1}, ...]
    cache_dir: str = ""  # local folder for shards of a URL, may be shared; default $AVSSL_CACHE or ~/.cache/avssl
    cache_bytes: int = DEFAULT_CACHE_BYTES  # bound of that folder on disk; several shards per reading process
    redirect_hosts: list[str] = field(default_factory=list)  # other hosts that a web server of shards may send on to
    allow_test_part: bool = False  # train although shards hold the test part of a split

    def __post_init__(self) -> None:
        """ValueError for shards that are neither a folder nor a list of folders with paths and weights."""
        if self.shards is not None:
            shard_folders(self.shards)


@dataclass
class ProbeConfig:
    """kNN and a linear classifier during training (train/probe.py); none without shards."""

    shards: str = ""  # labeled, not trained on; probes are fitted on half of the source files and scored on the others
    every_steps: int = 1000  # optimizer steps between snapshots
    device: str = "cpu"  # of the process beside the run, for example cuda
    num_threads: int = 1  # of that process
    num_neighbors: int = 20
    temperature: float = 0.07


REQUIRED = ("data.shards", "loss.name")  # to pretrain
AUTO_KEYS = ("data.global_batch_size", "data.num_workers")  # may be `auto`; what becomes of them: train/fitting.py


@dataclass
class RunConfig:
    """One pretraining run."""

    explicit_keys: ClassVar[frozenset[str] | None] = None  # dotted keys of YAML and command line; None: made in Python
    run: str = ""  # folder to write: config, metrics, checkpoints, encoders; default runs/NAME of the recipe
    epochs: int = 100  # passes over the data; `steps` ends a run earlier
    steps: int = 0  # optimizer steps; 0 leaves it to `epochs`
    seed: int = 0  # weights, order, augmentation
    auto: list[str] = field(default_factory=list)  # keys given as `auto`: data.global_batch_size, data.num_workers
    init_from: str = ""  # a finished run whose encoders, heads, banks and constants to start from
    resume: Literal[True, False, "strict"] = True  # go on from the newest whole checkpoint; strict: if none is damaged
    log_every_steps: int = 10
    checkpoint_every_steps: int = 1000
    stopped_status: int = 0  # exit status of a run that a signal has stopped; docs/checkpoints.md has schedulers
    keep_checkpoints: int = 2
    process_timeout_seconds: float = 120.0  # without a sign of life from another process the run ends; 0: never
    plugins: list[Any] = field(default_factory=list)  # Python files with losses, ... of your own: docs/plugins.md
    trackers: list[str] = field(default_factory=list)  # tensorboard, wandb, ... through Accelerate
    mixed_precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"  # auto: bf16 on GPUs that have it, else fp32
    tf32: Literal["none", "convolutions", "all"] = "convolutions"  # what of float32 a GPU may round to TF32
    channels_last: bool | None = None  # weights of the encoders' convolutions in that order; null: 2-D ones on a CPU
    gradient_accumulation_steps: int = 1
    sync_batch_norm: bool = False
    compile: bool = False  # torch.compile on the encoders
    cpu: bool = False  # stay on the CPU even where an accelerator is present
    num_cpu_threads: int = 0  # of PyTorch on a CPU; 0: as many as it takes by itself. 1 is quicker for small networks
    data: DataConfig = field(default_factory=DataConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    encoders: dict[str, dict[str, Any]] = field(  # {modality: {name: ..., and that encoder's options}}
        default_factory=lambda: {
            "image": {"name": "resnet50"},
            "video": {"name": "avid_video"},
            "audio": {"name": "avid_audio"},
        }
    )
    loss: LossConfig = field(default_factory=LossConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


def load(schema: type[T], argv: list[str], *, usage: str = "", about: str = "", required: Sequence[str] = ()) -> T:
    """Configuration from command-line arguments: YAML files first, then `a.b=c` changes; later values win.

    `--help` prints `about` and the keys, and exits: with a YAML their values there, and those of its loss and encoders.
    Errors in the configuration leave with status 2 and one clear message.
    """
    given = [argument for argument in argv if argument not in HELP]
    try:
        if given != argv:
            shown = parse(schema, given) if given else None
            head = f"usage: {usage or 'RECIPE'} RECIPE_OR_YAML [key=value ...]\n\n{about}"
            say_lines(head + keys_text(schema, shown, given))
            raise SystemExit(0)
        config = parse(schema, argv)
        require(config, *required)
        return config
    except ConfigError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # the other processes of this machine have the same error
            say(f"configuration error: {error}", sys.stderr)
            emit("error", message=str(error), status=2)
        raise SystemExit(2) from error


def _loss_configuration(name: str) -> type[LossConfig]:
    if name in CONFIGURATIONS:  # without PyTorch
        return CONFIGURATIONS[name]
    from avssl.losses import registry

    return registry.get(name).Config


def parse(schema: type[T], argv: list[str]) -> T:
    """As `load`, but raises ConfigError."""
    files = [argument for argument in argv if "=" not in argument or is_file(argument)]
    changes = [argument for argument in argv if argument not in files]
    for name in files:
        if name.startswith("-"):
            raise ConfigError(f"{name} is not an option; changes are written key=value, without dashes")
        if not is_file(name):
            problem = "a folder" if os.path.isdir(name) else "no such file or recipe (`avssl recipes` lists them)"  # noqa: PTH112
            raise ConfigError(f"{name}: {problem}; give the YAML of the recipe or task")
    try:
        values: Any = OmegaConf.create()
        for layer in (*map(_load_yaml, files), _parse_changes(changes)):
            _refuse_renamed(layer)
            if schema is RunConfig:
                _note_auto(values, layer)
            _replace_encoders(values, layer)
            values = OmegaConf.merge(values, layer)
        if entries := OmegaConf.to_container(values).get("plugins"):  # type: ignore[union-attr]
            values.plugins = required.require(entries, ", ".join(files) or "the configuration")
        base = copy.deepcopy(structured(schema))
        loss_name = OmegaConf.select(values, "loss.name", default="")
        if not isinstance(loss_name, str | None):
            raise ConfigError(f"loss.name is {brief(loss_name)}; it must be the name of a loss")
        if loss_name:
            OmegaConf.update(base, "loss", OmegaConf.structured(_loss_configuration(loss_name)), force_add=True)
        _replace_encoders(base, values)
        config = OmegaConf.to_object(OmegaConf.merge(base, values))
        check_counts(config)
        if isinstance(config, RunConfig):
            check_encoders(config.encoders)
            vars(config)["explicit_keys"] = frozenset(flat(OmegaConf.to_container(values)))
        return config  # type: ignore[return-value]
    except errors.OmegaConfBaseException as error:
        raise ConfigError(_explain(error, files, changes)) from error
    except RecursionError as error:
        raise ConfigError(f"a value is nested more than {MAX_DEPTH} deep") from error
    except (KeyError, ValueError, TypeError) as error:  # a loss that nobody registered; a value that does not fit
        raise ConfigError(str(error.args[0])) from error


def _load_yaml(name: str) -> Any:
    """The mapping of a YAML file. ConfigError of one line for any other content."""
    content = Path(name).read_bytes()
    if len(content) > MAX_YAML_BYTES:
        raise ConfigError(f"{name}: has {len(content)} bytes, so it is no configuration; at most {MAX_YAML_BYTES}")
    try:
        text = content.decode("utf-8-sig")
        check_yaml(text, name)
        values = OmegaConf.create(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: is not UTF-8 ({error})") from error
    except (yaml.YAMLError, errors.OmegaConfBaseException, ValueError, AssertionError) as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"{name}: {short_message(error)}") from error
    if not OmegaConf.is_dict(values) or not text.strip():
        raise ConfigError(f"{name}: holds no `key: value` lines; give the YAML of the recipe or task")
    return values


def _parse_changes(changes: list[str]) -> Any:
    for change in changes:
        try:
            check_yaml(change.partition("=")[2], change.partition("=")[0])
        except yaml.YAMLError as error:
            raise ConfigError(f"{brief(change)}: {short_message(error)}") from error
    try:
        return OmegaConf.from_dotlist(changes)
    except (yaml.YAMLError, AssertionError, IndexError) as error:  # the last for a key of no name
        raise ConfigError(f"{brief(' '.join(changes))}: {short_message(error)}") from error


def _refuse_renamed(layer: Any) -> None:
    """Raise ConfigError with the new names if a mapping has keys that earlier versions named otherwise."""
    names = {name for key in flat(OmegaConf.to_container(layer)) for name in key.split(".")}
    if renamed := sorted(names & RENAMED_KEYS.keys()):
        changes = ", ".join(f"{name} is now {RENAMED_KEYS[name]}" for name in renamed)
        raise ConfigError(f"some keys have new names: {changes}; rename them where they stand, their values stay")


def run_plugins(argv: list[str], files: Sequence[str] = (), *, may_differ: bool | None = None) -> list[str]:
    """Run the user's plugin files: `files`, and those in the key `plugins` of the YAMLs and changes of a command line.

    Returns the arguments for `load` or `parse`, which run no file: with all these files in the key `plugins`.
    What a run wrote there is left to `parse`, which compares it with what was run.

    may_differ: whether files may have other contents than those of the same name that a run was made with; None: as
    the process said before.
    """
    entries: Any = []
    for argument in argv:
        if is_file(argument) or argument.startswith("plugins="):
            layer: Any = _load_yaml(argument) if is_file(argument) else _parse_changes([argument])
            entries = OmegaConf.to_container(layer).get("plugins", entries) or []  # type: ignore[union-attr]
    named = [entry for entry in entries if isinstance(entry, str)] if isinstance(entries, list) else []
    required.use([*named, *files], may_differ=may_differ)
    return [*argv, f"plugins={json.dumps([*entries, *files])}"] if files and isinstance(entries, list) else argv


def _note_auto(values: Any, layer: Any) -> None:
    """Move `auto` as the value of one of AUTO_KEYS to the list `auto`; the value of an earlier layer stays."""
    noted = list(OmegaConf.select(values, "auto", default=[]))
    for key in AUTO_KEYS:
        given = OmegaConf.select(layer, key, default=None)
        if given is not None:
            noted = [other for other in noted if other != key]
        if given == "auto":
            noted.append(key)
            section, _, name = key.partition(".")
            del layer[section][name]
    noted += [given] if isinstance(given := OmegaConf.select(layer, "auto", default=[]), int | str | None) else given
    if unknown := set(noted) - set(AUTO_KEYS):
        raise ConfigError(f"auto is {brief(sorted(unknown))}; allowed are {', '.join(AUTO_KEYS)}")
    layer.auto = sorted(set(noted))


def value_of(argv: Sequence[str], key: str, default: str) -> str:
    """The value of one key in the YAML files and changes of a command line, without a schema; the last one wins."""
    value = default
    for argument in argv:
        if is_file(argument):
            try:
                value = str(OmegaConf.select(_load_yaml(argument), key, default=value))
            except errors.OmegaConfBaseException as error:
                raise ConfigError(_explain(error)) from error
        elif argument.startswith(f"{key}="):
            value = argument.removeprefix(f"{key}=")
    return value


def require(config: Any, *keys: str) -> None:
    """Raise ConfigError for the first of the dotted keys whose value is empty."""
    for key in keys:
        if value_at(config, key) in ("", None):
            raise ConfigError(f"{key} is not set; add {key}=... to the command or to the YAML")


def _replace_encoders(base: Any, values: Any) -> None:
    """Drop the options of an encoder's section in `base` if `values` names another network there."""
    sections = OmegaConf.select(values, "encoders", default=None)
    for modality in sections if OmegaConf.is_dict(sections) else ():
        before, now = OmegaConf.select(base, f"encoders.{modality}", default=None), sections[modality]
        are_sections = OmegaConf.is_dict(before) and OmegaConf.is_dict(now)
        if are_sections and now.get("name", before.get("name")) != before.get("name"):
            base.encoders[modality] = {}


def _explain(error: errors.OmegaConfBaseException, files: Sequence[str] = (), changes: Sequence[str] = ()) -> str:
    key = str(getattr(error, "full_key", None) or "")
    text = str(error).split("\n", maxsplit=1)[0].rstrip(".")
    return (f"{text} (key: {key})" if key not in text else text) + other_loss(key, files, changes)


def value_at(config: Any, key: str) -> Any:
    """The value of a dotted key."""
    return functools.reduce(getattr, key.split("."), config)


def set_value(config: Any, key: str, value: Any) -> None:
    """Set the value of a dotted key."""
    section, _, name = key.rpartition(".")
    setattr(value_at(config, section) if section else config, name, value)


def save(config: Any, path: Path) -> None:
    """Write the resolved configuration as YAML, whole or not at all."""
    write_whole(path, OmegaConf.to_yaml(OmegaConf.structured(config)))


# Keys that may change when a run is resumed: its length, its reports, its speed of reading. Shards and a teacher are
# compared by their contents, the lanes by their number, that of the processes if the key is 0 (checkpoint.resume).
CHANGEABLE_KEYS = frozenset([
    "run", "epochs", "steps", "resume", "init_from", "log_every_steps", "checkpoint_every_steps", "stopped_status",
    "keep_checkpoints", "trackers", "cpu", "compile", "channels_last", "data.shards", "data.cache_dir",
    "data.cache_bytes", "data.redirect_hosts", "data.num_workers", "data.prefetch_batches", "data.max_failure_rate",
    "data.worker_timeout_seconds", "data.order_lanes", "data.cache_decoded", "data.cache_decoded_dir",
    "data.views_in_workers", "process_timeout_seconds", "loss.teacher.run", "loss.teacher.embeddings",
    *(f"probe.{item.name}" for item in dataclasses.fields(ProbeConfig)),
])  # fmt: skip


def check_unchanged(config: RunConfig, run: Path) -> None:
    """Raise ValueError with every key outside CHANGEABLE_KEYS whose value differs from the run's config.yaml."""
    now, then = (flat(OmegaConf.to_container(OmegaConf.structured(cfg))) for cfg in (config, load_run(run)))
    free = {*CHANGEABLE_KEYS, "plugins"} if required.may_differ() else CHANGEABLE_KEYS
    changed = [key for key in sorted({*now, *then}) if now.get(key) != then.get(key) and key not in free]
    if changed:
        changes = "; ".join(f"{key}: {then.get(key)!r} then, {now.get(key)!r} now" for key in changed)
        raise ValueError(
            f"{run} cannot be resumed exactly, for something changed ({changes}). Put it back, or start a new run with "
            f"init_from={run}"
        )


def load_run(run: str | Path) -> RunConfig:
    """The resolved configuration of a run or exchange folder; FileNotFoundError says what a run folder is."""
    path = Path(run) / "config.yaml"
    if not path.is_file() and (Path(run) / "config.json").is_file():
        path = Path(run) / "config.json"  # of an exchange folder; JSON is YAML
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {run} is not a run folder as `avssl pretrain` writes it")
    return parse(RunConfig, [str(path)])


def read_values(path: Path) -> dict[str, Any]:
    """The values of a YAML or JSON file as they stand there. ConfigError for any other content."""
    values: Any = OmegaConf.to_container(_load_yaml(str(path)))
    return dict(values)


class ConfigError(ValueError):
    """An error in a configuration, as one message for the person who wrote it."""


def check_yaml(text: str, where: str) -> None:
    """Raise ConfigError for YAML that would grow or nest without bound when it is built."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{where}: refers to another value in it (*{plain(event.anchor)}); write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ConfigError(f"{where}: is nested more than {MAX_DEPTH} deep")


def short_message(error: Exception) -> str:
    """The message of a library's error in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def is_file(name: str) -> bool:
    """Whether there is such a file; False for text that cannot be the name of a file (too long, a zero byte)."""
    return os.path.isfile(name)  # noqa: PTH113  (Path raises OSError for a name that is too long)


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested sections."""
    if not isinstance(values, dict):
        return {prefix: list(values) if isinstance(values, tuple) else values}
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= flat(value, f"{prefix}.{name}" if prefix else str(name))
    return result
