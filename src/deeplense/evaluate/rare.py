"""Probabilities of something rare: whether p = 0.01 happens once in a hundred times, and in a sky with fewer lenses.

A set with another share of lenses than the sky stands in for it by weights: a lens counts prevalence / share, anything
else (1 - prevalence) / (1 - share).

References:
    Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599: ECE (eq. 3), here of the probability of
    being a lens instead of that of the predicted class.
    Saerens et al., Adjusting the outputs of a classifier to new a priori probabilities (2002), eq. 2.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit, logit

from deeplense.errors import DataError
from deeplense.evaluate.arrays import as_float, check_labels
from deeplense.evaluate.bootstrap import resample_weights
from deeplense.evaluate.calibrate import BINS, ReliabilityCurve
from deeplense.evaluate.scores import with_intervals

TOP_SHARE = 0.01  # of the images, the most lens-like: those that people look at
TOP_BINS = 10
DRAWS, BLOCK = 1000, 4_000_000  # simulated samples for the level of chance; numbers in memory at a time
TINY = 1e-12  # a probability that is further from 0 and 1 than this has a finite log-odds


def retarget(probability: Any, from_prevalence: float, to_prevalence: float) -> np.ndarray:
    """Probabilities of being a lens for a sky with another share of lenses, float64, shape (N,)."""
    return expit(_log_odds(as_float(probability)) + logit(to_prevalence) - logit(from_prevalence))


def _log_odds(probability: np.ndarray) -> np.ndarray:
    return logit(np.clip(probability, TINY, 1 - TINY))


def check_probability(probability: Any, label: Any) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities as float64 and labels 0 or 1, shape (N,) each.

    Raises:
        DataError: a probability is NaN or outside 0..1, or there is not one for each label.
    """
    values, label = as_float(probability), check_labels(label, 2)
    if values.shape != label.shape:
        raise DataError(f"probabilities have shape {values.shape}, labels {label.shape}; give one for each image")
    if not np.all((values >= 0) & (values <= 1)):
        raise DataError(
            f"probabilities reach from {values.min():.3g} to {values.max():.3g}; they must lie in 0..1 "
            "(apply the logistic function to log-odds first)"
        )
    return values, label


def class_weights(label: np.ndarray, prevalence: float | None) -> np.ndarray:
    """How much each image counts, mean one, so that lenses make up `prevalence` (None: as they are), shape (N,)."""
    share = label.mean()
    if prevalence is None or not 0 < share < 1:
        return np.ones(len(label))
    return np.where(label == 1, prevalence / share, (1 - prevalence) / (1 - share))


def calibration_scores(
    probability: Any,
    label: Any,
    prevalence: float | None = None,
    prevalences: Sequence[float] = (),
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Whether probabilities can be taken at their word, in plain JSON values.

    `ece` has bins of equal width, `ece_mass` bins of equally many images; `chance_95` is what a perfectly calibrated
    finder with these probabilities stays below in 95 % of samples of this size. `top` is the same among the most
    lens-like 1 % of a sky with each of `prevalences`, the probabilities brought to it. `brier` and `log_loss` (nats)
    have bootstrap intervals.

    Args:
        probability: of being a lens, shape (N,).
        label: 1 for a lens, 0 for anything else, shape (N,).
        prevalence: the share of lenses that the probabilities are meant for; the set's own if None.
    """
    probability, label = check_probability(probability, label)
    weights, share = class_weights(label, prevalence), float(label.mean())
    stated = share if prevalence is None else prevalence
    loss = {"brier": (probability - label) ** 2, "log_loss": -_log_likelihood(probability, label)}
    return {
        "prevalence": stated,
        "ece": _against_chance(probability, label, weights, width_bins(probability), stated, seed),
        "ece_mass": _against_chance(probability, label, weights, mass_bins(probability, weights), stated, seed),
        "top": [_top(probability, label, stated, p, seed) for p in prevalences] if 0 < share < 1 else [],
        **_losses(loss, weights, label, bootstrap, seed),
    }


def _log_likelihood(probability: np.ndarray, label: np.ndarray) -> np.ndarray:
    return np.log(np.clip(np.where(label == 1, probability, 1 - probability), TINY, 1))


def _losses(loss: dict[str, np.ndarray], weights: np.ndarray, label: np.ndarray, resamples: int, seed: int) -> Any:
    """The weighted mean of each loss, with its bootstrap interval."""
    values = {name: np.mean(weights * each) for name, each in loss.items()}
    weighted = {name: weights * each / len(label) for name, each in loss.items()}
    rows = [
        {name: count @ each for name, each in weighted.items()} for count in resample_weights(label, resamples, seed)
    ]
    return with_intervals(
        values, {name: np.concatenate([row[name] for row in rows]) for name in loss} if rows else None
    )


def width_bins(probability: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The bin of each probability, of equal width, int64, shape (N,)."""
    return np.minimum((probability * bins).astype(np.int64), bins - 1)


def mass_bins(probability: np.ndarray, weights: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The bin of each probability, of equal weight, int64, shape (N,); equal probabilities share a bin."""
    order = np.argsort(probability, kind="stable")
    below = np.cumsum(weights[order]) - weights[order]
    number = np.minimum((below / weights.sum() * bins + 1e-9).astype(np.int64), bins - 1)
    first = np.searchsorted(probability[order], probability, side="left")
    return number[first]


def calibration_error(probability: np.ndarray, label: np.ndarray, weights: np.ndarray, which: np.ndarray) -> float:
    """|observed share of lenses - mean probability|, averaged over bins by their weight.

    Args:
        probability, label, weights: shape (N,).
        which: number of each image's bin, shape (N,).
    """
    return float(np.abs(np.bincount(which, weights * (label - probability))).sum() / weights.sum())


def _against_chance(
    probability: np.ndarray, label: np.ndarray, weights: np.ndarray, which: np.ndarray, stated: float, seed: int
) -> dict[str, float | None]:
    """An ECE, with what chance would give in place of an interval: resampling only ever raises an ECE."""
    return {
        "value": calibration_error(probability, label, weights, which),
        "low": None,
        "high": None,
        "chance_95": _chance(probability, label, weights, which, stated, seed),
    }


def _chance(
    probability: np.ndarray, label: np.ndarray, weights: np.ndarray, which: np.ndarray, stated: float, seed: int
) -> float:
    """95 % quantile of the ECE when lenses are drawn with these very probabilities, in the mixture of this set."""
    of_lens, of_other = (weights[label == k].max(initial=0.0) for k in (1, 0))
    drawn, rng, errors = probability, np.random.default_rng(seed), []
    if of_lens and of_other:
        # In this set a lens is more likely than in the sky that the probabilities are for, by the ratio of weights.
        drawn = expit(_log_odds(probability) - np.log(of_lens / of_other))
    else:
        of_lens = of_other = 1.0
    rows = max(1, BLOCK // len(drawn))
    for start in range(0, DRAWS, rows):
        is_lens = rng.random((min(rows, DRAWS - start), len(drawn))) < drawn
        gap = np.where(is_lens, of_lens * (1 - probability), -of_other * probability)
        size = np.where(is_lens, of_lens, of_other).sum(axis=1)
        binned = np.stack([np.bincount(which, row) for row in gap])
        errors.append(np.abs(binned).sum(axis=1) / size)
    return float(np.quantile(np.concatenate(errors), 0.95))


def _top(probability: np.ndarray, label: np.ndarray, stated: float, prevalence: float, seed: int) -> dict[str, Any]:
    """Calibration among the most lens-like images of a sky with another share of lenses."""
    target, weights = retarget(probability, stated, prevalence), class_weights(label, prevalence)
    order = np.argsort(-target, kind="stable")
    chosen = order[: max(int((np.cumsum(weights[order]) <= TOP_SHARE * weights.sum()).sum()), 1)]
    top, own, label = target[chosen], weights[chosen], label[chosen]
    return {
        "prevalence": prevalence,
        "share": TOP_SHARE,
        "n": len(chosen),
        "n_lenses": int(label.sum()),
        "mean_probability": float(np.average(top, weights=own)),
        "observed": float(np.average(label, weights=own)),
        "ece": _against_chance(top, label, own, mass_bins(top, own, TOP_BINS), prevalence, seed),
    }


def reliability(probability: Any, label: Any, prevalence: float | None = None, step: float = 0.5) -> ReliabilityCurve:
    """Stated probability against the observed share of lenses, in bins of equal width in log10 odds.

    At the lower end bins are joined until they hold a lens, at the upper one until they hold something else.

    Args:
        probability: of being a lens, shape (N,).
        label: 1 for a lens, 0 for anything else, shape (N,).
        prevalence: the share of lenses that the probabilities are meant for; the set's own if None.
        step: width of a bin in dex of the odds.
    """
    from scipy.stats import binomtest

    probability, label = check_probability(probability, label)
    weights, share = class_weights(label, prevalence), float(label.mean())
    number = np.floor(_log_odds(probability) / np.log(10) / step).astype(np.int64)
    if 0 < share < 1:
        lowest, highest = number[label == 1].min(), number[label == 0].max()
        number = number.clip(min(lowest, highest), max(lowest, highest))
    _, which = np.unique(number, return_inverse=True)
    count, lenses = np.bincount(which), np.bincount(which, label).astype(np.int64)
    bounds = [binomtest(k, n).proportion_ci(method="wilson") for k, n in zip(lenses, count, strict=True)]
    shares = np.array([lenses / count, [bound.low for bound in bounds], [bound.high for bound in bounds]])
    if prevalence is not None and 0 < share < 1:
        shares = _moved(shares, share, prevalence)
    stated = np.bincount(which, weights * probability) / np.bincount(which, weights)
    return ReliabilityCurve(stated, shares[0], shares[1], shares[2], count)


def _moved(share: np.ndarray, from_prevalence: float, to_prevalence: float) -> np.ndarray:
    """Observed shares of lenses as they would be at another prevalence; 0 and 1 stay."""
    factor = np.exp(logit(to_prevalence) - logit(from_prevalence))
    return factor * share / (factor * share + 1 - share)
