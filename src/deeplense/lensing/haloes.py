"""Dark-matter haloes: deflection and convergence of NFW profiles, whole or truncated, and their usual sizes.

Positions are arcsec, shape (H, W) or (B, H, W); parameters of the haloes have shape (B, N), where ``alpha_Rs = 0`` marks
padding (its ``Rs`` and ``r_trunc`` may be 0 as well). Names are lenstronomy's: ``alpha_Rs`` is the deflection at the
scale radius ``Rs`` of the profile without truncation, also for the truncated one. Masses are M200c in Msun.

How the profile is written. With u = (r / Rs)^2, the deflection is alpha_Rs / (1 - ln 2) / Rs times (x, y) times a
radial factor G(u) = (ln(sqrt(u) / 2) + F(u)) / u, where F = arccosh(1/sqrt(u)) / sqrt(1 - u) for u < 1 goes on as an
arc cosine beyond. As it stands, this loses all digits of a float32 towards the centre, and F divides zero by zero at
u = 1 (caustics replaces it by one there, or by a parabola with 1e-6 of error and half of the digits). Here instead:

* near the centre G = B(u) ln(2 / sqrt(u)) + A(u), with two power series;
* elsewhere t = (1 - sqrt(u)) / (1 + sqrt(u)) turns F into (1 + t) h(t), with h(t) = atanh(sqrt(t)) / sqrt(t) = 1 + t/3 +
  t^2/5 + ..., which knows nothing of u = 1.

In single precision h is a polynomial with an error below the rounding; in double precision it is the function itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial
from scipy.special import hyp2f1
from torch import Tensor

from deeplense.lensing.cosmology import ARCSEC, Distances, closure_density, mass_of_unit_theta_E
from deeplense.lensing.deflection import Deflection, _image

# Added to u = (r / Rs)^2: the centre is no nearer than 1e-12 scale radii.
TINY = 1e-24
AT_RS = 1 - math.log(2)
Coefficients = tuple[float, ...]


def _fit(function: Callable[[np.ndarray], np.ndarray], low: float, high: float, degree: int) -> Coefficients:
    """Coefficients of the polynomial through a function's Chebyshev points, lowest power first."""
    polynomial = Chebyshev.interpolate(function, degree, domain=[low, high]).convert(kind=Polynomial)
    return tuple(float(c) for c in polynomial.coef)


def _central_series(terms: int = 40) -> tuple[Polynomial, Polynomial]:
    """Power series of A(u) and B(u) in G = B ln(2 / sqrt(u)) + A, from those of 1/sqrt(1-u) and ln((1+sqrt(1-u))/2)."""
    k = np.arange(1, terms)
    root = np.concatenate([[1.0], np.cumprod((2 * k - 1) / (2 * k))])
    logarithm = np.concatenate([[0.0], -root[1:] / (2 * k)])
    return Polynomial(np.convolve(root, logarithm)[1:terms]), Polynomial(root[1:])


class _Series(NamedTuple):
    """Where the central series hold, and their coefficients, to the precision of one dtype."""

    border: float
    A: Coefficients
    B: Coefficients


def _series(border: float, degree: int) -> _Series:
    """The central series for u below ``border``."""
    A, B = (_fit(series, 0, border, degree) for series in _central_series())
    return _Series(border, A, B)


SINGLE, DOUBLE = _series(0.25, 7), _series(0.04, 10)
# k(t) = (h(t) - 1) / t = 2F1(1, 3/2; 5/2; t) / 3, error 1e-8; t <= 0.4 is enough for r_trunc >= 0.065 Rs.
ARC = _fit(lambda t: hyp2f1(1, 1.5, 2.5, t) / 3, -1, 0.4, 13)
ARC_TAYLOR = tuple(1 / (2 * j + 3) for j in range(13))


def _polynomial(x: Tensor, coefficients: Coefficients) -> Tensor:
    """Horner's rule, lowest power first."""
    value = torch.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * x + c
    return value


def _arc(t: Tensor) -> Tensor:
    """k(t) = (h(t) - 1) / t = 1/3 + t/5 + t^2/7 + ... for -1 <= t < 1, with h of the module's head."""
    if t.dtype != torch.float64:
        return _polynomial(t, ARC)
    near = t.abs() < 0.05
    root = torch.sqrt(torch.where(near, 0.25, t.abs()))
    # Each branch gets arguments that it can take, as an unused NaN would still spoil the gradient.
    h = torch.where(t > 0, torch.atanh(torch.where(t > 0, root, 0.5)), torch.atan(root)) / root
    return torch.where(near, _polynomial(t * near, ARC_TAYLOR), (h - 1) / torch.where(near, 1.0, t))


def _keep(x: Tensor) -> Tensor:
    """The same numbers, which compiled code holds in a register.

    Without this, the compiler writes the whole expression out again wherever a value is used: 200 s for 25 haloes.
    """
    return x.as_strided(x.shape, x.stride()) if torch.compiler.is_compiling() else x


def _split(u: Tensor) -> tuple[_Series, Tensor, Tensor]:
    """The central series of a dtype, where they hold, and their argument (which stays there, so as not to overflow)."""
    series = DOUBLE if u.dtype == torch.float64 else SINGLE
    return series, u < series.border, u.clamp_max(series.border)


def _radial_nfw(u: Tensor) -> Tensor:
    """G(u) = (ln(sqrt(u) / 2) + F(u)) / u of the module's head, u > 0."""
    u = _keep(u)
    series, is_near, v = _split(u)
    log = _keep(torch.log(u / 4) / 2)
    near = _polynomial(v, series.A) - log * _polynomial(v, series.B)
    half = _keep(1 / (1 + torch.sqrt(u)))
    t = 2 * half - 1
    return torch.where(is_near, near, (2 * half * (1 + t * _arc(t)) + log) / u)


def _radial_tnfw(u: Tensor, tau: Tensor, log_tau: Tensor) -> Tensor:
    """The same of the truncated profile, times (tau^2 + 1)^2 / tau^2.

    It is Baltz, Marshall & Oguri's bracket over u. Near the centre, their terms of order one, which cancel, have been
    taken out by hand: q / tau = 1 + delta, and ln((tau + q) / (2 tau)) = 2 atanh(delta / (4 + delta)) is 2y h(y^2), so
    that both sides of the border need one logarithm and one h.
    """
    u, tau2 = _keep(u), tau**2
    series, is_near, v = _split(u)
    q, x = _keep(torch.sqrt(tau2 + u)), torch.sqrt(u)
    inverse = _keep(1 / (tau + q))
    width = _keep(1 / torch.where(is_near, 3 * tau + q, 1 + x))
    ratio = width * torch.where(is_near, u * inverse, 1 - x)
    t = _keep(torch.where(is_near, ratio**2, ratio))
    h = _keep(1 + t * _arc(t))
    # ln(x / 2) near the centre; elsewhere Baltz et al.'s L, plus ln tau.
    log = _keep(torch.log(x * torch.where(is_near, 0.5, tau * inverse)))
    delta = u * inverse / tau
    pull = torch.pi * tau + (tau2 - 1) * log_tau
    G = _keep(_polynomial(v, series.A) - log * _polynomial(v, series.B))
    near = G + log * inverse / tau - 2 * (1 + delta) * h * inverse * width
    near = (tau2 - 1) * near + 2 * (u * G - log) - pull * inverse / tau
    # 1 + t as 2 * width, since t is -1 to all digits far away.
    F = 2 * width * h
    far = ((tau2 - 1) * (F + log * (1 + delta)) - pull * delta) / u + 2 * F
    return torch.where(is_near, near, far)


def _scaled(Rs: Tensor) -> Tensor:
    """Radii by which padding can be divided: 1 in the place of 0."""
    return torch.where(Rs > 0, Rs, 1.0)


def _add_up(
    theta_x: Tensor, theta_y: Tensor, x: Tensor, y: Tensor, numbers: tuple[Tensor, ...], radial: Callable[..., Tensor]
) -> Deflection:
    """Sum over haloes of ``numbers[0] radial((r / Rs)^2, ...) (dx, dy)``, where ``numbers[1]`` is 1 / Rs^2.

    One halo after another: a (B, N, H, W) array would leave the cache.
    """
    shape = torch.broadcast_shapes((len(x), 1, 1), theta_x.shape)
    alpha_x, alpha_y = theta_x.new_zeros(shape), theta_y.new_zeros(shape)
    x, y, *numbers_ = _image(x, y, *numbers)
    for n in range(x.shape[1]):
        strength, scale, *rest = (p[:, n] for p in numbers_)
        dx, dy = theta_x - x[:, n], theta_y - y[:, n]
        pull = _keep(strength * radial((dx**2 + dy**2) * scale + TINY, *rest))
        alpha_x, alpha_y = alpha_x + pull * dx, alpha_y + pull * dy
    return alpha_x, alpha_y


def deflect_nfw(theta_x: Tensor, theta_y: Tensor, alpha_Rs: Tensor, Rs: Tensor, x: Tensor, y: Tensor) -> Deflection:
    """Summed deflection of Navarro-Frenk-White haloes.

    Args:
        theta_x, theta_y: image-plane positions, arcsec, shape (H, W) or (B, H, W).
        alpha_Rs: deflection at the scale radius, arcsec, shape (B, N); 0 marks padding.
        Rs: scale radius, arcsec, shape (B, N).
        x, y: centres, arcsec, shape (B, N).

    Returns:
        alpha_x, alpha_y: arcsec, shape (B, H, W).

    References: Keeton, A Catalog of Mass Models (astro-ph/0102341), eqs. 48 and 55.
    """
    Rs = _scaled(Rs)
    return _add_up(theta_x, theta_y, x, y, (alpha_Rs / (AT_RS * Rs), 1 / Rs**2), _radial_nfw)


def deflect_tnfw(
    theta_x: Tensor, theta_y: Tensor, alpha_Rs: Tensor, Rs: Tensor, r_trunc: Tensor, x: Tensor, y: Tensor
) -> Deflection:
    """Summed deflection of NFW haloes whose density is cut off as r_trunc^2 / (r^2 + r_trunc^2).

    In single precision the error stays below 1e-5 of a halo's largest deflection for r_trunc >= 0.065 Rs.

    Args:
        theta_x, theta_y: image-plane positions, arcsec, shape (H, W) or (B, H, W).
        alpha_Rs: deflection at the scale radius *without* truncation, arcsec, shape (B, N); 0 marks padding.
        Rs, r_trunc: scale and truncation radius, arcsec, shape (B, N).
        x, y: centres, arcsec, shape (B, N).

    Returns:
        alpha_x, alpha_y: arcsec, shape (B, H, W).

    References: Baltz, Marshall & Oguri, Analytic models of plausible gravitational lens potentials (arXiv:0705.0682),
        appendix A, n = 1.
    """
    Rs, r_trunc = _scaled(Rs), _scaled(r_trunc)
    tau = r_trunc / Rs
    strength = alpha_Rs / (AT_RS * Rs) * (tau / (tau**2 + 1)) ** 2
    return _add_up(theta_x, theta_y, x, y, (strength, 1 / Rs**2, tau, torch.log(tau)), _radial_tnfw)
