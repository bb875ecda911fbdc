"""The noise of each pixel, from what is known of the detector and what the image's corners show."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Pixels of the corners are left out where they lie farther from the mean than this many standard deviations.
CLIP, ROUNDS = 4.0, 5


@dataclass(frozen=True)
class Noise:
    """Photon and read-out noise of images in electrons, or in any unit proportional to them.

    Attributes:
        background_variance: electrons^2 of sky and read-out in a pixel; 0 where it is not known, and then all pixels of
            an image are as noisy as its corners.
        is_electrons: the unit is one electron. If not, the corners tell how many there are to the unit: their scatter
            is the square root of ``background_variance`` electrons.
    """

    background_variance: float = 0.0
    is_electrons: bool = False

    def sigma(self, signal: Tensor, scatter: Tensor) -> Tensor:
        """Standard deviation of each pixel in the unit of the images, shape (B, H, W).

        Args:
            signal: what is expected above the sky, shape (B, H, W).
            scatter: that of the corners, shape (B,), as :func:`corners` finds it.
        """
        signal, scatter = signal.clamp_min(0), scatter[:, None, None]
        if self.background_variance == 0:
            return scatter.expand_as(signal)
        if self.is_electrons:
            return torch.sqrt(signal + self.background_variance)
        # electrons = gain * unit, background_variance = (gain * scatter)^2.
        return torch.sqrt(scatter**2 + signal * scatter / self.background_variance**0.5)


def corners(images: Tensor, share: float = 0.13) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the pixels in the four corners, clipped, shape (B,) each.

    Args:
        images: shape (B, H, W); NaN are left out.
        share: side of a corner over that of the image.
    """
    size = max(2, round(share * min(images.shape[-2:])))
    parts = [images[:, rows, columns] for rows in _ends(size) for columns in _ends(size)]
    pixels = torch.stack(parts, 1).flatten(1)
    good = pixels.isfinite()
    for _ in range(ROUNDS):
        mean, std = _moments(pixels, good)
        good = good & ((pixels - mean[:, None]).abs() <= CLIP * std[:, None])
    return _moments(pixels, good)


def _ends(size: int) -> tuple[slice, slice]:
    return slice(None, size), slice(-size, None)


def _moments(pixels: Tensor, good: Tensor) -> tuple[Tensor, Tensor]:
    number = good.sum(1).clamp_min(1)
    mean = torch.where(good, pixels, 0.0).sum(1) / number
    square = torch.where(good, (pixels - mean[:, None]) ** 2, 0.0).sum(1)
    tiny = torch.finfo(pixels.dtype).tiny ** 0.5
    return mean, torch.sqrt(square / (number - 1).clamp_min(1)).clamp_min(tiny)
