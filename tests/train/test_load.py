"""What a validation part that is split off cannot be trusted for is said."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import pytest

from deeplense import config as configs
from deeplense.data import store
from deeplense.data.schema import LensSet
from deeplense.train import load_data


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
