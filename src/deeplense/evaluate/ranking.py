"""How well a lens finder ranks: what a survey gets for the candidates that its people can look at.

A tie of a lens and a non-lens never counts in the finder's favour, but for the AUC, where it counts one half.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deeplense.errors import DataError
from deeplense.evaluate.bootstrap import (
    auc_of,
    average_precision_of,
    cumulative,
    resample_weights,
)
from deeplense.evaluate.rare import calibration_scores
from deeplense.evaluate.scores import FEW, Values, with_intervals
from deeplense.evaluate.thresholds import (
    check_prevalence,
    check_scores,
    false_positives,
    lenses_in_top,
    purities,
    tpr_at_fpr,
    tpr_before,
)

PREVALENCES = (1 / 17, 1 / 100, 1 / 1000)
RATES = (1e-2, 1e-3, 1e-4)  # false positive rates
COMPLETENESS = (0.5, 0.8, 0.9)
HEADLINE = 0.8  # the completeness at which two finders are compared
GRID = tuple(k / 20 for k in range(1, 20))  # of completeness, for the purity curves
TOP = (10, 20, 50, 100, 200, 500, 1000)


def ranking_scores(
    score: Any,
    label: Any,
    probability: Any = None,
    prevalences: Sequence[float] = PREVALENCES,
    prevalence: float | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Every score of a lens finder, in plain JSON values.

    Headline scores are `{"value", "low", "high"}`: the value and its stratified bootstrap 95 % percentile interval.
    What cannot be measured, such as the recall at a false positive rate of which the set has not one image, is None,
    and `notes` says why.

    Args:
        score: higher means more lens-like, shape (N,).
        label: 1 for a lens, 0 for anything else, shape (N,).
        probability: of being a lens, shape (N,); without it there is no `calibration`.
        prevalences: shares of lenses for which purity and average precision are worked out by reweighting.
        prevalence: the share of lenses that `probability` is meant for; the set's own if None.
        bootstrap: number of resamples; 0 leaves the intervals out.

    Raises:
        DataError: NaN, shapes that do not fit together, labels other than 0 and 1, impossible prevalences.
    """
    score, label = check_scores(score, label)
    is_lens, prevalences = label == 1, tuple(map(check_prevalence, prevalences))
    given = {"prevalences": prevalences}
    values = {name: row[0] for name, row in _scores(score, is_lens, np.ones((1, len(score))), **given).items()}
    blocks = [_scores(score, is_lens, weights, **given) for weights in resample_weights(label, bootstrap, seed)]
    draws = {name: np.concatenate([block[name] for block in blocks]) for name in values} if blocks else None
    lenses = int(is_lens.sum())
    result: dict[str, Any] = {
        "n": len(label),
        "n_lenses": lenses,
        "n_others": len(label) - lenses,
        "prevalence": lenses / len(label),
    }
    result |= _arranged(with_intervals(values, draws), prevalences, len(label))
    if probability is not None:
        prevalence = None if prevalence is None else check_prevalence(prevalence)
        result["calibration"] = calibration_scores(probability, label, prevalence, prevalences, bootstrap, seed)
    result["bootstrap"] = {"resamples": bootstrap, "seed": seed, "level": 0.95, "strata": "class"}
    result["notes"] = _notes(result)
    return result


def compare(
    score_a: Any, score_b: Any, label: Any, completeness: float = HEADLINE, bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Two finders on the same images: the false positives of a over those of b, where each is as complete.

    A ratio below one speaks for a. Both see the same resamples, so that what makes a resample hard cancels. A resample
    in which neither has a false positive counts as a ratio of one; `high` is None where the ratio has no upper bound.

    Args:
        score_a, score_b: higher means more lens-like, shape (N,) each, in the same order.
        label: 1 for a lens, 0 for anything else, shape (N,).
        completeness: share of the lenses that are found.
    """
    score_a, label = check_scores(score_a, label)
    score_b, _ = check_scores(score_b, label)
    is_lens = label == 1
    if not 0 < is_lens.sum() < len(label):
        raise DataError("two finders are compared on lenses and non-lenses; these images are all of one kind")
    if not 0 < completeness <= 1:
        raise DataError(f"completeness is {completeness}; it must lie above 0 and not above 1")

    def both(weights: np.ndarray) -> Values:
        curves = [cumulative(score, is_lens, weights) for score in (score_a, score_b)]
        a, b = (false_positives(*curve, completeness) for curve in curves)
        return {"a": a, "b": b, "ratio": _ratio(a, b), "auc_difference": auc_of(*curves[0]) - auc_of(*curves[1])}

    values = {name: row[0] for name, row in both(np.ones((1, len(label)))).items()}
    blocks = [both(weights) for weights in resample_weights(label, bootstrap, seed)]
    draws = {name: np.concatenate([block[name] for block in blocks]) for name in values} if blocks else None
    ratio = _bounded(values.pop("ratio"), draws.pop("ratio") if draws else None)
    figures = with_intervals(values, draws)
    return {
        "completeness": completeness,
        "false_positives": {name: figures[name] for name in "ab"},
        "ratio": ratio,
        "auc_difference": figures["auc_difference"],
        "bootstrap": {"resamples": bootstrap, "seed": seed, "level": 0.95, "strata": "class"},
    }


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b; one where both are zero, infinite where only b is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((a == 0) & (b == 0), 1.0, a / b)


def _bounded(value: float, draws: np.ndarray | None) -> dict[str, float | None]:
    """{"value", "low", "high"} of a ratio that may be infinite; infinity becomes None."""
    # Without interpolation: between two infinite draws it would give NaN.
    bounds = np.quantile(draws, (0.025, 0.975), method="nearest") if draws is not None else (np.inf, np.inf)
    finite = [float(number) if np.isfinite(number) else None for number in (value, *bounds)]
    return dict(zip(("value", "low", "high"), finite, strict=True))


def _scores(score: np.ndarray, is_lens: np.ndarray, weights: np.ndarray, prevalences: Sequence[float]) -> Values:
    """Each score for images that count `weights` times, shape (B, N): shape (B,), or (B, ...) for a list of scores."""
    lenses, others = cumulative(score, is_lens, weights)
    total = others[:, -1:]
    with np.errstate(divide="ignore", invalid="ignore"):  # without lenses, or with nothing else, all is NaN
        values = {"auc": auc_of(lenses, others), "average_precision": average_precision_of(lenses, others)}
        for k, prevalence in enumerate(prevalences):
            # An average precision asks for the ratio of the two weights only.
            scale = (1 - prevalence) / prevalence * lenses[:, -1:] / total
            values[f"average_precision_{k}"] = average_precision_of(lenses, others * scale)
            values[f"purity_{k}"] = purities(lenses, others, GRID, prevalence)
        values["tpr_at_fpr"] = np.stack([tpr_at_fpr(lenses, others, rate) for rate in RATES], axis=1)
        values |= {"tpr_0": tpr_before(lenses, others, 1), "tpr_10": tpr_before(lenses, others, 10)}
        values["false_positives"] = np.stack([false_positives(lenses, others, c) for c in COMPLETENESS], axis=1)
        values["fpr"] = values["false_positives"] / total
        values["purity"] = purities(lenses, others, COMPLETENESS, float(is_lens.mean()))
        found = lenses_in_top(score, is_lens, weights, [n for n in TOP if n <= len(score)])
        values |= {"top_purity": found[0], "top_completeness": found[1]}
    is_measurable = np.array(RATES) * (~is_lens).sum() >= 1
    values["tpr_at_fpr"] = np.where(is_measurable, values["tpr_at_fpr"], np.nan)
    if not 0 < is_lens.sum() < len(score):
        return {name: np.full_like(value, np.nan) for name, value in values.items()}
    return values


def _arranged(figures: dict[str, Any], prevalences: Sequence[float], num: int) -> dict[str, Any]:
    """The figures by what they are asked for, instead of by how they are computed."""
    columns = {name: figures[name] for name in ("false_positives", "fpr", "purity")}
    return {
        **{name: figures[name] for name in ("auc", "average_precision", "tpr_0", "tpr_10")},
        "tpr_at_fpr": dict(zip(map(str, RATES), figures["tpr_at_fpr"], strict=True)),
        "at_completeness": {
            str(c): {name: column[k] for name, column in columns.items()} for k, c in enumerate(COMPLETENESS)
        },
        "top": [
            {"n": n, "purity": figures["top_purity"][k], "completeness": figures["top_completeness"][k]}
            for k, n in enumerate(n for n in TOP if n <= num)
        ],
        "at_prevalence": [
            {
                "prevalence": prevalence,
                "average_precision": figures[f"average_precision_{k}"],
                "purity": [
                    {"completeness": c} | (purity or dict.fromkeys(("value", "low", "high")))
                    for c, purity in zip(GRID, figures[f"purity_{k}"], strict=True)
                ],
            }
            for k, prevalence in enumerate(prevalences)
        ],
    }


def _notes(result: dict[str, Any]) -> list[str]:
    """What a reader has to know before trusting the figures."""
    lenses, others = result["n_lenses"], result["n_others"]
    if not lenses or not others:
        return [f"All {result['n']:,} images are {'lenses' if lenses else 'non-lenses'}: nothing can be ranked."]
    few = [(count, what) for count, what in ((lenses, "lenses"), (others, "non-lenses")) if count < FEW]
    notes = [f"Only {count} {what}: the intervals are rough and rather too narrow." for count, what in few]
    missing = [rate for rate in RATES if result["tpr_at_fpr"][str(rate)] is None]
    if missing:
        notes.append(
            f"A false positive rate of {missing[0]:g} needs {round(1 / missing[0]):,} non-lenses or more, this set has "
            f"{others:,}: the recall at {' and '.join(f'{rate:g}' for rate in missing)} is not given."
        )
    if result["at_completeness"][str(HEADLINE)]["false_positives"]["value"] == 0:
        notes.append(
            f"No false positive at {HEADLINE:.0%} completeness: of {others:,} non-lenses that is a rate below "
            f"{3 / others:.2g} with 95 % confidence, whatever the interval says."
        )
    return notes
