"""The parts of a fidelity report that are more than one number: curves, classes recovered, memorisation, notes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from deeplense.evaluate.distances import memorisation_ratio, near_copies
from deeplense.evaluate.fidelity_sets import Measured, Split
from deeplense.evaluate.population import wilson

BAND = (2, 20)  # cycles per image between which power spectra are to agree
TINY = float(np.finfo(np.float64).tiny)


def in_band(frequency: np.ndarray) -> np.ndarray:
    """Whether power spectra are to agree at a frequency, cycles per image."""
    return (frequency >= BAND[0]) & (frequency <= BAND[1])


def curve_rows(generated: Measured, held_out: Measured, drawn: Sequence[Split], which: str) -> dict[str, Any]:
    """Mean curves of both sets, and their ratio, the mean over the splits, with the range that the floor has.

    Args:
        which: "power" or "profile".
    """
    curves, held = getattr(generated, which), getattr(held_out, which)
    reference = [np.maximum(held.of(split.first).mean, TINY) for split in drawn]
    ratios = [curves.of(split.generated).mean / mean for split, mean in zip(drawn, reference, strict=True)]
    floors = [held.of(split.second).mean / mean for split, mean in zip(drawn, reference, strict=True)]
    return {
        "x": curves.x,
        "generated": curves.mean,
        "held_out": held.mean,
        "ratio": np.mean(ratios, axis=0),
        "floor_low": np.min(floors, axis=0),
        "floor_high": np.max(floors, axis=0),
    }


def recovered(generated: Measured, held_out: Measured, num_classes: int) -> dict[str, Any] | None:
    """How often the classifier sees the class that was asked for, beside how often it is right on held-out images.

    Accuracies have 95 % Wilson intervals; ``confusion`` has the class asked for in rows, shape (K, K). None without
    labels or without a classifier.
    """
    sets = {"generated": generated, "held_out": held_out}
    rows = {name: _accuracy(part, num_classes) for name, part in sets.items()}
    return rows if rows["generated"] else None


def _accuracy(images: Measured, num_classes: int) -> dict[str, Any] | None:
    if images.probs is None or images.label is None:
        return None
    seen, number = images.probs.argmax(1), len(images)
    right = int((seen == images.label).sum())
    low, high = wilson([right], [number])
    matrix = confusion_matrix(images.label, seen, labels=range(max(num_classes, images.probs.shape[1])))
    return {"accuracy": right / number, "low": float(low[0]), "high": float(high[0]), "n": number, "confusion": matrix}


def memorisation(
    generated: np.ndarray, held_out: np.ndarray, others: np.ndarray, train: np.ndarray, seed: int
) -> dict[str, Any]:
    """The memorisation ratio of generated images, and as the floor that of held-out ones as if they were generated.

    Args:
        generated, held_out, others: equally many images, `others` held out as well, shape (N, C, H, W).
        train: shape (T, C, H, W).

    Returns:
        ``value``, ``low``, ``high``; ``floor``, ``floor_low``, ``floor_high``; ``near_copies`` of `n`, of which one is
        expected by chance.
    """
    ratio, floor = (memorisation_ratio(images, train, held_out, seed) for images in (generated, others))
    copies = near_copies(generated, others, train, held_out)
    return ratio | {"floor": floor["value"], "floor_low": floor["low"], "floor_high": floor["high"]} | {
        "near_copies": copies, "n": len(generated)
    }  # fmt: skip


def notes(generated: Measured, held_out: Measured, number: int, without: Sequence[str]) -> list[str]:
    """What the reader must know: what is left out and why, and where fewer images are compared than were given.

    Args:
        number: of images a side.
        without: of "train" and "pixel_auc", what was not given.
    """
    is_unlabelled = generated.label is None or held_out.label is None
    texts = {
        f"{number:,} of the {len(generated):,} generated images are compared at a time: equal numbers and the floor "
        "need twice as many held-out images of each class.": number < len(generated),
        "Without the features of an independent classifier, feature distances, the two-sample test and the classes "
        "recovered are left out: name a substructure run with --features.": generated.features is None,
        "Without training images nothing is said about memorisation.": "train" in without,
        "Without class labels of both sets, classes recovered are left out, and a difference of their class mixtures "
        "counts as a difference of the images.": is_unlabelled,
        "No network was trained to tell the pixels apart.": "pixel_auc" in without,
    }
    return [text for text, is_so in texts.items() if is_so]
