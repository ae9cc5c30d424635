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
from avssl.eval.results import installed_versions
from avssl.files.whole import write_whole
from avssl.pages.html_page import html_page, kit_file
from avssl.pages.markup import Html, join, tag
from avssl.pages.media import MediaLibrary, MediaSource
from avssl.report.curves import curves_section, read_metrics, training_facts
from avssl.report.embedding_map import map_section
from avssl.report.facts import PACKAGES, data_counts, facts_section, sample_keys, samples_section
from avssl.report.neighbors import neighbors_section, row_noun, searches
from avssl.report.scores import headline, scores_section, tasks_section
from avssl.report.stored import Evaluation, result_of


@dataclass(frozen=True)
class ReportOptions:
    """The amount of samples, searches and media on the page.

    num_samples: cards in "Data"; num_queries: searches per direction; num_neighbors: results per search.
    max_media_bytes: base64 text of all embedded video and audio; files that do not fit are shown, but cannot be played.
    label_fields: {"video": field, "audio": field, "image": field} by which a retrieved video, audio clip or image
        counts as right; default: "visual", "sound" and "visual" if the table has them, otherwise its first field for
        all.
    """

    num_samples: int = 8
    num_queries: int = 4
    num_neighbors: int = 4
    max_media_bytes: int = 4_000_000
    label_fields: Mapping[str, str] | None = None


def write_report(
    run_folder: str | Path,
    *,
    evaluation: Evaluation | Path | None = None,
    evaluations: Sequence[Evaluation | Path] = (),
    table: EmbeddingTable | None = None,
    media: MediaSource | None = None,
    title: str = "",
    other_runs: Mapping[str, str | Path] | None = None,
    index: Mapping[str, Any] | None = None,
    facts: Mapping[str, object] | None = None,
    options: ReportOptions | None = None,
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
        title: heading; default: the folder's name.
        other_runs: {name: run folder} of earlier phases or other runs whose curves are drawn in the same charts.
        index: the shard folder's index.json, for data counts and skip reasons.
        facts: further lines for "About this run", for example {"Commit": "1a2b3c"}.
        options: how much to show.

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
    metrics = {name: read_metrics(folder / "metrics.jsonl")}
    training = training_facts(metrics[name])
    for run, path in (other_runs or {}).items():
        # A run in another folder of the same name must not replace this one.
        metrics[run if run not in metrics else f"{run} ({path})"] = read_metrics(Path(path) / "metrics.jsonl")
    clips = None if table is None else table.pool_by_key()
    library = MediaLibrary(media, chosen.max_media_bytes)
    keys = sample_keys(clips, sorted(media) if isinstance(media, Mapping) else [], chosen.num_samples)
    groups: dict[str, Mapping[str, object]] = {
        "Run": {"Folder": str(run_folder), **(facts or {})},
        "Training": training,
        "Data": data_counts(index or {}),
        "Embeddings": {} if clips is None else {row_noun(clips).capitalize(): len(clips), **clips.metadata},
        "Software": installed_versions(PACKAGES),
    }
    # The budget for media is spent in this order.
    sections = [
        ("results", "Results", join(scores_section(results), tasks_section(folder))),
        ("neighbors", _search_title(clips), _neighbors(clips, library, chosen)),
        ("map", "Map of the embeddings", _without_table() if clips is None else map_section(clips)),
        ("training", "Training", curves_section(metrics)),
        ("data", "Data", samples_section(keys, clips, library)),
        ("about", "About this run", facts_section(folder, groups, index or {})),
    ]
    return write_whole(folder / "report.html", _page(title or name, headline(results), sections, library))


def _without_table() -> Html:
    text = "No embedding table was given: `avssl evaluate RUN standard train=... test=...` writes the one shown here."
    return tag("p", text, class_="note")


def _search_title(table: EmbeddingTable | None) -> str:
    """The heading of the neighbors: across video and audio, or within each modality."""
    across = table is None or any(modality != other for modality, other in searches(table))
    return "Search across video and audio" if across else "Nearest neighbors"


def _neighbors(table: EmbeddingTable | None, library: MediaLibrary, options: ReportOptions) -> Html:
    if table is None:
        return _without_table()
    fields = table.label_fields()
    default = fields[0] if fields else None
    names: dict[str, str | None] = {
        "video": "visual" if "visual" in fields else default,
        "audio": "sound" if "sound" in fields else default,
        "image": "visual" if "visual" in fields else default,
    }
    names |= options.label_fields or {}
    return neighbors_section(
        table, library, names, num_queries=options.num_queries, num_neighbors=options.num_neighbors
    )


def _page(title: str, lead: Html, sections: Sequence[tuple[str, str, Html]], library: MediaLibrary) -> str:
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
    left_out = f"{library.num_left_out} files did not fit into the page." if library.num_left_out else None
    body = join(
        tag("a", "Skip to the results", href="#results", class_="skip"),
        tag("header", tag("p", "avssl report", class_="kicker"), tag("h1", title), lead),
        tag("nav", *links, aria_label="Sections"),
        tag("main", *blocks),
        tag("footer", tag("p", "One file, no outside requests. ", left_out)),
    )
    scripts = [kit_file(name, "avssl.report") for name in ("charts.js", "map.js")]
    return html_page(f"{title} · avssl report", body, media=library.embedded, scripts=scripts)
