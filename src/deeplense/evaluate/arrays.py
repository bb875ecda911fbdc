"""Probabilities and labels on their way into a score: checked once, as float64 and int64 arrays."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import numpy as np

from deeplense.errors import DataError

SUM_TOLERANCE = 1e-2  # half precision rounds a softmax by about this much


def as_float(values: Any) -> np.ndarray:
    """A float64 array from anything array-like, tensors on any device and of any precision among them."""
    return np.asarray(values.detach().cpu().double() if hasattr(values, "detach") else values, dtype=np.float64)


def check_labels(label: Any, num_classes: int) -> np.ndarray:
    """Class numbers as int64, shape (N,).

    Raises:
        DataError: none at all, not whole numbers, or outside 0..num_classes-1.
    """
    numbers = as_float(label)
    if numbers.ndim != 1 or not len(numbers):
        raise DataError(f"labels have shape {numbers.shape}; scores need shape (N,) with at least one image")
    if not np.all((numbers >= 0) & (numbers < num_classes) & (numbers == np.floor(numbers))):
        raise DataError(f"labels must be whole numbers from 0 to {num_classes - 1}; got {np.unique(numbers)[:8]}")
    return numbers.astype(np.int64)


def check_logits(logits: Any, label: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits as float64, shape (N, K), and labels as int64, shape (N,).

    Raises:
        DataError: the shapes do not fit together, fewer than two classes, or a value is NaN or infinite.
    """
    values = as_float(logits)
    if values.ndim != 2 or values.shape[1] < 2:
        raise DataError(f"the model's output has shape {values.shape}; scores need (N, K) with K >= 2 classes")
    numbers = check_labels(label, values.shape[1])
    if len(values) != len(numbers):
        raise DataError(f"{len(values)} rows of model output, but {len(numbers)} labels; give one label for each row")
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(values)} rows of the model's output are NaN or infinite (first: row {bad[0]}); "
            "look for such values in the images or for a training run that diverged"
        )
    return values, numbers


def check_probs(probs: Any, label: Any) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities as float64 with rows that sum to exactly one, shape (N, K), and labels as int64, shape (N,).

    Raises:
        DataError: as `check_logits`, or the rows are no probabilities.
    """
    values, numbers = check_logits(probs, label)
    sums = values.sum(axis=1, keepdims=True)
    if values.min() < 0 or np.abs(sums - 1).max() > SUM_TOLERANCE:
        raise DataError(
            f"rows of probabilities reach from {values.min():.3g} to {values.max():.3g} and sum to as much as "
            f"{sums.max():.3g}; they must lie in 0..1 and sum to 1 (apply softmax to logits first)"
        )
    return values / sums, numbers


def check_lengths(label: np.ndarray, **parts: Sized | None) -> None:
    """See that what is given beside the labels has one entry for each; ``rows_of_params`` is called "rows of params".

    Raises:
        DataError: a part of another length.
    """
    for name, given in parts.items():
        if given is not None and len(given) != len(label):
            what = name.replace("_", " ")
            raise DataError(f"{len(given)} {what}, but {len(label)} labels; give one for each label")
