"""The cache of files that were read: the same images the next time, never stale ones, never in the way."""

import json
import os
import time

import numpy as np
import pytest

from deeplense.data import cache
from deeplense.data.read import read
from deeplense.data.rows import is_mapped
from deeplense.errors import DataError
from toy import lens_set, write_folder


@pytest.fixture
def own(tmp_path, monkeypatch):
    """An empty cache folder, and sets of a few files as large enough for it."""
    monkeypatch.setenv("DEEPLENSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "MANY", 6)
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    return write_folder(lens_set(12, seed=3), tmp_path / "set")


def entries(own):
    return sorted(p for p in own.iterdir() if not p.name.startswith("."))


def same(a, b):
    np.testing.assert_array_equal(np.asarray(a.images), np.asarray(b.images))
    np.testing.assert_array_equal(a.label, b.label)
    assert (list(a.name), a.classes, a.provenance) == (list(b.name), b.classes, b.provenance)


def test_the_second_reading_maps_what_the_first_one_left(own, folder, caplog):
    caplog.set_level("INFO")
    plain, first = read(folder), read(folder, cache=True)
    assert not any("read before" in r.message for r in caplog.records) and len(entries(own)) == 1
    second = read(folder, cache=True)
    assert any("read before" in r.message for r in caplog.records) and len(entries(own)) == 1
    same(plain, first)
    same(plain, second)
    assert plain.fingerprint() == second.fingerprint()


def test_without_the_setting_nothing_is_written(own, folder):
    read(folder)
    assert not own.exists()


def test_few_files_are_not_kept(own, tmp_path):
    read(write_folder(lens_set(3), tmp_path / "few"), cache=True)
    assert not own.exists()


def test_a_changed_file_is_read_again(own, folder):
    read(folder, cache=True)
    file = sorted((folder / "no").iterdir())[0]
    changed = np.load(file) + 1
    np.save(file, changed)
    os.utime(file, ns=(1, 1))  # a clock that went back is a change, too
    found = read(folder, cache=True)
    np.testing.assert_array_equal(found.images[list(found.name).index(f"no/{file.name}")], changed)


def test_a_new_file_and_a_file_that_is_gone_are_noticed(own, folder):
    read(folder, cache=True)
    file = sorted((folder / "no").iterdir())[0]
    np.save(folder / "no" / "new.npy", np.load(file) * 2)
    assert len(read(folder, cache=True)) == 13
    file.unlink()
    assert len(read(folder, cache=True)) == 12


def test_settings_of_reading_have_entries_of_their_own(own, folder):
    read(folder, cache=True)
    masked = float(np.load(sorted((folder / "no").iterdir())[0]).flat[5])
    found = read(folder, cache=True, mask_value=masked)
    assert np.isnan(np.asarray(found.images)).sum() == 1 and len(entries(own)) == 2
    assert not np.isnan(np.asarray(read(folder, cache=True).images)).any()


def test_bad_images_are_left_out_the_second_time_as_well(own, folder):
    np.save(folder / "no" / "broken.npy", np.zeros((24, 24)))
    first, second = (read(folder, cache=True, max_bad_fraction=0.5) for _ in range(2))
    assert first.provenance["bad"] == ["no/broken.npy"] and len(first) == 12
    same(first, second)
    with pytest.raises(DataError, match="max_bad_fraction"):
        read(folder, cache=True, max_bad_fraction=0.01)


def test_changing_images_in_memory_leaves_the_entry_alone(own, folder):
    read(folder, cache=True)
    found = read(folder, cache=True)
    before = np.array(found.images)
    found.images[:] = 0
    np.testing.assert_array_equal(np.asarray(read(folder, cache=True).images), before)


@pytest.mark.parametrize("damage", ["images", "rest", "cut"])
def test_a_damaged_entry_is_read_again(own, folder, damage, caplog):
    caplog.set_level("INFO")
    plain = read(folder, cache=True)
    images = np.array(plain.images)
    (entry,) = entries(own)
    if damage == "images":
        (entry / cache.IMAGES).unlink()
    elif damage == "rest":
        (entry / cache.REST).write_text("{")
    else:
        os.truncate(entry / cache.IMAGES, 1000)
    np.testing.assert_array_equal(np.asarray(read(folder, cache=True).images), images)
    caplog.clear()
    np.testing.assert_array_equal(np.asarray(read(folder, cache=True).images), images)
    assert any("read before" in r.message for r in caplog.records)  # and is whole again


def test_what_was_not_used_for_longest_goes_when_there_is_no_room(own, tmp_path, monkeypatch):
    folders = [write_folder(lens_set(12, seed=k), tmp_path / f"set-{k}") for k in range(3)]
    size = 12 * 24 * 24 * 4 + 128
    monkeypatch.setenv("DEEPLENSE_CACHE_GB", str(2.5 * size / 1e9))
    read(folders[0], cache=True)
    (first,) = entries(own)
    os.utime(first, (1, 1))
    read(folders[1], cache=True)
    read(folders[2], cache=True)
    assert len(entries(own)) == 2 and first not in entries(own)


def test_a_set_that_cannot_fit_deletes_nothing(own, folder, tmp_path, monkeypatch):
    read(folder, cache=True)
    kept = entries(own)
    monkeypatch.setenv("DEEPLENSE_CACHE_GB", "1e-6")
    other = write_folder(lens_set(12, seed=8), tmp_path / "other")
    same(read(other), read(other, cache=True))
    assert entries(own) == kept


@pytest.mark.parametrize("limit", ["0", "1e-9", "20"])
def test_max_memory_holds_with_and_without_room(own, folder, monkeypatch, limit):
    monkeypatch.setenv("DEEPLENSE_CACHE_GB", limit)
    assert is_mapped(read(folder, cache=True, max_memory_gb=1e-6).images)


def test_files_that_changed_places_are_noticed(own, folder):
    files = [sorted((folder / name).iterdir())[0] for name in ("no", "vort")]
    for file in files:
        os.utime(file, (1, 1))  # as after unpacking an archive
    read(folder, cache=True)
    files[0].rename(folder / "aside")
    files[1].rename(files[0])
    (folder / "aside").rename(files[1])
    same(read(folder), read(folder, cache=True))


def test_what_a_killed_process_left_goes_after_a_day(own, folder):
    for name, age in ((".making-old", 3 * 86400), (".making-new", 60)):
        (own / name).mkdir(parents=True)
        (own / name / "images.npy").write_bytes(b"x" * 1000)
        os.utime(own / name, (time.time() - age,) * 2)
    read(folder, cache=True)
    assert not (own / ".making-old").exists() and (own / ".making-new").exists()


def test_without_a_home_folder_images_are_read_all_the_same(folder, monkeypatch):
    monkeypatch.setattr(cache, "MANY", 6)
    for name in ("DEEPLENSE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cache.Path, "home", homeless)
    same(read(folder), read(folder, cache=True))


@pytest.mark.parametrize("value", ["0", "1e-9"])
def test_no_room_means_no_cache_and_images_all_the_same(own, folder, monkeypatch, value):
    monkeypatch.setenv("DEEPLENSE_CACHE_GB", value)
    same(read(folder), read(folder, cache=True))
    assert not own.exists() or entries(own) == []


def test_a_limit_that_is_no_number_is_one_line(own, folder, monkeypatch):
    monkeypatch.setenv("DEEPLENSE_CACHE_GB", "much")
    with pytest.raises(DataError, match="DEEPLENSE_CACHE_GB=much: give a number of gigabytes"):
        read(folder, cache=True)


def test_a_cache_that_cannot_be_written_is_no_error(folder, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEEPLENSE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(cache, "MANY", 6)
    same(read(folder), read(folder, cache=True))
    assert any("cannot be written" in r.message for r in caplog.records)


def test_the_entry_is_a_plain_array_that_numpy_reads(own, folder):
    found = read(folder, cache=True)
    (entry,) = entries(own)
    np.testing.assert_array_equal(np.load(entry / "images.npy"), np.asarray(found.images))
    assert json.loads((entry / "gathered.json").read_text())["kept"] == list(range(12))


def test_axion_masses_come_back(own, tmp_path):
    for k, image in enumerate(lens_set(8).images):
        pair = np.empty(2, dtype=object)
        pair[:] = [image[0].astype(np.float64), 1e-23 * (k + 1)]
        path = tmp_path / "set" / "axion" / f"{k}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, pair, allow_pickle=True)
    first, second = (read(tmp_path / "set", cache=True) for _ in range(2))
    assert first.params.equals(second.params) and first.params["m_axion"].to_pylist()[3] == 4e-23
