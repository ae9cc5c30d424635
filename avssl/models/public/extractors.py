"""Feature extractors of audio and tokenizers of transformers, from the settings in a model's folder or of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avssl.files.checked_json import Fields
from avssl.files.plain_text import brief
from avssl.models.public import transformers_door
from avssl.models.public.hub_files import TOKENIZER_FILES, Located

# Files of which any is a tokenizer; the others of TOKENIZER_FILES say more about one.
VOCABULARIES = TOKENIZER_FILES[:6]
PROCESSOR_FILE, PREPROCESSOR_FILE = "processor_config.json", "preprocessor_config.json"


def extractor_settings(model: Located, options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the model's feature extractor of audio: of the recipe that resolved them, or of its files."""
    if options.get("processor"):
        return dict(options["processor"])
    folder = model.folder
    if folder is not None and (folder / PROCESSOR_FILE).is_file():
        section = Fields.read(folder / PROCESSOR_FILE).record.get("feature_extractor")
        if isinstance(section, dict):
            return section
    if folder is not None and (folder / PREPROCESSOR_FILE).is_file():
        return dict(Fields.read(folder / PREPROCESSOR_FILE).record)
    raise ValueError(
        f"{model.name} has no feature extractor of audio; its folder needs {PREPROCESSOR_FILE}, or {PROCESSOR_FILE} "
        "with a section feature_extractor"
    )


def load_extractor(kind: str, model: Located, options: Mapping[str, Any]) -> Any:
    """The library's feature extractor of a class. ValueError if the model's settings are of another, or do not fit."""
    settings = extractor_settings(model, options)
    found = settings.get("feature_extractor_type", kind)
    if found != kind:
        raise ValueError(
            f"{model.name}: its feature extractor is {brief(found)}, and its network reads what {kind} makes"
        )
    try:
        return getattr(transformers_door.library(), kind)(**settings)
    except Exception as error:
        raise ValueError(f"{model.name}: its settings of {kind} do not fit: {brief(str(error))}") from error


def load_tokenizer(model: Located) -> Any:
    """The tokenizer in the model's folder. ValueError if there is none: the library would take an empty one."""
    if model.folder is None or not any((model.folder / name).is_file() for name in VOCABULARIES):
        raise ValueError(
            f"{model.name}: there is no tokenizer in its folder, so it answers no text; it needs tokenizer.json and "
            "tokenizer_config.json"
        )
    try:
        return transformers_door.library().AutoTokenizer.from_pretrained(
            model.folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise ValueError(
            f"{model.name}: its tokenizer cannot be read, so it answers no text: {brief(str(error))}"
        ) from error
