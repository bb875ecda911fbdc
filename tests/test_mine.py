"""Hard negatives against a plain ranking of all images."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from deeplense import config, train
from deeplense.data.read import read
from deeplense.errors import ConfigError, DataError, RunError
from deeplense.mine import mine, simulated
from deeplense.predict import Predictor
from deeplense.simulate.stream import simulated_set
from toy import data, finder_data, finder_set, tiny, tiny_finder, write_folder

PRESET = ["data=preset:hsc-gri", "data.seed=5", "data.num=96"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train.fit(tiny_finder(tmp_path_factory.mktemp("runs") / "run", "train.epochs=1"), finder_data())


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """A finder of simulated images in three bands."""
    settings = tiny_finder(tmp_path_factory.mktemp("runs") / "survey", "train.epochs=1")
    images = [simulated_set("hsc-gri", "physical", seed, 48) for seed in (1, 2)]
    return train.fit(settings, train.LensDataModule(*images, 16))


def hardest(run, images, num):
    """Names and scores of the non-lenses with the highest scores."""
    score = Predictor.load(run).predict(images)["score"].to_numpy()
    rows = np.flatnonzero(images.label == 0)
    rows = rows[np.argsort(-score[rows], kind="stable")][:num]
    return [images.name[i] for i in rows], score[rows]


def test_the_most_lens_like_non_lenses_come_with_the_lenses_and_can_be_trained_on(run, tmp_path):
    images = replace(finder_set(90, seed=8), params=pa.table({"z": np.arange(90.0)}), pixel_scale=0.2)
    mine(run, images, tmp_path / "hard", num=7)
    found = read(tmp_path / "hard")
    names, scores = hardest(run, images, 7)
    lenses = [name for name, label in zip(images.name, images.label, strict=True) if label == 1]
    assert list(found.name) == names + lenses
    np.testing.assert_allclose(found.params["score"].to_numpy()[:7], scores, rtol=1e-5)
    assert found.params["run"].to_pylist() == [str(run)] * len(found)
    place = {name: i for i, name in enumerate(images.name)}
    rows = np.array([place[name] for name in found.name])
    np.testing.assert_array_equal(found.images, images.images[rows])
    np.testing.assert_array_equal(found.params["z"].to_numpy(), rows)
    assert found.pixel_scale == 0.2 and found.classes == ("nonlens", "lens")
    assert found.provenance["mined"]["run"] == str(run) and found.provenance["mined"]["scored"] == 90
    settings = tiny_finder(tmp_path / "again", f"data={tmp_path / 'hard'}", f"init={run}", "train.epochs=1")
    assert (train.fit(settings, train.load_data(settings)) / "model.json").is_file()


def test_parts_give_what_the_whole_gives(run, tmp_path):
    whole = finder_set(200, seed=8)
    parts = [whole.select(np.arange(start, min(start + 13, 200))) for start in range(0, 200, 13)]
    a = mine(run, whole, tmp_path / "a", num=11, negatives_only=True)
    b = mine(run, iter(parts), tmp_path / "b", num=11, negatives_only=True)
    assert list(a.name) == list(b.name) == hardest(run, whole, 11)[0]
    assert a.class_counts() == {"nonlens": 11, "lens": 0}


def test_simulated_images_are_mined_as_they_come(survey, tmp_path):
    found = mine(survey, simulated(config.parse_data(PRESET, can_simulate=True)), tmp_path / "hard", num=9)
    images = simulated_set("hsc-gri", "physical", 5, 96)
    assert list(found.name[:9]) == hardest(survey, images, 9)[0]
    again = read(tmp_path / "hard")
    assert "theta_E" in again.params.column_names
    assert (again.provenance["preset"], again.provenance["seed"]) == ("hsc-gri", 5)
    assert again.class_counts() == {"nonlens": 9, "lens": int((images.label == 1).sum())}


def test_lens_galaxies_of_training_can_be_mined_with(tmp_path):
    chosen = config.parse_data([*PRESET, f"data.lens_galaxies={tmp_path}"], can_simulate=True)
    with pytest.raises(DataError, match="no galaxies in"):
        next(simulated(chosen))


def test_mining_again_replaces_the_columns_and_asks_for_a_free_folder(run, tmp_path):
    mine(run, finder_set(40, seed=8), tmp_path / "a", num=20)
    again = mine(run, read(tmp_path / "a"), tmp_path / "b", num=5)
    assert again.params.column_names == ["run", "score"]
    with pytest.raises(RunError, match="never overwritten"):
        mine(run, finder_set(40, seed=8), tmp_path / "a", num=20)


def test_images_of_training_come_with_a_warning(tmp_path, caplog):
    folder = write_folder(finder_set(60), tmp_path / "images")
    settings = tiny_finder(tmp_path / "run", f"data={folder}", "train.epochs=1")
    run = train.fit(settings, train.load_data(settings))
    with caplog.at_level(logging.WARNING):
        mine(run, finder_set(30, seed=9), tmp_path / "a", num=5)
        assert "used in training" not in caplog.text
        mine(run, read(folder), tmp_path / "b", num=5)
    assert "used in training" in caplog.text


def test_what_cannot_be_mined(run, tmp_path):
    images = finder_set(12)
    with pytest.raises(ConfigError, match="num=0"):
        mine(run, images, tmp_path / "a", num=0)
    with pytest.raises(DataError, match="no labels"):
        mine(run, replace(images, label=None, classes=()), tmp_path / "a")
    with pytest.raises(DataError, match="nothing to mine"):
        mine(run, images.select(np.flatnonzero(images.label == 1)), tmp_path / "a")
    other = train.fit(tiny(tmp_path / "other", "train.epochs=1"), data())
    with pytest.raises(ConfigError, match="a run of substructure"):
        mine(other, images, tmp_path / "a")
    with pytest.raises(ConfigError, match=r"data\.batch_size' has no meaning"):
        config.parse_data([*PRESET, "data.batch_size=3"], can_simulate=True)
    assert not (tmp_path / "a").exists()
