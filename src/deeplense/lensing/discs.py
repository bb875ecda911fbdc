"""Galaxies that are more than an ellipse: spiral arms, rings and tails on a disc, clumps, and stars.

All profiles have a total flux of one, in closed form; multiply by the flux of a band. Positions are arcsec, shape
(H, W) or (B, H, W), in the source plane for a lensed galaxy; parameters have shape (B,).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from deeplense.lensing.deflection import _image
from deeplense.lensing.light import CORE, ellipse_axes, sersic_flux, sersic_slope

# Logarithmic arms wind up without end towards the centre: inside this share of R_sersic they go straight.
ARM_CORE = 0.15


class Arms(NamedTuple):
    """How brightness goes round a disc; each field has shape (B,).

    Attributes:
        number: of arms.
        pitch: angle between an arm and the circle, radian; pi/2 is a straight spoke.
        phase: direction of an arm at R_sersic, radian from the major axis, in the plane of the disc.
        contrast: share of the light that is in the arms; 0 is a smooth disc.
        sharpness: an arm's profile is exp(sharpness (cos - 1)) round the circle.
    """

    number: Tensor
    pitch: Tensor
    phase: Tensor
    contrast: Tensor
    sharpness: Tensor


class Ring(NamedTuple):
    """A Gaussian ring in the plane of a disc; each field has shape (B,).

    Attributes:
        share: of the galaxy's light that is in the ring.
        radius, width: arcsec, product-average; the profile is exp(-(R - radius)^2 / (2 width^2)).
    """

    share: Tensor
    radius: Tensor
    width: Tensor


def ring_flux(radius: Tensor, width: Tensor) -> Tensor:
    """Total flux of a Gaussian ring whose crest has a brightness of one, arcsec^2, shape (B,)."""
    inner = radius / (width * math.sqrt(2))
    return (
        2
        * math.pi
        * width
        * (width * torch.exp(-(inner**2)) + radius * math.sqrt(math.pi / 2) * (1 + torch.erf(inner)))
    )


def disc(
    x: Tensor,
    y: Tensor,
    R_sersic: Tensor,
    n_sersic: Tensor,
    e1: Tensor,
    e2: Tensor,
    center_x: Tensor,
    center_y: Tensor,
    arms: Arms,
    ring: Ring,
) -> Tensor:
    """Surface brightness of a Sersic disc with logarithmic arms and a ring, flux 1.

    Round each ellipse the arms only share out the light anew, so that radial profile and flux stay what they are.
    ``ring.share = 1`` with one broad arm of pitch pi/2 is a piece of a ring: the tail of a merger.

    Args:
        x, y: positions, arcsec, shape (H, W) or (B, H, W).
        R_sersic: product-average half-light radius of the disc, arcsec, shape (B,).
        n_sersic, e1, e2: Sersic index and ellipticity components, shape (B,).
        center_x, center_y: arcsec, shape (B,).

    Returns:
        Surface brightness per arcsec^2, shape (B, H, W).
    """
    slope = sersic_slope(R_sersic, n_sersic)
    total = sersic_flux(torch.ones_like(R_sersic), R_sersic, n_sersic)
    profile = ((1 - ring.share) * torch.exp(slope[0]) / total, *slope)
    crest = (ring.share / ring_flux(ring.radius, ring.width), ring.radius, 0.5 / ring.width**2)
    winding = 0.5 * arms.number / torch.tan(arms.pitch)
    core2 = (ARM_CORE * R_sersic) ** 2
    start = arms.number * arms.phase - winding * torch.log(R_sersic**2 + core2)
    turn = (arms.number, winding, start, core2)
    height = (1 - arms.contrast, arms.contrast / torch.special.i0e(arms.sharpness), arms.sharpness)
    numbers = _image(*ellipse_axes(e1, e2), *profile, *crest, *turn, *height, center_x, center_y)
    ax, ay, cx, cy, peak, b, power, log_unit, top, radius, steep, m, winding, start, core2, low, high, kappa, x0, y0 = (
        numbers
    )
    dx, dy = x - x0, y - y0
    along, across = dx * ax + dy * ay, dy * cx - dx * cy
    R2 = (along**2 + across**2).clamp_min(CORE**2)
    smooth = peak * torch.exp(-b * torch.exp(torch.log(R2) * power + log_unit))
    crown = top * torch.exp(-steep * (torch.sqrt(R2) - radius) ** 2)
    # atan2 has no gradient at the origin, where the clamped radius stands for the centre.
    angle = m * torch.atan2(across, along + CORE * (R2 <= CORE**2)) - winding * torch.log(R2 + core2) - start
    return (smooth + crown) * (low + high * torch.exp(kappa * (torch.cos(angle) - 1)))


def soft_sersic(
    x: Tensor,
    y: Tensor,
    R_sersic: Tensor,
    n_sersic: Tensor,
    e1: Tensor,
    e2: Tensor,
    center_x: Tensor,
    center_y: Tensor,
    core: float,
) -> Tensor:
    """A Sersic profile of flux 1 in which R^2 + core^2 stands for R^2: no cusp that falls between rays, or on one.

    That shifts the flux outside of ``core`` (arcsec) inwards and drops what is inside; the profile is scaled up for it.
    Arguments as in :func:`disc`; shape (B, H, W).
    """
    slope = sersic_slope(R_sersic, n_sersic)
    # Graham & Driver (astro-ph/0503176), eq. 2. PyTorch has no derivative in the first argument: that part of the
    # gradient in n_sersic, of the order of the dropped share, is left out.
    kept = torch.special.gammaincc(2 * n_sersic.detach(), slope[0] * (core / R_sersic) ** (1 / n_sersic))
    log_peak = slope[0] - torch.log(sersic_flux(torch.ones_like(R_sersic), R_sersic, n_sersic) * kept)
    numbers = (log_peak, *slope, *ellipse_axes(e1, e2), center_x, center_y)
    log_peak, b, power, log_unit, ax, ay, cx, cy, center_x, center_y = _image(*numbers)
    dx, dy = x - center_x, y - center_y
    R2 = (dx * ax + dy * ay) ** 2 + (dy * cx - dx * cy) ** 2 + core**2
    return torch.exp(log_peak - b * torch.exp(torch.log(R2) * power + log_unit))


def clumps(x: Tensor, y: Tensor, share: Tensor, radius: Tensor, center_x: Tensor, center_y: Tensor) -> Tensor:
    """Surface brightness of round Gaussians, one after another added up; shape (B, H, W).

    Args:
        share: flux of each, shape (B, N); of sum 1 for a total flux of 1, and 0 for padding.
        radius: sigma of each, arcsec, shape (B, N).
        center_x, center_y: arcsec, shape (B, N).
    """
    numbers = _image(share * 0.5 / (math.pi * radius**2), 0.5 / radius**2, center_x, center_y)
    total = torch.zeros(torch.broadcast_shapes((len(share), 1, 1), x.shape), dtype=x.dtype, device=x.device)
    for peak, steep, x0, y0 in zip(*(number.unbind(1) for number in numbers), strict=True):
        total = total + peak * torch.exp(-steep * ((x - x0) ** 2 + (y - y0) ** 2))
    return total


def point(x: Tensor, y: Tensor, pixel_scale: float, center_x: Tensor, center_y: Tensor) -> Tensor:
    """Surface brightness of a star of flux 1, shared between the four pixels that it lies among; shape (B, H, W).

    Linear shares keep flux and centroid wherever in a pixel the star lies, on rays that divide the pixel evenly.
    """
    center_x, center_y = _image(center_x, center_y)
    share_x = (1 - (x - center_x).abs() / pixel_scale).clamp_min(0)
    share_y = (1 - (y - center_y).abs() / pixel_scale).clamp_min(0)
    return share_x * share_y / pixel_scale**2
