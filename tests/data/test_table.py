"""Catalogues: a file and perhaps a label in each row, in every kind of table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, Table

from deeplense import train
from deeplense.data import store
from deeplense.data.read import read
from deeplense.errors import DataError
from toy import lens_set, tiny

RNG = np.random.default_rng(0)


def images(folder: Path, num: int = 6, size: int = 8) -> list[str]:
    """Files img/0000.npy ... and their names."""
    (folder / "img").mkdir(parents=True, exist_ok=True)
    names = [f"img/{i:04d}.npy" for i in range(num)]
    for name in names:
        np.save(folder / name, RNG.random((size, size)))
    return names


def write(path: Path, columns: dict[str, object]) -> Path:
    if path.suffix == ".csv":
        pa.csv.write_csv(pa.table(columns), path)
    elif path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    else:
        Table(columns).write(path)
    return path


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".ecsv", ".fits"])
def test_every_kind_of_table(tmp_path, ending):
    names = images(tmp_path)
    columns = {"file": names, "label": ["lens", "nonlens"] * 3, "ra": [1.5 * i for i in range(6)], "n": list(range(6))}
    lenses = read(write(tmp_path / f"t{ending}", columns))
    assert lenses.classes == ("nonlens", "lens") and lenses.label.tolist() == [1, 0] * 3
    assert lenses.name == names
    expected = np.stack([np.load(tmp_path / name) for name in names]).astype(np.float32)
    np.testing.assert_array_equal(lenses.images[:, 0], expected)
    assert lenses.params.to_pydict() == {"ra": columns["ra"], "n": columns["n"]}
    assert lenses.provenance["columns"] == {"file": "file", "label": "label"}


@pytest.mark.parametrize(
    ("values", "column", "classes"),
    [
        ([1, 0, 1, 0, 0, 0], "is_lens", ("nonlenses", "lenses")),
        ([True, False, True, False, False, False], "is_lens", ("nonlenses", "lenses")),
        ([1.0, 0.0, 1.0, 0.0, 0.0, 0.0], "IS_LENS", ("nonlenses", "lenses")),
        ([1, 0, 1, 0, 0, 0], "Label", ("0", "1")),
        ([2, 0, 2, 0, 0, 0], "target", ("0", "1", "2")),
    ],
)
def test_labels_as_numbers(tmp_path, values, column, classes):
    lenses = read(write(tmp_path / "t.csv", {"file": images(tmp_path), column: values}))
    assert lenses.classes == classes and lenses.label.tolist() == [int(v) for v in values]


def test_columns_are_looked_for_in_a_fixed_order(tmp_path):
    names = images(tmp_path)
    wrong = ["x"] * 6
    columns = {"name": wrong, "image": wrong, "target": [0] * 6, "Path": names, "class": ["a", "b"] * 3}
    lenses = read(write(tmp_path / "t.csv", columns))
    assert lenses.name == names and lenses.classes == ("a", "b")
    # Names that the store uses itself get another one.
    assert lenses.params.column_names == ["catalogue_name", "catalogue_image", "target"]
    store.write(lenses, tmp_path / "set")
    assert store.open(tmp_path / "set").params.equals(lenses.params)


def test_other_peoples_columns_are_named(tmp_path):
    columns = {"cutout": images(tmp_path), "grade": ["A", "B", "A", "B", "C", "C"], "label": [0] * 6}
    path = write(tmp_path / "t.csv", columns)
    with pytest.raises(DataError, match=r"no column of file names.*data.file_column; the columns are cutout, grade"):
        read(path)
    lenses = read(path, file_column="cutout", label_column="grade")
    assert lenses.classes == ("A", "B", "C") and lenses.params.column_names == ["catalogue_label"]
    assert read(path, file_column="cutout", label_column="").label is None
    with pytest.raises(DataError, match=r"no column 'cutuot' \(data.file_column\); did you mean 'cutout'"):
        read(path, file_column="cutuot")
    with pytest.raises(DataError, match=r"is no table, so data\.file_column"):
        read(tmp_path / "img", file_column="cutout")


def test_names_may_lack_their_ending_and_look_like_numbers(tmp_path):
    for i in range(3):
        np.save(tmp_path / f"{i:04d}.npy", np.full((4, 4), i) + RNG.random((4, 4)))
    lenses = read(write(tmp_path / "t.csv", {"name": ["0002", "0000"]}))
    assert lenses.name == ["0002", "0000"] and lenses.label is None
    assert lenses.images.astype(int).max((1, 2, 3)).tolist() == [2, 0]


def test_objects_by_their_numbers(tmp_path):
    for band in ("Band1", "Band2"):
        (tmp_path / band).mkdir()
        for number in (100002, 100004):
            fits.writeto(tmp_path / band / f"image_{band[-1]}-{number}.fits", RNG.random((8, 8)))
    lenses = read(write(tmp_path / "t.csv", {"ID": [100004, 100002], "is_lens": [0, 1]}))
    expected = [fits.getdata(tmp_path / band / f"image_{band[-1]}-100004.fits") for band in ("Band1", "Band2")]
    np.testing.assert_array_equal(lenses.images[0], np.float32(expected))
    assert lenses.name == ["100004", "100002"] and lenses.classes == ("nonlenses", "lenses")
    np.save(tmp_path / "a-7.npy", RNG.random((8, 8)))
    np.save(tmp_path / "b-7.npy", RNG.random((8, 8)))
    with pytest.raises(DataError, match=r"1 of 1 images.*7 \(no such file"):
        read(write(tmp_path / "u.csv", {"id": [7]}))


def test_objects_in_folders_of_their_own(tmp_path):
    for name in ("J1", "J2"):
        (tmp_path / name).mkdir()
        for band in "rg":
            fits.writeto(tmp_path / name / f"{name}_{band}.fits", RNG.random((8, 8)))
    lenses = read(write(tmp_path / "t.csv", {"name": ["J2", "J1"], "class": ["b", "a"]}))
    expected = [fits.getdata(tmp_path / "J2" / f"J2_{band}.fits") for band in "gr"]
    np.testing.assert_array_equal(lenses.images[0], np.float32(expected))
    assert read(tmp_path / "t.csv", bands=["r"]).images.shape == (2, 1, 8, 8)


def test_rows_whose_images_cannot_be_used_are_left_out_of_everything(tmp_path, caplog):
    names = images(tmp_path, 8)
    np.save(tmp_path / names[2], np.zeros((8, 8)))
    columns = {"file": [*names[:7], "img/none.npy"], "label": [0, 1] * 4, "row": list(range(8))}
    path = write(tmp_path / "t.csv", columns)
    with pytest.raises(DataError, match=r"1 of 8 images.*img/none.npy"):
        read(path)
    lenses = read(path, max_bad_fraction=0.3)
    assert lenses.params["row"].to_pylist() == [0, 1, 3, 4, 5, 6] and lenses.label.tolist() == [0, 1, 1, 0, 1, 0]
    assert "img/none.npy: cannot be read: No such file" in caplog.text


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.3, 1, 0, 0, 1, 1], "label holds 0.3; labels are names, or whole numbers"),
        ([-1, 1, 0, 0, 1, 1], "label holds -1"),
        ([0, None, 1, 0, 1, None], "2 of 6 rows have no label.*label_column="),
        ([0, 1, 0, 1, 0, 1000], "label reaches 1000, so it is no label"),
        ([0, 1, 0, 1, 0, 10**11], "label reaches 100000000000"),
        ([0, 1, 0, 1, 0, float("inf")], "label holds inf"),
        ([0, 1, 0, 1, 0, 1e300], r"label holds 1e\+300"),
        (["lens", "", "lens", "", "nonlens", "lens"], "2 of 6 rows have no label"),
    ],
)
def test_columns_that_are_no_labels(tmp_path, labels, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "t.csv", {"file": images(tmp_path), "label": labels}))


def test_columns_of_one_name_and_a_column_of_two_meanings(tmp_path):
    first = images(tmp_path)[0]
    (tmp_path / "t.csv").write_text(f"file,z,z\n{first},1,2\n")
    with pytest.raises(DataError, match="two columns of the name 'z'"):
        read(tmp_path / "t.csv")
    path = write(tmp_path / "u.csv", {"file": images(tmp_path), "label": [0, 1] * 3})
    lenses = read(path, label_column="file")
    assert lenses.classes == tuple(images(tmp_path)) and lenses.params.column_names == ["catalogue_label"]


def test_files_in_several_rows_are_told_of_and_must_agree(tmp_path, caplog):
    names = images(tmp_path)
    write(tmp_path / "t.csv", {"file": [*names, names[2]], "label": [0, 1, 0, 1, 0, 1, 0]})
    assert len(read(tmp_path / "t.csv")) == 7
    assert "1 files stand in several rows (first: img/0002.npy)" in caplog.text
    write(tmp_path / "u.csv", {"file": [*names, names[2]], "label": [0, 1, 0, 1, 0, 1, 1]})
    with pytest.raises(DataError, match=r"the rows of img/0002\.npy differ in their label"):
        read(tmp_path / "u.csv")


def test_files_that_are_no_tables(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"a,b\n1,2\n3\n")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "a.parquet").write_bytes(b"PAR1 or not")
    (tmp_path / "a.ecsv").write_text("no header")
    for name in ("a.csv", "empty.csv", "a.parquet", "a.ecsv"):
        with pytest.raises(DataError, match=r"cannot be read as a table"):
            read(tmp_path / name)
    (tmp_path / "rows.csv").write_text("file,label\n")
    with pytest.raises(DataError, match="has no rows"):
        read(tmp_path / "rows.csv")


def test_a_shard_of_ours_names_its_folder(tmp_path):
    store.write(lens_set(6), tmp_path / "set")
    with pytest.raises(DataError, match=r"one shard of a deeplense data set: read the folder that holds dataset.json"):
        read(tmp_path / "set" / "data" / "part-00000.parquet")


def test_masked_values_of_astropy_are_null(tmp_path):
    z = MaskedColumn([0.1, 0.2, 0.3], mask=[False, True, False])
    vector = np.ones((3, 2))
    table = Table({"file": images(tmp_path, 3), "z": z, "vector": vector})
    table.write(tmp_path / "t.ecsv")
    lenses = read(tmp_path / "t.ecsv")
    assert lenses.params.to_pydict() == {"z": [0.1, None, 0.3]}


@pytest.mark.parametrize("column", ["sky_group", "group"])
def test_groups_stay_on_one_side_of_the_split(tmp_path, column):
    group = [i % 20 for i in range(80)]  # 0 is a group as any other
    path = write(
        tmp_path / "t.csv", {"file": images(tmp_path, 80), "label": [i // 20 % 2 for i in range(80)], column: group}
    )
    module = train.load_data(tiny(tmp_path / "run", f"data={path}", "data.val_fraction=0.25"))
    sides = [set(part.params[column].to_pylist()) for part in (module.train, module.val)]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 20
    assert module.val.class_counts() == {"0": 10, "1": 10}


def test_rows_without_a_group_are_groups_of_their_own(tmp_path):
    names = images(tmp_path, 40)
    path = write(tmp_path / "t.csv", {"file": names, "label": [0, 1] * 20, "sky_group": ["a"] * 10 + [None] * 30})
    module = train.load_data(tiny(tmp_path / "run", f"data={path}", "data.val_fraction=0.25"))
    assert 5 <= len(module.val) <= 15 and set(module.val.name) < set(names)


def test_the_catalogue_of_space_warps(shared_data):
    lenses = read(shared_data / "cfhtls-lenses" / "labels.csv")
    assert lenses.images.shape == (127, 3, 128, 128)
    assert lenses.class_counts() == {"nonlens": 82, "lens": 45}
    grade, label = np.array(lenses.params["expert_grade"].to_pylist()), lenses.label
    assert grade[label == 1].min() >= 2 and grade[label == 0].max() < 0.5
    assert "sky_group" in lenses.params.column_names
