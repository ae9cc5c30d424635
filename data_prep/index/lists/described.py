"""What a record says of a sample besides its media: labels and a caption. A record is a json, or a row of a table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from avssl.files.plain_text import brief
from data_prep.index.lists.row import ListSettings

LABEL_FIELDS = ("label", "labels")
# Columns of text that name media files: file_name, video, audio_path, image_url, ...
FILE_COLUMN = re.compile(r"path|file_?name|(video|audio|image|clip|sound|picture|media)(_?(path|file|file_?name|url))?")
CAPTION_FIELDS = ("caption", "text", "transcription", "transcript", "sentence")


def names_of(field: Any, names: Any) -> list[str]:
    """One name or several as a list without repeats; numbers become text. ValueError for anything else."""
    values = names if isinstance(names, list) else [names]
    if not all(isinstance(value, (str, int)) and not isinstance(value, bool) for value in values):
        raise ValueError(f"label {brief(field)} is {brief(names)}; it must be a name or a list of names")
    return list(dict.fromkeys(str(value) for value in values))


def labels_of(record: Mapping[str, Any], settings: ListSettings) -> dict[str, list[str]]:
    """The labels of a record: those of settings.label_fields, or `label` and `labels` ({field: names}, or names)."""
    labels: dict[str, list[str]] = {}
    for field in LABEL_FIELDS if settings.label_fields is None else settings.label_fields:
        value = record.get(field)
        if isinstance(value, dict) and field == "labels":
            labels |= {str(name): names_of(name, names) for name, names in value.items() if names not in (None, [])}
        elif value not in (None, "", []):
            labels[field] = names_of(field, value)
    return labels


def caption_of(record: Mapping[str, Any], settings: ListSettings) -> str:
    """The caption of a record, "" for none: of several texts in a list each is a line. ValueError if it is no text."""
    fields = CAPTION_FIELDS if settings.caption_field is None else (settings.caption_field,)
    for field in fields:
        value = record.get(field)
        texts = [text for text in (value if isinstance(value, list) else [value]) if text is not None]
        if texts and all(isinstance(text, str) for text in texts):
            return "\n".join(texts).strip()
        if texts and settings.caption_field is not None:
            raise ValueError(f"the caption {field} is {brief(value)}; it must be text")
    return ""
