"""Splits, fractions and weights: proportions, reproducibility, and what cannot be split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeplense.data import split
from deeplense.errors import DataError

LABEL = np.repeat([0, 1, 2], [1000, 100, 10])
CLASSES = ("no", "sphere", "vort")


def test_split_is_stratified_and_complete():
    train, val = split.stratified_split(LABEL, 0.1, seed=0)
    assert np.bincount(LABEL[val]).tolist() == [100, 10, 1]
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(len(LABEL)))


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=5),
    st.floats(0.001, 0.999),
    st.integers(0, 2**31),
)
def test_split_never_leaves_a_class_out(sizes, fraction, seed):
    label = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    train, val = split.stratified_split(label, fraction, seed)
    assert not set(train) & set(val) and len(train) + len(val) == len(label)
    for part in (train, val):
        assert set(label[part]) == set(label)
        assert np.all(np.diff(part) > 0)


def test_split_depends_on_the_seed_only():
    first = split.stratified_split(LABEL, 0.1, seed=3)
    again = split.stratified_split(LABEL.copy(), 0.1, seed=3)
    other = split.stratified_split(LABEL, 0.1, seed=4)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[1], other[1])


def test_class_of_one_image_cannot_be_split():
    with pytest.raises(DataError, match="class 'vort' has one image"):
        split.stratified_split(np.array([0, 0, 1, 1, 2]), 0.5, 0, CLASSES)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_fractions_out_of_range(value):
    with pytest.raises(DataError, match=r"val_fraction=.* is out of range"):
        split.stratified_split(LABEL, value, 0)
    with pytest.raises(DataError, match=r"val_fraction=.* is out of range"):
        split.grouped_split(LABEL, value, 0)
    if value != 1.0:
        with pytest.raises(DataError, match=r"fraction=.* is out of range"):
            split.stratified_fraction(LABEL, value, 0)


def test_fraction_keeps_proportions_and_is_nested():
    tenth = split.stratified_fraction(LABEL, 0.1, seed=5)
    half = split.stratified_fraction(LABEL, 0.5, seed=5)
    assert np.bincount(LABEL[tenth]).tolist() == [100, 10, 1]
    assert set(tenth) < set(half)
    assert np.array_equal(split.stratified_fraction(LABEL, 1.0, seed=5), np.arange(len(LABEL)))


def test_fraction_that_empties_a_class_says_what_would_do():
    with pytest.raises(DataError, match=r"fraction=0.01 leaves class 'vort' \(10 images\) empty; use 0.1 or more"):
        split.stratified_fraction(LABEL, 0.01, 0, CLASSES)
    assert np.bincount(LABEL[split.stratified_fraction(LABEL, 0.1, 0)])[2] == 1


@given(st.integers(0, 2**31), st.integers(2, 30), st.floats(0.05, 0.95))
def test_groups_stay_whole(seed, num_groups, fraction):
    draw = np.random.default_rng(seed)
    groups = np.concatenate([np.arange(num_groups), draw.integers(0, num_groups, 100)])
    train, val = split.grouped_split(groups, fraction, seed)
    assert len(train) and len(val) and len(train) + len(val) == len(groups)
    assert not set(groups[train]) & set(groups[val])


def test_groups_come_near_the_fraction_in_every_class():
    draw = np.random.default_rng(0)
    groups = draw.integers(0, 200, 4000)
    label = (groups % 4 == 0).astype(np.int64)  # a class lives in groups of its own
    _, val = split.grouped_split([f"source {group}" for group in groups], 0.2, 1, label)
    share = np.bincount(label[val]) / np.bincount(label)
    assert np.abs(share - 0.2).max() < 0.02


def test_one_group_cannot_be_split():
    with pytest.raises(DataError, match="needs two groups"):
        split.grouped_split(["a", "a"], 0.5, 0)


def test_class_weights_are_inverse_to_frequency():
    weights = split.class_weights(LABEL, 3)
    assert weights.dtype == np.float32
    assert np.allclose(weights, 1110 / (3 * np.array([1000, 100, 10])))
    assert np.isclose(weights[LABEL].mean(), 1)
    with pytest.raises(DataError, match=r"\[3\] have no image"):
        split.class_weights(LABEL, 4)


def test_need_classes():
    split.need_classes(LABEL, CLASSES)
    with pytest.raises(DataError, match="the images have 'sphere'; a classifier needs at least 2"):
        split.need_classes(np.ones(5, np.int64), CLASSES)
    with pytest.raises(DataError, match="no labels"):
        split.need_classes(None, ())
