"""The model card (README.md) of a run, written from the run: data, loss, steps, results, license, how to load."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from avssl.checkpoint.hub import CARD_FILE
from avssl.checkpoint.weights import read_provenance
from avssl.config import RunConfig, load_run
from avssl.exchange.markdown import code, quoted, scalar, section, words
from avssl.exchange.paths import last_part, without_paths
from avssl.files.checked_json import Fields
from avssl.files.plain_text import plain
from avssl.losses import registry
from avssl.plugins.required import described

UNKNOWN_LICENSE = "unknown"  # in the front matter, if the provenance has no license


def write_card(run: Path, folder: Path, *, title: str = "") -> Path:
    """Write README.md into `folder` from its provenance, and configuration and results of `run`; return the path."""
    path = folder / CARD_FILE
    text = card(load_run(run), read_provenance(folder), evaluations(run), title or run.name)
    path.write_text(text, encoding="utf-8")
    return path


def card(cfg: RunConfig, provenance: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]], title: str) -> str:
    """Markdown with front matter as hubs read it; facts that are not known are reported as unknown."""
    loss_class = registry.get(cfg.loss.name)
    modalities = loss_class.modalities(cfg.loss)
    license = str(provenance.get("license") or UNKNOWN_LICENSE).lower()
    front = ["---", "library_name: avssl", f"license: {scalar(license)}"]
    front += ["tags:", *(f"- {scalar(tag)}" for tag in ("self-supervised", cfg.loss.name, *modalities)), "---"]
    parts = [
        "\n".join(front),
        f"# {words(title)}",
        f"Encoders of {' and '.join(modalities)} trained without labels by `{cfg.loss.name}` ({loss_class.paper}).",
        section("License", _license_lines(provenance)),
        section("Training", _training_lines(cfg, provenance)),
        section("Inputs", _input_lines(cfg, modalities)),
        section("Results", list(_result_lines(results)) or ["None are stored with this run."]),
        section("Use", _use_lines(title, modalities, cfg.plugins)),
    ]
    return "\n\n".join(parts) + "\n"


def evaluations(run: Path) -> dict[str, dict[str, Any]]:
    """{name: content} of evaluation.json and evaluations/*.json of a run, sorted by name."""
    paths = [
        path for path in (run / "evaluation.json", *sorted((run / "evaluations").glob("*.json"))) if path.is_file()
    ]
    return {path.stem: Fields.read(path).record for path in paths}


def _license_lines(provenance: Mapping[str, Any]) -> list[str]:
    license, note = provenance.get("license"), provenance.get("license_note")
    stated = f"**{words(license)}**" if license else "Not stated by whoever trained these weights"
    return [stated + (f": {words(note)}" if note else "" if license else ".")]


def _training_lines(cfg: RunConfig, provenance: Mapping[str, Any]) -> list[str]:
    data, imported = provenance["data"], provenance.get("imported")
    if imported:
        lines = [
            f"- source: {words(imported['from'])}, {code(imported['file'])} (SHA-256 {code(imported['sha256'])}), "
            f"{words(imported['tensors'])} tensors, epoch {words(imported['epoch'])} as the file says",
            f"- rows of the memory banks: {data['num_samples'] if data['num_samples'] > 1 else 'none in the file'}",
        ]
        if provenance.get("audio_statistics"):
            lines.append("- statistics of the spectrograms: not the authors', measured or given when it was imported")
        return lines
    versions = ", ".join(f"{name} {version}" for name, version in provenance.get("versions", {}).items())
    return [
        f"- data: {words(data['num_samples'])} samples, {_shards_words(data)} (fingerprint "
        f"{code(data['fingerprint'])})",
        f"- loss: `{cfg.loss.name}`, options in config.json",
        f"- steps: {words(provenance.get('steps', 'not recorded'))}, samples seen: "
        f"{words(provenance.get('samples_seen', 'not recorded'))}, global batch {cfg.data.global_batch_size}",
        f"- optimizer: `{cfg.optim.name}`, learning rate {cfg.optim.lr:g}",
        f"- started from: {', '.join(_starts(cfg, str(provenance.get('init_from') or '')))}",
        *_teacher_lines(provenance.get("teacher") or {}),
        f"- versions: {words(versions)}",
    ]


def _teacher_lines(teacher: Mapping[str, Any]) -> list[str]:
    """The network whose outputs were learned, if there was one."""
    if not teacher:
        return []
    name = str(teacher.get("run") or teacher.get("encoder", {}).get("name") or teacher.get("embeddings", ""))
    output = f"{teacher.get('modality')} {teacher.get('output')}"
    shown = without_paths(name)
    license_words = f"; its card says {words(teacher['license'])}" if teacher.get("license") else ""
    return [
        f"- taught by: {code(shown)}, its {words(output)} (fingerprint {code(teacher.get('fingerprint'))})"
        f"{license_words}"
    ]


def _shards_words(data: Mapping[str, Any]) -> str:
    """The names of the shard folders; of several with their samples and weights."""
    shards = data.get("shards") or "unnamed"
    if not isinstance(shards, list):
        return code(last_part(str(shards)))
    weights = [f", weight {item['weight']:g}" if item.get("weight") else "" for item in shards]
    named = zip(shards, weights, strict=True)
    return " and ".join(f"{_shards_words(item)} ({words(item['num_samples'])}{weight})" for item, weight in named)


def _starts(cfg: RunConfig, init_from: str) -> list[str]:
    """The run, or for each encoder the file of weights, from which training started; random weights by default."""
    if init_from:
        return [code(last_part(init_from))]
    modalities = registry.get(cfg.loss.name).modalities(cfg.loss)
    files = {modality: cfg.encoders[modality].get("weights") for modality in modalities}
    return [f"{name} from {code(last_part(str(file))) if file else 'random weights'}" for name, file in files.items()]


def _input_lines(cfg: RunConfig, modalities: list[str]) -> list[str]:
    views = cfg.views
    inputs = {
        "video": f"- video: {views.video.num_frames} frames at {views.video.fps:g} per second, "
        f"{views.video.size_px} px",
        "audio": f"- audio: {views.audio.seconds:g} s, mono, {views.audio.rate_hz} Hz, {views.audio.transform} of "
        f"{views.audio.num_frames} frames",
        "image": f"- image: {views.image.size_px} px",
    }
    encoders = {modality: without_paths(cfg.encoders[modality]) for modality in modalities}
    return [
        f"{inputs[name]}, encoder {code(encoder['name'])}"
        + "".join(words(f", {key} {value}") for key, value in encoder.items() if key not in ("name", "weights"))
        for name, encoder in encoders.items()
    ]


def _result_lines(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A table per evaluation, with every metric: trained, untrained (both with deviation) and chance, if stored.

    Of the paths of the data only the last component is shown.
    """
    for name, content in results.items():
        metrics, deviations = content.get("results", {}), content.get("deviation", {})
        rows = [(metric, number) for metric, value in metrics.get("trained", {}).items() if (number := _number(value))]
        if not rows:
            continue
        data = content.get("data") or content.get("protocol", {})
        splits = [f"{split} {code(last_part(str(data[split])))}" for split in ("train", "test") if data.get(split)]
        yield f"\n{', '.join([words(name), *splits])}:\n"
        yield "| metric | trained | untrained | chance |\n| --- | --- | --- | --- |"
        untrained, chance = metrics.get("untrained") or {}, content.get("chance") or {}
        for metric, number in rows:
            cells = [number, _number(untrained.get(metric)), _number(chance.get(metric))]
            for position, weights in enumerate(("trained", "untrained")):
                deviation = _number(deviations.get(weights, {}).get(metric))
                if deviation and cells[position]:
                    cells[position] = f"{cells[position]} ± {deviation}"
            yield f"| {words(metric)} | " + " | ".join(cell or "" for cell in cells) + " |"


def _number(value: Any) -> str | None:
    return f"{value:.4f}" if isinstance(value, int | float) and not isinstance(value, bool) else None


def _use_lines(title: str, modalities: list[str], plugins: Sequence[Mapping[str, str]]) -> list[str]:
    file = {"video": "holiday.mp4", "audio": "holiday.wav", "image": "holiday.jpg"}[modalities[-1]]
    files = [plain(record["file"]) for record in plugins if "file" in record]
    given = f", plugins={json.dumps(files, ensure_ascii=False)}" if files else ""
    needed = [f"It needs {words(described(plugins))}, which you must have and give; see docs/plugins.md.", ""]
    return [
        *(needed if plugins else []),
        "```python",
        "import avssl",
        "",
        f'embedder = avssl.load_embedder({quoted(title)}{given})  # this folder, or "owner/name" of a hub',
        f'table, failures = embedder.embed("{file}")',
        f"table.{modalities[-1]}_embedding  # unit rows",
        "```",
    ]
