"""Embeddings as a database of LightlyStudio: a video or an image per file, with labels, captions, times and vectors.

Only this file imports lightly_studio, of the extra `lightly-studio`. The database is one file of DuckDB, which appears
when it is whole. LightlyStudio reads every video itself, to list its frames.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from avssl.exchange.targets.clips import Clip, MediaFiles, clips_of
from avssl.exchange.targets.rows import RowSource
from avssl.files.plain_text import note
from avssl.files.progress import Bar
from avssl.files.scratch import scratch_folder
from avssl.files.whole import refuse_existing, refuse_folder, sync

SAMPLES_AT_A_TIME = 128
FRAMES_PER_SECOND = 1.0  # of a video that LightlyStudio lists


def export(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the database of `avssl export --to lightly-studio`; the fields of its result."""
    out: Path = arguments.out
    refuse_folder(out)
    if not (arguments.overwrite and is_database(out)):
        refuse_existing(out, overwrite=arguments.overwrite)
    rows = RowSource(arguments.sources[0], arguments.vectors or ("embedding",), arguments.moved)
    media = MediaFiles(rows, arguments.media)
    manager = library()
    out.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(out.parent, out.name) as scratch:
        path = scratch / "new.db"
        manager.connect(db_file=str(path))
        try:
            counts = fill(out.stem, rows, media)
        finally:
            manager.close()
        sync(path)
        # The log of an earlier database that was not closed is none of the new one, which would not open beside it.
        out.with_name(f"{out.name}.wal").unlink(missing_ok=True)
        path.replace(out)
    sync(out.parent)
    left_out = {name: count for name, count in counts.items() if name != "samples"}
    shown = "".join(f"; {count:,} {kind} files are left out" for kind, count in left_out.items())
    return {
        "num_rows": len(rows),
        "num_samples": counts["samples"],
        "left_out": left_out,
        "bytes": out.stat().st_size,
        "summary": f"{counts['samples']:,} samples, {len(rows):,} rows{shown}: lightly-studio gui --db-file {out}",
    }


def is_database(path: Path) -> bool:
    """Whether a file is a database of DuckDB, as LightlyStudio's are: by the first bytes after its checksum."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(12)[8:] == b"DUCK"


def library() -> Any:
    """The module of its database. ImportError says what to install. It is asked to send no word of its use anywhere."""
    os.environ.setdefault("LIGHTLY_STUDIO_ANALYTICS_ENABLED", "false")
    try:
        from lightly_studio.database import db_manager
    except ImportError as error:
        raise ImportError(
            f"--to lightly-studio needs LightlyStudio: pip install 'avssl[lightly-studio]' ({error})"
        ) from error
    logging.getLogger("lightly_studio").setLevel(logging.WARNING)
    return db_manager


def fill(name: str, rows: RowSource, media: MediaFiles) -> Counter[str]:
    """Add the clips of rows to the open, empty database; the numbers of samples, and of files left out by kind.

    A data set of LightlyStudio has one kind of media: videos if any row has video, else images. ValueError if there are
    neither, or if two keys are of one file, of which LightlyStudio has one sample.
    """
    import lightly_studio

    kind = next((kind for kind in ("video", "image") if rows.index.rows_with.get(kind)), "")
    if not kind:
        raise ValueError(f"{rows.folder} has sounds alone, and LightlyStudio shows videos and images")
    dataset = (lightly_studio.VideoDataset if kind == "video" else lightly_studio.ImageDataset).create(name=name)
    models = _models(dataset, rows)
    counts: Counter[str] = Counter()
    clips = clips_of(rows)
    with Bar("export", len(rows), "row") as bar:
        while some := list(islice(clips, SAMPLES_AT_A_TIME)):
            bar.update(sum(len(clip.windows) for clip in some))
            counts.update(clip.kind for clip in some if clip.kind != kind)
            shown = [clip for clip in some if clip.kind == kind]
            if shown:
                _add(dataset, kind, shown, media, models)
                counts["samples"] += len(shown)
    for other in counts.keys() - {"samples"}:
        note(f"{counts[other]} files have no {kind}, only {other}: they are left out", "warning")
    return counts


def _models(dataset: Any, rows: RowSource) -> dict[str, Any]:
    """{column of vectors: the id of its embedding space in the data set}; the first one is the default."""
    from lightly_studio.models.embedding_model import EmbeddingModelCreate
    from lightly_studio.resolvers import collection_embedding_model_resolver as links
    from lightly_studio.resolvers import embedding_model_resolver

    models: dict[str, Any] = {}
    for column in rows.vectors:
        content = EmbeddingModelCreate(
            name=f"{column} {str(rows.index.settings['weights'])[:12]}",
            embedding_dimension=rows.widths[column],
            dataset_id=dataset.dataset_id,
        )
        model = embedding_model_resolver.get_or_create(session=dataset.session, embedding_model=content)
        models[column] = model.embedding_model_id
        link = {"session": dataset.session, "collection_id": dataset.collection_id}
        links.get_or_add_collection_model(**link, embedding_model_id=models[column])
        if len(models) == 1:
            links.set_default(**link, embedding_model_id=models[column])
    return models


def _add(dataset: Any, kind: str, clips: list[Clip], media: MediaFiles, models: dict[str, Any]) -> None:
    """Add clips of the data set's kind."""
    from lightly_studio.core.annotation.annotation_create import CreateClassification
    from lightly_studio.core.path_utils import normalize_path_root
    from lightly_studio.embed.embedding_storage import store_embeddings

    paths = [normalize_path_root(str(media.file_of(clip))) for clip in clips]
    ids = dict(_load(dataset, kind, paths))
    for path in paths:
        if path not in ids or paths.count(path) > 1:
            raise ValueError(
                f"{path}: LightlyStudio cannot read it, or has it already: it has one sample of a file. Of segments of "
                "a file write shards (`avssl prep write`), and export the embeddings of these"
            )
    facts = [(ids[path], _facts(clip)) for path, clip in zip(paths, clips, strict=True)]
    dataset.update_metadata(facts)
    for path, clip in zip(paths, clips, strict=True):
        sample = dataset.get_sample(ids[path])
        if clip.caption:
            sample.add_caption(clip.caption)
        for field, names in clip.labels.items():
            sample.add_annotations([CreateClassification(class_name=name) for name in names], annotation_source=field)
    for column, model in models.items():
        means = [(ids[path], clip.mean(column)) for path, clip in zip(paths, clips, strict=True)]
        present = [(sample, mean) for sample, mean in means if mean is not None]
        if present:
            vectors = np.stack([mean for _, mean in present])
            store_embeddings(dataset.session, model, [sample for sample, _ in present], vectors, show_progress=False)


def _load(dataset: Any, kind: str, paths: list[str]) -> Iterator[tuple[str, Any]]:
    """(path, id of its new sample) of the files that LightlyStudio takes."""
    if kind == "image":
        from lightly_studio.core.image.add_images import load_into_dataset_from_paths

        taken = load_into_dataset_from_paths(
            session=dataset.session, root_collection_id=dataset.collection_id, image_paths=paths, show_progress=False
        )
    else:
        from lightly_studio.core.video.add_videos import load_into_collection_from_paths

        taken, _ = load_into_collection_from_paths(
            session=dataset.session,
            collection_id=dataset.collection_id,
            video_paths=paths,
            show_progress=False,
            target_fps=FRAMES_PER_SECOND,
        )
    yield from taken.items()


def _facts(clip: Clip) -> dict[str, Any]:
    """What the page of LightlyStudio shows beside a sample."""
    facts: dict[str, Any] = {
        "key": clip.key,
        "index": clip.index,
        "first_row": clip.first,
        "num_windows": len(clip.windows),
        "begin_seconds": float(clip.windows[:, 0].min()),
        "end_seconds": float(clip.windows[:, 1].max()),
    }
    return facts | {f"label {field}": " | ".join(names) for field, names in clip.labels.items() if names}
