"""A written set in other people's readers: one public call each, nothing of ours; the same images to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from deeplense.data import store
from deeplense.data.schema import LensSet

NUM, SHAPE = 30, (2, 6, 5)
TRUTH = pa.table(
    {
        "theta_E": pa.array([1 + i / 7 for i in range(NUM)], pa.float64()),
        "log10_m_axion": pa.array([None if i % 3 < 2 else -23.5 for i in range(NUM)], pa.float64()),
        "n_sub": pa.array([i % 4 for i in range(NUM)], pa.int64()),
        "M_sub": pa.array([[1e6 * (j + 1) for j in range(i % 4)] for i in range(NUM)], pa.list_(pa.float64())),
        "source_name": pa.array([None if i == 5 else f"galaxy-{i} é" for i in range(NUM)], pa.string()),
        "is_lens": pa.array([i % 2 == 0 for i in range(NUM)], pa.bool_()),
    }
)

ONES = [("label", "==", 1)]


def lens_set(has_labels: bool = True) -> LensSet:
    return LensSet(
        images=np.random.default_rng(0).normal(size=(NUM, *SHAPE)).astype(np.float32),
        name=[f"{i:08d}" for i in range(NUM)],
        label=np.arange(NUM) % 3 if has_labels else None,
        classes=("no", "sphere", "vort") if has_labels else (),
        params=TRUTH,
        pixel_scale=0.05,
        provenance={"preset": "a test", "seed": 1},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three shards of 12, 12 and 6 images; README.md and dataset.json lie beside them."""
    out = tmp_path_factory.mktemp("written") / "lenses"
    store.write(lens_set(), out, 12)
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert names == {*(f"data/part-0000{i}.parquet" for i in range(3)), "README.md", "dataset.json"}
    return out


def check(columns: dict[str, list], images: np.ndarray) -> None:
    """Everything that was written, as Python values."""
    assert list(columns) == ["name", "label", "image", *TRUTH.column_names]
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images.reshape(NUM, *SHAPE), lens_set().images)
    assert columns["name"] == list(lens_set().name) and columns["label"] == lens_set().label.tolist()
    for name in TRUTH.column_names:
        assert columns[name] == TRUTH[name].to_pylist(), name


# ---- Hugging Face datasets


@pytest.fixture
def hugging_face(tmp_path, monkeypatch):
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    return pytest.importorskip("datasets")


def test_hugging_face_datasets_opens_the_folder_by_its_card(folder, hugging_face, tmp_path):
    splits = hugging_face.load_dataset(str(folder), cache_dir=str(tmp_path))
    # No files but those of the card: dataset.json is no data.
    assert list(splits) == ["train"] and splits["train"].num_rows == NUM
    check_hugging_face(splits["train"])


def test_hugging_face_datasets_opens_the_shards(folder, hugging_face, tmp_path):
    files = str(folder / "data" / "part-*.parquet")
    check_hugging_face(hugging_face.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path)))


def test_hugging_face_datasets_opens_a_set_without_labels(hugging_face, tmp_path):
    store.write(lens_set(has_labels=False), tmp_path / "lenses", 12)
    loaded = hugging_face.load_dataset(str(tmp_path / "lenses"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["label"][:] == [None] * NUM
    np.testing.assert_array_equal(loaded.with_format("numpy")["image"][:].reshape(NUM, *SHAPE), lens_set().images)


def check_hugging_face(loaded) -> None:
    types = {name: feature.dtype for name, feature in loaded.features.items() if hasattr(feature, "dtype")}
    assert types.items() >= {"name": "string", "label": "int64", "theta_E": "float64", "is_lens": "bool"}.items()
    assert loaded.features["image"].length == np.prod(SHAPE) and loaded.features["image"].feature.dtype == "float32"
    assert loaded.features["M_sub"].feature.dtype == "float64"
    images = loaded.with_format("numpy")["image"][:]
    check({name: loaded[name][:] for name in loaded.column_names}, images)
    batch = loaded.with_format("torch", columns=["image", "label"])[:4]
    np.testing.assert_array_equal(batch["image"].reshape(4, *SHAPE), lens_set().images[:4])


# ---- pandas and pyarrow


def test_pandas_opens_the_folder(folder):
    check_frame(pd.read_parquet(folder / "data"))


def check_frame(frame: pd.DataFrame) -> None:
    assert frame.label.dtype == np.int64 and frame.theta_E.dtype == np.float64 and frame.is_lens.dtype == bool
    assert frame.log10_m_axion.isna().tolist() == [i % 3 < 2 for i in range(NUM)]
    assert frame.source_name.isna().tolist() == [i == 5 for i in range(NUM)]
    # A missing value of pandas is NaN: None for the comparison with what was written.
    columns = {name: frame[name].astype(object).where(frame[name].notna(), None).tolist() for name in frame.columns}
    columns["M_sub"] = [masses.tolist() for masses in frame.M_sub]
    check(columns, np.stack(frame.image))


def test_pandas_opens_the_shards_one_by_one(folder):
    check_frame(pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("data/part-*.parquet"))]))


def test_pandas_picks_columns_and_rows(folder):
    frame = pd.read_parquet(folder / "data", columns=["name", "theta_E"], filters=ONES)
    assert frame.columns.tolist() == ["name", "theta_E"]
    assert frame.name.tolist() == [f"{i:08d}" for i in range(1, NUM, 3)]


def check_table(table: pa.Table) -> None:
    assert table.schema.field("image").type == pa.list_(pa.field("element", pa.float32(), nullable=False), 60)
    for name in TRUTH.column_names:
        assert table.schema.field(name).type == TRUTH.schema.field(name).type, name
    assert json.loads(table.schema.metadata[b"deeplense"])["shape"] == list(SHAPE)
    images = table["image"].combine_chunks().flatten().to_numpy()
    check({name: table[name].to_pylist() for name in table.column_names}, images)


def test_pyarrow_opens_the_folder(folder):
    check_table(pq.read_table(folder / "data"))


def test_pyarrow_dataset_opens_the_folder(folder):
    opened = pads.dataset(folder / "data")
    assert [Path(path).name for path in opened.files] == [f"part-0000{i}.parquet" for i in range(3)]
    check_table(opened.to_table())
    assert opened.count_rows(filter=pads.field("label") == 2) == NUM // 3
