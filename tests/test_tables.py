"""Embedding tables: what is written comes back, as Parquet, and nothing passes for data that is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avssl.embedding.table import VECTOR_COLUMNS, EmbeddingTable, concatenate

WIDTHS = {
    "video_embedding": 6,
    "audio_embedding": 4,
    "image_embedding": 5,
    "video_feature": 9,
    "audio_feature": 3,
    "image_feature": 2,
}


def make_table(num_rows: int = 7, seed: int = 0, prefix: str = "clip") -> EmbeddingTable:
    """Rows with some of the modalities and awkward names."""
    rng = np.random.default_rng(seed)
    has = {
        "video": np.arange(num_rows) % 3 != 1,
        "audio": np.arange(num_rows) % 3 != 2,
        "image": np.arange(num_rows) % 4 == 0,
    }
    vectors = {}
    for name, width in WIDTHS.items():
        values = rng.normal(size=(num_rows, width)).astype(np.float32)
        if name.endswith("embedding"):
            values /= np.linalg.norm(values, axis=1, keepdims=True)
        values[~has[name.split("_")[0]]] = np.nan
        vectors[name] = values
    return EmbeddingTable(
        keys=[f'{prefix}/{row} é "<&' for row in range(num_rows)],
        index=np.arange(num_rows) - 1,
        start_seconds=np.arange(num_rows) * 0.1,
        end_seconds=np.arange(num_rows) * 0.1 + 0.5,
        has_audio=has["audio"],
        has_video=has["video"],
        has_image=has["image"],
        labels=[{"visual": ["a", "b|c"], "sound": []} if row % 2 else {} for row in range(num_rows)],
        metadata={"run": "runs/avid", "window_seconds": 0.5, "normalized": True},
        **vectors,
    )


def assert_equal(left: EmbeddingTable, right: EmbeddingTable) -> None:
    assert (left.keys, left.labels, left.metadata) == (right.keys, right.labels, right.metadata)
    for name in ("index", "start_seconds", "end_seconds", "has_audio", "has_video", "has_image", *VECTOR_COLUMNS):
        a, b = getattr(left, name), getattr(right, name)
        if a is None or b is None:
            assert a is b, name
        else:
            assert a.dtype == b.dtype, name
            np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("num_rows", [0, 1, 7])
def test_what_is_written_comes_back_bit_equal(tmp_path: Path, num_rows: int) -> None:
    table = make_table(num_rows)
    assert_equal(EmbeddingTable.read(table.write(tmp_path / "t.parquet")), table)
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"], "no temporary file is left"


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (make_table().write(tmp_path / name / "t.parquet") for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_a_missing_column_stays_missing(tmp_path: Path) -> None:
    table = EmbeddingTable(["a"], np.array([3]), np.zeros(1), np.ones(1), np.array([True]), np.array([False]))
    assert_equal(EmbeddingTable.read(table.write(tmp_path / "t.parquet")), table)


def test_a_table_of_a_version_without_images_is_read(tmp_path: Path) -> None:
    """The columns of such a file, written by hand; it has no column for images."""
    both, payload = np.array([True, True]), '{"format_version": 1, "metadata": {"run": "old"}}'
    arrays = {"index": np.arange(2), "start_seconds": np.zeros(2), "end_seconds": np.ones(2)}
    arrays |= {"has_audio": both, "has_video": ~both}
    path, text = tmp_path / "old.parquet", {"key": ["a", "b"], "labels": ["{}", '{"sound": ["bell"]}']}
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.eye(2, dtype=np.float32).reshape(-1)), 2)
    columns = {name: pa.array(rows) for name, rows in {**text, **arrays}.items()} | {"audio_embedding": vectors}
    pq.write_table(pa.table(columns, metadata={"avssl": payload}), path)
    table = EmbeddingTable.read(path)
    assert (table.keys, table.labels[1], table.metadata) == (["a", "b"], {"sound": ["bell"]}, {"run": "old"})
    assert table.has_image.tolist() == [False, False]
    assert table.image_embedding is None
    assert table.modalities() == ["audio"]
    np.testing.assert_array_equal(table.audio_embedding, np.eye(2))
    assert_equal(EmbeddingTable.read(table.write(tmp_path / "new.parquet")), table)


def test_a_table_of_images_needs_no_other_column() -> None:
    images = make_table().select(make_table().has_image)
    nothing = np.zeros(len(images), bool)
    without = {name: None for name in VECTOR_COLUMNS if not name.startswith("image")}
    columns = {**images.__dict__, **without, "has_audio": nothing, "has_video": nothing}
    table = EmbeddingTable(**columns)
    assert table.modalities() == ["image"]
    assert table.has("image").all()
    with pytest.raises(ValueError, match=r"'image_embedding', row 0 .* lacks it, but is not NaN"):
        EmbeddingTable(**{**columns, "has_image": nothing})


def test_parquet_absent_rows_are_null_and_types_are_plain(tmp_path: Path) -> None:
    columns = pq.read_table(make_table().write(tmp_path / "t.parquet"))
    assert columns["video_embedding"].null_count == 2
    assert (
        str(columns.schema.field("video_embedding").type)
        .replace("element", "item")
        .startswith("fixed_size_list<item: float")
    )
    assert columns["labels"].to_pylist()[1] == '{"sound": [], "visual": ["a", "b|c"]}'


def test_npz_tables_of_earlier_versions_are_refused_with_the_way_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "embeddings.npz", key=np.array(["a"]))
    for path in (tmp_path / "embeddings.npz", tmp_path):
        with pytest.raises((ValueError, FileNotFoundError), match=r"npz.* with `avssl embed`|`avssl embed` .*npz"):
            EmbeddingTable.read(path)
    with pytest.raises(ValueError, match=r"suffix \.parquet"):
        make_table().write(tmp_path / "t.npz")


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    parts = [make_table(4, seed, prefix=f"part{seed}") for seed in range(3)]
    for number, part in enumerate(parts):
        part.write(tmp_path / f"part-{number}.parquet")
    assert_equal(EmbeddingTable.read(tmp_path), concatenate(parts))


def test_tables_that_do_not_belong_together_are_refused() -> None:
    table = make_table(2)
    other = EmbeddingTable(**{**table.__dict__, "keys": ["x", "y"], "metadata": {"run": "other"}})
    with pytest.raises(ValueError, match=r"differ in \['normalized', 'run', 'window_seconds'\]"):
        concatenate([table, other])
    with pytest.raises(ValueError, match="same key and start_seconds"):
        concatenate([table, table])


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        EmbeddingTable.read(tmp_path / "nowhere.parquet")
    with pytest.raises(FileNotFoundError, match=r"holds no \.parquet"):
        EmbeddingTable.read(tmp_path)
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(ValueError, match=r"text\.parquet"):
        EmbeddingTable.read(tmp_path / "text.parquet")
    columns = {"a": pa.array([0.0])}
    pq.write_table(pa.table(columns), tmp_path / "foreign.parquet")
    with pytest.raises(ValueError, match="no embedding table"):
        EmbeddingTable.read(tmp_path / "foreign.parquet")
    payload = '{"format_version": 9, "metadata": {}}'
    pq.write_table(pa.table(columns, metadata={"avssl": payload}), tmp_path / "future.parquet")
    with pytest.raises(ValueError, match="format 9, this version reads 1"):
        EmbeddingTable.read(tmp_path / "future.parquet")
    for use in (make_table().write, lambda path: EmbeddingTable.read(path.touch() or path)):
        with pytest.raises(ValueError, match=r"suffix \.parquet"):
            use(tmp_path / "t.csv")


def test_rows_that_pass_for_data_are_refused() -> None:
    table = make_table()
    for row, value, message in ((0, np.nan, "not finite"), (1, 0.0, "not NaN")):
        broken = table.video_embedding.copy()
        broken[row] = value
        with pytest.raises(ValueError, match=message):
            EmbeddingTable(**{**table.__dict__, "video_embedding": broken})
    with pytest.raises(ValueError, match="column 'index' has 2 rows, but there are 7 keys"):
        EmbeddingTable(**{**table.__dict__, "index": np.zeros(2)})


def test_pooling_is_the_unit_mean_of_the_windows_that_have_the_modality() -> None:
    table = make_table(9)
    table = EmbeddingTable(**{**table.__dict__, "keys": list("baabacbba")})
    pooled = table.pool_by_key()
    assert pooled.keys == ["b", "a", "c"]
    for position, key in enumerate(pooled.keys):
        rows = [row for row, name in enumerate(table.keys) if name == key]
        for name in VECTOR_COLUMNS:
            present = {"video": table.has_video, "audio": table.has_audio, "image": table.has_image}[name.split("_")[0]]
            chosen = [row for row in rows if present[row]]
            if not chosen:
                assert np.isnan(getattr(pooled, name)[position]).all()
                continue
            mean = getattr(table, name)[chosen].astype(np.float64).mean(axis=0)
            expected = mean / np.linalg.norm(mean) if name.endswith("embedding") else mean
            np.testing.assert_allclose(getattr(pooled, name)[position], expected, rtol=1e-6, atol=1e-7)
        assert pooled.index[position] == table.index[rows[0]]
        assert pooled.start_seconds[position] == table.start_seconds[rows].min()
        assert pooled.end_seconds[position] == table.end_seconds[rows].max()
        assert pooled.has_audio[position] == table.has_audio[rows].any()
        assert pooled.has_image[position] == table.has_image[rows].any()


def test_rows_are_selected_by_mask_and_by_position() -> None:
    table = make_table()
    assert table.select(table.has_video).keys == [
        key for key, has in zip(table.keys, table.has_video, strict=True) if has
    ]
    assert table.select([5, 0]).index.tolist() == [4, -1]
    with pytest.raises(ValueError, match="mask has shape"):
        table.select(np.array([True]))


def test_labels_are_one_name_per_row() -> None:
    table = make_table(3)
    assert table.label_fields() == ["sound", "visual"]
    assert table.label("visual") == [None, "a | b|c", None]
    assert table.label("sound") == [None, None, None]
    with pytest.raises(KeyError, match="no row has labels of field 'place'"):
        table.label("place")
