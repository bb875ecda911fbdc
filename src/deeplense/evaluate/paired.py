"""Two classifiers and more on the same images: the difference of their AUC, with what is common to both taken out.

All see the same resamples, so that what makes a resample hard cancels in the difference. A classifier may have been
trained with several seeds: its score is the mean over them. The intervals are over test images, for the trainings as
they are; how much a training varies is given beside them as `seed_scatter`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deeplense.errors import DataError, did_you_mean
from deeplense.evaluate.arrays import check_probs
from deeplense.evaluate.bootstrap import resample_weights, weighted_auc
from deeplense.evaluate.scores import Values, with_intervals


def auc_difference(a: Any, b: Any, label: Any, bootstrap: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Macro one-vs-rest AUC of a minus that of b, with its paired bootstrap 95 % interval.

    Args:
        a, b: probabilities, shape (N, K); or those of several seeds, shape (S, N, K), of which the scores are averaged.
        label: class numbers, shape (N,).
        bootstrap: number of resamples; 0 leaves the intervals out.

    Returns:
        ``difference``, ``a`` and ``b``, each as {"value", "low", "high"}, and ``bootstrap``.

    Raises:
        DataError: as `side_by_side`.
    """
    found = side_by_side({"a": a, "b": b}, label, "b", bootstrap, seed)
    rows = {row["name"]: row for row in found["rows"]}
    scores = {name: row["auc_macro"] for name, row in rows.items()}
    return {"difference": rows["a"]["difference"], **scores, "bootstrap": found["bootstrap"]}


def side_by_side(
    outputs: Mapping[str, Any], label: Any, reference: str | None = None, bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Classifiers beside one another, each with the difference of its macro AUC from that of one of them.

    Args:
        outputs: by name, probabilities, shape (N, K); or those of several seeds, shape (S, N, K).
        label: class numbers, shape (N,).
        reference: the name of the one that the others are compared with; the first if None.
        bootstrap: number of resamples, stratified by class; 0 leaves the intervals out.

    Returns:
        ``rows`` in the order of ``outputs``: ``name``, ``seeds`` (how many), ``auc_macro``, ``accuracy``,
        ``difference`` (this one's AUC minus the reference's; None for the reference), ``auc_of_seeds`` and
        ``seed_scatter`` (their standard deviation; None of a single seed). Also ``n``, ``reference``, ``bootstrap``.

    Raises:
        DataError: rows that are no probabilities, shapes that do not fit together, an unknown reference, or labels of
            one class only.
    """
    runs = {name: _runs(name, probs, label) for name, probs in outputs.items()}
    reference = next(iter(runs), "") if reference is None else reference
    if reference not in runs:
        raise DataError(f"there is no classifier {reference!r} to compare with; {did_you_mean(reference, runs)}")
    label = check_probs(runs[reference][0], label)[1]
    if len(np.unique(label)) < 2:
        raise DataError("classifiers are compared by how they rank classes; these images are all of one class")
    place = list(runs).index(reference)
    values, by_seed = _scores(list(runs.values()), label, np.ones((1, len(label))), place)
    blocks = [
        _scores(list(runs.values()), label, weights, place)[0] for weights in resample_weights(label, bootstrap, seed)
    ]
    draws = {name: np.concatenate([block[name] for block in blocks]) for name in values} if blocks else None
    figures = with_intervals({name: value[0] for name, value in values.items()}, draws)
    rows = [
        {"name": name, "seeds": len(by_seed[k]), **{score: figures[score][k] for score in figures}}
        | {"auc_of_seeds": by_seed[k].tolist(), "seed_scatter": _scatter(by_seed[k])}
        for k, name in enumerate(runs)
    ]
    rows[place]["difference"] = None
    about = {"resamples": bootstrap, "seed": seed, "level": 0.95, "strata": "class", "paired": True}
    return {"n": len(label), "reference": reference, "rows": rows, "bootstrap": about}


def _runs(name: str, probs: Any, label: Any) -> list[np.ndarray]:
    """The probabilities of each seed, shape (N, K) each."""
    is_one = np.ndim(probs[0]) == 1 if len(probs) else False
    runs = [probs] if is_one else list(probs)
    if not runs:
        raise DataError(f"classifier {name!r} has no probabilities; give shape (N, K), or (S, N, K) for S seeds")
    return [check_probs(run, label)[0] for run in runs]


def _scores(
    runs: Sequence[Sequence[np.ndarray]], label: np.ndarray, weights: np.ndarray, reference: int
) -> tuple[Values, list[np.ndarray]]:
    """Scores of R classifiers for images that count `weights` times, shape (b, R), and the AUC of each seed, (S,)."""
    by_seed = [np.stack([macro_auc(probs, label, weights) for probs in seeds]) for seeds in runs]
    auc = np.stack([scores.mean(axis=0) for scores in by_seed], axis=1)
    right = np.stack([np.mean([probs.argmax(axis=1) == label for probs in seeds], axis=0) for seeds in runs])
    values = {"auc_macro": auc, "accuracy": weights @ right.T / len(label)}
    return values | {"difference": auc - auc[:, [reference]]}, [scores[:, 0] for scores in by_seed]


def macro_auc(probs: np.ndarray, label: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One-vs-rest AUC, averaged over the classes that occur, of each resample, shape (b,).

    Args:
        probs: shape (N, K).
        label: class numbers, at least two of them, shape (N,).
        weights: how often each image counts, shape (b, N).
    """
    return np.mean([weighted_auc(probs[:, k], label == k, weights) for k in np.unique(label)], axis=0)


def _scatter(scores: np.ndarray) -> float | None:
    return float(scores.std(ddof=1)) if len(scores) > 1 else None
