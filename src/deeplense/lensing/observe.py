"""What the telescope does to the sky: blurring by the PSF, and noise in electrons."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplense.lensing.compiled import hold
from deeplense.lensing.deflection import _image

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
    # Unless the image is there before it is padded, its rays are traced pixel by pixel inside of the padding.
    padded = F.pad(hold(image)[None], (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel[:, :, None, :], groups=len(image))
    return F.conv2d(rows, kernel[:, :, :, None], groups=len(image))[0]


def moffat_kernel(fwhm: Tensor, beta: Tensor | float, radius: int) -> Tensor:
    """Moffat PSFs sampled at the pixel centres, flux 1: the seeing disc of a ground-based image, with its wings.

    Sampled and not integrated over the pixels, because the image that it blurs is already: the pixel would otherwise
    count twice. The flux outside of the square is spread over the rest; within the circle of ``radius`` lies the
    fraction that :func:`moffat_flux` gives.

    Args:
        fwhm: full width at half maximum in pixels, shape (B,).
        beta: how steep the wings fall, r^(-2 beta), above 1; a number or shape (B,).
        radius: pixels at which the kernel is cut off.

    Returns:
        shape (B, K, K) with K = 2 radius + 1.

    References: Moffat, A&A 3 (1969) 455; FWHM as in Trujillo et al. 2001, astro-ph/0109067, equation 2.
    """
    beta = torch.as_tensor(beta, dtype=fwhm.dtype, device=fwhm.device).expand_as(fwhm)
    # A width of zero is no blur at all.
    inverse_width = 2 * torch.sqrt(torch.exp2(1 / beta) - 1) / fwhm.clamp_min(1e-3)
    inverse_width, beta = _image(inverse_width, beta)
    offset = torch.arange(-radius, radius + 1, dtype=fwhm.dtype, device=fwhm.device)
    r2 = offset**2 + offset[:, None] ** 2
    weight = (1 + r2 * inverse_width**2) ** -beta
    return weight / weight.sum((1, 2), keepdim=True)


def gaussian_flux(fwhm: Tensor, radius: float) -> Tensor:
    """The fraction of a Gaussian PSF's flux within a circle: FWHM and radius in the same unit, shape (B,).

    It is 0.998 at a radius of one and a half FWHM and 0.99998 at two.
    """
    return 1 - torch.exp(-0.5 * (radius / (fwhm * FWHM_TO_SIGMA)) ** 2)


def moffat_flux(fwhm: Tensor, beta: Tensor | float, radius: float) -> Tensor:
    """The fraction of a Moffat PSF's flux within a circle: FWHM and radius in the same unit, shape (B,).

    With ``beta = 3`` it is 0.962 at a radius of two FWHM and 0.991 at three.

    References: Trujillo et al. 2001, astro-ph/0109067, equation 3.
    """
    beta = torch.as_tensor(beta, dtype=fwhm.dtype, device=fwhm.device)
    return 1 - (1 + (2 * radius / fwhm) ** 2 * (torch.exp2(1 / beta) - 1)) ** (1 - beta)


# Kernels up to this size are convolved directly; for larger ones the Fourier transform is faster, on one core or two.
DIRECT_SIZE = 25


def blur(image: Tensor, kernel: Tensor) -> Tensor:
    """Convolve each image with its own pixelated PSF; beyond the border the edge pixels go on.

    Kernels above 25 x 25 go through Fourier space: in single precision, dark pixels are then off by up to 3e-7 of the
    brightest one, and may be that much below zero.

    Args:
        image: brightness, shape (B, C, H, W).
        kernel: odd-sized PSF images of sum 1, shape (B, C, K, K); 1 in place of B or C is one for all.

    Returns:
        shape (B, C, H, W).
    """
    radius = kernel.shape[-1] // 2
    padded = F.pad(hold(image), (radius,) * 4, mode="replicate")
    if kernel.shape[-1] <= DIRECT_SIZE:
        return _convolve(padded, kernel)
    return _convolve_fourier(padded, kernel)[..., 2 * radius :, 2 * radius :]


def _convolve(image: Tensor, kernel: Tensor) -> Tensor:
    """The pixels (B, C, H - K + 1, W - K + 1) of a convolution that the kernel covers in full."""
    batch, channels, size = *image.shape[:2], kernel.shape[-1]
    # conv2d correlates: a convolution needs the kernel turned round. Each channel of each image is a group of its own.
    kernel = kernel.flip(-2, -1).expand(batch, channels, size, size).flatten(0, 1)[:, None]
    return F.conv2d(image.flatten(0, 1)[None], kernel, groups=batch * channels)[0].unflatten(0, (batch, channels))


def _convolve_fourier(image: Tensor, kernel: Tensor) -> Tensor:
    """The same, with K - 1 rows and columns in front that wrap around."""
    height, width = image.shape[-2:]
    size = (_fast_length(height), _fast_length(width))
    spectrum = torch.fft.rfft2(image, s=size) * torch.fft.rfft2(kernel, s=size)
    return torch.fft.irfft2(spectrum, s=size)[..., :height, :width]


def _fast_length(length: int) -> int:
    """The next even length without a prime factor above 7: a transform of 124 = 4 x 31 takes twice that of 126."""
    while True:
        rest = length
        for factor in (2, 3, 5, 7):
            while rest % factor == 0:
                rest //= factor
        if rest == 1 and length % 2 == 0:
            return length
        length += 1


def signal_to_noise(image: Tensor, noise_map: Tensor) -> Tensor:
    """Total signal-to-noise ratio of each image, sqrt(sum (image / noise)^2), shape (B,)."""
    # In double precision: the order of the sum is the number of threads' own.
    return ((image / noise_map) ** 2).flatten(1).sum(1, dtype=torch.float64).sqrt().to(image.dtype)


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
