"""What a threshold gives: recall, false positives, purity; for many resamples at once.

`lenses` and `others`, shape (B, M), are the weights at or above each distinct score, highest first, as
`bootstrap.cumulative` returns them. Where lenses and non-lenses share a score, a threshold takes all of them or none,
and in a list the non-lenses stand first: a tie never counts in the finder's favour.

References:
    Metcalf et al., The strong gravitational lens finding challenge, arXiv:1802.03609: TPR0 and TPR10.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deeplense.errors import DataError
from deeplense.evaluate.arrays import as_float, check_labels

LARGEST = float(np.finfo(np.float64).max) / 4  # so that the difference of two of them is a number


def check_scores(score: Any, label: Any) -> tuple[np.ndarray, np.ndarray]:
    """Scores as float64 and labels 0 or 1 as int64, shape (N,) each.

    Raises:
        DataError: shapes do not fit together, a score is NaN, or a label is neither 0 nor 1.
    """
    label, values = check_labels(label, 2), as_float(score)
    if values.shape != label.shape:
        raise DataError(f"scores have shape {values.shape}, labels {label.shape}; give one number for each image")
    if len(bad := np.flatnonzero(np.isnan(values))):
        raise DataError(f"{len(bad)} of {len(values)} scores are NaN (first: row {bad[0]}); such images have no rank")
    return np.nan_to_num(values, posinf=LARGEST, neginf=-LARGEST), label  # infinities tie with one another


def check_prevalence(prevalence: float) -> float:
    """The same number, if it can be a share of lenses."""
    if not 0 < prevalence < 1:
        raise DataError(f"prevalence is {prevalence}; the share of lenses must lie between 0 and 1, for example 0.001")
    return float(prevalence)


def tpr_at_fpr(lenses: np.ndarray, others: np.ndarray, rate: float) -> np.ndarray:
    """The highest recall of a threshold whose false positive rate is at most `rate`, shape (B,)."""
    # One part in 1e9: 0.01 * 300 is 3.0000000000000004 or 2.9999999999999996, as it happens.
    return _recall(lenses, others <= rate * others[:, -1:] * (1 + 1e-9))


def tpr_before(lenses: np.ndarray, others: np.ndarray, number: int) -> np.ndarray:
    """The highest recall with fewer than `number` false positives, shape (B,): TPR0 for 1, TPR10 for 10."""
    return _recall(lenses, others < number)


def _recall(lenses: np.ndarray, is_allowed: np.ndarray) -> np.ndarray:
    """Recall of the lowest threshold that is allowed, 0 where none is; the allowed ones are the highest scores."""
    count = is_allowed.sum(axis=1)
    found = np.where(count > 0, lenses[np.arange(len(lenses)), np.maximum(count, 1) - 1], 0.0)
    return found / lenses[:, -1]


def false_positives(lenses: np.ndarray, others: np.ndarray, completeness: float) -> np.ndarray:
    """Non-lenses at or above the highest threshold that finds this share of the lenses, shape (B,)."""
    return _at(lenses, others, completeness)[1]


def _at(lenses: np.ndarray, others: np.ndarray, completeness: float) -> tuple[np.ndarray, np.ndarray]:
    """Weight of lenses and of others at or above that threshold, shape (B,) each."""
    first = (lenses < completeness * lenses[:, -1:] * (1 - 1e-9)).sum(axis=1).clip(max=lenses.shape[1] - 1)
    row = np.arange(len(lenses))
    return lenses[row, first], others[row, first]


def purity_of(tpr: np.ndarray, fpr: np.ndarray, prevalence: float) -> np.ndarray:
    """Share of lenses among the candidates of a threshold, in a sky with this share of lenses."""
    return prevalence * tpr / (prevalence * tpr + (1 - prevalence) * fpr)


def purities(lenses: np.ndarray, others: np.ndarray, completeness: Sequence[float], prevalence: float) -> np.ndarray:
    """Purity at each completeness, shape (B, len(completeness))."""
    reached = [_at(lenses, others, c) for c in completeness]
    rates = [(a / lenses[:, -1], b / others[:, -1]) for a, b in reached]
    return np.stack([purity_of(tpr, fpr, prevalence) for tpr, fpr in rates], axis=1)


def lenses_in_top(
    score: np.ndarray, is_lens: np.ndarray, weights: np.ndarray, numbers: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Purity and completeness of the best N candidates, for each N of `numbers`: shape (B, len(numbers)) each."""
    order = np.lexsort((is_lens, -score))  # among equals, what is no lens comes first
    drawn = np.cumsum(weights[:, order], axis=1)
    lenses = np.cumsum(weights[:, order] * is_lens[order], axis=1)
    row, found = np.arange(len(weights)), []
    for number in numbers:
        last = (drawn < number).sum(axis=1)
        # Of an image that was drawn several times, as many copies count as there is room for.
        surplus = drawn[row, last] - number
        found.append(lenses[row, last] - surplus * is_lens[order][last])
    top = np.stack(found, axis=1) if found else np.empty((len(weights), 0))
    return top / np.array(numbers, np.float64), top / lenses[:, -1:]
