"""Multipoles of an isothermal lens: boxy, discy and lopsided isophotes of galaxies.

Positions are arcsec, shape (H, W) or (B, H, W); parameters have shape (B,). Names are lenstronomy's (``MULTIPOLE``).
An isophote of relative amplitude a_m / a about a lens of Einstein radius theta_E has ``a_m = theta_E * a_m / a``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deeplense.errors import ConfigError
from deeplense.lensing.deflection import SOFTENING, Deflection, _image

Complex = tuple[Tensor, Tensor]


def _turns(c: Tensor, s: Tensor, m: int) -> Complex:
    """cos(m phi), sin(m phi) from cos(phi), sin(phi): products are cheaper than an arc tangent per pixel."""
    power = c, s
    for _ in range(m - 1):
        power = power[0] * c - power[1] * s, power[0] * s + power[1] * c
    return power


def _check_order(m: int) -> None:
    """The order 1 needs a scale radius, and is no change of shape but a shift."""
    if m < 2:
        raise ConfigError(f"multipole of order m={m}: allowed are 2, 3, 4, ...; a dipole is a shift of the centre")


def _angles(
    theta_x: Tensor, theta_y: Tensor, m: int, a_m: Tensor, phi_m: Tensor, center_x: Tensor, center_y: Tensor
) -> tuple[Tensor, Complex, Complex]:
    """Radius, (cos phi, sin phi), and a_m times (cos, sin) of m (phi - phi_m), each (B, H, W)."""
    numbers = (a_m * torch.cos(m * phi_m), a_m * torch.sin(m * phi_m), center_x, center_y)
    along, across, center_x, center_y = _image(*numbers)
    dx, dy = theta_x - center_x, theta_y - center_y
    r = torch.sqrt(dx**2 + dy**2 + SOFTENING**2)
    c, s = dx / r, dy / r
    cm, sm = _turns(c, s, m)
    return r, (c, s), (cm * along + sm * across, sm * along - cm * across)


def deflect_multipole(
    theta_x: Tensor, theta_y: Tensor, m: int, a_m: Tensor, phi_m: Tensor, center_x: Tensor, center_y: Tensor
) -> Deflection:
    """Deflection of a multipole of order m, to be added to that of a SIE.

    Args:
        theta_x, theta_y: image-plane positions, arcsec, shape (H, W) or (B, H, W).
        m: order, 2 or more; 3 is lopsided, 4 discy (a_m > 0 with phi_m along the major axis) or boxy (a_m < 0).
        a_m: strength, arcsec, shape (B,).
        phi_m: angle of a bulge, radian, shape (B,).
        center_x, center_y: arcsec, shape (B,).

    Returns:
        alpha_x, alpha_y: arcsec, shape (B, H, W).

    Raises:
        ConfigError: m < 2.

    References: Xu et al. (arXiv:1307.4220), eq. B12.
    """
    _check_order(m)
    _, (c, s), (cm, sm) = _angles(theta_x, theta_y, m, a_m / (1 - m**2), phi_m, center_x, center_y)
    return c * cm + m * s * sm, s * cm - m * c * sm


def converge_multipole(
    theta_x: Tensor, theta_y: Tensor, m: int, a_m: Tensor, phi_m: Tensor, center_x: Tensor, center_y: Tensor
) -> Tensor:
    """Convergence a_m cos(m (phi - phi_m)) / (2 r), shape (B, H, W); arguments as in :func:`deflect_multipole`."""
    _check_order(m)
    r, _, (cm, _) = _angles(theta_x, theta_y, m, a_m / 2, phi_m, center_x, center_y)
    return cm / r
