"""Probabilities that mean what they say: temperature scaling, reliability, and a change of the class mixture.

References:
    Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599: temperature (eq. 9) and ECE (eq. 3).
    Saerens et al., Adjusting the outputs of a classifier to new a priori probabilities (2002), eq. 2.4.
    Broecker & Smith, Increasing the reliability of reliability diagrams (2007): what chance alone would give.
    Alexandari et al., Maximum Likelihood with Bias-Corrected Calibration is Hard-To-Beat at Label Shift Adaptation,
    arXiv:1901.06852, section 3: temperature and bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax

from deeplense.errors import DataError
from deeplense.evaluate.arrays import as_float, check_logits, check_probs

BINS = 15
TEMPERATURES = (0.05, 20.0)  # beyond these a network is broken rather than miscalibrated


@dataclass(frozen=True)
class ReliabilityCurve:
    """Stated confidence against the share that was right, for each bin that holds an image.

    Attributes:
        confidence: mean probability of the predicted class, shape (M,).
        accuracy: share of right predictions, shape (M,).
        low, high: 95 % Wilson interval of the accuracy, shape (M,).
        count: images in the bin, shape (M,).
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: np.ndarray


def fit_temperature(logits: Any, label: Any) -> float:
    """The T > 0 for which softmax(logits / T) has the least negative log-likelihood; confined to 0.05..20.

    Args:
        logits: shape (N, K), from images that were not trained on.
        label: class numbers, shape (N,).

    Raises:
        DataError: shapes do not fit together, or a logit is NaN or infinite.
    """
    logits, label = check_logits(logits, label)
    if np.ptp(logits, axis=1).max() == 0:
        return 1.0  # equal logits stay equal at every temperature

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float(scaled[np.arange(len(label)), label].mean())

    # The loss is convex in 1/T, hence has one minimum in log T.
    best = minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(best.x))


def apply_temperature(logits: Any, temperature: float) -> np.ndarray:
    """softmax(logits / temperature), float64, shape (N, K)."""
    if not temperature > 0:
        raise DataError(f"temperature is {temperature}; it must be above 0 (1 leaves the logits as they are)")
    return softmax(as_float(logits) / temperature, axis=1)


def expected_calibration_error(probs: Any, label: Any, bins: int = BINS) -> float:
    """|accuracy - confidence| of the predicted class, averaged over equal-width bins by their number of images.

    Args:
        probs: shape (N, K).
        label: class numbers, shape (N,).
    """
    probs, label = check_probs(probs, label)
    right = probs.argmax(axis=1) == label
    return float(_calibration_error(probs.max(axis=1), right[None], bins)[0])


def chance_calibration_error(probs: Any, bins: int = BINS, draws: int = 1000, seed: int = 0) -> float:
    """The ECE that a perfectly calibrated model with these confidences stays below in 95 % of samples of this size.

    A measured ECE below it is no evidence of miscalibration.
    """
    confidence = as_float(probs).max(axis=1)
    rng = np.random.default_rng(seed)
    errors = [_calibration_error(confidence, rng.random((1, len(confidence))) < confidence, bins) for _ in range(draws)]
    return float(np.quantile(np.concatenate(errors), 0.95))


def _calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int) -> np.ndarray:
    """ECE, shape (B,), of confidences (N,) with B versions of which predictions were right, shape (B, N)."""
    which = _bin_number(confidence, bins)
    gaps = [np.bincount(which, row - confidence, minlength=bins) for row in right]
    return np.abs(gaps).sum(axis=1) / len(confidence)


def _bin_number(confidence: np.ndarray, bins: int) -> np.ndarray:
    return np.minimum((confidence * bins).astype(np.int64), bins - 1)


def reliability_curve(probs: Any, label: Any, bins: int = BINS) -> ReliabilityCurve:
    """The points of a reliability diagram over equal-width bins of the predicted class's probability."""
    from scipy.stats import binomtest

    probs, label = check_probs(probs, label)
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == label
    which = _bin_number(confidence, bins)
    filled, count = np.unique(which, return_counts=True)
    hits = np.bincount(which, right, minlength=bins)[filled].astype(np.int64)
    bounds = [binomtest(k, n).proportion_ci(method="wilson") for k, n in zip(hits, count, strict=True)]
    return ReliabilityCurve(
        confidence=np.bincount(which, confidence, minlength=bins)[filled] / count,
        accuracy=hits / count,
        low=np.array([bound.low for bound in bounds]),
        high=np.array([bound.high for bound in bounds]),
        count=count,
    )


def prior_shift(probs: Any, from_prior: Any, to_prior: Any) -> np.ndarray:
    """Posterior probabilities for a world with another mixture of classes: p' ~ p * to_prior / from_prior.

    Args:
        probs: shape (N, K).
        from_prior: class frequencies behind `probs`, all above 0, shape (K,); need not sum to one.
        to_prior: class frequencies where the classifier is used, shape (K,).

    Raises:
        DataError: a prior of another length, a negative one, or a zero in `from_prior`.
    """
    probs, old, new = as_float(probs), as_float(from_prior), as_float(to_prior)
    if old.shape != probs.shape[1:] or new.shape != probs.shape[1:]:
        raise DataError(f"priors have shapes {old.shape} and {new.shape}; give one number for each of the classes")
    if not (np.all(old > 0) and np.all(new >= 0) and new.sum() > 0):
        raise DataError(f"priors {old} -> {new}: the first must be above 0 everywhere, the second nowhere below 0")
    weighted = probs * (new / new.sum()) / (old / old.sum())
    return weighted / weighted.sum(axis=1, keepdims=True)


# Without many lenses the fit stays near T = 1, b = 0: scatter of normal priors on 1/T and on b, in nats.
SLOPE_SCATTER, BIAS_SCATTER = 1.0, 2.0


def fit_binary(logits: Any, label: Any, train_prevalence: float) -> dict[str, float]:
    """Temperature T and bias b that turn a binary network's logits into log-odds that mean what they say.

    The mixture that the network was trained on is taken out of a logit z first, ``l = z - logit(train_prevalence)``.
    Then ``l / T + b + logit(prevalence)`` are the log-odds where ``prevalence`` of all images are positive, and T and b
    are most likely, given the weak priors above, at the prevalence of these images.

    Args:
        logits: shape (N,), from images that were not trained on, in their true mixture.
        label: 0 or 1, shape (N,).
        train_prevalence: share of positive images that the network saw, weights included; strictly between 0 and 1.

    Returns:
        ``temperature``, ``bias``, ``train_prevalence`` and ``val_prevalence``: what :func:`binary_log_odds` needs.

    Raises:
        DataError: shapes do not fit together, a logit is NaN or infinite, or the prevalence is out of range.
    """
    values = as_float(logits)
    checked, label = check_logits(np.stack([np.zeros_like(values), values], axis=-1), label)
    log_ratio = checked[:, 1] - _log_odds_of("train_prevalence", train_prevalence)
    positive = int(label.sum())
    # Without images of both kinds the mixture is as uncertain as Laplace's rule says.
    val = positive / len(label) if 0 < positive < len(label) else (positive + 1) / (len(label) + 2)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope, bias = parameters
        odds = slope * log_ratio + bias + logit(val)
        wrong = expit(odds) - label
        off = np.array([(slope - 1) / SLOPE_SCATTER**2, bias / BIAS_SCATTER**2])
        penalty = 0.5 * float(off @ [slope - 1, bias])
        likelihood = float((np.logaddexp(0, odds) - label * odds).sum())
        return likelihood + penalty, np.array([wrong @ log_ratio, wrong.sum()]) + off

    # Convex in the slope 1/T and the bias: one minimum, finite also where the two classes do not overlap.
    bounds = [(1 / TEMPERATURES[1], 1 / TEMPERATURES[0]), (-20.0, 20.0)]
    slope, bias = minimize(loss, np.array([1.0, 0.0]), jac=True, bounds=bounds, method="L-BFGS-B", tol=1e-12).x
    fitted = {"temperature": 1 / slope, "bias": bias, "train_prevalence": train_prevalence, "val_prevalence": val}
    return {name: float(value) for name, value in fitted.items()}


def binary_log_odds(logits: Any, calibration: Mapping[str, float], prevalence: float | None = None) -> Any:
    """Calibrated log-odds of the positive class, of the type and shape of ``logits`` (an array or a tensor).

    Args:
        logits: as the network gives them.
        calibration: as :func:`fit_binary` returns it; where it is empty, the logits are taken at their word.
        prevalence: share of positive images where the network is used; that of the validation images if None.

    Raises:
        DataError: the prevalence is not strictly between 0 and 1.
    """
    before = _log_odds_of("train_prevalence", calibration.get("train_prevalence", 0.5))
    there = calibration.get("val_prevalence", 0.5) if prevalence is None else prevalence
    after = calibration.get("bias", 0.0) + _log_odds_of("prevalence", there)
    return (logits - before) / calibration.get("temperature", 1.0) + after


def _log_odds_of(name: str, prevalence: float) -> float:
    if not 0 < prevalence < 1:
        raise DataError(f"{name}={prevalence:g} is out of range; a share of all images lies between 0 and 1")
    return float(logit(prevalence))


LEVELS = (0.68, 0.95)
PER_BIN = 100  # errors that a quantile of 95 % should rest on


def fit_intervals(chi2: np.ndarray, error: np.ndarray) -> dict[str, Any]:
    """How many standard deviations hold 68 % and 95 % of the errors, in bins of like chi^2.

    On exchangeable images such intervals hold what they say, whatever the errors look like: conformal prediction, with
    the quantile of (n + 1) in place of n.

    Args:
        chi2: of the images' fits, shape (N,).
        error: of each parameter over its standard deviation, 0 or more, shape (N, P).

    Returns:
        Plain JSON values: "edges" of the M bins, M - 1 numbers; "factors" of each level, bin and parameter.

    References: Lei et al., Distribution-Free Predictive Inference for Regression, arXiv:1604.04173, section 2.
    """
    bins = int(np.clip(len(chi2) // PER_BIN, 1, 8))
    edges = np.quantile(chi2, np.linspace(0, 1, bins + 1)[1:-1])
    place, error = np.searchsorted(edges, chi2), np.minimum(error, np.finfo(np.float32).max)
    groups = [error[place == b] for b in range(bins)]
    factors = [[_quantile(group, level).tolist() for group in groups] for level in LEVELS]
    return {"edges": edges.tolist(), "factors": factors}


def _quantile(errors: np.ndarray, level: float) -> np.ndarray:
    if not len(errors):
        return np.full(errors.shape[1], np.finfo(np.float32).max)
    rank = min(int(np.ceil((len(errors) + 1) * level)), len(errors))
    return np.sort(errors, axis=0)[rank - 1]


def interval_factors(chi2: np.ndarray, intervals: Mapping[str, Any]) -> np.ndarray:
    """By what :func:`fit_intervals` found: factors on the standard deviations of images, (levels, N, P)."""
    return np.asarray(intervals["factors"])[:, np.searchsorted(intervals["edges"], chi2)]
