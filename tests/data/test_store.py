"""The Parquet store: what is written is read back to the bit, and a killed job goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deeplense.data import store
from deeplense.data.convert import convert
from deeplense.data.read import read
from deeplense.data.schema import LensSet
from deeplense.errors import ConfigError, DataError, RunError

HEADER = {"preset": "common-test", "fidelity": "physical", "seed": 1}


def lens_set(start: int = 0, num: int = 10) -> LensSet:
    """Images number start ... of a set that is the same however it is cut."""
    rows = range(start, start + num)
    return LensSet(
        images=np.stack([np.random.default_rng(i).random((2, 6, 5), np.float32) for i in rows]),
        name=[f"image-{i:03d}" for i in rows],
        label=np.array([i % 3 for i in rows], np.int64),
        classes=("no", "sphere", "vort"),
        params=pa.table(
            {
                "theta_E": pa.array([i / 7 for i in rows], pa.float64()),
                "log10_m_axion": pa.array([None if i % 3 < 2 else -23.0 for i in rows], pa.float64()),
                "M_sub": pa.array([[1e6] * (i % 4) for i in rows], pa.list_(pa.float64())),
            }
        ),
        pixel_scale=0.05,
        provenance={"made by": "a test", "seed": 1},
    )


def assert_equal(a: LensSet, b: LensSet) -> None:
    assert np.array_equal(a.images, b.images) and list(a.name) == list(b.name)
    assert (a.classes, a.pixel_scale, a.provenance) == (b.classes, b.pixel_scale, b.provenance)
    assert a.label is b.label or np.array_equal(a.label, b.label)
    assert a.params is b.params or a.params.equals(b.params)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- round trip


@pytest.mark.parametrize("shard_size", [1, 4, 10, 1024])
def test_round_trip_is_exact(tmp_path, shard_size):
    store.write(lens_set(), tmp_path, shard_size)
    assert store.is_store(tmp_path)
    assert_equal(store.open(tmp_path), lens_set())
    assert_equal(read(tmp_path), lens_set())
    assert len(list(tmp_path.glob("data/part-*.parquet"))) == -(-10 // shard_size)


def test_round_trip_without_labels_parameters_or_scale(tmp_path):
    bare = LensSet(images=lens_set().images, name=list("abcdefghij"))
    store.write(bare, tmp_path)
    assert_equal(store.open(tmp_path), bare)


def test_more_images_than_a_row_group(tmp_path):
    images = np.random.default_rng(0).random((600, 1, 3, 3), np.float32)
    store.write(LensSet(images=images, name=[str(i) for i in range(600)]), tmp_path)
    assert np.array_equal(store.open(tmp_path).images, images)


def test_equal_sets_give_equal_bytes(tmp_path):
    store.write(lens_set(), tmp_path / "a", 4)
    store.write(lens_set(), tmp_path / "b", 4)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_large_store_is_memory_mapped(tmp_path):
    store.write(lens_set(), tmp_path, 4)
    mapped = store.open(tmp_path, max_memory_gb=1e-9)
    assert isinstance(mapped.images, np.memmap)
    assert_equal(mapped, lens_set())


def test_shards_are_plain_parquet(tmp_path):
    store.write(lens_set(), tmp_path)
    frame = pd.read_parquet(tmp_path / "data" / "part-00000.parquet")
    assert list(frame.columns) == ["name", "label", "image", "theta_E", "log10_m_axion", "M_sub"]
    assert np.array_equal(np.stack(frame.image).reshape(-1, 2, 6, 5), lens_set().images)
    schema = pq.read_schema(tmp_path / "data" / "part-00000.parquet")
    assert schema.field("image").type.list_size == 60
    common = json.loads(schema.metadata[b"deeplense"])
    assert common["shape"] == [2, 6, 5] and common["classes"] == ["no", "sphere", "vort"]


def test_record_and_card_say_what_is_in_it(tmp_path):
    store.write(lens_set(), tmp_path, 4)
    record = json.loads((tmp_path / "dataset.json").read_text())
    assert [shard["rows"] for shard in record["shards"]] == [4, 4, 2]
    for shard in record["shards"]:
        assert hashlib.sha256((tmp_path / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\n") and card.count("\n---\n") == 1
    for text in (
        "| 0 | no | 4 |",
        "| 1 | sphere | 3 |",
        "| M_sub | list",
        '"made by": "a test"',
        "data/part-*.parquet",
    ):
        assert text in card


def test_stolen_column_names_are_refused(tmp_path):
    with pytest.raises(DataError, match="a parameter is called 'label'"):
        store.write(replace(lens_set(), params=pa.table({"label": list(range(10))})), tmp_path / "b")


def test_empty_set_is_refused(tmp_path):
    with pytest.raises(DataError, match="num=0"):
        store.write(lens_set().select(np.zeros(0, np.int64)), tmp_path / "a")


# ---- writing in pieces


def test_writer_in_any_order_equals_one_write(tmp_path):
    writer = store.ShardWriter(tmp_path, 10, 4, HEADER)
    assert writer.missing() == [0, 1, 2]
    for shard in (2, 0, 1):
        rows = writer.rows(shard)
        writer.write(shard, lens_set(rows.start, len(rows)))
    writer.finish()
    assert_equal(store.open(tmp_path), lens_set())


def test_complete_shards_are_not_rewritten(tmp_path):
    writer = store.ShardWriter(tmp_path, 10, 4, HEADER)
    writer.write(1, lens_set(4, 4))
    before = (tmp_path / "data" / "part-00001.parquet").stat()
    again = store.ShardWriter(tmp_path, 10, 4, HEADER)
    assert again.missing() == [0, 2]
    again.write(0, lens_set(0, 4))
    again.write(2, lens_set(8, 2))
    again.finish()
    after = (tmp_path / "data" / "part-00001.parquet").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_finished_set_is_left_alone(tmp_path):
    store.write(lens_set(), tmp_path, 4)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    store.write(lens_set(), tmp_path, 4)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("num", "shard_size", "header", "message"),
    [
        (10, 4, {**HEADER, "seed": 2}, r"seed=1, not seed=2: choose another folder"),
        (11, 4, HEADER, r"num=10, not num=11"),
        (10, 5, HEADER, r"shard_size=4, not shard_size=5"),
        (10, 4, {"preset": "common-test", "seed": 1}, r"fidelity='physical', not fidelity=None"),
    ],
)
@pytest.mark.parametrize("is_finished", [False, True])
def test_set_made_otherwise_is_in_the_way(tmp_path, num, shard_size, header, message, is_finished):
    writer = store.ShardWriter(tmp_path, 10, 4, HEADER)
    if is_finished:
        complete(writer)
    before = contents(tmp_path)
    with pytest.raises(RunError, match=message):
        store.ShardWriter(tmp_path, num, shard_size, header)
    assert contents(tmp_path) == before


def test_header_with_tuples_is_the_same_after_a_reload(tmp_path):
    store.ShardWriter(tmp_path, 10, 4, {"sizes": (1, 2)})
    store.ShardWriter(tmp_path, 10, 4, {"sizes": (1, 2)})


def test_other_files_are_in_the_way(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"not empty \(thesis.tex"):
        store.ShardWriter(tmp_path, 10, 4, HEADER)
    with pytest.raises(RunError, match="cannot be a folder"):
        store.ShardWriter(tmp_path / "thesis.tex", 10, 4, HEADER)


def test_wrong_shard_or_number_of_images(tmp_path):
    writer = store.ShardWriter(tmp_path, 10, 4, HEADER)
    with pytest.raises(DataError, match="takes 2 images, not 4"):
        writer.write(2, lens_set(8, 4))
    with pytest.raises(DataError, match="allowed: 0 to 2"):
        writer.write(3, lens_set())
    with pytest.raises(RunError, match="lacks 3 of 3 shards"):
        writer.finish()


def test_shards_of_different_kinds_do_not_become_one_set(tmp_path):
    writer = store.ShardWriter(tmp_path, 8, 4, HEADER)
    writer.write(0, lens_set(0, 4))
    writer.write(1, replace(lens_set(4, 4), pixel_scale=0.1))
    with pytest.raises(DataError, match="differs from the first shard in pixel_scale"):
        writer.finish()


def test_unfinished_set_is_not_read(tmp_path):
    store.ShardWriter(tmp_path, 10, 4, HEADER).write(0, lens_set(0, 4))
    assert not store.is_store(tmp_path)
    for reader in (read, store.open):
        with pytest.raises(DataError, match="unfinished data set: run the command"):
            reader(tmp_path)


# What stands in for the function that writes a file: half of the file, then the power fails.
KILL = {
    "ShardWriter": "shards.pq.write_table = lambda table, path, **_: (path.write_bytes(b'half'), die())",
    "NpyWriter": "writer.np.save = lambda file, *_, **__: (file.write(b'half'), file.flush(), die())",
}
SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from deeplense.data import shards, store, writer
from test_store import HEADER, lens_set
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
job = store.{kind}({out!r}, 10, 4, HEADER)
job.write(0, lens_set(0, 4))
{kill}
job.write(1, lens_set(4, 4))
"""


def complete(job: store.ShardWriter | store.NpyWriter) -> None:
    for shard in job.missing():
        rows = job.rows(shard)
        job.write(shard, lens_set(rows.start, len(rows)))
    job.finish()


@pytest.mark.parametrize("kind", KILL)
def test_killed_in_the_middle_of_a_shard_then_run_again(tmp_path, kind):
    out, writer = tmp_path / "out", getattr(store, kind)
    script = SCRIPT.format(tests=str(Path(__file__).parent), out=str(out), kind=kind, kill=KILL[kind])
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert list(out.rglob("*.tmp"))
    job = writer(out, 10, 4, HEADER)
    assert job.missing() == [1, 2]
    complete(job)
    complete(writer(tmp_path / "whole", 10, 4, HEADER))
    assert contents(out) == contents(tmp_path / "whole")


def test_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
    writer = store.ShardWriter(tmp_path, 10, 4, HEADER)
    writer.write(0, lens_set(0, 4))

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", refuse)
        with pytest.raises(RunError, match=r"part-00001.parquet cannot be written: No space left on device"):
            writer.write(1, lens_set(4, 4))
    assert store.ShardWriter(tmp_path, 10, 4, HEADER).missing() == [1, 2]


# ---- damage


def damage_bytes(folder: Path) -> None:
    path = folder / "data" / "part-00001.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def damage_end(folder: Path) -> None:
    path = folder / "data" / "part-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])


def damage_missing(folder: Path) -> None:
    (folder / "data" / "part-00001.parquet").unlink()


def damage_swap(folder: Path) -> None:
    (folder / "data" / "part-00002.parquet").replace(folder / "data" / "part-00001.parquet")


@pytest.mark.parametrize("damage", [damage_bytes, damage_end, damage_missing, damage_swap])
def test_damaged_shard_is_named(tmp_path, damage):
    store.write(lens_set(), tmp_path, 4)
    damage(tmp_path)
    with pytest.raises(DataError, match=r"part-00001.parquet is damaged"):
        store.open(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"shards": [{}]}', '{"shards": [], "shape": [1]}', '{"shards": 3}'])
def test_damaged_record_is_named(tmp_path, text):
    store.write(lens_set(), tmp_path)
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset.json"):
        store.open(tmp_path)


def test_record_cannot_point_out_of_its_folder(tmp_path):
    store.write(lens_set(), tmp_path / "a")
    store.write(lens_set(), tmp_path / "b")
    record = (tmp_path / "b" / "dataset.json").read_text()
    (tmp_path / "b" / "dataset.json").write_text(record.replace('"data/part', '"../a/data/part'))
    (tmp_path / "b" / "data" / "part-00000.parquet").unlink()
    with pytest.raises(DataError, match=r"b/data/part-00000.parquet is damaged"):
        store.open(tmp_path / "b")


def test_sets_of_the_first_version_are_read(tmp_path):
    store.write(lens_set(), tmp_path, 4)
    for path in (tmp_path / "data").iterdir():
        path.rename(tmp_path / path.name)
    record = (tmp_path / "dataset.json").read_text()
    (tmp_path / "dataset.json").write_text(record.replace('"data/part', '"part'))
    assert_equal(store.open(tmp_path), lens_set())


# ---- the DeepLense folder layout


def test_npy_layout_round_trip(tmp_path):
    store.write_npy(lens_set(), tmp_path)
    assert (tmp_path / "vort" / "image-002.npy").exists()
    assert np.load(tmp_path / "vort" / "image-002.npy").dtype == np.float32
    back = read(tmp_path)
    by_class = np.argsort(lens_set().label, kind="stable")
    assert back.classes == lens_set().classes
    assert np.array_equal(back.images, lens_set().images[by_class])
    truth = pq.read_table(tmp_path / "truth-00000.parquet")
    assert truth["theta_E"].to_pylist() == lens_set().params["theta_E"].to_pylist()


def test_npy_layout_without_labels_is_flat(tmp_path):
    store.write_npy(LensSet(images=lens_set().images, name=[f"deep/in/{i}.npy" for i in range(10)]), tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == [f"{i}.npy" for i in range(10)]
    assert np.array_equal(read(tmp_path).images, lens_set().images)


@pytest.mark.parametrize("name", ["../evil", "/etc", "..", ".hidden", "", "a\0b"])
def test_class_names_stay_in_the_folder(tmp_path, name):
    with pytest.raises(DataError, match="cannot be the name of a folder"):
        store.write_npy(replace(lens_set(), classes=("no", "sphere", name)), tmp_path / "x" / "y")
    assert {path.name for path in tmp_path.rglob("*")} <= {"x", "y", "unfinished.json"}


def test_image_names_stay_in_the_folder_and_apart(tmp_path):
    names = ["../../evil", "/etc/passwd", "..", "\0", "a", "b", "c", "d", "e", "f"]
    store.write_npy(LensSet(images=lens_set().images, name=names), tmp_path / "x" / "y")
    assert len(list((tmp_path / "x" / "y").glob("*.npy"))) == 10
    assert {path.name for path in tmp_path.iterdir()} == {"x"}
    with pytest.raises(DataError, match=r"10 images would be written to same.npy"):
        store.write_npy(LensSet(images=lens_set().images, name=["same"] * 10), tmp_path / "z")


# ---- converting


def test_convert_there_and_back(tmp_path):
    store.write_npy(lens_set(), tmp_path / "npy")
    assert convert(tmp_path / "npy", tmp_path / "store") == {"": {"no": 4, "sphere": 3, "vort": 3}}
    convert(tmp_path / "store", tmp_path / "again", to="npy")
    assert np.array_equal(read(tmp_path / "again").images, read(tmp_path / "npy").images)


def test_convert_keeps_splits_apart(tmp_path):
    for start, split in ((0, "train"), (10, "val")):
        store.write_npy(lens_set(start), tmp_path / "src" / split)
    counts = convert(tmp_path / "src", tmp_path / "dst")
    assert set(counts) == {"train", "val"}
    assert np.array_equal(read(tmp_path / "dst", split="val").images, read(tmp_path / "src" / "val").images)
    (tmp_path / "dst" / "val" / "dataset.json").unlink()
    with pytest.raises(RunError):
        convert(tmp_path / "src", tmp_path / "dst")


def test_convert_never_overwrites(tmp_path):
    store.write_npy(lens_set(), tmp_path / "src")
    convert(tmp_path / "src", tmp_path / "dst")
    before = contents(tmp_path / "dst")
    with pytest.raises(RunError, match="never overwritten"):
        convert(tmp_path / "src", tmp_path / "dst")
    with pytest.raises(RunError, match="never overwritten"):
        convert(tmp_path / "dst", tmp_path / "src", to="npy")
    assert contents(tmp_path / "dst") == before
    with pytest.raises(ConfigError, match="did you mean 'parquet'"):
        convert(tmp_path / "src", tmp_path / "new", to="paquet")
    assert not (tmp_path / "new").exists()
