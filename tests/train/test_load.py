"""What a validation part that is split off cannot be trusted for is said."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import pytest

from deeplense import config as configs
from deeplense.data import store
from deeplense.data.schema import LensSet
from deeplense.errors import DataError
from deeplense.train import load_data
from toy import lens_set, write_folder


def written(folder, seed=0, **more) -> str:
    """Forty random images of two classes, on disk."""
    rng = np.random.default_rng(seed)
    images = rng.random((40, 1, 8, 8), dtype=np.float32)
    names, label = [f"{i:03d}" for i in range(40)], np.arange(40) % 2
    store.write(LensSet(images, names, label, ("nonlens", "lens"), **more), folder)
    return f"data={folder}"


@pytest.fixture
def heard(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("deeplense"), "propagate", True)
    return caplog


def test_mined_images_alone_do_not_calibrate(tmp_path, heard):
    hard = written(tmp_path / "hard", provenance={"mined": {"run": "runs/finder"}})
    ordinary = written(tmp_path / "ordinary", seed=1).removeprefix("data=")
    load_data(configs.load("tiny/finder", [hard]), progress=False)
    assert "split off mined images" in heard.text
    heard.clear()
    load_data(configs.load("tiny/finder", [hard, f"data.val={ordinary}"]), progress=False)
    assert "mined" not in heard.text


def test_a_second_galaxy_may_stand_on_both_sides(tmp_path, heard):
    galaxy = [f"g{i % 10}" for i in range(40)]
    one = written(tmp_path / "one", params=pa.table({"lens_galaxy": galaxy}))
    two = written(tmp_path / "two", params=pa.table({"source_galaxy": galaxy, "lens_galaxy": galaxy[::-1]}))
    load_data(configs.load("tiny/finder", [one]), progress=False)
    assert "both sides" not in heard.text
    module = load_data(configs.load("tiny/finder", [two]), progress=False)
    assert "the same lens_galaxy may stand on both sides" in heard.text
    sides = [set(part.params["source_galaxy"].to_pylist()) for part in (module.train, module.val)]
    assert not sides[0] & sides[1]


def test_validation_is_split_off_the_whole_or_off_what_the_fraction_leaves(tmp_path):
    folder = write_folder(lens_set(300), tmp_path / "images")
    sizes = {}
    for value in ("false", "true"):
        settings = configs.load(
            "tiny/diffusion", [f"data={folder}", "data.fraction=0.2", f"data.val_of_fraction={value}"]
        )
        module = load_data(settings)
        sizes[value] = (len(module.train), len(module.val))
        assert not set(module.train.name) & set(module.val.name)
    assert sizes == {"false": (54, 30), "true": (54, 6)}


def test_images_without_labels_suit_a_task_that_needs_none(tmp_path):
    for i, image in enumerate(lens_set(40).images):
        np.save(tmp_path / f"{i}.npy", image)
    module = load_data(configs.load("tiny/diffusion", [f"data={tmp_path}"]))
    assert (len(module.train), len(module.val)) == (36, 4) and module.classes == ()
    with pytest.raises(DataError, match="has no labels"):
        load_data(configs.load("tiny/substructure", [f"data={tmp_path}"]))
