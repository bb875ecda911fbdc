"""Sets read in parts are the sets read whole, and no more than a part is ever in memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from deeplense.data import store
from deeplense.data.read import parts, read
from deeplense.data.schema import Parts
from deeplense.errors import DataError
from toy import lens_set, write_folder


def write_store(images, path):
    store.write(images, path / "set", shard_size=8)
    return path / "set"


def write_stack(images, path):
    np.save(path / "stack.npy", images.images[:, 0])
    return path / "stack.npy"


def write_table(images, path):
    write_folder(images, path)
    rows = [
        f"{images.classes[label]}/{name}.npy,{label}" for name, label in zip(images.name, images.label, strict=True)
    ]
    (path / "table.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    return path / "table.csv"


LAYOUTS = {"store": write_store, "folder": write_folder, "stack": write_stack, "table": write_table}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_hold_what_the_whole_holds_in_its_order(layout, tmp_path):
    path = LAYOUTS[layout](lens_set(43), tmp_path)
    whole, found = read(path), parts(path, size=17)
    assert found.num == 43
    sets = list(found)
    # Shards hold 8: two of them fit in a part.
    assert [len(part) for part in sets] == ([16, 16, 11] if layout == "store" else [17, 17, 9])
    np.testing.assert_array_equal(np.concatenate([part.images for part in sets]), whole.images)
    assert [name for part in sets for name in part.name] == list(whole.name)
    assert {(part.classes, part.pixel_scale) for part in sets} == {(whole.classes, whole.pixel_scale)}
    if whole.label is not None:
        np.testing.assert_array_equal(np.concatenate([part.label for part in sets]), whole.label)


def test_a_shard_is_never_divided(tmp_path):
    assert [len(part) for part in parts(write_store(lens_set(20), tmp_path), size=5)] == [8, 8, 4]


def test_the_parts_of_a_split(tmp_path):
    for split, num in (("train", 9), ("test", 12)):
        write_folder(lens_set(num), tmp_path / split)
    assert [len(part) for part in parts(tmp_path, split="test", size=5)] == [5, 5, 2]
    with pytest.raises(DataError, match="say which"):
        parts(tmp_path)


def test_masked_pixels_are_missing_in_every_part(tmp_path):
    images = lens_set(20)
    images.images[:, 0, 3, 4] = 100
    found = parts(write_store(images, tmp_path), size=8, mask_value=100)
    assert all(np.isnan(part.images[:, 0, 3, 4]).all() and np.isnan(part.images).mean() == 1 / 24**2 for part in found)


def spoil(folder, places):
    """Make some files of a folder no arrays."""
    files = sorted(folder.rglob("*.npy"))
    for place in places:
        files[place].write_bytes(b"no array")
    return [file.relative_to(folder).as_posix() for file in np.array(files)[list(places)]]


def test_bad_images_of_all_parts_count_together_and_stop_the_reading_early(tmp_path, caplog):
    folder = write_folder(lens_set(40), tmp_path)
    np.save(sorted(folder.rglob("*.npy"))[39], np.zeros((1, 24, 24)))  # constant: is found when it is read
    bad = spoil(folder, range(3))
    found = list(parts(folder, size=7, max_bad_fraction=0.1))
    assert [len(part) for part in found] == [4, 7, 7, 7, 7, 4]
    left_out = [name for part in found for name in part.provenance["bad"]]
    assert left_out == read(folder, max_bad_fraction=0.1).provenance["bad"] and left_out[:3] == bad
    assert all(caplog.text.count(f"left out {name}") == 2 for name in bad)  # once in parts, once whole
    # The first three are one part, the last image is another: a part that holds none is none.
    assert [len(part) for part in parts(folder, size=3, max_bad_fraction=0.1)] == [3] * 12
    begun: list[int] = []
    with pytest.raises(DataError, match="at least 4 of 40 images"):
        begun.extend(len(part) for part in parts(folder, size=10, max_bad_fraction=0.09))
    assert begun == [7, 10, 10]


def test_a_lost_shard_is_told_as_its_turn_comes(tmp_path):
    path = write_store(lens_set(20), tmp_path)
    (path / "data" / "part-00001.parquet").unlink()
    found = iter(parts(path, size=8))
    assert len(next(found)) == 8
    with pytest.raises(DataError, match=r"part-00001.parquet is damaged"):
        next(found)


def test_the_head_is_not_lost():
    whole = lens_set(20)
    first, every = Parts(20, whole.parts(8)).head(10)
    assert [len(part) for part in first] == [8, 8]
    assert [name for part in every for name in part.name] == list(whole.name) and every.num == 20
    assert Parts(20, whole.parts(8)).head(100)[1].num == 20


@pytest.mark.parametrize("layout", ["store", "folder"])
def test_memory_is_that_of_a_part(layout, tmp_path):
    def peak(num, folder):
        folder.mkdir()
        path = LAYOUTS[layout](lens_set(num, size=64), folder)
        tracemalloc.start()
        assert sum(len(part) for part in parts(path, size=32)) == num
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(64, tmp_path / "warm")
    assert peak(640, tmp_path / "many") < 1.5 * peak(64, tmp_path / "few")
