"""LensSet: what fits together, what does not, and what selecting keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from deeplense.data.schema import LensSet
from deeplense.errors import DataError


@pytest.fixture
def lens_set() -> LensSet:
    return LensSet(
        images=np.arange(4 * 2 * 3 * 3, dtype=np.float32).reshape(4, 2, 3, 3),
        name=["a", "b", "c", "d"],
        label=np.array([0, 1, 1, 0]),
        classes=("no", "sphere", "vort"),
        params=pa.table({"theta_E": [1.0, 1.1, 1.2, 1.3]}),
        pixel_scale=0.05,
    )


def test_select_keeps_order_and_everything_known(lens_set):
    chosen = lens_set.select(np.array([2, 0]))
    assert chosen.name == ["c", "a"]
    assert chosen.label.tolist() == [1, 0]
    assert chosen.params.to_pydict() == {"theta_E": [1.2, 1.0]}
    assert np.array_equal(chosen.images, lens_set.images[[2, 0]])
    assert (chosen.classes, chosen.pixel_scale) == (lens_set.classes, 0.05)


def test_class_counts_name_the_empty_class(lens_set):
    assert lens_set.class_counts() == {"no": 2, "sphere": 2, "vort": 0}
    assert replace(lens_set, label=None).class_counts() == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((4, 2, 3, 3))}, "float64"),
        ({"images": np.zeros((4, 3, 3), np.float32)}, "N, C, H, W"),
        ({"name": ["a"]}, "4 images"),
        ({"label": np.array([0, 1])}, "4 images"),
        ({"label": np.array([0, 1, 3, 0])}, "reach from 0 to 3"),
        ({"label": np.array([0, -1, 1, 0])}, "reach from -1"),
        ({"params": pa.table({"x": [1]})}, "1 rows"),
    ],
)
def test_parts_that_do_not_fit_are_named(lens_set, change, message):
    with pytest.raises(DataError, match=message):
        replace(lens_set, **change)


def test_fingerprint_tells_sets_apart_and_only_those(lens_set):
    same = replace(lens_set, images=lens_set.images.copy(), provenance={"source": "elsewhere"})
    assert same.fingerprint() == lens_set.fingerprint()
    pixel = lens_set.images.copy()
    pixel[3, 1, 2, 2] += 1
    others = [
        replace(lens_set, images=pixel),
        replace(lens_set, label=np.array([0, 1, 0, 0])),
        replace(lens_set, name=["a", "b", "c", "e"]),
        replace(lens_set, classes=("no", "sphere", "axion")),
    ]
    assert len({lens_set.fingerprint(), *(other.fingerprint() for other in others)}) == 5


def test_an_empty_set_is_allowed():
    empty = LensSet(images=np.zeros((0, 1, 8, 8), np.float32), name=[], label=np.zeros(0, np.int64), classes=("no",))
    assert len(empty) == 0 and empty.class_counts() == {"no": 0} and empty.fingerprint()
