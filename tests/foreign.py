"""Archives and tables as other programs write them, of small clips: for the tests of what `index` reads."""

import io
import json
import tarfile
from pathlib import Path

import webdataset as wds


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
    dataset = wds.WebDataset([str(path) for path in paths], shardshuffle=False, empty_check=False)
    return [
        (sample["__key__"], {name: content for name, content in sample.items() if not name.startswith("__")})
        for sample in dataset
    ]


def rows_of(manifest: Path):
    """The lines of a manifest by key, as they stand there."""
    return {row["key"]: row for row in map(json.loads, manifest.read_text().splitlines())}
