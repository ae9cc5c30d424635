"""The facts of a run: data counts, skipped inputs, software, configuration; and samples of its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avssl.embedding.table import EmbeddingTable
from avssl.pages.markup import Html, join, number, tag
from avssl.pages.media import MediaLibrary
from avssl.report.neighbors import label_text, row_noun

PACKAGES = ("avssl", "torch", "torchvision", "torchaudio", "av", "webdataset", "accelerate", "numpy")
MAX_CONFIG_CHARACTERS = 60_000


def data_counts(index: Mapping[str, Any]) -> dict[str, str]:
    """{name: number} from the index.json of a shard folder; missing keys are left out."""
    names = {
        "num_listed": "Files in the manifest",
        "num_written": "Written",
        "num_skipped": "Skipped",
        "num_samples": "Samples",
        "num_shards": "Shards",
    }
    counts = {shown: number(float(index[key])) for key, shown in names.items() if key in index}
    if "total_bytes" in index:
        counts["Size"] = f"{float(index['total_bytes']) / 1e6:,.1f} MB"
    for field, classes in dict(index.get("label_names", {})).items():
        counts[f"Classes of {field}"] = f"{len(classes)}: {', '.join(map(str, classes))}"
    return counts


def definition_list(title: str, entries: Mapping[str, object]) -> Html:
    """A list of names and values with a title; empty markup without entries."""
    if not entries:
        return Html("")
    rows = [tag("div", tag("dt", name), tag("dd", _value(value))) for name, value in entries.items()]
    return tag("div", tag("h3", title), tag("dl", *rows), class_="facts")


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_value(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    return number(value) if isinstance(value, float) else str(value)


def skipped_table(index: Mapping[str, Any]) -> Html:
    """Skipped inputs by reason; "None." if there were none, empty markup if the index does not say."""
    reasons = index.get("skipped_by_reason")
    if reasons is None:
        return Html("")
    if not reasons:
        return tag("div", tag("h3", "Skipped inputs"), tag("p", "None."), class_="facts")
    return definition_list("Skipped inputs by reason", dict(sorted(reasons.items())))


def facts_section(run_folder: Path, groups: Mapping[str, Mapping[str, object]], index: Mapping[str, Any]) -> Html:
    """All facts as lists; the configuration and the options of the shards are collapsed."""
    lists = [definition_list(title, entries) for title, entries in groups.items()]
    parts = [tag("div", *lists, skipped_table(index), class_="columns")]
    config = run_folder / "config.yaml"
    if config.exists():
        text = config.read_text(encoding="utf-8", errors="replace")
        cut = "" if len(text) <= MAX_CONFIG_CHARACTERS else f"\n... cut after {MAX_CONFIG_CHARACTERS} characters"
        body = tag("pre", tag("code", text[:MAX_CONFIG_CHARACTERS] + cut), tabindex=0)
        parts.append(tag("details", tag("summary", "Configuration of the run (config.yaml)"), body))
    if index.get("options"):
        options = definition_list("Options", dict(index["options"]))
        parts.append(tag("details", tag("summary", "Options the shards were written with"), options))
    return join(*parts)


def sample_keys(table: EmbeddingTable | None, keys: Sequence[str], count: int) -> list[str]:
    """Keys of samples to show, evenly spread over the table (or over the keys of the media if there is no table)."""
    names = list(dict.fromkeys(table.keys if table is not None else keys))
    return names if len(names) <= count else [names[number * len(names) // count] for number in range(count)]


def samples_section(keys: Sequence[str], table: EmbeddingTable | None, library: MediaLibrary) -> Html:
    """A card per sample with the modalities of the table (the image, four frames, the waveform), labels and key.

    Without a table, all modalities of the clips are shown.
    """
    if not library.available or not keys:
        return tag("p", "No samples are shown: --shards SHARDS names a folder of some.", class_="note")
    names = () if table is None else table.modalities()
    shown = set(names) or {name for key in keys for name, content in library.clip(key)._asdict().items() if content}
    cards = []
    for key in keys:
        row = table.keys.index(key) if table is not None else None
        labels: Mapping[str, Sequence[str]] = table.labels[row] if table is not None and row is not None else {}
        name = tag("code", key, title=key, class_="name")
        parts = [library.image(key)] if "image" in shown else []
        parts += [library.thumbnails(key, 4)] if "video" in shown else []
        parts += [library.wave(key)] if "audio" in shown else []
        cards.append(tag("li", *parts, label_text(labels), name, class_="sample"))
    captions = {"video": "four frames", "audio": "the waveform below" if "video" in shown else "their waveforms"}
    about = ", ".join(text for name, text in captions.items() if name in shown)
    kind = "clips" if table is None else row_noun(table)
    return join(
        tag("p", f"Evenly picked {kind}{': ' if about else ''}{about}."),
        tag("ul", *cards, class_="samples"),
    )
