"""The report of a run as one HTML page without any outside request.

write_report("runs/avid", table=EmbeddingTable.read("embeddings/"), media=lambda key: (video_bytes, audio_bytes))
write_report("runs/simclr", table=table_of_images, media=lambda key: (None, None, image_bytes))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avssl.embedding.table import EmbeddingTable
from avssl.eval.results import installed_versions, standard_results
from avssl.files.whole import write_whole
from avssl.pages.html_page import html_page, kit_file
from avssl.pages.markup import Html, join, tag
from avssl.pages.media import MediaLibrary, MediaSource
from avssl.report.comparison import comparison_section
from avssl.report.curves import curves_section, read_metrics, training_facts
from avssl.report.embedding_map import map_section
from avssl.report.facts import PACKAGES, data_counts, definition_list, facts_section, sample_keys, samples_section
from avssl.report.failures import failures_section, skipped_section
from avssl.report.neighbors import neighbors_section, row_noun, searches
from avssl.report.positives import Banks, positives_section
from avssl.report.scores import headline, scores_section
from avssl.report.stored import Evaluation, result_of
from avssl.report.task_tables import runs_section, tasks_section


@dataclass(frozen=True)
class ReportOptions:
    """The amount of samples, searches and media on the page.

    num_samples: cards in "Data"; num_queries: searches per direction; num_neighbors: results per search.
    num_anchors: anchors whose positive sets are shown.
    max_media_bytes: base64 text of all embedded video and audio; files that do not fit are shown, but cannot be played.
    max_map_bytes: base64 text of the thumbnails and excerpts of sound of the map, and of those of the positive sets.
    label_fields: {"video": field, "audio": field, "image": field} by which a retrieved video, audio clip or image
        counts as right; default: "visual", "sound" and "visual" if the table has them, otherwise its first field for
        all.
    """

    num_samples: int = 8
    num_queries: int = 4
    num_neighbors: int = 4
    num_anchors: int = 3
    max_media_bytes: int = 4_000_000
    max_map_bytes: int = 1_500_000
    label_fields: Mapping[str, str] | None = None


def write_report(
    run_folder: str | Path,
    *,
    evaluation: Evaluation | Path | None = None,
    evaluations: Sequence[Evaluation | Path] = (),
    table: EmbeddingTable | None = None,
    media: MediaSource | None = None,
    keys: Sequence[str] = (),
    title: str = "",
    other_runs: Mapping[str, str | Path] | None = None,
    index: Mapping[str, Any] | None = None,
    facts: Mapping[str, object] | None = None,
    options: ReportOptions | None = None,
    banks: Banks | None = None,
    train_media: MediaSource | None = None,
    skipped: Sequence[Mapping[str, object]] = (),
    banner: Html | None = None,
) -> Path:
    """Write run_folder/report.html and return its path. The same input gives the same bytes.

    Args:
        run_folder: read for metrics.jsonl, config.yaml, evaluations/*.json and, if no evaluation is given,
            evaluation.json.
        evaluation: this run's results, see scores.py; the large numbers on top come from it. The path of a stored one
            gives its rows, which differences between results need.
        evaluations: further runs' results for the same tables.
        table: embeddings of the clips to map and search; windows of one clip are pooled.
        media: key -> (video.mp4, audio.flac[, image]), each bytes or None; function or mapping.
        keys: those of `media`, of which some are shown if there is no table; default: all of a mapping.
        title: heading; default: the folder's name.
        other_runs: {name: run folder} of earlier phases or other runs whose curves are drawn in the same charts.
        index: the shard folder's index.json, for data counts and skip reasons.
        facts: further lines for "About this run", for example {"Commit": "1a2b3c"}.
        options: how much to show.
        banks: the memory banks of a run by AVID or CMA, for its positive sets.
        train_media: as `media`, of the samples that the run trained on.
        skipped: the records of a shard folder's skipped.jsonl: {"key", "reason", "message"}.
        banner: markup above the headline, as watch.py makes it for a run that goes on.

    Raises:
        FileNotFoundError: run_folder does not exist.
        KeyError: a label field that the table does not have.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"the run folder {str(folder)!r} does not exist")
    chosen = options or ReportOptions()
    if evaluation is None and (folder / "evaluation.json").exists():
        evaluation = folder / "evaluation.json"
    results = [result_of(item) for item in (evaluation, *evaluations) if item is not None]
    name = folder.resolve().name
    runs = {name: folder}
    for run, path in (other_runs or {}).items():
        # A run in another folder of the same name must not replace this one.
        runs[run if run not in runs else f"{run} ({path})"] = Path(path)
    metrics = {run: read_metrics(path / "metrics.jsonl") for run, path in runs.items()}
    training = training_facts(metrics[name])
    clips = None if table is None else table.pool_by_key()
    library = MediaLibrary(media, chosen.max_media_bytes)
    trained = MediaLibrary(train_media, chosen.max_map_bytes, prefix="train-")
    keys = keys or (sorted(media) if isinstance(media, Mapping) else ())
    shown = sample_keys(clips, keys, chosen.num_samples)
    groups: dict[str, Mapping[str, object]] = {
        "Run": {"Folder": str(run_folder), **_known(facts or {})},
        "Training": training,
        "Data": data_counts(index or {}),
        "Embeddings": {} if clips is None else {row_noun(clips).capitalize(): len(clips), **clips.metadata},
        "Software": installed_versions(PACKAGES),
    }
    charts, curves = curves_section(metrics)
    # The budget for media is spent in this order.
    sections = [
        ("results", "Results", join(scores_section(results), tasks_section(folder))),
        *([("runs", "Comparison of the runs", comparison_section(runs, metrics))] if len(runs) > 1 else []),
        ("neighbors", _search_title(clips), _neighbors(folder, clips, library, chosen)),
        *_failures(clips, library, chosen),
        *_positives(banks, trained, chosen),
        ("map", "Map of the embeddings", _map(folder, clips, library, chosen)),
        ("training", "Training", charts),
        ("data", "Data", samples_section(shown, clips, library)),
        ("about", "About this run", join(facts_section(folder, groups, index or {}), skipped_section(skipped))),
    ]
    return write_whole(
        folder / "report.html",
        _page(title or name, join(banner, headline(results)), sections, [library, trained], curves),
    )


def write_comparison(
    folder: str | Path, runs: Mapping[str, str | Path], *, title: str = "", banner: Html | None = None
) -> Path:
    """Write folder/report.html, which compares runs {name: run folder}: results, configurations and curves.

    ValueError without a run.
    """
    if not runs:
        raise ValueError(f"there is no run in {str(folder)!r}: a run is a folder with a config.yaml")
    folders = {name: Path(path) for name, path in runs.items()}
    metrics = {name: read_metrics(path / "metrics.jsonl") for name, path in folders.items()}
    results = [result_of(path) for run in folders.values() for path in standard_results(run)]
    charts, curves = curves_section(metrics)
    facts = {name: {"Folder": str(path), **training_facts(metrics[name])} for name, path in folders.items()}
    about = tag("div", *(definition_list(name, entries) for name, entries in facts.items()), class_="columns")
    sections = [
        ("runs", "Comparison of the runs", comparison_section(folders, metrics)),
        ("results", "Results", join(scores_section(results), runs_section(folders))),
        ("training", "Training", charts),
        ("about", "About these runs", about),
    ]
    name = title or f"{Path(folder).resolve().name}: {len(folders)} run{'s' if len(folders) > 1 else ''}"
    page = _page(name, join(banner), sections, [], curves)
    return write_whole(Path(folder) / "report.html", page)


def _known(facts: Mapping[str, object]) -> dict[str, object]:
    """The facts that say something: a run without init_from or plugins has no line of them."""
    return {name: fact for name, fact in facts.items() if fact not in (None, "", [], {})}


def _without_table(folder: Path) -> Html:
    text = (
        f"There are no embeddings of test samples yet: `avssl evaluate {folder} train=SHARDS test=TEST_SHARDS` writes "
        "those that are shown here. Then write this page again."
    )
    return tag("p", text, class_="note")


def _failures(
    table: EmbeddingTable | None, library: MediaLibrary, options: ReportOptions
) -> list[tuple[str, str, Html]]:
    if table is None or not table.modalities():
        return []
    return [("failures", "Where it fails", failures_section(table, library, _label_fields(table, options)))]


def _positives(banks: Banks | None, library: MediaLibrary, options: ReportOptions) -> list[tuple[str, str, Html]]:
    if banks is None:
        return []
    section = positives_section(banks, library, options.num_anchors, 6)
    return [("positives", "Positive sets", section)]


def _map(folder: Path, table: EmbeddingTable | None, library: MediaLibrary, options: ReportOptions) -> Html:
    if table is None:
        return _without_table(folder)
    library.room = options.max_map_bytes
    return map_section(table, library)


def _search_title(table: EmbeddingTable | None) -> str:
    """The heading of the neighbors: across video and audio, or within each modality."""
    across = table is None or any(modality != other for modality, other in searches(table))
    return "Search across video and audio" if across else "Nearest neighbors"


def _neighbors(folder: Path, table: EmbeddingTable | None, library: MediaLibrary, options: ReportOptions) -> Html:
    if table is None:
        return _without_table(folder)
    names = _label_fields(table, options)
    return neighbors_section(
        table, library, names, num_queries=options.num_queries, num_neighbors=options.num_neighbors
    )


def _label_fields(table: EmbeddingTable, options: ReportOptions) -> dict[str, str | None]:
    """{modality that is searched: the label field by which a result is right}."""
    fields = table.label_fields()
    default = fields[0] if fields else None
    names: dict[str, str | None] = {
        "video": "visual" if "visual" in fields else default,
        "audio": "sound" if "sound" in fields else default,
        "image": "visual" if "visual" in fields else default,
    }
    return names | dict(options.label_fields or {})


def _page(
    title: str,
    lead: Html,
    sections: Sequence[tuple[str, str, Html]],
    libraries: Sequence[MediaLibrary],
    curves: Mapping[str, Any],
) -> str:
    links = [tag("a", heading, href=f"#{identifier}") for identifier, heading, _ in sections]
    blocks = [
        tag(
            "section",
            tag("h2", heading, id=f"{identifier}-title"),
            body,
            id=identifier,
            aria_labelledby=f"{identifier}-title",
        )
        for identifier, heading, body in sections
    ]
    num_left_out = sum(library.num_left_out for library in libraries)
    left_out = f"{num_left_out} files did not fit into the page." if num_left_out else None
    body = join(
        tag("a", "Skip to the results", href="#results", class_="skip"),
        tag("header", tag("p", "avssl report", class_="kicker"), tag("h1", title), lead),
        tag("nav", *links, aria_label="Sections"),
        tag("main", *blocks),
        tag("footer", tag("p", "One file, no outside requests. ", left_out)),
    )
    names = ["uplot/uPlot.min.css", "uplot/uPlot.iife.min.js", "charts.js"] if curves else []
    names += ["map.js", "live.js"]
    return html_page(
        f"{title} · avssl report",
        body,
        media={name: uri for library in libraries for name, uri in library.embedded.items()},
        data={"curves": curves} if curves else {},
        styles=[kit_file(name, "avssl.report") for name in names if name.endswith(".css")],
        scripts=[kit_file(name, "avssl.report") for name in names if name.endswith(".js")],
    )
