"""What is measured of a set of images before it is compared with another, and fair draws of equal size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deeplense.errors import DataError
from deeplense.evaluate.arrays import check_labels, check_lengths
from deeplense.evaluate.morphology import Curves, morphology, power_spectrum, radial_profile

# Images (n, C, H, W) -> features (n, D) and class probabilities (n, K) of a classifier.
Features = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
BATCH = 256
FEWEST = 10  # images on each side of a comparison


@dataclass(frozen=True)
class Measured:
    """A set of images and all that is measured of each image.

    Attributes:
        images: shape (N, C, H, W).
        label: class numbers, shape (N,), or None.
        numbers: as `morphology.morphology` gives them.
        features: of a classifier, shape (N, D), or None.
        probs: of the same classifier, shape (N, K), or None.
    """

    images: np.ndarray
    label: np.ndarray | None
    numbers: dict[str, np.ndarray]
    power: Curves
    profile: Curves
    features: np.ndarray | None = None
    probs: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def of(self, index: np.ndarray) -> Measured:
        """Some of the images."""
        label, features, probs = (
            None if part is None else part[index] for part in (self.label, self.features, self.probs)
        )
        numbers = {name: values[index] for name, values in self.numbers.items()}
        return Measured(
            self.images[index], label, numbers, self.power.of(index), self.profile.of(index), features, probs
        )


def measure(
    images: np.ndarray, label: Any = None, features: Features | None = None, pixel_scale: float | None = None
) -> Measured:
    """Measure every image of a set.

    Args:
        images: shape (N, C, H, W).
        label: class numbers, shape (N,).
        features: of an independent classifier.
        pixel_scale: arcsec per pixel.

    Raises:
        DataError: not of this shape, NaN or infinite values, or another number of labels.
    """
    if images.ndim != 4 or not len(images):
        raise DataError(f"images have shape {images.shape}; this needs (N, C, H, W) with at least one image")
    if len(bad := np.flatnonzero(~np.isfinite(images).all((1, 2, 3)))):
        raise DataError(
            f"{len(bad)} of {len(images)} images hold NaN or infinite values (first: image {bad[0]}); "
            "leave such images out, or look for a training run that diverged"
        )
    if label is not None:
        label = check_labels(label, int(np.max(label)) + 1)
        check_lengths(label, images=images)
    judged = (None, None) if features is None else _in_batches(features, images)
    curves = power_spectrum(images), radial_profile(images)
    return Measured(images, label, morphology(images, pixel_scale), *curves, *judged)


def _in_batches(features: Features, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = [features(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    found, probs = (np.concatenate([np.asarray(part[k]) for part in parts]) for k in (0, 1))
    return found.reshape(len(images), -1), probs


@dataclass(frozen=True)
class Split:
    """Indices of equally many images: of the generated set, and twice of the held-out set without overlap."""

    generated: np.ndarray
    first: np.ndarray
    second: np.ndarray


def equal_splits(generated: Measured, held_out: Measured, splits: int, seed: int) -> list[Split]:
    """Random splits with equally many images on all sides, of each class where both sets have labels.

    Args:
        splits: how many.

    Raises:
        DataError: fewer than ten images a side.
    """
    rng = np.random.default_rng(seed)
    label, held_label = _mixture(generated, held_out)
    counts = [min(int(np.sum(label == k)), int(np.sum(held_label == k)) // 2) for k in range(label.max() + 1)]
    if sum(counts) < FEWEST:
        raise DataError(
            f"{len(generated)} generated and {len(held_out)} held-out images leave {sum(counts)} to compare at equal "
            f"numbers; give at least {FEWEST} generated images, and twice as many held-out ones of the same classes"
        )
    return [_draw(rng, label, held_label, counts) for _ in range(splits)]


def _mixture(generated: Measured, held_out: Measured) -> tuple[np.ndarray, np.ndarray]:
    if generated.label is None or held_out.label is None:
        return np.zeros(len(generated), int), np.zeros(len(held_out), int)
    return generated.label, held_out.label


def _draw(rng: np.random.Generator, label: np.ndarray, held_label: np.ndarray, counts: Sequence[int]) -> Split:
    chosen = [rng.permutation(np.flatnonzero(label == k))[:count] for k, count in enumerate(counts)]
    held = [rng.permutation(np.flatnonzero(held_label == k))[: 2 * count] for k, count in enumerate(counts)]
    halves = ([pair[:count] for pair, count in zip(held, counts, strict=True)],
              [pair[count:] for pair, count in zip(held, counts, strict=True)])  # fmt: skip
    return Split(*(np.sort(np.concatenate(part)) for part in (chosen, *halves)))
