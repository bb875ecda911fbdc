"""Class names to numbers, and numbers of one set to those of another."""

from __future__ import annotations

import numpy as np
import pytest

from deeplense.data import classes
from deeplense.data.schema import LensSet
from deeplense.errors import DataError


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["vort", "sphere", "no"], ("no", "sphere", "vort")),
        (["axion", "cdm", "no_sub"], ("no_sub", "cdm", "axion")),
        (["axion", "cdm", "nosub"], ("nosub", "cdm", "axion")),
        (["vort", "no"], ("no", "vort")),
        (["lenses", "nonlenses"], ("nonlenses", "lenses")),
        (["vort", "sphere", "no", "other"], ("no", "other", "sphere", "vort")),
        (["sphere", "cdm"], ("cdm", "sphere")),
        (["lens", "vort"], ("lens", "vort")),
        (["b", "a"], ("a", "b")),
        ([], ()),
    ],
)
def test_order(names, expected):
    assert classes.order(names) == expected


def labelled(label: list[int] | None, names: tuple[str, ...]) -> LensSet:
    number = len(label or [0, 0])
    images = np.zeros((number, 1, 2, 2), np.float32)
    array = None if label is None else np.array(label, np.int64)
    return LensSet(images=images, name=["x"] * number, label=array, classes=names)


def test_align_renumbers_by_name_and_by_meaning():
    model = ("no", "sphere", "vort")
    assert classes.align(labelled([0, 1], ("no", "vort")), model).label.tolist() == [0, 2]
    aligned = classes.align(labelled([0, 1, 1], ("axion", "nosub")), model)
    assert aligned.label.tolist() == [2, 0, 0] and aligned.classes == model


def test_align_takes_numbers_as_the_models_numbers(caplog):
    aligned = classes.align(labelled([0, 1, 1], ("0", "1")), ("nonlenses", "lenses"))
    assert aligned.label.tolist() == [0, 1, 1] and aligned.classes == ("nonlenses", "lenses")
    assert "taken as 0 = nonlenses, 1 = lenses" in caplog.text
    with pytest.raises(DataError, match="class '0' is not one of"):
        classes.align(labelled([0, 2], ("0", "1", "2")), ("nonlenses", "lenses"))


def test_align_leaves_unlabelled_sets_alone():
    bare = labelled(None, ())
    assert classes.align(bare, ("no", "sphere")) is bare


def test_align_refuses_a_class_that_the_model_does_not_know():
    with pytest.raises(DataError, match="class 'spheer' is not one of no, sphere; did you mean 'sphere'"):
        classes.align(labelled([0, 1], ("no", "spheer")), ("no", "sphere"))
