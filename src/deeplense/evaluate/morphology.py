"""What a lens looks like in numbers: size, shape, brightness and noise of each image, and curves of a set.

Images of several bands are averaged over them: these numbers say nothing about colour.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import median_abs_deviation

FRAME = 16  # the sky is the frame whose width is this part of the image, at least two pixels
PEAK = 99.5  # percentile of the pixels that stands for the peak, so that one hot pixel does not
BRIGHT, SIGMAS = 0.25, 4.0  # light is what exceeds this share of the peak, and the noise this many times
CHUNK = 500  # images whose Fourier transforms are in memory at a time


@dataclass(frozen=True)
class Curves:
    """One curve for each image of a set.

    Attributes:
        x: where, shape (K,).
        values: shape (N, K).
    """

    x: np.ndarray
    values: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Over the set, shape (K,)."""
        return self.values.mean(0)

    @property
    def scatter(self) -> tuple[np.ndarray, np.ndarray]:
        """The 16th and 84th percentile of the images, shape (K,) each."""
        low, high = np.percentile(self.values, [16, 84], axis=0)
        return low, high

    @property
    def shape(self) -> Curves:
        """Each curve over its sum, so that all images count alike, bright or faint."""
        total = self.values.sum(1, keepdims=True)
        return replace(self, values=np.divide(self.values, total, out=np.zeros_like(self.values), where=total > 0))

    def of(self, index: np.ndarray) -> Curves:
        """The curves of some of the images."""
        return replace(self, values=self.values[index])


def one_band(images: np.ndarray) -> np.ndarray:
    """The mean of the bands, float64, shape (N, H, W); from (N, C, H, W) or (N, H, W)."""
    return images.mean(1, dtype=np.float64) if images.ndim == 4 else images.astype(np.float64)


def morphology(images: np.ndarray, pixel_scale: float | None = None) -> dict[str, np.ndarray]:
    """Numbers of one image each, float64, shape (N,); 0 where an image has no light at all.

    ``ring_radius``: flux-weighted mean distance of the light from the image centre, arcsec, or pixels without a pixel
    scale. ``ellipticity``: |chi| = (a^2 - b^2) / (a^2 + b^2) from the second moments of the light about its own
    centre, a and b its long and short axis. ``flux``: sum of all pixels above the sky, the median of the frame.
    ``noise``: robust standard deviation of the frame, 1.48 times the median absolute deviation.

    Light is what exceeds the sky by a quarter of the peak (the 99.5th percentile) and by four times the noise. Where a
    lens galaxy is in the image, its light counts as well.

    Args:
        images: shape (N, C, H, W) or (N, H, W).
        pixel_scale: arcsec per pixel.

    References:
        Bartelmann & Schneider, Weak gravitational lensing, arXiv:astro-ph/9912508, equation 4.4: chi.
    """
    images = one_band(images)
    frame = images[:, _is_frame(images.shape[1:])]
    sky, noise = np.median(frame, axis=1), median_abs_deviation(frame, axis=1, scale="normal")
    above = images - sky[:, None, None]
    light = _light(above, noise)
    row, column = np.indices(images.shape[1:]) - _center(images.shape[1:])[:, None, None]
    return {
        "ring_radius": (light * np.hypot(row, column)).sum((1, 2)) * (pixel_scale or 1.0),
        "ellipticity": _ellipticity(light, row, column),
        "flux": above.sum((1, 2)),
        "noise": noise,
    }


def _center(shape: tuple[int, ...]) -> np.ndarray:
    return (np.array(shape) - 1) / 2


def _is_frame(shape: tuple[int, ...]) -> np.ndarray:
    """Whether a pixel lies near the border, bool, shape (H, W)."""
    width = max(2, min(shape) // FRAME)
    is_frame = np.ones(shape, bool)
    is_frame[width:-width, width:-width] = False
    return is_frame


def _light(above: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Brightness of what is bright, as weights of sum 1 (0 for an image without light), shape (N, H, W)."""
    peak = np.percentile(above, PEAK, axis=(1, 2))
    threshold = np.minimum(np.maximum(BRIGHT * peak, SIGMAS * noise), peak)  # of pure noise, the brightest pixels
    light = np.where(above >= threshold[:, None, None], np.maximum(above, 0), 0)
    total = light.sum((1, 2), keepdims=True)
    return np.divide(light, total, out=np.zeros_like(light), where=total > 0)


def _ellipticity(light: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    center_y, center_x = ((light * place).sum((1, 2)) for place in (row, column))
    xx, yy, xy = ((light * product).sum((1, 2)) for product in (column**2, row**2, column * row))
    xx, yy, xy = xx - center_x**2, yy - center_y**2, xy - center_x * center_y
    size = xx + yy
    return np.divide(np.hypot(xx - yy, 2 * xy), size, out=np.zeros_like(size), where=size > 1e-9)


def power_spectrum(images: np.ndarray) -> Curves:
    """Isotropic power against frequency, cycles per image, from 1 to half the number of pixels, in bins of width 1.

    Each image is freed of its mean and multiplied with a Hann window w; the power is |FFT|^2 / sum w^2, so that white
    noise has its variance at every frequency.

    Args:
        images: shape (N, C, H, W) or (N, H, W).
    """
    images = one_band(images)
    height, width = images.shape[1:]
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    side = min(height, width)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) * side
    parts = []
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK]
        waves = np.fft.fft2((part - part.mean((1, 2), keepdims=True)) * window)
        parts.append(_ring_means(np.square(np.abs(waves)), frequency) / np.square(window).sum())
    return Curves(np.arange(1.0, side // 2 + 1), np.concatenate(parts)[:, 1 : side // 2 + 1])


def radial_profile(images: np.ndarray) -> Curves:
    """Brightness against the distance from the image centre, pixels, averaged over rings of width 1.

    Args:
        images: shape (N, C, H, W) or (N, H, W).
    """
    images = one_band(images)
    row, column = np.indices(images.shape[1:]) - _center(images.shape[1:])[:, None, None]
    distance = np.hypot(row, column)
    # Rings from 0 to 1, from 1 to 2 ...: of an even number of pixels, none is empty.
    radius, values = (_ring_means(of, np.floor(distance)) for of in (distance[None], images))
    rings = min(images.shape[1:]) // 2
    return Curves(radius[0, :rings], values[:, :rings])


def _ring_means(values: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Mean of (N, H, W) values over the pixels whose distance rounds to 0, to 1, to 2 ..., shape (N, K)."""
    ring = np.round(distance).astype(int).ravel()
    is_in = (ring[:, None] == np.arange(ring.max() + 1)).astype(np.float64)
    return values.reshape(len(values), -1) @ (is_in / np.maximum(is_in.sum(0), 1))


def pixel_sample(images: np.ndarray, number: int = 512) -> np.ndarray:
    """Values of `number` pixels of each image, the same places in all and in every set of this shape, shape (N * n,).

    A million of values say as much about their distribution as ten million.
    """
    flat = images.reshape(len(images), -1)
    places = np.random.default_rng(0).permutation(flat.shape[1])[:number]
    return flat[:, np.sort(places)].astype(np.float64).ravel()


def largest_deviation(curve: np.ndarray, reference: np.ndarray, is_used: np.ndarray) -> float:
    """The largest |curve / reference - 1| where it is to be looked at; all of shape (K,)."""
    floor = np.finfo(np.float64).tiny
    return float(np.abs(curve[is_used] / np.maximum(reference[is_used], floor) - 1).max(initial=0.0))
