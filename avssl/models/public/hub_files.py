"""Where the files of a public model come from: a folder here, or the hub at one commit; their license and SHA-256."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from avssl.files.checked_json import Fields
from avssl.files.hub import HUB_ID, commit_of, download
from avssl.files.plain_text import brief
from avssl.files.whole import sha256_file

CONFIG_FILE, CARD_FILE = "config.json", "README.md"
SMALL_FILES = ("*.json", "*.txt", "*.model", CARD_FILE)  # configurations, processors, tokenizers, the card
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = (
    "tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model",
    "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json",
)  # fmt: skip
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.npz", "*.h5", "*.msgpack")
LICENSE_LINE = re.compile(r"^license(?:_name)?:[ \t]*[\"']?([\w.+-]+)", re.MULTILINE)


class Located(NamedTuple):
    """A public model that was found.

    name: as in a recipe, with @commit if its files are the hub's. folder: of its files; None if only its architecture
    is known. revision: the commit, "" for a folder. repository: ORG/NAME of the hub, or the folder. config: its
    config.json.
    """

    name: str
    folder: Path | None
    revision: str
    repository: str
    config: dict[str, Any]


def locate(name: str, body: str, architecture: Mapping[str, Any] | None = None) -> Located:
    """Find the model `body`: a folder, or `ORG/NAME[@revision]` of the hub, of which only small files are fetched.

    name: the whole name, for messages. architecture: a config.json that is known already; then nothing is asked for.
    ValueError for a name that is neither; FileNotFoundError if there is no such model.
    """
    if architecture:
        repository, _, revision = body.partition("@")
        return Located(name, None, revision, repository, dict(architecture))
    folder, revision = find_files(name, body)
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{name}: {folder} has no {CONFIG_FILE}, so it is no model of transformers or timm")
    return Located(pinned(name, revision), folder, revision, body.partition("@")[0], Fields.read(path).record)


def find_files(name: str, body: str) -> tuple[Path, str]:
    """(folder, commit or "") of a local folder or of the small files of ORG/NAME[@revision] of the hub."""
    if Path(body).is_dir():
        return Path(body), ""
    if not HUB_ID.fullmatch(body):
        raise ValueError(
            f"{brief(name)}: {brief(body)} is neither a folder here nor ORG/NAME or ORG/NAME@revision of the hub"
        )
    repository, _, revision = body.partition("@")
    folder = download(repository, revision or None, SMALL_FILES)
    return folder, commit_of(folder)


def pinned(name: str, revision: str) -> str:
    """The name with the commit in place of its revision; as it is without a commit."""
    return f"{name.partition('@')[0]}@{revision}" if revision else name


def weights_of(model: Located, file: str = WEIGHTS_FILE) -> list[Path]:
    """The files of the weights, fetched if they are at the hub. ValueError if they are no safetensors."""
    folder = model.folder
    if folder is None:
        raise ValueError(f"{model.name}: only its architecture is known here; its files are needed for its weights")
    if model.revision:
        folder = download(model.repository, model.revision, [*SMALL_FILES, "*.safetensors"])
    return weights_in(folder, model.name, file)


def weights_in(folder: Path, name: str, file: str) -> list[Path]:
    """model.safetensors of a folder, or the parts that model.safetensors.index.json lists."""
    if (folder / file).is_file():
        return [folder / file]
    if (folder / INDEX_FILE).is_file():
        parts = sorted(set(map(str, Fields.read(folder / INDEX_FILE).mapping("weight_map").values())))
        outside = [part for part in parts if Path(part).name != part or not part.endswith(".safetensors")]
        missing = [part for part in parts if not (folder / part).is_file()]
        if outside or missing:
            raise ValueError(f"{name}: {INDEX_FILE} lists {brief((outside or missing)[0])}, which is not in {folder}")
        return [folder / part for part in parts]
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    found = f"only {', '.join(pickles[:3])}, which may run code when it is opened; " if pickles else "no weights; "
    raise ValueError(
        f"{name}: {folder} has {found}weights must be {file} (safetensors). Take a revision that has it, convert the "
        "file, or set pretrained: false for random weights"
    )


def sha256_of_files(model: Located) -> dict[str, str]:
    """{name: SHA-256} of what a local model's folder holds of processors and tokenizers; {} of the hub's, by commit."""
    if model.folder is None or model.revision:
        return {}
    paths = sorted(path for name in (*PROCESSOR_FILES, *TOKENIZER_FILES) for path in model.folder.glob(name))
    return {path.name: sha256_file(path) for path in paths}


def check_files(model: Located, expected: Mapping[str, str] | None) -> None:
    """Raise ValueError if a model's files of processors and tokenizers are not those of {name: SHA-256}."""
    if not expected or model.folder is None or model.revision:
        return
    found = sha256_of_files(model)
    if changed := sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name)):
        raise ValueError(
            f"{model.name}: {', '.join(map(brief, changed))} {'is' if len(changed) == 1 else 'are'} not as when this "
            "model was used first; media or text would be read in another way. Put it back, or begin anew"
        )


def weights_sha256(paths: list[Path]) -> str:
    """64 hex digits: of the file, or of several files' names and digests, one a line."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(paths) == 1:
        return digests[0]
    lines = "".join(f"{digest}  {path.name}\n" for digest, path in zip(digests, paths, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def check_sha256(name: str, paths: list[Path], expected: str | None) -> None:
    """Raise ValueError for a file that is no whole safetensors file, or if the files have not the expected SHA-256."""
    from safetensors import SafetensorError, safe_open

    for path in paths:
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            problem = f"{path} is no whole safetensors file ({brief(str(error))}); is it cut, or a pointer of Git LFS?"
            raise ValueError(f"{name}: {problem}") from error
    if expected and (actual := weights_sha256(paths)) != expected:
        raise ValueError(
            f"{name}: the weights have the SHA-256 {actual}, and not {brief(expected)}, as the recipe says"
        )


def license_of(folder: Path | None) -> str:
    """The license that the card of a model names, such as "apache-2.0"; "" if there is none."""
    card = None if folder is None else folder / CARD_FILE
    if card is None or not card.is_file():
        return ""
    head = re.match(r"---\s*\n(.*?)\n---", card.read_text("utf-8", errors="replace")[:20_000], re.DOTALL)
    found = LICENSE_LINE.findall(head.group(1)) if head else []
    return str(found[-1] if found and found[0] == "other" else (found or [""])[0])
