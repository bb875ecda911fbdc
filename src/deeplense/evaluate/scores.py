"""How good a classifier is, in numbers with intervals. scikit-learn does the sums; `bootstrap` repeats them fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics

from deeplense.errors import DataError
from deeplense.evaluate.arrays import check_probs
from deeplense.evaluate.bootstrap import (
    percentile_interval,
    resample_weights,
    weighted_auc,
    weighted_average_precision,
)
from deeplense.evaluate.calibrate import chance_calibration_error, expected_calibration_error

FEW = 10  # images in a class below which a bootstrap is not to be trusted
PER_CLASS = ("auc", "average_precision", "f1")

# Scores by name: a number each, or an array over the classes with NaN where a class has no such score.
Values = dict[str, np.ndarray]


def classification_scores(
    probs: Any, label: Any, classes: Sequence[str], bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Every score of a K-class classifier, in plain JSON values.

    Headline scores are `{"value", "low", "high"}`: the value and its stratified bootstrap 95 % percentile interval.
    `auc_*` are one-vs-rest; macro averages run over the classes that occur among the labels. What cannot be computed,
    such as the AUC of an absent class, is None, and `notes` says why.

    Args:
        probs: shape (N, K).
        label: class numbers, shape (N,).
        classes: K names.
        bootstrap: number of resamples; 0 leaves the intervals out.

    Raises:
        DataError: NaN, rows that are no probabilities, shapes or names that do not fit together.
    """
    probs, label = check_probs(probs, label)
    if len(classes) != probs.shape[1]:
        raise DataError(f"{probs.shape[1]} columns of probabilities, but {len(classes)} class names: {list(classes)}")
    figures = with_intervals(_values(probs, label), _draws(probs, label, bootstrap, seed))
    result = {"n": len(label), "classes": list(classes)}
    result |= {name: figure for name, figure in figures.items() if name not in PER_CLASS}
    result["ece"] = _calibration(probs, label, seed)
    result["per_class"] = _per_class(probs, label, classes, figures)
    result["confusion"] = _confusion(probs, label).tolist()
    result["bootstrap"] = {"resamples": bootstrap, "seed": seed, "level": 0.95, "strata": "class"}
    result["notes"] = _notes(label, classes, result)
    return result


def _confusion(probs: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Counts, shape (K, K): rows are true classes, columns predicted ones."""
    return metrics.confusion_matrix(label, probs.argmax(axis=1), labels=np.arange(probs.shape[1]))


def _judgeable(label: np.ndarray, num_classes: int) -> np.ndarray:
    """Whether each class has both members and non-members among the labels, bool, shape (K,)."""
    counts = np.bincount(label, minlength=num_classes)
    return (counts > 0) & (counts < len(label))


def _macro(per_class: np.ndarray) -> np.ndarray:
    """The mean over the last axis of the scores that exist; NaN where none does."""
    exists = ~np.isnan(per_class).all(axis=tuple(range(per_class.ndim - 1)))
    return per_class[..., exists].mean(axis=-1) if exists.any() else np.full(per_class.shape[:-1], np.nan)


def _one_vs_rest(score: Any, probs: np.ndarray, label: np.ndarray, rows: tuple[int, ...] = ()) -> np.ndarray:
    """score(is_class, probability) of each class, NaN for classes that cannot be judged, shape (*rows, K)."""
    result = np.full((*rows, probs.shape[1]), np.nan)
    for k in np.flatnonzero(_judgeable(label, probs.shape[1])):
        result[..., k] = score(label == k, probs[:, k])
    return result


def _values(probs: np.ndarray, label: np.ndarray) -> Values:
    """The scores of the images as they are."""
    numbers, chosen = np.arange(probs.shape[1]), probs.argmax(axis=1)
    auc = _one_vs_rest(metrics.roc_auc_score, probs, label)
    precision = _one_vs_rest(metrics.average_precision_score, probs, label)
    f1 = metrics.f1_score(label, chosen, labels=numbers, average=None, zero_division=0)
    f1 = np.where(np.isin(numbers, label), f1, np.nan)
    return {
        "accuracy": metrics.accuracy_score(label, chosen),
        "auc_macro": _macro(auc),
        "auc_micro": metrics.roc_auc_score((label[:, None] == numbers).ravel(), probs.ravel()),
        "average_precision_macro": _macro(precision),
        "f1_macro": _macro(f1),
        "log_loss": metrics.log_loss(label, probs, labels=numbers),
        "brier": _squared_errors(probs, label).mean(),
        "auc": auc,
        "average_precision": precision,
        "f1": f1,
    }


def _squared_errors(probs: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Brier's score of each image, summed over the classes: 0 to 2, shape (N,)."""
    return ((probs - np.eye(probs.shape[1])[label]) ** 2).sum(axis=1)


def _draws(probs: np.ndarray, label: np.ndarray, resamples: int, seed: int) -> Values | None:
    """The same scores for every resample, with a leading axis of length `resamples`."""
    blocks = [_weighted_values(probs, label, weights) for weights in resample_weights(label, resamples, seed)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]} if blocks else None


def _weighted_values(probs: np.ndarray, label: np.ndarray, weights: np.ndarray) -> Values:
    """As `_values`, for images that count `weights` times, shape (B, N)."""
    truth = label[:, None] == np.arange(probs.shape[1])
    truly = probs[np.arange(len(label)), label].clip(np.finfo(np.float64).eps)
    rows = (len(weights),)
    auc = _one_vs_rest(lambda positive, score: weighted_auc(score, positive, weights), probs, label, rows)
    precision = _one_vs_rest(lambda yes, score: weighted_average_precision(score, yes, weights), probs, label, rows)
    f1 = _weighted_f1(probs, label, weights)
    return {
        "accuracy": weights @ (probs.argmax(axis=1) == label) / len(label),
        "auc_macro": _macro(auc),
        "auc_micro": weighted_auc(probs.ravel(), truth.ravel(), np.repeat(weights, probs.shape[1], axis=1)),
        "average_precision_macro": _macro(precision),
        "f1_macro": _macro(f1),
        "log_loss": weights @ -np.log(truly) / len(label),
        "brier": weights @ _squared_errors(probs, label) / len(label),
        "auc": auc,
        "average_precision": precision,
        "f1": f1,
    }


def _weighted_f1(probs: np.ndarray, label: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """F1 of each resample and class, shape (B, K); NaN for classes without images."""
    numbers = np.arange(probs.shape[1])
    truth, chosen = label[:, None] == numbers, probs.argmax(axis=1)[:, None] == numbers
    hits, either = weights @ (truth & chosen), weights @ truth + weights @ chosen
    return np.where(truth.any(axis=0), 2 * hits / np.maximum(either, 1), np.nan)


def with_intervals(values: Values, draws: Values | None) -> dict[str, Any]:
    """{"value", "low", "high"} for each score; a list of those for a score of each class."""
    figures: dict[str, Any] = {}
    for name, value in values.items():
        low, high = percentile_interval(draws[name]) if draws else (np.full(np.shape(value), np.nan),) * 2
        triples = [_figure(*triple) for triple in zip(*map(np.atleast_1d, (value, low, high)), strict=True)]
        figures[name] = triples if np.ndim(value) else triples[0]
    return figures


def _figure(value: float, low: float, high: float) -> dict[str, float | None] | None:
    if np.isnan(value):
        return None
    return {"value": float(value), "low": _number(low), "high": _number(high)}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _calibration(probs: np.ndarray, label: np.ndarray, seed: int) -> dict[str, float | None]:
    """ECE, with what chance would give in place of an interval: resampling only ever raises an ECE."""
    return {
        "value": expected_calibration_error(probs, label),
        "low": None,
        "high": None,
        "chance_95": chance_calibration_error(probs, seed=seed),
    }


def _per_class(
    probs: np.ndarray, label: np.ndarray, classes: Sequence[str], figures: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    precision, recall, _, support = metrics.precision_recall_fscore_support(
        label, probs.argmax(axis=1), labels=np.arange(len(classes)), zero_division=np.nan
    )
    return {
        name: {"n": int(support[k]), "precision": _number(precision[k]), "recall": _number(recall[k])}
        | {score: figures[score][k] for score in PER_CLASS}
        for k, name in enumerate(classes)
    }


def _notes(label: np.ndarray, classes: Sequence[str], result: dict[str, Any]) -> list[str]:
    """What a reader has to know before trusting the figures."""
    counts = np.bincount(label, minlength=len(classes))
    notes = [f"No image is of class {name}: macro averages leave it out." for name in _named(classes, counts == 0)]
    if counts.max() == len(label):
        notes.append(f"All images are of class {classes[label[0]]}: no class can be ranked against another, so no AUC.")
    for name in _named(classes, (counts > 0) & (counts < FEW)):
        notes.append(f"Fewer than {FEW} images are of class {name}: the intervals are rough and rather too narrow.")
    figure = result["accuracy"]
    if figure["low"] is not None and figure["low"] == figure["high"]:
        notes.append(f"Every resample has the same accuracy: {len(label)} images are too few for its interval.")
    return notes


def _named(classes: Sequence[str], where: np.ndarray) -> list[str]:
    return [name for name, is_so in zip(classes, where, strict=True) if is_so]
