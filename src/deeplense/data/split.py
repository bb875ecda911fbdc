"""Which images to train on and which to judge by: reproducible splits, fractions and class weights.

The same arguments give the same answer on every machine; index arrays are int64 and ascending.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deeplense.errors import DataError


def stratified_split(
    label: np.ndarray, val_fraction: float, seed: int, classes: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation indices; each class is split in the same proportion, at least one image on either side.

    Args:
        label: class numbers, shape (N,).
        val_fraction: share of each class that goes to validation, between 0 and 1.
        seed: of the draw.
        classes: class names, for the error messages.

    Raises:
        DataError: the fraction is not between 0 and 1, or a class has fewer than two images.
    """
    _check_fraction("val_fraction", val_fraction, below_one=True)
    train, val = [], []
    for number, members in _shuffled_classes(label, seed):
        if len(members) < 2:
            raise DataError(
                f"class {_name(number, classes)} has one image; a split needs two: add images or leave it out"
            )
        count = min(max(round(len(members) * val_fraction), 1), len(members) - 1)
        val.append(members[:count])
        train.append(members[count:])
    return _join(train), _join(val)


def stratified_fraction(label: np.ndarray, fraction: float, seed: int, classes: Sequence[str] = ()) -> np.ndarray:
    """Indices of a share of each class; with the same seed a smaller share is part of a larger one.

    Args:
        label: class numbers, shape (N,).
        fraction: share of each class to keep, above 0 and up to 1.
        seed: of the draw.
        classes: class names, for the error messages.

    Raises:
        DataError: the fraction is out of range, or leaves a class empty.
    """
    _check_fraction("fraction", fraction, below_one=False)
    kept = []
    for number, members in _shuffled_classes(label, seed):
        count = round(len(members) * fraction)
        if count == 0:
            raise DataError(
                f"fraction={fraction:g} leaves class {_name(number, classes)} ({len(members)} images) empty; "
                f"use {1 / len(members):.2g} or more"
            )
        kept.append(members[:count])
    return _join(kept)


def grouped_split(
    groups: Sequence[Any] | np.ndarray, val_fraction: float, seed: int, label: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation indices that keep each group (one patch of sky, one source galaxy) on one side.

    Args:
        groups: the group of each image, length N.
        val_fraction: wished share of each class in validation; groups are whole, so it is met only nearly.
        seed: of the draw.
        label: class numbers, shape (N,); None treats all images alike.

    Raises:
        DataError: the fraction is not between 0 and 1, there is one group only, or the lengths differ.
    """
    _check_fraction("val_fraction", val_fraction, below_one=True)
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    label = np.zeros(len(group), np.int64) if label is None else label
    if len(names) < 2 or len(label) != len(group):
        raise DataError(f"{len(names)} group(s) for {len(label)} images; a grouped split needs two groups or more")
    counts = np.zeros((len(names), int(label.max()) + 1))
    np.add.at(counts, (group, label), 1)
    in_val = _pick_groups(counts, val_fraction, seed)[group]
    return np.flatnonzero(~in_val), np.flatnonzero(in_val)


def class_weights(label: np.ndarray, n: int) -> np.ndarray:
    """Weight of each class in the loss, float32, shape (n,): inverse to its frequency, 1 on average over the images.

    Raises:
        DataError: a class has no image.
    """
    counts = np.bincount(label, minlength=n)
    if (counts == 0).any():
        raise DataError(f"class number(s) {np.flatnonzero(counts == 0).tolist()} have no image: no weight can be given")
    return (len(label) / (n * counts)).astype(np.float32)


def need_classes(label: np.ndarray | None, classes: Sequence[str], at_least: int = 2) -> None:
    """Raises DataError unless at least ``at_least`` classes have images: a classifier learns nothing from one."""
    present = [] if label is None else [_name(number, classes) for number in np.unique(label)]
    if len(present) < at_least:
        have = ", ".join(present) or "no labels"
        raise DataError(f"the images have {have}; a classifier needs at least {at_least} classes: one sub-folder each")


def _pick_groups(counts: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Whether each group goes to validation, bool, shape (G,); counts are images by group and class, shape (G, K)."""
    target = counts.sum(0) * fraction
    shuffled = np.random.default_rng(seed).permutation(len(counts))
    by_size = shuffled[np.argsort(-counts.sum(1)[shuffled], kind="stable")]
    chosen, filled = np.zeros(len(counts), bool), np.zeros_like(target)
    # Largest first, each taken where it brings the class counts nearer to the wish: the small ones even it out.
    for group in by_size:
        if np.sum((filled + counts[group] - target) ** 2) < np.sum((filled - target) ** 2):
            chosen[group] = True
            filled += counts[group]
    if not chosen.any():
        chosen[by_size[-1]] = True
    elif chosen.all():
        chosen[by_size[-1]] = False
    return chosen


def _shuffled_classes(label: np.ndarray, seed: int) -> list[tuple[int, np.ndarray]]:
    """(class number, its image indices in random order); each class has its own stream, independent of the others."""
    return [
        (int(number), np.random.default_rng([seed, int(number)]).permutation(np.flatnonzero(label == number)))
        for number in np.unique(label)
    ]


def _check_fraction(name: str, value: float, below_one: bool) -> None:
    if not (0 < value < 1 or (value == 1 and not below_one)):
        raise DataError(f"{name}={value:g} is out of range; allowed: above 0 and {'below' if below_one else 'up to'} 1")


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64)


def _name(number: int, classes: Sequence[str]) -> str:
    return repr(classes[number]) if number < len(classes) else str(number)
