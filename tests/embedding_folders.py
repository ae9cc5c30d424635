"""Made folders of embeddings: hostile texts, several files, rows without a modality, segments of films."""

import json
from itertools import pairwise

import numpy as np

from avssl.embedding.index import LISTING_NAME, FileRecord, FolderIndex
from avssl.embedding.table import EmbeddingTable

HOSTILE = (
    "=1+1", "+1", "-1", "@SUM(A1)", "'quoted", "a\\nb", "two\nlines\r\n", "\x1b[31mred", "tab\t", 'comma, "quote"',
    "\u202eright to left", "\ud800", "\x00zero", "plain", "\uff1dwide", "é ß 漢", "", "a | b",
)  # fmt: skip
VIDEO_DIM, AUDIO_DIM, FEATURE_DIM = 5, 3, 2


def make_embeddings(folder, num_rows=40, *, rows_per_file=15, paths=None, labels=None, settings=None, keys=None):
    """A finished folder of two windows a key; the table of its rows.

    paths: of the files of the keys. settings: of its index.json. keys: of the samples of shards, in their order.
    """
    rng = np.random.default_rng(0)
    rows = np.arange(num_rows)
    has = {"video": rows % 3 != 1, "audio": rows % 4 != 2}
    widths = {"video_embedding": VIDEO_DIM, "audio_embedding": AUDIO_DIM, "video_feature": FEATURE_DIM}
    vectors = {}
    for name, dim in widths.items():
        values = rng.standard_normal((num_rows, dim)).astype(np.float32)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        vectors[name] = np.where(has[name.split("_")[0]][:, None], values, np.float32(np.nan))
    keys = [keys[row // 2] if keys else f"-{row // 2:04d}/clip_mp4" for row in rows]
    if labels is None:
        text = [word.encode("utf-8", "backslashreplace").decode() for word in HOSTILE]
        labels = [{"label": [text[row % len(text)]], "=field": ["x", text[-1]], "key": []} for row in rows]
    settings = {"weights": "w", "modalities": ["video", "audio"], "sources": ["/films"], "shards": None} | (
        settings or {}
    )
    is_of_shards = settings["shards"] is not None
    table = EmbeddingTable(
        keys, rows // 2 if is_of_shards else rows * 0 - 1, rows % 2 * 0.1, rows % 2 * 0.1 + 1 / 3,
        has["audio"], has["video"], labels=labels, metadata={"weights": "w"},
        captions=[HOSTILE[row // 2 % len(HOSTILE)].replace("\ud800", "") if row // 2 % 3 else None for row in rows],
        **vectors,
    )  # fmt: skip
    folder.mkdir(parents=True)
    files = []
    for number, (first, end) in enumerate(pairwise([*range(0, num_rows, rows_per_file), num_rows])):
        path = table.select(range(first, end)).write(folder / f"embeddings-{number}.parquet")
        files.append(FileRecord.of_file(path, end - first))
    with (folder / LISTING_NAME).open("w", encoding="ascii") as lines:
        for number, key in enumerate(dict.fromkeys(keys)):
            path = paths[number] if paths else f"/films/{HOSTILE[number % len(HOSTILE)]}.mp4"
            segment = {"segment": [2.5, 9.0]} if number % 2 else {}
            lines.write(json.dumps({"path": str(path), "key": key, **segment}) + "\n")
            lines.write(json.dumps({"path": "/films/none", "key": f"skipped{number}"}) + "\n")  # has no rows
    FolderIndex(
        settings=settings, widths=widths, num_listed=num_rows, num_embedded=num_rows // 2, num_skipped=num_rows // 2,
        skipped_by_reason={"no_video": num_rows // 2}, num_rows=num_rows,
        rows_with={name: int(present.sum()) for name, present in has.items()}, run_folder="", files=files,
    ).write(folder)  # fmt: skip
    return table


def media_of_row(row):
    """(path, first second in the file) of the key of a row, as `make_embeddings` lists it without `paths`."""
    key = row // 2
    return f"/films/{HOSTILE[key % len(HOSTILE)]}.mp4", 2.5 if key % 2 else 0.0
