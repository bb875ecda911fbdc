"""How like are two sets of images? Numbers that describe one image each, to be compared as distributions."""

from __future__ import annotations

import numpy as np

CORNER = 20  # pixels of the corner that holds sky
BRIGHT, FAINT = 0.1, 0.05  # of the peak


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
