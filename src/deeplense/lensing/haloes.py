"""Dark-matter haloes: deflection and convergence of NFW profiles, whole or truncated, and their usual sizes.

Positions are arcsec, shape (H, W) or (B, H, W); parameters of the haloes have shape (B, N), where ``alpha_Rs = 0``
marks padding (its ``Rs`` and ``r_trunc`` may be 0 as well). Names are lenstronomy's: ``alpha_Rs`` is the deflection
at the scale radius ``Rs`` of the profile without truncation, also for the truncated one. Masses are M200c in Msun.

How the profile is written. With u = (r / Rs)^2, the deflection is alpha_Rs / (1 - ln 2) / Rs times (x, y) times a
radial factor G(u) = (ln(sqrt(u) / 2) + F(u)) / u, where F = arccosh(1/sqrt(u)) / sqrt(1 - u) for u < 1 goes on as an
arc cosine beyond. As it stands, this loses all digits of a float32 towards the centre, and F divides zero by zero at
u = 1 (caustics replaces it by one there, or by a parabola with 1e-6 of error and half of the digits). Here instead:

* near the centre G = B(u) ln(2 / sqrt(u)) + A(u), with two power series;
* elsewhere t = (1 - sqrt(u)) / (1 + sqrt(u)) turns F into (1 + t) h(t), with h(t) = atanh(sqrt(t)) / sqrt(t) = 1 +
  t/3 + t^2/5 + ..., which knows nothing of u = 1.

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

    Without this, the compiler follows the whole expression again wherever a value is used: several seconds a halo.
    """
    return x.as_strided(x.shape, x.stride()) if torch.compiler.is_compiling() else x


def _split(u: Tensor) -> tuple[_Series, Tensor, Tensor, Tensor]:
    """The central series of a dtype, where they hold, and the arguments of both sides.

    Each stays on its own side of the border, as an overflow in the branch that is not taken would spoil the gradient.
    """
    series = DOUBLE if u.dtype == torch.float64 else SINGLE
    return series, u < series.border, u.clamp_max(series.border), u.clamp_min(series.border)


def _radial_nfw(u: Tensor) -> Tensor:
    """G(u) = (ln(sqrt(u) / 2) + F(u)) / u of the module's head, u > 0."""
    series, is_near, v, w = _split(u)
    log = torch.log(u / 4) / 2
    near = _polynomial(v, series.A) - log * _polynomial(v, series.B)
    half = 1 / (1 + torch.sqrt(u))
    t = 2 * half - 1
    return torch.where(is_near, near, (2 * half * (1 + t * _arc(t)) + log) / w)


def _radial_tnfw(u: Tensor, tau: Tensor, log_tau: Tensor) -> Tensor:
    """The same of the truncated profile, times (tau^2 + 1)^2 / tau^2.

    It is Baltz, Marshall & Oguri's bracket over u. Near the centre, their terms of order one, which cancel, have been
    taken out by hand: q / tau = 1 + delta, and ln((tau + q) / (2 tau)) = 2 atanh(delta / (4 + delta)) is 2y h(y^2), so
    that both sides of the border need one logarithm and one h.
    """
    tau2 = tau**2
    series, is_near, v, w = _split(u)
    q, x = torch.sqrt(tau2 + u), torch.sqrt(u)
    inverse = 1 / (tau + q)
    width = 1 / torch.where(is_near, 3 * tau + q, 1 + x)
    ratio = width * torch.where(is_near, u * inverse, 1 - x)
    t = _keep(torch.where(is_near, ratio**2, ratio))
    h = 1 + t * _arc(t)
    # ln(x / 2) near the centre; elsewhere Baltz et al.'s L, plus ln tau.
    log = torch.log(x * torch.where(is_near, 0.5, tau * inverse))
    delta = u * inverse / tau
    pull = torch.pi * tau + (tau2 - 1) * log_tau
    G = _keep(_polynomial(v, series.A) - log * _polynomial(v, series.B))
    near = G + log * inverse / tau - 2 * (1 + delta) * h * inverse * width
    near = (tau2 - 1) * near + 2 * (u * G - log) - pull * inverse / tau
    # 1 + t as 2 * width, since t is -1 to all digits far away.
    F = 2 * width * h
    far = ((tau2 - 1) * (F + log * (1 + delta)) - pull * delta) / w + 2 * F
    return torch.where(is_near, near, far)


def _scaled(Rs: Tensor) -> Tensor:
    """Radii by which padding can be divided: 1 in the place of 0."""
    return torch.where(Rs > 0, Rs, 1.0)


# Compiled code builds this part once, and calls it for each halo: 25 of them written out take minutes to compile.
@torch.compiler.nested_compile_region
def _add_one(
    alpha_x: Tensor, alpha_y: Tensor, theta_x: Tensor, theta_y: Tensor, numbers: Tensor, radial: Callable[..., Tensor]
) -> Deflection:
    """One more halo in the sum: x, y, strength, 1 / Rs^2 and what ``radial`` takes, stacked, each (B, 1, 1)."""
    x, y, strength, scale, *rest = numbers.unbind(0)
    dx, dy = theta_x - x, theta_y - y
    pull = strength * radial((dx**2 + dy**2) * scale + TINY, *rest)
    return alpha_x + pull * dx, alpha_y + pull * dy


def _add_up(
    theta_x: Tensor, theta_y: Tensor, x: Tensor, y: Tensor, numbers: tuple[Tensor, ...], radial: Callable[..., Tensor]
) -> Deflection:
    """Sum over haloes of ``numbers[0] radial((r / Rs)^2, ...) (dx, dy)``, where ``numbers[1]`` is 1 / Rs^2.

    One halo after another: a (B, N, H, W) array would leave the cache.
    """
    shape = torch.broadcast_shapes((len(x), 1, 1), theta_x.shape)
    alpha_x, alpha_y = theta_x.new_zeros(shape), theta_y.new_zeros(shape)
    haloes = torch.stack(_image(x, y, *numbers))
    for n in range(x.shape[1]):
        # A copy, since a part that is compiled on its own takes no views of one array.
        alpha_x, alpha_y = _add_one(alpha_x, alpha_y, theta_x, theta_y, haloes[:, :, n].clone(), radial)
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
    return _add_up(theta_x, theta_y, x, y, _nfw(alpha_Rs, Rs), _radial_nfw)


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
    return _add_up(theta_x, theta_y, x, y, _tnfw(alpha_Rs, Rs, r_trunc), _radial_tnfw)


def pull(r: Tensor, alpha_Rs: Tensor, Rs: Tensor, r_trunc: Tensor | None = None) -> Tensor:
    """Deflection at the distance ``r`` from one halo's centre, over that distance: what the mass inside of ``r`` does.

    Its product with r^2 is the projected mass inside of ``r`` as the square of an Einstein radius.

    Args:
        r: arcsec, any shape.
        alpha_Rs, Rs, r_trunc: as for :func:`deflect_tnfw`, or :func:`deflect_nfw` without ``r_trunc``; shapes that
            broadcast with ``r``.
    """
    strength, scale, *rest = _nfw(alpha_Rs, Rs) if r_trunc is None else _tnfw(alpha_Rs, Rs, r_trunc)
    return strength * (_radial_tnfw if rest else _radial_nfw)(r**2 * scale + TINY, *rest)


def _nfw(alpha_Rs: Tensor, Rs: Tensor) -> tuple[Tensor, ...]:
    """Strength and 1 / Rs^2 of haloes, any shape."""
    Rs = _scaled(Rs)
    return alpha_Rs / (AT_RS * Rs), 1 / Rs**2


def _tnfw(alpha_Rs: Tensor, Rs: Tensor, r_trunc: Tensor) -> tuple[Tensor, ...]:
    """The same of truncated ones, then tau and its logarithm."""
    Rs, r_trunc = _scaled(Rs), _scaled(r_trunc)
    tau = r_trunc / Rs
    return alpha_Rs / (AT_RS * Rs) * (tau / (tau**2 + 1)) ** 2, 1 / Rs**2, tau, torch.log(tau)


def _converge_nfw(u: Tensor) -> Tensor:
    """(1 - F) / (u - 1), half of the convergence where alpha_Rs = (1 - ln 2) Rs."""
    series, is_near, v, _ = _split(u)
    log = torch.log(u / 4) / 2
    near = (v * (_polynomial(v, series.A) - log * _polynomial(v, series.B)) - log - 1) / (1 - v)
    half = 1 / (1 + torch.sqrt(u))
    t = 2 * half - 1
    arc = _arc(t)
    return torch.where(is_near, near, half**2 * (arc + 1 + t * arc))


def _converge_tnfw(u: Tensor, tau: Tensor, log_tau: Tensor) -> Tensor:
    """Half of the convergence of the truncated profile, times (tau^2 + 1)^2 / tau^2."""
    series, is_near, v, _ = _split(u)
    log = torch.log(u / 4) / 2
    near = v * (_polynomial(v, series.A) - log * _polynomial(v, series.B)) - log
    half = 1 / (1 + torch.sqrt(u))
    t = 2 * half - 1
    F = torch.where(is_near, near, 2 * half * (1 + t * _arc(t)))
    q = torch.sqrt(tau**2 + u)
    L = torch.log(u) / 2 - torch.log(tau + q)
    return (tau**2 + 1) * _converge_nfw(u) + 2 * F - torch.pi / q + (tau - 1 / tau) * L / q


def _add_up_convergence(
    theta_x: Tensor, theta_y: Tensor, x: Tensor, y: Tensor, numbers: tuple[Tensor, ...], radial: Callable[..., Tensor]
) -> Tensor:
    """Sum over haloes of ``numbers[0] radial((r / Rs)^2, ...)``, where ``numbers[1]`` is 1 / Rs^2."""
    kappa = theta_x.new_zeros(torch.broadcast_shapes((len(x), 1, 1), theta_x.shape))
    x, y, *numbers_ = _image(x, y, *numbers)
    for n in range(x.shape[1]):
        strength, scale, *rest = (p[:, n] for p in numbers_)
        u = ((theta_x - x[:, n]) ** 2 + (theta_y - y[:, n]) ** 2) * scale + TINY
        kappa = kappa + strength * radial(u, *rest)
    return kappa


def converge_nfw(theta_x: Tensor, theta_y: Tensor, alpha_Rs: Tensor, Rs: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Summed convergence kappa of NFW haloes, shape (B, H, W); arguments as in :func:`deflect_nfw`."""
    return _add_up_convergence(theta_x, theta_y, x, y, _nfw(alpha_Rs / 2, Rs), _converge_nfw)


def converge_tnfw(
    theta_x: Tensor, theta_y: Tensor, alpha_Rs: Tensor, Rs: Tensor, r_trunc: Tensor, x: Tensor, y: Tensor
) -> Tensor:
    """Summed convergence kappa of truncated NFW haloes, shape (B, H, W); arguments as in :func:`deflect_tnfw`."""
    return _add_up_convergence(theta_x, theta_y, x, y, _tnfw(alpha_Rs / 2, Rs, r_trunc), _converge_tnfw)


def halo_scales(
    mass: np.ndarray,
    concentration: np.ndarray,
    distances: Distances,
    z_lens: float,
    H0: float = 70.0,
    Om0: float = 0.3,
    Ob0: float = 0.05,
) -> tuple[np.ndarray, np.ndarray]:
    """Deflection at the scale radius, and scale radius, of NFW haloes of a mass and concentration.

    Args:
        mass: M200c, Msun: inside the radius r200 of a mean density of 200 critical densities at ``z_lens``; any shape.
        concentration: r200 / Rs, shape that broadcasts with ``mass``.
        distances: those of the haloes' plane and of the source, in the same universe as H0, Om0 and Ob0.
        z_lens: redshift of the haloes' plane.

    Returns:
        alpha_Rs, Rs: arcsec, shape of ``mass``; alpha_Rs is reduced to the source, and 0 where the mass is.
    """
    mass, c = np.asarray(mass, dtype=np.float64), np.asarray(concentration, dtype=np.float64)
    r200 = np.cbrt(mass * 3 / (4 * math.pi * 200 * closure_density(z_lens, H0, Om0, Ob0)))
    Rs = r200 / c / (distances.lens * ARCSEC)
    # Mass in the cylinder of radius Rs: 4 pi rho_s Rs^3 (1 - ln 2), where M200 = 4 pi rho_s Rs^3 (ln(1+c) - c/(1+c)).
    cylinder = mass * AT_RS / (np.log1p(c) - c / (1 + c))
    alpha_Rs = np.divide(cylinder, mass_of_unit_theta_E(distances) * Rs, out=np.zeros_like(Rs), where=Rs > 0)
    return alpha_Rs, Rs


def concentration(mass: np.ndarray, z: float | np.ndarray) -> np.ndarray:
    """Median concentration c200c of haloes of mass M200c (Msun), any shape.

    Fitted to simulations of the Planck 2013 universe (h = 0.671) for 1e10 to 1e15 Msun/h and z from 0 to 5; the power
    law is continued to smaller masses. Single haloes scatter by 0.11 dex about it.

    References: Dutton & Maccio, Cold dark matter haloes in the Planck era (arXiv:1402.7073), eqs. 8, 10, 11.
    """
    a = 0.520 + (0.905 - 0.520) * np.exp(-0.617 * np.asarray(z, dtype=np.float64) ** 1.21)
    b = -0.101 + 0.026 * np.asarray(z)
    return 10 ** (a + b * np.log10(np.asarray(mass, dtype=np.float64) * 0.671 / 1e12))


def suppression(mass: np.ndarray, half_mode_mass: float | np.ndarray, is_field: bool = False) -> np.ndarray:
    """Number of haloes of warm over that of cold dark matter at a mass (Msun, any shape): (1 + (a M_hm / m)^b)^c.

    Args:
        mass: before the suppression, Msun, any shape, > 0.
        half_mode_mass: M_hm, Msun; 0 is cold dark matter, a ratio of 1.
        is_field: isolated haloes (a, b, c = 2.3, 0.8, -1.0) in place of subhaloes (4.2, 2.5, -0.2).

    References: Lovell, Toward a General Parameterization of the Warm Dark Matter Halo Mass Function (arXiv:2003.01125).
    """
    a, b, c = (2.3, 0.8, -1.0) if is_field else (4.2, 2.5, -0.2)
    return (1 + (a * half_mode_mass / np.asarray(mass, dtype=np.float64)) ** b) ** c


def field_number(z: float | np.ndarray) -> np.ndarray:
    """Isolated haloes per comoving Mpc^3 and logarithm of mass at 1e8 Msun, m dn/dm, of cold dark matter; any shape.

    With dn/dm going as m^-1.9, this is Sheth & Tormen's mass function between 1e7 and 1e10 Msun, as colossus computes
    it (sigma_8 0.81, n_s 0.965, H0 70, Om0 0.3, Ob0 0.05): within 6 % for z <= 1.5, within 22 % up to z = 2.5.

    References: Sheth & Tormen, Large-scale bias and the peak background split (astro-ph/9901122).
    """
    return 6.55 * (1 + np.asarray(z, dtype=np.float64)) ** 0.34


def concentration_drop(mass: np.ndarray, half_mode_mass: float | np.ndarray) -> np.ndarray:
    """Concentration of warm over that of cold dark matter haloes: (1 + 60 M_hm / m)^-0.17, masses in Msun, any shape.

    The published factor (1 + z)^(0.026 z - 0.04) is left out: it stays within 1.5 % of one for z < 2, and does not
    become one for cold dark matter (M_hm = 0), as this ratio does.

    References: Bose et al., The COpernicus COmplexio: statistical properties of warm dark matter haloes
        (arXiv:1507.01998).
    """
    return (1 + 60 * np.asarray(half_mode_mass) / np.asarray(mass, dtype=np.float64)) ** -0.17


def tidal_radius(mass: np.ndarray, r3d: np.ndarray) -> np.ndarray:
    """Truncation radius in kpc of a subhalo: 1.4 (m / 1e7 Msun)^(1/3) (r3d / 50 kpc)^(2/3).

    A Roche radius in an isothermal host of a lens's mass; ``r3d`` is the distance from the host's centre.

    Args:
        mass: of the subhalo at infall, Msun, any shape.
        r3d: kpc, shape that broadcasts with ``mass``.

    References: Gilman et al., Warm dark matter chills out (arXiv:1908.06983).
    """
    return 1.4 * np.cbrt(np.asarray(mass, dtype=np.float64) / 1e7) * np.cbrt(np.asarray(r3d) / 50) ** 2
