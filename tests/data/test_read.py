"""Reading folders, single files and archives; what is broken is named, left out, or an error."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest

from deeplense.data.read import find_splits, read
from deeplense.errors import DataError

RNG = np.random.default_rng(0)


def image(*shape: int) -> np.ndarray:
    return RNG.random(shape or (1, 8, 8))


def fill(folder: Path, num: int = 3, *shape: int) -> list[np.ndarray]:
    """Write num images 000.npy ... and return them."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [image(*shape) for _ in range(num)]
    for i, array in enumerate(images):
        np.save(folder / f"{i:03d}.npy", array)
    return images


@pytest.fixture
def three_classes(tmp_path: Path) -> Path:
    for name in ("vort", "no", "sphere"):
        fill(tmp_path / name, 50)
    return tmp_path


# ---- layouts


def test_class_folders_keep_values_names_and_order(tmp_path):
    written = {name: fill(tmp_path / name, 2) for name in ("vort", "no", "sphere")}
    lenses = read(tmp_path)
    assert lenses.classes == ("no", "sphere", "vort")
    assert lenses.label.tolist() == [0, 0, 1, 1, 2, 2] and lenses.label.dtype == np.int64
    assert list(lenses.name) == [f"{name}/{i:03d}.npy" for name in lenses.classes for i in range(2)]
    expected = np.stack([array for name in lenses.classes for array in written[name]]).astype(np.float32)
    assert np.array_equal(lenses.images, expected)
    assert lenses.params is None
    assert lenses.provenance == {
        "source": str(tmp_path),
        "format": "npy folder",
        "bad": [],
        "nan": {"images": 0, "pixels": 0},
    }


def test_flat_folder_has_no_labels(tmp_path):
    fill(tmp_path, 3, 8, 8)
    lenses = read(str(tmp_path))
    assert lenses.images.shape == (3, 1, 8, 8) and lenses.label is None and lenses.classes == ()


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ((8, 9), (1, 1, 8, 9)),
        ((1, 8, 9), (1, 1, 8, 9)),
        ((3, 8, 9), (1, 3, 8, 9)),
        ((8, 9, 3), (1, 3, 8, 9)),
        ((1, 1, 8, 9), (1, 1, 8, 9)),
        ((20, 8, 9), (20, 1, 8, 9)),
        ((2, 3, 8, 9), (2, 3, 8, 9)),
        ((20, 8, 9, 3), (20, 3, 8, 9)),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_single_file_layouts(tmp_path, stored, expected, order, suffix):
    array = np.asarray(image(*stored), order=order)
    path = tmp_path / f"x{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, array)
    lenses = read(path)
    assert lenses.images.shape == expected
    is_last = stored[-1] == 3
    assert np.array_equal(
        lenses.images.ravel(), (np.moveaxis(array, -1, -3) if is_last else array).astype("f4").ravel()
    )


@pytest.mark.parametrize("dtype", ["u1", "i2", "f2", ">f4", "f8", ">f8", "?"])
def test_any_real_type_becomes_float32_with_the_same_values(tmp_path, dtype):
    array = RNG.integers(0, 2 if dtype == "?" else 100, (8, 8)).astype(dtype)
    np.save(tmp_path / "x.npy", array)
    lenses = read(tmp_path / "x.npy")
    assert lenses.images.dtype == np.float32 and lenses.images.dtype.isnative
    assert np.array_equal(lenses.images[0, 0], array.astype(float))


def test_npz_with_labels_and_names(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(
        path, images=image(3, 8, 8)[:, None], label=["vort", "no", "vort"], name=["a", "b", "ç"], pixel_scale=0.05
    )
    lenses = read(path)
    assert lenses.classes == ("no", "vort") and lenses.label.tolist() == [1, 0, 1]
    assert lenses.name == ["a", "b", "ç"] and lenses.pixel_scale == 0.05


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": image(2, 8, 8), "b": image(2, 8, 8)}, "a, b; the images belong under the name 'images'"),
        ({"images": image(9, 8, 8), "label": [0, 1]}, r"labels are int64 \(2,\)"),
        ({"images": image(9, 8, 8), "name": ["a"]}, "1 names for 9 images"),
        ({"images": image(9, 8, 8), "label": [10**12] * 9}, "name that many classes"),
        ({"images": image(9, 8, 8), "label": ["x"] * 9, "classes": ["y"]}, "not among the classes"),
        ({"images": image(9, 8, 8), "pixel_scale": []}, "expected one number"),
        ({}, "no arrays"),
    ],
)
def test_npz_that_does_not_fit_together(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "x.npz")


@pytest.mark.parametrize("keep", [0, 50, 1000, -30])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_truncated_npz(tmp_path, save, keep):
    path = tmp_path / "x.npz"
    save(path, images=image(9, 8, 8))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"x.npz cannot be used: broken archive"):
        read(path)


def test_npz_with_a_flipped_bit(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, images=image(9, 8, 8))
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken archive \(Bad CRC-32"):
        read(path)


def test_splits_as_folders(tmp_path):
    for split in ("train", "Validation", "test"):
        fill(tmp_path / split / "no", 2)
    assert find_splits(tmp_path) == {
        "train": tmp_path / "train", "val": tmp_path / "Validation", "test": tmp_path / "test"
    }  # fmt: skip
    assert read(tmp_path, split="val").provenance["source"] == str(tmp_path / "Validation")
    with pytest.raises(DataError, match="train, val, test: say which"):
        read(tmp_path)
    with pytest.raises(DataError, match="no split 'trian'; did you mean 'train'"):
        read(tmp_path, split="trian")


def test_splits_as_prefixes(tmp_path):
    for name in ("train_lenses", "train_nonlenses", "test_lenses", "test_nonlenses"):
        fill(tmp_path / name, 2)
    assert set(find_splits(tmp_path)) == {"train", "test"}
    lenses = read(tmp_path, split="test")
    assert lenses.classes == ("nonlenses", "lenses") and lenses.name[0] == "test_nonlenses/000.npy"


def test_split_of_a_folder_without_splits(three_classes):
    assert find_splits(three_classes) == find_splits(three_classes / "missing") == {}
    with pytest.raises(DataError, match="no splits: leave split="):
        read(three_classes, split="train")


def test_axion_mass_becomes_a_column(tmp_path):
    for name in ("no", "axion"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "no" / "a.npy", image(8, 8))
    pair = np.empty(2, object)
    pair[0], pair[1] = image(8, 8), 3.5e-23
    np.save(tmp_path / "axion" / "b.npy", pair)
    lenses = read(tmp_path)
    assert lenses.params.to_pydict() == {"m_axion": [None, 3.5e-23]}
    assert np.array_equal(lenses.images[1, 0], pair[0].astype(np.float32))


def test_large_sets_are_mapped_from_disk_and_leave_nothing(three_classes, monkeypatch, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    mapped = read(three_classes, max_memory_gb=1e-6)
    assert isinstance(mapped.images, np.memmap)
    assert np.array_equal(mapped.images, read(three_classes).images)
    assert list(scratch.iterdir()) == []


def test_full_disk_under_a_mapped_set(three_classes, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(DataError, match=r"No space left on device.*TMPDIR"):
        read(three_classes, max_memory_gb=1e-6)


# ---- images that cannot be used


def nan_image() -> np.ndarray:
    array = image()
    array[0, :, :5] = np.nan
    return array


BAD = {
    "nan": (nan_image(), "full of NaN or infinite values: 62% of its pixels"),
    "nothing but nan": (np.full((8, 8), np.nan), "full of NaN or infinite values: 100%"),
    "too large for float32": (image(8, 8) * np.where(np.eye(8), 1, 1e300), "full of NaN or infinite values: 88%"),
    "constant but for nan": (np.where(np.eye(8), np.nan, 0.25), "constant: every pixel is 0.25"),
    "constant": (np.full((8, 8), 0.25), "constant: every pixel is 0.25"),
    "other size": (image(1, 4, 4), r"\(1, 4, 4\) where most are \(1, 8, 8\)"),
    "vector": (image(8), r"shape \(8,\)"),
    "nothing": (np.zeros((0, 8)), "without a pixel"),
    "complex": (image(8, 8) + 1j, "complex128"),
    "text": (np.array([["a"]]), "not real numbers"),
    "records": (np.zeros((8, 8), "f4,f4"), "not real numbers"),
    "stack": (image(9, 8, 8), r"\(9, 8, 8\); one image is"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_image_is_named_and_left_out(three_classes, caplog, kind):
    array, reason = BAD[kind]
    np.save(three_classes / "no" / "000.npy", array)
    lenses = read(three_classes)
    assert len(lenses) == 149 and lenses.class_counts() == {"no": 49, "sphere": 50, "vort": 50}
    assert lenses.name[0] == "no/001.npy" and lenses.provenance["bad"] == ["no/000.npy"]
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "no/000.npy" in record.getMessage() and re.search(reason, record.getMessage())


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"not an array", b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((("])
def test_file_that_is_no_array(three_classes, content):
    (three_classes / "no" / "000.npy").write_bytes(content)
    assert read(three_classes).provenance["bad"] == ["no/000.npy"]


def test_truncated_file_says_how_much_is_there(three_classes, caplog):
    path = three_classes / "no" / "000.npy"
    path.write_bytes(path.read_bytes()[:-100])
    assert len(read(three_classes)) == 149
    assert "truncated: 412 of 512 bytes" in caplog.text


def test_header_that_promises_the_world_takes_no_memory(three_classes, caplog):
    with (three_classes / "no" / "000.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (1, 10**8, 10**8)})
    assert len(read(three_classes)) == 149
    assert "100000000" in caplog.text


def test_more_bad_images_than_allowed_is_an_error_that_names_them(three_classes):
    for name in ("no/000.npy", "vort/001.npy"):
        np.save(three_classes / name, np.zeros((8, 8)))
    with pytest.raises(DataError, match=r"2 of 150 .* max_bad_fraction=0.01 .* no/000.npy \(constant.*vort/001.npy"):
        read(three_classes)
    assert len(read(three_classes, max_bad_fraction=0.02)) == 148


def test_different_sizes_are_an_error_that_gives_them(tmp_path):
    fill(tmp_path / "no", 5, 8, 8)
    fill(tmp_path / "vort", 4, 6, 6)
    with pytest.raises(DataError, match=r"4 of 9 images.*shape \(1, 6, 6\) where most are \(1, 8, 8\)"):
        read(tmp_path)


def test_only_bad_images_is_an_error_even_when_allowed(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((8, 8)))
    with pytest.raises(DataError, match="none of the 1 images"):
        read(tmp_path, max_bad_fraction=1.0)


def test_single_bad_file(tmp_path):
    np.save(tmp_path / "a.npy", nan_image())
    with pytest.raises(DataError, match=r"a.npy cannot be used: full of NaN"):
        read(tmp_path / "a.npy")


def test_bad_image_inside_a_stack(tmp_path):
    stack = image(200, 8, 8)
    stack[7] = 0
    np.save(tmp_path / "x.npy", stack)
    lenses = read(tmp_path / "x.npy")
    assert len(lenses) == 199 and lenses.provenance["bad"] == ["x/000007"] and lenses.name[7] == "x/000008"


@pytest.mark.parametrize("fraction", [-0.1, 1.5])
def test_fraction_out_of_range(three_classes, fraction):
    with pytest.raises(DataError, match="allowed: 0 to 1"):
        read(three_classes, max_bad_fraction=fraction)


# ---- folders and files that are not what they should be


def test_class_folder_without_images_warns(three_classes, caplog):
    (three_classes / "empty").mkdir()
    (three_classes / "empty" / "notes.txt").touch()
    assert read(three_classes).classes == ("no", "sphere", "vort")
    assert "no class 'empty'" in caplog.text


def test_hidden_files_and_folders_are_not_images(three_classes):
    fill(three_classes / ".ipynb_checkpoints", 1)
    (three_classes / "no" / "._000.npy").write_bytes(b"macOS leaves these")
    assert len(read(three_classes)) == 150


def test_nothing_there(tmp_path, caplog):
    with pytest.raises(DataError, match="no images in"):
        read(tmp_path)
    (tmp_path / "no").mkdir()
    with pytest.raises(DataError, match="no images in"):
        read(tmp_path)


def test_missing_path_suggests_its_neighbour(three_classes):
    with pytest.raises(DataError, match=r"no such file or folder.*did you mean 'sphere'"):
        read(three_classes / "spere")
    with pytest.raises(DataError, match="no such file or folder"):
        read(three_classes / "x" / "y")


def test_file_where_a_folder_is_expected(tmp_path):
    (tmp_path / "data.txt").write_text("hello")
    with pytest.raises(DataError, match=r"allowed: .npy, .fits, .* or a folder"):
        read(tmp_path / "data.txt")
    np.save(tmp_path / "x.npy", image())
    with pytest.raises(DataError, match="is a file; split='train' needs a folder"):
        read(tmp_path / "x.npy", split="train")


def test_folder_and_dangling_link_where_a_file_is_expected(three_classes, caplog):
    (three_classes / "no" / "folder.npy").mkdir()
    (three_classes / "no" / "link.npy").symlink_to("nowhere")
    assert len(read(three_classes, max_bad_fraction=0.02)) == 150
    assert "folder.npy: cannot be read: Is a directory" in caplog.text
    assert "link.npy: cannot be read: No such file" in caplog.text


@pytest.fixture
def as_nobody():
    """A folder of an unprivileged user, who we are for the length of a test (root may read everything)."""
    with tempfile.TemporaryDirectory() as folder:
        if os.geteuid() != 0:
            yield Path(folder)
            return
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(0)


def test_unreadable_file_and_folder(as_nobody, caplog):
    fill(as_nobody / "no", 150)
    (as_nobody / "no" / "003.npy").chmod(0)
    assert len(read(as_nobody)) == 149
    assert "no/003.npy: cannot be read: Permission denied" in caplog.text
    (as_nobody / "no").chmod(0)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        read(as_nobody)
    (as_nobody / "no").chmod(0o700)


def test_unicode_and_undecodable_names(tmp_path):
    folder = tmp_path / "galaxie ✨"
    fill(folder, 1)
    np.save(folder / "каталог ñ.npy", image())
    (folder / "000.npy").rename(folder / os.fsdecode(b"caf\xe9.npy"))
    lenses = read(tmp_path)
    assert set(lenses.name) == {"galaxie ✨/caf\ufffd.npy", "galaxie ✨/каталог ñ.npy"}
    assert lenses.fingerprint()


def test_progress_bar_does_not_change_the_result(three_classes):
    assert np.array_equal(read(three_classes, progress=True).images, read(three_classes).images)


# ---- the genuine files


def test_genuine_common_test_images(shared_data):
    lenses = read(shared_data / "common-test-figures")
    assert lenses.images.shape == (35, 1, 150, 150)
    assert lenses.class_counts() == {"no": 13, "sphere": 11, "vort": 11}
    assert lenses.images.min() == 0 and lenses.images.max() == 1


def test_genuine_lens_finding_images(shared_data):
    lenses = read(shared_data / "lens-finding-figures")
    assert lenses.images.shape == (38, 3, 64, 64)
    assert lenses.class_counts() == {"nonlenses": 19, "lenses": 19}


def test_genuine_single_files(shared_data):
    files = sorted((shared_data / "deeplense-singles").rglob("*.npy"))
    assert len(files) == 6
    for file in files:
        expected = np.load(file).astype(np.float32)
        assert np.array_equal(read(file).images.ravel(), expected.ravel())
