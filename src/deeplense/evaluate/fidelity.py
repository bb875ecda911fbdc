"""How like are two sets of images? Generated ones against held-out ones, and these against one another.

A score of generated images means little by itself: every one of them depends on the number of images, and two halves
of the simulator's own images differ as well. That difference, the floor, stands beside each score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import wasserstein_distance

from deeplense.errors import DataError
from deeplense.evaluate import distances
from deeplense.evaluate.arrays import check_labels
from deeplense.evaluate.fidelity_parts import curve_rows, in_band, memorisation, notes, recovered
from deeplense.evaluate.fidelity_sets import Features, Measured, Split, equal_splits, measure
from deeplense.evaluate.morphology import largest_deviation, pixel_sample

PixelAUC = Callable[[np.ndarray, np.ndarray, int], float]
# Scores that are distances: how many times the floor they are says how far off they are.
DISTANCES = (
    "frechet", "pixels", "ring_radius", "ring_radius_relative", "ellipticity", "ellipticity_relative", "flux",
    "flux_relative", "noise", "noise_relative", "power_deviation", "power_shape_deviation", "profile_deviation",
)  # fmt: skip

CORNER = 20  # pixels of the corner that holds sky
BRIGHT, FAINT = 0.1, 0.05  # of the peak


def fidelity_scores(
    generated: np.ndarray,
    held_out: np.ndarray,
    *,
    train: np.ndarray | None = None,
    features: Features | None = None,
    label: Any = None,
    held_label: Any = None,
    classes: Sequence[str] = (),
    pixel_scale: float | None = None,
    pixel_auc: PixelAUC | None = None,
    seed: int = 0,
    splits: int = 5,
) -> dict[str, Any]:
    """Compare generated with held-out images, beside a comparison of held-out images with one another.

    Of each random split of the held-out images into A and B, of N images each, a score is that of N generated images
    against A, and its floor that of B against A. Where both sets have labels, all three have the same class mixture.

    Args:
        generated: shape (N, C, H, W).
        held_out: images that the model was not trained on, shape (M, C, H, W), at least two for each generated one; of
            fewer, so many of the generated images are used at a time as two of them allow.
        train: images that the model was trained on, shape (T, C, H, W).
        features: images (n, C, H, W) -> features (n, D) and probabilities (n, K) of an independent classifier.
        label: of the generated images, the class that each was asked to show, shape (N,).
        held_label: of the held-out images, shape (M,).
        classes: K names.
        pixel_scale: arcsec per pixel.
        pixel_auc: (a, b, seed) -> the AUC with which a network tells two sets of images apart.
        splits: how many.

    Returns:
        ``n`` images a side; ``scores``, by name, each with ``value``, ``low``, ``high`` (over the splits), ``floor``,
        ``floor_low``, ``floor_high`` and ``ratio`` (None where it makes no sense); the curves ``power`` and
        ``profile``; ``recovered`` and ``memorisation`` where they can be had; ``notes`` on what is left out.

    Raises:
        DataError: images of different shapes, NaN among them, too few of them, or labels that do not fit.
    """
    sets = [measure(*pair, features, pixel_scale) for pair in ((generated, label), (held_out, held_label))]
    return compare(*sets, train=train, classes=classes, pixel_auc=pixel_auc, seed=seed, splits=splits)


def compare(
    generated: Measured,
    held_out: Measured,
    *,
    train: np.ndarray | None = None,
    classes: Sequence[str] = (),
    pixel_auc: PixelAUC | None = None,
    seed: int = 0,
    splits: int = 5,
) -> dict[str, Any]:
    """As `fidelity_scores`, of sets that are measured already."""
    _check(generated, held_out, train, classes)
    drawn = equal_splits(generated, held_out, splits, seed)
    pairs = [_value_and_floor(generated, held_out, split, seed) for split in drawn]
    scores = {name: _summary(name, *([row[k][name] for row in pairs] for k in (0, 1))) for name in pairs[0][0]}
    first = drawn[0]
    g, a, b = generated.images[first.generated], held_out.images[first.first], held_out.images[first.second]
    if pixel_auc is not None:
        scores["pixel_auc"] = _summary("pixel_auc", [pixel_auc(g, a, seed)], [pixel_auc(b, a, seed)])
    extras = {"train": train, "pixel_auc": pixel_auc}
    return {
        "n": len(a),
        "n_generated": len(generated),
        "n_held_out": len(held_out),
        "n_train": None if train is None else len(train),
        "splits": splits,
        "classes": list(classes),
        "scores": scores,
        "power": curve_rows(generated, held_out, drawn, "power"),
        "profile": curve_rows(generated, held_out, drawn, "profile"),
        "recovered": recovered(generated, held_out, len(classes)),
        "memorisation": None if train is None else memorisation(g, a, b, train, seed),
        "notes": notes(generated, held_out, len(a), [name for name, part in extras.items() if part is None]),
    }


def _check(generated: Measured, held_out: Measured, train: np.ndarray | None, classes: Sequence[str]) -> None:
    shape = generated.images.shape[1:]
    for name, images in (("held-out", held_out.images), ("training", train)):
        if images is not None and images.shape[1:] != shape:
            raise DataError(
                f"generated images have shape {shape} (C, H, W), {name} ones {images.shape[1:]}; "
                "cut or draw them to the same size"
            )
    for part in (generated, held_out):
        if classes and part.label is not None:
            check_labels(part.label, len(classes))


def _value_and_floor(
    generated: Measured, held_out: Measured, split: Split, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    first = held_out.of(split.first)
    value = pair_scores(generated.of(split.generated), first, seed)
    return value, pair_scores(held_out.of(split.second), first, seed)


def pair_scores(a: Measured, b: Measured, seed: int = 0) -> dict[str, float]:
    """All scores of a set against another one of equal size, `b`, which is the measure of what is large."""
    x, y = pixel_sample(a.images), pixel_sample(b.images)
    scores = {"pixels": wasserstein_distance(x, y) / _size(np.std(y))}
    for name, values in a.numbers.items():
        others = b.numbers[name]
        scores[name] = wasserstein_distance(values, others)
        scores[f"{name}_relative"] = scores[name] / _size(np.mean(others) if name == "ring_radius" else np.std(others))
    used = in_band(a.power.x)
    scores["power_deviation"] = largest_deviation(a.power.mean, b.power.mean, used)
    scores["power_shape_deviation"] = largest_deviation(a.power.shape.mean, b.power.shape.mean, used)
    scores["profile_deviation"] = float(np.abs(a.profile.mean - b.profile.mean).max() / _size(np.ptp(b.profile.mean)))
    if a.features is not None and b.features is not None:
        scores["frechet"] = distances.frechet_distance(a.features, b.features)
        scores["kernel"] = distances.kernel_distance(a.features, b.features)
        scores |= distances.precision_recall_coverage(b.features, a.features)
        scores["two_sample_auc"] = distances.two_sample_auc(a.features, b.features, seed)
    return scores


def _size(value: Any) -> float:
    return max(float(value), float(np.finfo(np.float64).tiny))


def _summary(name: str, values: Sequence[float], floors: Sequence[float]) -> dict[str, float | None]:
    """Means and ends over the splits of a score and of its floor."""
    (value, low, high), (floor, floor_low, floor_high) = ((np.mean(d), np.min(d), np.max(d)) for d in (values, floors))
    row = {"value": value, "low": low, "high": high, "floor": floor, "floor_low": floor_low, "floor_high": floor_high}
    ratio = float(value / floor) if name in DISTANCES and floor > 0 else None
    return {key: float(number) for key, number in row.items()} | {"ratio": ratio}


def describe(images: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of min-max scaled images, float64, shape (N,) each.

    ``mean``, ``std``: of all pixels. ``corner_median``, ``corner_std``: of the 20x20 pixels in the first corner.
    ``radius``: flux-weighted distance from the image centre, pixels above 0.1. ``fraction``: share of pixels above
    0.1. ``center_x``, ``center_y``: flux-weighted, pixels above 0.1. ``elongation``, ``angle``: ratio of the rms widths
    along x and y, and direction (degrees) of the long axis, pixels above 0.05.

    Args:
        images: one channel in [0, 1], shape (N, H, W).
    """
    images = images.astype(np.float64)
    corner = images[:, :CORNER, :CORNER].reshape(len(images), -1)
    center = (np.array(images.shape[1:]) - 1) / 2
    bright, y, x = _moments(images, BRIGHT)
    faint, faint_y, faint_x = _moments(images, FAINT)
    row, column = np.indices(images.shape[1:])
    dx, dy = column - faint_x[:, None, None], row - faint_y[:, None, None]
    xx, yy, xy = ((faint * product).sum((1, 2)) for product in (dx * dx, dy * dy, dx * dy))
    distance = np.hypot(row - center[0], column - center[1])
    return {
        "mean": images.mean((1, 2)),
        "std": images.std((1, 2)),
        "corner_median": np.median(corner, axis=1),
        "corner_std": corner.std(1),
        "radius": (bright * distance).sum((1, 2)),
        "fraction": (images > BRIGHT).mean((1, 2)),
        "center_x": x,
        "center_y": y,
        "elongation": np.sqrt(xx / yy),
        "angle": np.degrees(np.arctan2(2 * xy, xx - yy) / 2),
    }


def _moments(images: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels above a threshold as weights of sum 1, and their mean row and column."""
    weight = np.where(images > threshold, images, 0)
    weight = weight / weight.sum((1, 2), keepdims=True)
    row, column = np.indices(images.shape[1:])
    return weight, (weight * row).sum((1, 2)), (weight * column).sum((1, 2))
