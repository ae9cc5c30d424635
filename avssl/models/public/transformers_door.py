"""What all models of transformers have in common: configuration, weights of safetensors, processor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from avssl.files.plain_text import brief
from avssl.models.public import hub_files
from avssl.models.public.hub_files import PROCESSOR_FILES, Located

# Keys of a config.json that say nothing about the network.
NOT_ARCHITECTURE = frozenset([
    "_commit_hash", "_name_or_path", "architectures", "attn_implementation", "auto_map", "dtype", "id2label",
    "label2id", "torch_dtype", "transformers_version", "transformers_weights",
])  # fmt: skip


def library() -> Any:
    """transformers. FileNotFoundError if it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise FileNotFoundError("models of transformers need the extra: pip install 'avssl[transformers]'") from error
    return transformers


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config.json that describes the network, as it is kept in config.yaml."""
    result = {key: value for key, value in config.items() if key not in NOT_ARCHITECTURE and not key.startswith("_")}
    for key, value in result.items():
        if isinstance(value, str) and "${" in value:
            raise ValueError(f"config.json: {brief(key)} is {brief(value)}, which would be evaluated in YAML")
        if isinstance(value, Mapping):
            result[key] = plain_config(value)
    return result


def config_of(name: str, config: Mapping[str, Any]) -> Any:
    """transformers' configuration object. ValueError for a value that does not fit."""
    try:
        with quiet():
            return library().CONFIG_MAPPING[config["model_type"]].from_dict(plain_config(config))
    except Exception as error:  # the library checks values with errors of several kinds
        raise ValueError(f"{name}: its config.json does not fit transformers: {brief(str(error))}") from error


def read_weights(
    model: Located, network: Any, config: Any, sha256: str | None, unused: Sequence[str] = ()
) -> nn.Module:
    """The network of a class of transformers with its published weights, float32.

    unused: beginnings of names of parameters that may be missing in the file, because they are not used. ValueError for
    weights that are no safetensors, are other ones than sha256 says, or leave parameters at random.
    """
    paths = hub_files.weights_of(model)
    hub_files.check_sha256(model.name, paths, sha256)
    if others := sorted(
        {path.name for path in paths[0].parent.glob("shard-*.safetensors")} - {path.name for path in paths}
    ):
        raise ValueError(f"{model.name}: transformers would read {brief(others[0])} in place of the weights; remove it")
    with quiet():
        try:
            net, info = network.from_pretrained(
                str(paths[0].parent), config=config, use_safetensors=True, local_files_only=True,
                trust_remote_code=False, dtype=torch.float32, output_loading_info=True,
            )  # fmt: skip
        except (RuntimeError, OSError, ValueError) as error:
            raise ValueError(f"{model.name}: its weights are not this network's: {brief(str(error))}") from error
    wrong = sorted(name for name in info["missing_keys"] if not name.startswith(tuple(unused)))
    wrong += sorted(str(entry[0]) for entry in info["mismatched_keys"])
    if wrong:
        raise ValueError(
            f"{model.name}: its weights lack {len(wrong)} tensors of {network.__name__}, the first is {brief(wrong[0])}"
        )
    return net  # type: ignore[no-any-return]


def checkpoint_activations(net: Any) -> None:
    """Compute activations again in the backward pass; versions of transformers name the method differently."""
    options = {"use_reentrant": False}
    if hasattr(net, "activation_checkpointing_enable"):
        net.activation_checkpointing_enable(options)
    else:
        net.gradient_checkpointing_enable(options)


def has_processor(folder: Path | None) -> bool:
    """Whether a folder holds the configuration of a processor."""
    return folder is not None and any((folder / name).is_file() for name in PROCESSOR_FILES)


def processor_of(model: Located, kinds: Sequence[str]) -> Any:
    """The first of these kinds of processors (AutoImageProcessor, ...) that the files describe.

    ValueError if there is none, with what the last one says.
    """
    problem = f"there is no {PROCESSOR_FILES[0]}"
    for kind in kinds if has_processor(model.folder) else ():
        try:
            with quiet():
                return getattr(library(), kind).from_pretrained(
                    str(model.folder), local_files_only=True, trust_remote_code=False
                )
        except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
            problem = str(error)
    raise ValueError(
        f"{model.name}: its processor, which says how media are prepared, cannot be read: {brief(problem)}"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and warnings of transformers."""
    logging = library().utils.logging
    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()
