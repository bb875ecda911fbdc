"""What goes wrong between the sky and the image: cosmic rays, trails, dead columns, chip edges, smears, spikes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Columns = Mapping[str, np.ndarray]


def spoil(electrons: np.ndarray, columns: Columns, pixel_scale: float, rng: np.random.Generator) -> None:
    """Put the artefacts of a block into its exposed images, in place.

    Args:
        electrons: with or without the sky, shape (B, C, H, W).
        columns: those of ``population.draw``; ``artefact`` and the star are used.
    """
    for row in np.flatnonzero(columns["artefact"] != ""):
        _ARTEFACTS[columns["artefact"][row]](electrons[row], rng)
    place = np.stack([columns["star_x"], columns["star_y"]], 1) / pixel_scale + (electrons.shape[-1] - 1) / 2
    for row in np.flatnonzero(np.isfinite(columns["star_magnitude"][:, -1])):
        _spikes(electrons[row], place[row], rng)


def noise_level(image: np.ndarray) -> np.ndarray:
    """Standard deviation of the noise of each channel (C, H, W) -> (C, 1, 1), from differences of neighbours."""
    return (1.4826 / math.sqrt(2)) * np.median(np.abs(np.diff(image, axis=-1)), axis=(1, 2), keepdims=True)


def _cosmic_ray(image: np.ndarray, rng: np.random.Generator) -> None:
    """A few sharp, bright tracks in one channel: no PSF has blurred them."""
    size = image.shape[-1]
    channel = rng.integers(len(image))
    for _ in range(rng.integers(1, 4)):
        length, angle = rng.uniform(1, 0.2 * size), rng.uniform(0, math.pi)
        step = np.arange(0, length, 0.5)
        x, y = (np.floor(rng.uniform(0, size) + step * trig).astype(int) for trig in (math.cos(angle), math.sin(angle)))
        inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
        peak = _span(image)[channel, 0, 0] * rng.uniform(0.3, 2)
        image[channel, y[inside], x[inside]] += peak * rng.uniform(0.5, 1, inside.sum())


def _trail(image: np.ndarray, rng: np.random.Generator) -> None:
    """A satellite: a straight line through the image in one channel, as wide as the seeing."""
    channel, width = rng.integers(len(image)), rng.uniform(1.2, 2.5)
    height = noise_level(image)[channel, 0, 0] * rng.uniform(3, 25)
    image[channel] += height * np.exp(-0.5 * (_across(image, rng) / width) ** 2)


def _column(image: np.ndarray, rng: np.random.Generator) -> None:
    """One or two columns, or rows, that are dead, or far too bright; in one channel, or in all."""
    size, which = image.shape[-1], slice(None) if rng.random() < 0.4 else slice(k := rng.integers(len(image)), k + 1)
    start, level = rng.integers(size - 2), rng.choice([-1.0, 1.0]) * rng.uniform(4, 20)
    band = image[which].swapaxes(1, 2) if rng.random() < 0.3 else image[which]
    band[:, :, start : start + rng.integers(1, 3)] += level * noise_level(image)[which]


def _edge(image: np.ndarray, rng: np.random.Generator) -> None:
    """The edge of a chip: beyond a line the noise is another one, or there are no data."""
    across = _across(image, rng)
    # The smaller part is lost.
    beyond = across > 0 if (across > 0).mean() < 0.5 else across < 0
    which = slice(None) if rng.random() < 0.6 else slice(k := rng.integers(len(image)), k + 1)
    part = image[which]
    if rng.random() < 0.4:
        part[:, beyond] = np.median(part, axis=(1, 2))[:, None]
        return
    level = noise_level(image)[which, :, 0]
    part[:, beyond] += level * (rng.uniform(1, 3) * rng.normal(0, 1, (len(part), beyond.sum())) + rng.uniform(-2, 4))


def _bleed(image: np.ndarray, rng: np.random.Generator) -> None:
    """The over-subtracted trail of a saturated star: a short streak far below the sky, in most channels."""
    y, x = np.indices(image.shape[1:])
    dx, dy = x - rng.uniform(0, image.shape[-1]), y - rng.uniform(0, image.shape[-1])
    if rng.random() < 0.5:
        dx, dy = dy, dx
    streak = np.exp(-0.5 * (dx / rng.uniform(2, 20)) ** 2 - 0.5 * (dy / rng.uniform(0.6, 2.5)) ** 2)
    depth = noise_level(image) * np.exp(rng.uniform(math.log(30), math.log(1000)))
    has_it = rng.random((len(image), 1, 1)) < 0.85
    has_it[rng.integers(len(image))] = True
    image -= depth * has_it * streak


def _smear(image: np.ndarray, rng: np.random.Generator) -> None:
    """Stripes from end to end in the bluer channels: bleeding, or few exposures badly combined."""
    across = _across(image, rng)
    which = slice(0, rng.integers(1, len(image) + 1))
    place = np.arange(-1.5 * image.shape[-1], 1.5 * image.shape[-1], rng.uniform(0.7, 1.6))
    stripes = np.interp(across, place, rng.normal(0, 1, len(place)))
    image[which] += noise_level(image)[which] * rng.uniform(1.5, 5) * stripes


def _spikes(image: np.ndarray, place: np.ndarray, rng: np.random.Generator) -> None:
    """The diffraction cross of a bright star; one whose peak is below 3000 sigma has none."""
    y, x = np.indices(image.shape[1:])
    dx, dy = x - place[0], y - place[1]
    near = (np.abs(dx) < 3) & (np.abs(dy) < 3)
    sky = np.median(image, axis=(1, 2), keepdims=True)
    peak = (image - sky)[:, near].max(1, initial=0.0)[:, None, None]
    if not (peak > 3000 * noise_level(image)).any():
        return
    along, narrow = np.hypot(dx, dy) + 4, np.minimum(np.abs(dx + dy), np.abs(dx - dy)) / math.sqrt(2)
    spike = 0.02 * peak * (4 / along) ** 2 * np.exp(-0.5 * (narrow / 0.9) ** 2)
    image += spike + np.sqrt(np.fmax(spike, 0)) * rng.normal(0, 1, image.shape)


def _across(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Signed distance in pixels from a line through the image, in any direction, shape (H, W)."""
    size, angle = image.shape[-1], rng.uniform(0, 2 * math.pi)
    y, x = np.indices(image.shape[1:]) - (size - 1) / 2
    return x * math.sin(angle) - y * math.cos(angle) - rng.uniform(0, 0.45) * size


def _span(image: np.ndarray) -> np.ndarray:
    return np.ptp(image, axis=(1, 2), keepdims=True)


_ARTEFACTS: dict[str, Callable[[np.ndarray, np.random.Generator], Any]] = {
    "cosmic_ray": _cosmic_ray,
    "trail": _trail,
    "column": _column,
    "edge": _edge,
    "bleed": _bleed,
    "smear": _smear,
}
