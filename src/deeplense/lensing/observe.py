"""What the telescope does to the sky: blurring by the PSF, and noise in electrons."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

FWHM_TO_SIGMA = 1 / math.sqrt(8 * math.log(2))


def gaussian_kernel(sigma: Tensor, radius: int) -> Tensor:
    """Sampled one-dimensional Gaussians of sum 1: widths (B,) in pixels -> (B, 2 radius + 1)."""
    offset = torch.arange(-radius, radius + 1, dtype=sigma.dtype, device=sigma.device)
    # A width of zero is no blur at all.
    weight = torch.exp(-0.5 * (offset / sigma[:, None].clamp_min(1e-3)) ** 2)
    return weight / weight.sum(1, keepdim=True)


def blur_gaussian(image: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Convolve each image with its own Gaussian PSF; beyond the border the edge pixels go on.

    Args:
        image: brightness, shape (B, H, W).
        sigma: PSF width in pixels, shape (B,).
        radius: pixels at which the kernel is cut off.

    Returns:
        shape (B, H, W), total flux kept up to the border.
    """
    # Images are the channels of one grouped convolution, so that each has its own kernel.
    kernel = gaussian_kernel(sigma, radius)[:, None]
    padded = F.pad(image[None], (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel[:, :, None, :], groups=len(image))
    return F.conv2d(rows, kernel[:, :, :, None], groups=len(image))[0]


def blur_kernel(image: Tensor, kernel: Tensor) -> Tensor:
    """Convolve all images with one pixelated PSF; the sky beyond the border is dark.

    Args:
        image: brightness, shape (B, H, W).
        kernel: odd-sized PSF image of sum 1, shape (K, K).

    Returns:
        shape (B, H, W).
    """
    # conv2d correlates: a convolution needs the kernel turned round.
    flipped = kernel.flip(0, 1)[None, None]
    return F.conv2d(image[:, None], flipped, padding=kernel.shape[-1] // 2)[:, 0]


def signal_to_noise(image: Tensor, noise_map: Tensor) -> Tensor:
    """Total signal-to-noise ratio of each image, sqrt(sum (image / noise)^2), shape (B,)."""
    return torch.sqrt(((image / noise_map) ** 2).flatten(1).sum(1))


# Below this mean the quantile expansion is off by more than half a percent; it is cheap to be exact there.
FEW_ELECTRONS = 5.0


def poisson(mean: Tensor, z: Tensor, least: float = 0.0) -> Tensor:
    """Poisson counts as a function of standard normal deviates: the quantile of ``mean`` at the probability of ``z``.

    Noise is then an argument, not a hidden draw; ten times faster than a rejection sampler. Above five electrons the
    quantile is Cornish and Fisher's expansion, within 0.4 % of the distribution in total variation (0.06 % at 30) with
    mean and variance exact to 0.1 %; below, it is summed exactly.

    Args:
        mean: expected electrons, 0 or more, any shape.
        z: standard normal deviates, same shape.
        least: what no mean is below, where that is known; from five electrons on, the exact sum is left out, and with
            it a branch on the data that torch.compile cannot follow.

    Returns:
        Whole numbers, same shape and dtype.

    References: Fisher & Cornish, Technometrics 2 (1960) 209, for the Poisson cumulants.
    """
    # Rounding to whole numbers adds a variance of 1/12, which the width gives up beforehand.
    width = torch.sqrt((mean - 1 / 12).clamp_min(1e-3))
    many = torch.floor(mean + width * z + (z**2 - 1) / 6 + (z - z**3) / (72 * width) + 0.5).clamp_min(0)
    if least >= FEW_ELECTRONS:
        return many
    few = mean < FEW_ELECTRONS
    if few.any():
        many[few] = _poisson_few(mean[few], z[few])
    return many


def _poisson_few(mean: Tensor, z: Tensor) -> Tensor:
    """The exact Poisson quantile for small means: how many terms of the distribution lie below the probability."""
    probability = torch.special.ndtr(z.double())
    term = torch.exp(-mean.double())
    below, count = term.clone(), torch.zeros_like(term)
    for k in range(1, 30):
        count += probability > below
        term = term * mean.double() / k
        below += term
    return count.to(mean.dtype)
