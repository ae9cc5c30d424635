"""The card (README.md) of a Hugging Face data set that was written from shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from avssl.exchange.markdown import code, quoted, scalar, section, words
from avssl.exchange.targets.hf_columns import columns_of
from avssl.shards.format import ShardIndex

CARD_NAME = "README.md"
MAX_NAMES = 30  # of a label field
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
LARGEST = ((10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"))
_WHAT = {
    "key": "name of the sample, unique in its split",
    "index": "number of the sample in the shards that this was written from",
    "video": "mp4 without sound",
    "audio": "FLAC, mono",
    "image": "JPEG or PNG",
    "duration_seconds": "end of the later stream",
    "video_fps": "frames per second, constant",
    "num_frames": "frames of the video",
    "audio_rate_hz": "samples per second of the audio",
    "num_audio_samples": "samples of the audio",
    "av_offset_seconds": "begin of the audio minus begin of the video",
    "source_begin_seconds": "where the sample begins in the file that it was cut from",
    "source_end_seconds": "where it ends there",
    "caption": "text that describes the sample",
}


def card(
    title: str, record: Mapping[str, Any], names: Mapping[str, Counter[str]], indices: Mapping[str, ShardIndex]
) -> str:
    """Markdown with a yaml header as hubs read it.

    Args:
        title: of the page. record: content of export.json. names: {label field: how often each name occurs}.
        indices: {split: index.json of its shards}.
    """
    parts = [
        "\n".join(_front(title, record)),
        f"# {words(title)}",
        section("Splits", list(_splits(record))),
        section("Columns", list(_columns(record, names))),
        section("Times", _times(record)),
        *([section("Labels", list(_labels(names)))] if names else []),
        section("How it was made", list(_made(indices))),
        section("Use", _use(record)),
    ]
    return "\n\n".join(parts) + "\n"


def _front(title: str, record: Mapping[str, Any]) -> Iterator[str]:
    license = record["settings"]["license"].lower()
    modalities = [name for name in ("video", "audio", "image") if name in record["features"]]
    total = sum(split["num_samples"] for split in record["splits"].values())
    size = next((name for limit, name in (*SIZES, *LARGEST) if total < limit), "n>1T")
    yield "---"
    yield f"pretty_name: {quoted(title)}"
    if license:
        yield f"license: {scalar(license)}"
    yield "size_categories:"
    yield f"- {size}"
    yield "tags:"
    yield from (f"- {modality}" for modality in modalities)
    yield "configs:"
    yield "- config_name: default"
    yield "  data_files:"
    for name in record["splits"]:
        yield f"  - split: {scalar(name)}"
        yield f"    path: data/{name}-*"
    yield "---"


def _splits(record: Mapping[str, Any]) -> Iterator[str]:
    shown = [name for name in ("video", "audio", "image", "caption") if name in record["features"]]
    yield "| split | samples | hours | " + " | ".join(f"with {name}" for name in shown) + " |"
    yield "| --- " * (3 + len(shown)) + "|"
    for name, split in record["splits"].items():
        counts = [f"{split['with'].get(column, 0):,}" for column in shown]
        yield f"| {name} | {split['num_samples']:,} | {split['seconds'] / 3600:.2f} | " + " | ".join(counts) + " |"


def _columns(record: Mapping[str, Any], names: Mapping[str, Counter[str]]) -> Iterator[str]:
    yield "| column | type | what |\n| --- | --- | --- |"
    fields = {column: name for name, column in columns_of(names).items()}
    for column, feature in record["features"].items():
        what = f"label field {words(fields[column])}" if column in fields else _WHAT[column]
        yield f"| {code(column)} | {code(_type(feature))} | {what} |"


def _type(feature: Mapping[str, Any]) -> str:
    kind = str(feature["_type"])
    if kind == "List":
        return f"List({_type(feature['feature'])})"
    if kind == "ClassLabel":
        return f"ClassLabel({len(feature['names'])} names)"
    return str(feature.get("dtype", kind))


def _times(record: Mapping[str, Any]) -> list[str]:
    if not {"video", "audio"} <= record["features"].keys():
        return ["Second 0 of a sample is the begin of its stream."]
    return [
        "Second 0 of a sample is the begin of the stream that begins first: the video begins at "
        "`max(0, -av_offset_seconds)`, the audio at `max(0, av_offset_seconds)`."
    ]


def _labels(names: Mapping[str, Counter[str]]) -> Iterator[str]:
    columns = columns_of(names)
    for field, counts in sorted(names.items()):
        shown = [f"{words(name)} ({count:,})" for name, count in sorted(counts.items())[:MAX_NAMES]]
        more = f" and {len(counts) - MAX_NAMES:,} more" if len(counts) > MAX_NAMES else ""
        yield f"- {code(columns[field])}: {', '.join(shown) or 'no names'}{more}"


def _made(indices: Mapping[str, ShardIndex]) -> Iterator[str]:
    yield "Written by [avssl](https://pypi.org/project/avssl/) from its shards."
    for name, index in indices.items():
        skipped = ", ".join(f"{reason} {count:,}" for reason, count in sorted(index.skipped_by_reason.items()))
        yield (
            f"- {name}: {index.num_listed:,} files listed, {index.num_samples:,} samples written, "
            f"{index.num_skipped:,} left out{f' ({skipped})' if skipped else ''}"
        )


def _use(record: Mapping[str, Any]) -> list[str]:
    split = next(iter(record["splits"]))
    column = next(name for name in ("video", "audio", "image", "key") if name in record["features"])
    needs = "pip install datasets" + (" torchcodec" if column in ("video", "audio") else "")
    return [
        f"```python\n# {needs}",
        "from datasets import load_dataset",
        "",
        f'samples = load_dataset("ORG/NAME", split="{split}")  # or this folder; streaming=True fetches what is read',
        f'samples[0]["{column}"]',
        "```",
    ]
