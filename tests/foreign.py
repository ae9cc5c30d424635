"""Archives, tables and idx files as other programs write them: for the tests of what `index` reads."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import webdataset as wds
from webdataset import tariterators


def write_tar(path: Path, samples, **header) -> Path:
    """A tar by webdataset's own writer, of dicts as it takes them ("__key__" and a suffix for each member)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wds.TarWriter(str(path), encoder=False, **header) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def write_members(path: Path, members, tar_format=tarfile.PAX_FORMAT) -> Path:
    """A tar with these (name, bytes), in this order, whatever webdataset makes of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def as_read_by_webdataset(*paths):
    """{key: {suffix: bytes}} of every sample in order, by webdataset's own reader of undecoded samples."""
    samples = []
    for path in paths:
        with path.open("rb") as stream:  # which WebDataset itself leaves open
            files = ({"__url__": str(path), **file} for file in tariterators.tar_file_iterator(stream))
            samples += tariterators.group_by_keys(files)
    return [
        (sample["__key__"], {name: content for name, content in sample.items() if not name.startswith("__")})
        for sample in samples
    ]


def write_idx(path, array):
    """An idx file as its definition says: two zero bytes, 8 for uint8, the number of dimensions, their sizes."""
    content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def rows_of(manifest: Path):
    """The lines of a manifest by key, as they stand there."""
    return {row["key"]: row for row in map(json.loads, manifest.read_text().splitlines())}


# As datasets 5.2 writes it into a schema: tests/test_foreign_tables.py compares it with what it writes today.
FEATURES = {
    "video": {"decode": False, "_type": "Video"},
    "audio": {"decode": False, "_type": "Audio"},
    "picture": {"decode": False, "_type": "Image"},
    "label": {"names": ["red", "blue"], "_type": "ClassLabel"},
    "tags": {"feature": {"names": ["big", "loud", "slow"], "_type": "ClassLabel"}, "_type": "List"},
    "frames": {"feature": {"decode": False, "_type": "Image"}, "_type": "List"},
    "caption": {"dtype": "string", "_type": "Value"},
    "row": {"dtype": "int64", "_type": "Value"},
}


def hugging_face_table(rows, features=FEATURES):
    """An Arrow table of rows (dicts; missing columns are left out) with Hugging Face's metadata, as datasets has it."""
    import pyarrow as pa

    media = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    types = {"Video": media, "Audio": media, "Image": media, "ClassLabel": pa.int64()}

    def type_of(feature):
        if feature["_type"] == "List":
            return pa.list_(type_of(feature["feature"]))
        return types.get(feature["_type"]) or pa.type_for_alias(feature["dtype"])

    used = {name: feature for name, feature in features.items() if any(name in row for row in rows)}
    metadata = {"huggingface": json.dumps({"info": {"features": used}})}
    schema = pa.schema({name: type_of(feature) for name, feature in used.items()}, metadata=metadata)
    return pa.Table.from_pylist(rows, schema=schema)


def write_arrow_stream(path, table, rows_per_batch=2):
    """A table as save_to_disk writes it: a stream of record batches."""
    import pyarrow as pa

    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_per_batch)
    return path


def write_parquet(path, table, rows_per_group=2, **options):
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_per_group, **options)
    return path
