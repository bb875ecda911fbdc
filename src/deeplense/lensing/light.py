"""Surface brightness of galaxies, and the step from magnitudes to counts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplense.lensing.cosmology import Number
from deeplense.lensing.deflection import _image, ellipticity_to_axis_ratio, rotate

# A cusp is flattened inside this radius, as lenstronomy does: the profile's gradient is infinite at the centre.
CORE = 1e-4


def sersic_b(n_sersic: Tensor) -> Tensor:
    """b_n that makes R_sersic the half-light radius, in lenstronomy's linear form.

    The half-light radius is right to 0.4 % for n from 1 to 8, and 1.5 % too large at n = 0.5.

    References: Capaccioli (1989), b = 1.9992 n - 0.3271.
    """
    return (1.9992 * n_sersic - 0.3271).clamp_min(1e-5)


def sersic_slope(R_sersic: Tensor, n_sersic: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """b, power and log_unit of a Sersic profile exp(-b exp(power ln R^2 + log_unit)), shape (B,) each.

    That is exp(-b (R / R_sersic)^(1/n)) in logarithms: a power for each pixel costs three times as much.
    """
    return sersic_b(n_sersic), 0.5 / n_sersic, -torch.log(R_sersic) / n_sersic


def ellipse_axes(e1: Tensor, e2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ax, ay, cx, cy, shape (B,): (dx ax + dy ay)^2 + (dy cx - dx cy)^2 is the product-average radius squared."""
    q, phi = ellipticity_to_axis_ratio(e1, e2)
    wide, narrow = torch.sqrt(q), 1 / torch.sqrt(q)
    return wide * torch.cos(phi), wide * torch.sin(phi), narrow * torch.cos(phi), narrow * torch.sin(phi)


def sersic(
    x: Tensor,
    y: Tensor,
    amplitude: Tensor,
    R_sersic: Tensor,
    n_sersic: Tensor,
    e1: Tensor,
    e2: Tensor,
    center_x: Tensor,
    center_y: Tensor,
) -> Tensor:
    """Surface brightness of an elliptical Sersic profile.

    Args:
        x, y: positions (source plane for a lensed galaxy), arcsec, shape (H, W) or (B, H, W).
        amplitude: surface brightness at R_sersic, any flux per arcsec^2, shape (B,).
        R_sersic: product-average half-light radius, arcsec, shape (B,).
        n_sersic, e1, e2: Sersic index and ellipticity components, shape (B,).
        center_x, center_y: arcsec, shape (B,).

    Returns:
        Surface brightness in the unit of ``amplitude``, shape (B, H, W).

    References: Graham & Driver, A Concise Reference to Sersic Quantities (astro-ph/0503176), eq. 1.
    """
    slope = sersic_slope(R_sersic, n_sersic)
    numbers = (torch.log(amplitude) + slope[0], *slope, *ellipse_axes(e1, e2), center_x, center_y)
    log_peak, b, power, log_unit, ax, ay, cx, cy, center_x, center_y = _image(*numbers)
    dx, dy = x - center_x, y - center_y
    R2 = ((dx * ax + dy * ay) ** 2 + (dy * cx - dx * cy) ** 2).clamp_min(CORE**2)
    return torch.exp(log_peak - b * torch.exp(torch.log(R2) * power + log_unit))


def sersic_flux(amplitude: Tensor, R_sersic: Tensor, n_sersic: Tensor) -> Tensor:
    """Total flux of a Sersic profile of any ellipticity, in the unit of ``amplitude`` times arcsec^2.

    References: Graham & Driver (astro-ph/0503176), eq. 2, with the product-average radius.
    """
    b = sersic_b(n_sersic)
    log_shape = b - 2 * n_sersic * torch.log(b) + torch.lgamma(2 * n_sersic)
    return amplitude * R_sersic**2 * 2 * torch.pi * n_sersic * torch.exp(log_shape)


def interpolate(
    x: Tensor,
    y: Tensor,
    images: Tensor,
    index: Tensor,
    pixel_scale: Tensor,
    angle: Tensor,
    center_x: Tensor,
    center_y: Tensor,
    flux: Tensor,
) -> Tensor:
    """Surface brightness of an observed galaxy, between its pixels; zero outside its image.

    Linear between the centres of four pixels, so that it is nowhere negative. Rays that lie farther apart than the
    pixels of a galaxy miss some of them: give such a galaxy larger pixels, or trace more rays.

    Args:
        x, y: positions (source plane for a lensed galaxy), arcsec, shape (H, W) or (B, H, W).
        images: galaxies of total flux 1 with their centre in the middle, shape (N, S, S); rows grow upward.
        index: which of them is in each picture, int64, shape (B,).
        pixel_scale: arcsec that a pixel of the galaxy takes, shape (B,); another than the observed one resizes it.
        angle: by which the galaxy is turned, counter-clockwise (from x to y), radian, shape (B,).
        center_x, center_y: arcsec, shape (B,).
        flux: of the whole galaxy, any unit, shape (B,).

    Returns:
        Surface brightness in the unit of ``flux`` per arcsec^2, shape (B, H, W).
    """
    # grid_sample counts from -1 to 1 between the centres of the outermost pixels.
    unit = 2 / (pixel_scale * (images.shape[-1] - 1))
    numbers = (unit * torch.cos(angle), unit * torch.sin(angle), center_x, center_y, flux / pixel_scale**2)
    cos, sin, center_x, center_y, peak = _image(*numbers)
    column, row = rotate(x - center_x, y - center_y, cos, sin)
    chosen = images[index, None].to(column)
    grid = torch.stack((column, row), dim=-1)
    return peak * F.grid_sample(chosen, grid, mode="bilinear", padding_mode="zeros", align_corners=True)[:, 0]


def magnitude_to_counts(magnitude: Number, magnitude_zero_point: float) -> Number:
    """Counts per second of a source of AB ``magnitude``; the zero point is the magnitude of one count per second."""
    return 10 ** (-0.4 * (magnitude - magnitude_zero_point))


def counts_to_magnitude(counts: Tensor, magnitude_zero_point: Tensor | float) -> Tensor:
    """AB magnitude of ``counts`` per second; the inverse of :func:`magnitude_to_counts`."""
    return magnitude_zero_point - 2.5 * torch.log10(counts)
