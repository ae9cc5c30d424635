"""Samples as the Parquet files of a Hugging Face data set: media in columns of its types Video, Audio and Image.

Each file says of itself, in the metadata of its schema, which type of `datasets` a column has, so that
`datasets.load_dataset` needs nothing else. A file is written a row group of about ROW_GROUP_BYTES at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from avssl.files.whole import whole_file

ROW_GROUP_BYTES = 100_000_000  # of media: what a reader of one row holds in memory, and the hub's viewer fetches
MAX_CELL_BYTES = 2**31 - 1  # of a column of bytes in a row group
MEDIA_TYPES = ("Video", "Audio", "Image")

Feature = Mapping[str, Any]  # as datasets.Features.to_dict has it, e.g. {"_type": "Value", "dtype": "string"}


def value(dtype: str) -> Feature:
    """The feature of plain values: string, int64, float64, ..."""
    return {"dtype": dtype, "_type": "Value"}


def class_label(names: list[str]) -> Feature:
    """The feature of whole numbers that stand for names."""
    return {"names": names, "_type": "ClassLabel"}


def list_of(feature: Feature) -> Feature:
    """The feature of any number of values of another feature."""
    return {"feature": feature, "_type": "List"}


def write_samples(
    path: Path, features: Mapping[str, Feature], samples: Iterable[Mapping[str, Any]], row_group_bytes: int
) -> tuple[int, int]:
    """Write samples as a file, complete or not at all; the same samples give the same bytes.

    Args:
        features: {column: its feature}. samples: {column: value or None}; media are {"bytes": ..., "path": name}.
        row_group_bytes: of media, after which a new row group begins.

    Returns: (number of samples, bytes of their media). ValueError for media of 2 GiB.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(features)
    media = [name for name, feature in features.items() if feature["_type"] in MEDIA_TYPES]
    others = [name for name in features if name not in media]
    # Media do not get smaller, and beside them the rest is nothing: readers get the bytes as they lie in the file.
    options = {"compression": "none", "use_dictionary": False, "write_statistics": others, "write_page_index": True}
    num_samples, num_bytes = 0, 0
    with whole_file(path) as stream, ExitStack() as stack:
        writer = stack.enter_context(pq.ParquetWriter(stream, schema, **options))
        group: list[Mapping[str, Any]] = []
        waiting = 0
        for sample in samples:
            size = sum(len(sample[name]["bytes"]) for name in media if sample[name])
            if size > MAX_CELL_BYTES:
                raise ValueError(
                    f"the media of {sample.get('key')!r} have {size} bytes; a row of Parquet holds less than 2 GiB. "
                    "Write the shards again with shorter segments"
                )
            if group and waiting + size > row_group_bytes:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group, waiting = [], 0
            group.append(sample)
            num_samples, num_bytes, waiting = num_samples + 1, num_bytes + size, waiting + size
        if group or not num_samples:
            writer.write_table(pa.Table.from_pylist(group, schema))
    return num_samples, num_bytes


def _schema(features: Mapping[str, Feature]) -> Any:
    import pyarrow as pa

    content = json.dumps({"info": {"features": dict(features)}})
    columns = [(name, _arrow_type(feature)) for name, feature in features.items()]
    return pa.schema(columns, metadata={"huggingface": content})


def _arrow_type(feature: Feature) -> Any:
    import pyarrow as pa

    kind = feature["_type"]
    if kind in MEDIA_TYPES:
        return pa.struct({"bytes": pa.binary(), "path": pa.string()})
    if kind == "List":
        return pa.list_(_arrow_type(feature["feature"]))
    return pa.int64() if kind == "ClassLabel" else pa.type_for_alias(feature["dtype"])
