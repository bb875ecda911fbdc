"""The lens-finding layout: train_lenses, train_nonlenses, test_lenses, test_nonlenses of (3, 64, 64) .npy."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from deeplense import cli, config, train
from deeplense.config import parse_data
from deeplense.data.read import find_splits, read
from deeplense.errors import DataError
from deeplense.evaluate.judge import judge
from toy import tiny, tiny_finder

RNG = np.random.default_rng(0)
FOLDERS = ("train_lenses", "train_nonlenses", "test_lenses", "test_nonlenses")


def write(folder: Path, num: int, channels: int = 3, start: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + num):
        np.save(folder / f"{i:04d}.npy", RNG.random((channels, 64, 64)))


@pytest.fixture
def four(tmp_path: Path) -> Path:
    for folder, num in zip(FOLDERS, (20, 60, 10, 30), strict=True):
        write(tmp_path / "set" / folder, num)
    return tmp_path / "set"


def loaded(path: Path, *overrides: str):
    return train.load_data(tiny(path.parent / "run", f"data={path}", *overrides))


def test_training_never_sees_a_test_image(four):
    module = loaded(four, "data.balanced=true")
    assert module.classes == ("nonlenses", "lenses")
    names = [*module.train.name, *module.val.name]
    assert len(names) == 80 and all(name.startswith("train_") for name in names)
    assert module.val.class_counts() == {"nonlenses": 6, "lenses": 2}
    assert module.balanced and module.train_prevalence.tolist() == [0.5, 0.5]
    tested = read(four, split="test")
    assert tested.class_counts() == {"nonlenses": 30, "lenses": 10}
    assert all(name.startswith("test_") for name in tested.name)


def test_upper_case_names_are_read(tmp_path):
    for folder in FOLDERS:
        write(tmp_path / folder.upper(), 3)
        for file in (tmp_path / folder.upper()).iterdir():
            file.rename(file.with_suffix(".NPY"))
    assert set(find_splits(tmp_path)) == {"train", "test"}
    lenses = read(tmp_path, split="train")
    assert lenses.class_counts() == {"NONLENSES": 3, "LENSES": 3}
    assert lenses.name[0] == "TRAIN_NONLENSES/0000.NPY"


def test_images_of_one_channel_among_three_are_left_out_and_counted(four, caplog):
    write(four / "train_lenses", 2, channels=1, start=100)
    lenses = read(four, split="train", max_bad_fraction=0.05)
    assert lenses.images.shape == (80, 3, 64, 64)
    assert lenses.provenance["bad"] == ["train_lenses/0100.npy", "train_lenses/0101.npy"]
    assert "shape (1, 64, 64) where most are (3, 64, 64)" in caplog.text
    with pytest.raises(DataError, match=r"2 of 82 images.*\(1, 64, 64\) where most are \(3, 64, 64\)"):
        read(four, split="train")


def test_object_arrays_with_a_mass(four):
    pair = np.empty(2, object)
    pair[0], pair[1] = RNG.random((3, 64, 64)), 1e-22
    np.save(four / "train_lenses" / "0000.npy", pair)
    lenses = read(four, split="train")
    place = list(lenses.name).index("train_lenses/0000.npy")
    np.testing.assert_array_equal(lenses.images[place], pair[0].astype(np.float32))
    assert lenses.params["m_axion"][place].as_py() == 1e-22


def test_an_empty_class_folder_warns_and_one_class_is_not_trained_on(four, caplog):
    for file in (four / "train_lenses").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"only one class \(nonlenses\): there is nothing to tell apart") as error:
        loaded(four)
    assert "\n" not in str(error.value)
    assert "train_lenses holds no images: there is no class 'lenses'" in caplog.text
    assert read(four, split="test").class_counts() == {"nonlenses": 30, "lenses": 10}


def test_images_full_of_nan_are_left_out_and_others_with_nan_stay(four):
    image = RNG.random((3, 64, 64))
    image[0, :8] = np.nan
    np.save(four / "train_lenses" / "0000.npy", image)
    np.save(four / "train_lenses" / "0001.npy", np.full((3, 64, 64), np.nan))
    lenses = read(four, split="train", max_bad_fraction=0.02)
    assert lenses.provenance["bad"] == ["train_lenses/0001.npy"]
    assert lenses.provenance["nan"] == {"images": 1, "pixels": 8 * 64}
    with pytest.raises(DataError, match=r"0001.npy \(full of NaN"):
        loaded(four, "data.max_bad_fraction=0.001")


def test_a_folder_beside_them_does_not_turn_test_images_into_classes(four):
    (four / "docs").mkdir()
    (four / "docs" / "notes.txt").touch()
    assert set(find_splits(four)) == {"train", "test"}
    write(four / "extra", 2)
    with pytest.raises(DataError, match=r"test_lenses.*look like splits, beside extra: move or rename"):
        loaded(four)


def test_the_test_images_are_not_taken_for_those_of_training_nor_mined(four, tmp_path, capsys, caplog, monkeypatch):
    settings = tiny_finder(tmp_path / "run", f"data={four}", "train.epochs=1")
    run = train.fit(settings, train.load_data(settings), progress=False)
    judge(run, read(four, split="test"), tmp_path / "report", bootstrap=0)
    assert "used in training" not in caplog.text
    monkeypatch.setattr("sys.argv", ["deeplense", "mine", str(run), f"data={four}", "--out", str(tmp_path / "hard")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert all(name.startswith("train_") for name in read(tmp_path / "hard").name)
    for split in ("train_lenses", "train_nonlenses"):
        shutil.rmtree(four / split)
    with pytest.raises(SystemExit):
        cli.main()
    assert "holds test images only" in capsys.readouterr().err


def test_settings_reach_the_reader(four, tmp_path):
    write(four / "train_lenses", 2, channels=1, start=100)
    assert len(loaded(four, "data.max_bad_fraction=0.1").train) == 72
    data = parse_data([f"data={four}", "data.max_nan_fraction=0.25", "data.mask_value=100", "data.bands=['g', 'r']"])
    assert data.reading() == {
        **{"max_bad_fraction": 0.01, "max_nan_fraction": 0.25, "max_memory_gb": 8.0, "mask_value": 100.0},
        **{"bands": ["g", "r"], "file_column": None, "label_column": None, "cache": True},
    }
    assert config.DataConfig().reading().keys() == config.READING - {"path"}
    read(four, split="test", **config.DataConfig().reading())


def test_masked_pixels_of_training_images_are_filled(four):
    for file in (four / "train_lenses").iterdir():
        image = np.load(file)
        image[:, :5, :5] = 100
        np.save(file, image)
    module = loaded(four, "data.mask_value=100")
    assert module.train.nan_fraction()[module.train.label == 1] == pytest.approx(25 / 64**2)
    task = train.build_task(tiny(four.parent / "run", "model.size=24"), module)
    assert task.preprocess.mean.max() < 1
    rows = np.flatnonzero(module.train.label == 1)
    assert task(torch.from_numpy(module.train.images[rows])).isfinite().all()
