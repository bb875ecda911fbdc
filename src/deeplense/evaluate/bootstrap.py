"""Bootstrap intervals: thousands of resamples as rows of weights, so that scores are sorted once and not each time.

An image drawn w times counts w times; a score that accepts weights of shape (B, N) is computed for B resamples at once.

References:
    Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13: percentile intervals.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BLOCK = 1_000_000  # weights in memory at a time


def resample_weights(strata: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image is drawn, in blocks of float64, shape (b, N), `resamples` rows in all.

    Drawing is with replacement within each stratum, so that every resample keeps the class counts.

    Args:
        strata: class numbers, shape (N,).
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    rows = max(1, BLOCK // len(strata))
    for start in range(0, resamples, rows):
        weights = np.empty((min(rows, resamples - start), len(strata)))
        for index in members:
            weights[:, index] = _draw_counts(rng, len(weights), len(index))
        yield weights


def _draw_counts(rng: np.random.Generator, rows: int, n: int) -> np.ndarray:
    """Multinomial counts of n draws from n, one row a resample, shape (rows, n)."""
    drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)


def percentile_interval(draws: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The central interval that holds `level` of the draws, shape (B, ...), as (low, high) of shape (...)."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def weighted_auc(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each resample, shape (B,): the chance that a positive outranks a negative.

    Args:
        score: higher means more likely positive, shape (N,); ties count one half.
        positive: bool, shape (N,).
        weights: shape (B, N).
    """
    return auc_of(*cumulative(score, positive, weights))


def auc_of(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Area under the ROC curve, shape (B,), from what :func:`cumulative` returns."""
    new_positives = np.diff(positives, axis=1, prepend=0)
    new_negatives = np.diff(negatives, axis=1, prepend=0)
    # Counting from the highest score down, a negative loses to all positives above it and to half of its equals.
    wins = (new_negatives * (positives - new_positives / 2)).sum(axis=1)
    return wins / (positives[:, -1] * negatives[:, -1])


def weighted_average_precision(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Precision averaged over the steps of recall, shape (B,); arguments as `weighted_auc`."""
    return average_precision_of(*cumulative(score, positive, weights))


def average_precision_of(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Average precision, shape (B,), from what :func:`cumulative` returns."""
    chosen = positives + negatives
    precision = np.divide(positives, chosen, out=np.zeros_like(chosen), where=chosen > 0)
    return (np.diff(positives, axis=1, prepend=0) * precision).sum(axis=1) / positives[:, -1]


def cumulative(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the positives and of the negatives at or above each distinct score, highest first, (B, M) each."""
    order = np.argsort(-score, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    ordered, is_positive = weights[:, order], positive[order]
    positives = np.cumsum(ordered * is_positive, axis=1)[:, last_of_tie]
    negatives = np.cumsum(ordered * ~is_positive, axis=1)[:, last_of_tie]
    return positives, negatives
