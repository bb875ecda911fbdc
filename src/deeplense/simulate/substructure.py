"""Dark-matter substructure: subhaloes or a vortex, with the part of its mass inside theta_E.

All functions draw many lenses at once: columns of shape (B,), and of shape (B, N) for haloes, padded with no mass.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from deeplense.lensing import haloes
from deeplense.lensing.cosmology import ARCSEC, Distances, angular_diameter_distances, mass_of_unit_theta_E
from deeplense.simulate.preset import Preset, Sphere, Vortex, World

Columns = dict[str, np.ndarray]
# Where their number varies, haloes are padded to a multiple of this: few shapes occur, and compiled code is reused.
HALO_STEP = 20
# Places on half of the circle of theta_E at which the pull of an extended halo is taken to find its mass inside of it.
NODES, WEIGHTS = np.polynomial.legendre.leggauss(12)
HALO_KEYS = ("sub_x", "sub_y", "sub_theta_E", "sub_alpha_Rs", "sub_Rs", "sub_r_trunc")
VORTEX_ENDS = ("vortex_x1", "vortex_y1", "vortex_x2", "vortex_y2")


def draw(
    kind: int, preset: Preset, world: World, theta_E: np.ndarray, strength: float, rng: np.random.Generator
) -> Columns:
    """The substructure of many lenses of one class.

    Args:
        kind: 0 none, 1 and 2 what the world calls sphere and vort.
        theta_E: Einstein radii of the whole lenses, arcsec, shape (B,); masses are shares of theta_E^2.
        strength: factor on the substructure's mass; above 1 for the easy end of a curriculum.

    Returns:
        The columns of :func:`none`: positions and radii in arcsec, ``f_sub`` the share of the lens's mass.
    """
    columns = none(len(theta_E))
    if kind == 0:
        return columns
    given = world.sphere if kind == 1 else world.vort
    if isinstance(given, Vortex):
        return columns | draw_vortex(given, theta_E, strength, rng)
    return columns | draw_sphere(given, preset, theta_E, strength, rng)


def none(num: int) -> Columns:
    """No substructure in ``num`` lenses."""
    nan = np.full(num, np.nan)
    return {
        "f_sub": np.zeros(num),
        "n_sub": np.zeros(num, dtype=np.int64),
        "half_mode_mass": np.zeros(num),
        **{name: np.zeros((num, 0)) for name in HALO_KEYS},
        "vortex_theta_E": np.zeros(num),
        **dict.fromkeys(VORTEX_ENDS, nan),
        "log10_m_axion": nan,
    }


def draw_sphere(
    priors: Sphere, preset: Preset, theta_E: np.ndarray, strength: float, rng: np.random.Generator
) -> Columns:
    """Subhaloes in all directions."""
    num, distances = len(theta_E), angular_diameter_distances(preset.z_lens, preset.z_source)
    number = _number(priors, distances, num, rng)
    shape = num, padded(int(number.max(initial=0)), is_fixed(priors))
    mass, radius = priors.mass.sample(rng, shape), priors.radius.sample(rng, shape)
    angle, half_mode_mass = rng.uniform(0, 2 * math.pi, shape), priors.half_mode_mass.sample(rng, num)[:, None]
    # Warm dark matter makes fewer light haloes: each of the cold ones is kept with the probability of the warm.
    is_there = np.arange(shape[1]) < number[:, None]
    is_there &= rng.uniform(size=shape) < haloes.suppression(mass, half_mode_mass)
    mass = np.where(is_there, mass, 0.0)
    share = mass * _share_of_one_Msun(priors, mass, theta_E, distances, rng)[:, None] * strength
    columns = {
        "sub_x": radius * np.cos(angle),
        "sub_y": radius * np.sin(angle),
        "sub_theta_E": theta_E[:, None] * np.sqrt(share),
    }
    columns |= _extend(priors, preset, columns["sub_theta_E"], half_mode_mass, rng)
    columns = _pack(columns, is_there, is_fixed(priors))
    return {"f_sub": share.sum(1), "n_sub": is_there.sum(1), "half_mode_mass": half_mode_mass[:, 0]} | columns


def is_fixed(priors: Sphere) -> bool:
    """Whether every lens has the same number of subhaloes."""
    return priors.number is not None and priors.number.value is not None


def padded(most: int, is_fixed: bool) -> int:
    """Room for haloes: as many as there are, or the next step, so that compiled code meets few shapes."""
    return most if is_fixed else -(-most // HALO_STEP) * HALO_STEP


def _number(priors: Sphere, distances: Distances, num: int, rng: np.random.Generator) -> np.ndarray:
    """How many subhaloes each lens has, before the warm dark matter's share is taken away, shape (B,).

    References: the normalisation sigma_sub is that of Gilman et al. 2020 (arXiv:1908.06983), eq. 3, without its factor
    for the host: d^2N / dm dA = sigma_sub / m_0 (m / m_0)^slope with m_0 = 1e8 Msun.
    """
    if priors.number is not None:
        return np.asarray(priors.number.sample(rng, num), dtype=np.int64)
    assert priors.sigma_sub is not None and priors.mass.power_law is not None
    slope, *limits = priors.mass.power_law
    low, high = (m / 1e8 for m in limits)
    per_sigma = math.log(high / low) if slope == -1 else (high ** (slope + 1) - low ** (slope + 1)) / (slope + 1)
    kpc = distances.lens * 1e3 * ARCSEC
    assert priors.radius.disc is not None
    inner, outer = priors.radius.disc
    area = math.pi * (outer**2 - inner**2) * kpc**2
    return rng.poisson(priors.sigma_sub.sample(rng, num) * per_sigma * area)


def _share_of_one_Msun(
    priors: Sphere, mass: np.ndarray, theta_E: np.ndarray, distances: Distances, rng: np.random.Generator
) -> np.ndarray:
    """By what masses are multiplied to be shares of the lens's mass inside theta_E, shape (B,)."""
    if priors.f_sub is not None:
        return priors.f_sub.sample(rng, len(theta_E)) / np.maximum(mass.sum(1), 1e-300)
    if priors.lens_mass is not None:
        return np.full(len(theta_E), 1 / priors.lens_mass)
    return 1 / (mass_of_unit_theta_E(distances) * theta_E**2)


def _extend(
    priors: Sphere, preset: Preset, theta_E: np.ndarray, half_mode_mass: np.ndarray, rng: np.random.Generator
) -> Columns:
    """Scale radius, strength and truncation of haloes that are no points, shape (B, N) each."""
    if priors.profile == "point":
        return {}
    distances = angular_diameter_distances(preset.z_lens, preset.z_source)
    mass = np.maximum(theta_E**2 * mass_of_unit_theta_E(distances), 1.0)
    median = haloes.concentration(mass, preset.z_lens) * haloes.concentration_drop(mass, half_mode_mass)
    concentration = median * 10 ** rng.normal(0.0, priors.concentration_scatter, mass.shape)
    alpha_Rs, Rs = haloes.halo_scales(mass, concentration, distances, preset.z_lens)
    columns = {"sub_alpha_Rs": np.where(theta_E > 0, alpha_Rs, 0.0), "sub_Rs": Rs}
    return columns if priors.profile == "nfw" else columns | {"sub_r_trunc": Rs * priors.tau.sample(rng, mass.shape)}


def _pack(columns: Columns, is_there: np.ndarray, is_fixed: bool) -> Columns:
    """Haloes that are there first, the others with no mass at the origin, in as little room as may be."""
    order = np.argsort(~is_there, axis=1, kind="stable")[:, : padded(int(is_there.sum(1).max(initial=0)), is_fixed)]
    kept = np.take_along_axis(is_there, order, 1)
    return {name: np.where(kept, np.take_along_axis(v, order, 1), 0.0) for name, v in columns.items()}


def draw_vortex(priors: Vortex, theta_E: np.ndarray, strength: float, rng: np.random.Generator) -> Columns:
    """A straight string of uniform mass."""
    num = len(theta_E)
    f_sub = priors.f_sub.sample(rng, num) * strength
    log10_m_axion = np.full(num, np.nan)
    if priors.log10_m_axion is not None:
        log10_m_axion = priors.log10_m_axion.sample(rng, num)
        length = vortex_length(log10_m_axion)
    else:
        assert priors.length is not None
        length = priors.length.sample(rng, num)
    half, phi = length / 2, priors.phi.sample(rng, num)
    offset, offset_angle = priors.offset.sample(rng, num), priors.offset_angle.sample(rng, num)
    x, y = offset * np.cos(offset_angle), offset * np.sin(offset_angle)
    dx, dy = half * np.cos(phi), half * np.sin(phi)
    ends = dict(zip(VORTEX_ENDS, (x - dx, y - dy, x + dx, y + dy), strict=True))
    return {"f_sub": f_sub, "vortex_theta_E": theta_E * np.sqrt(f_sub), "log10_m_axion": log10_m_axion} | ends


def vortex_length(log10_m_axion: np.ndarray) -> np.ndarray:
    """Length in arcsec of a vortex in a halo of axions of mass 10^x eV: twice the de Broglie wavelength at z = 0.5.

    It is not scaled to other redshifts.

    References: DeepLenseSim (github.com/mwt5345/DeepLenseSim), where lambda = 0.06" / (2 m / 1e-22 eV).
    """
    return 0.06 / 10 ** (log10_m_axion + 22)


def mass_inside(columns: Columns, radius: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Substructure mass inside circles of ``radius`` about (x, y), all shape (B,): a theta_E^2 in arcsec^2."""
    if columns["sub_alpha_Rs"].shape[1]:
        return _pulled_inside(columns, radius, x, y)
    distance = np.hypot(columns["sub_x"] - x[:, None], columns["sub_y"] - y[:, None])
    inside = (columns["sub_theta_E"] ** 2 * (distance < radius[:, None])).sum(1)
    x1, y1, x2, y2 = (columns[end] for end in VORTEX_ENDS)
    share = np.nan_to_num(share_inside(x1 - x, y1 - y, x2 - x, y2 - y, radius))
    return inside + columns["vortex_theta_E"] ** 2 * share


def _pulled_inside(columns: Columns, radius: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The same by Gauss's theorem: the mass inside a circle is its radius times the mean pull towards its centre.

    The pull is that of all haloes at once, each at places of its own on the half of the circle that begins beside it:
    angles a sinh(t), dense where the halo is near. The error is below 2e-6 of a halo's mass, wherever it lies.
    """
    names = ("sub_alpha_Rs", "sub_Rs", "sub_r_trunc")
    halo = [torch.from_numpy(columns[name])[..., None] for name in names if columns[name].shape[1]]
    R = torch.from_numpy(radius)[:, None, None]
    distance = np.hypot(columns["sub_x"] - x[:, None], columns["sub_y"] - y[:, None])
    d = torch.from_numpy(distance)[..., None]
    a = (d / R - 1).abs().clamp_min(1e-3)
    t, weight = (torch.from_numpy(v) / 2 for v in (NODES + 1, WEIGHTS))
    whole = torch.asinh(math.pi / a)
    angle, step = a * torch.sinh(t * whole), a * torch.cosh(t * whole) * whole * weight
    cos = torch.cos(angle)
    pull = haloes.pull(torch.sqrt((R - d).square() + 2 * R * d * (1 - cos)), *halo)
    inside = (R * pull * (R - d * cos) * step).sum(-1) / math.pi
    return inside.sum(1).numpy()


def share_inside(x1: np.ndarray, y1: np.ndarray, x2: np.ndarray, y2: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """The share of a segment from (x1, y1) to (x2, y2) that lies inside a circle about the origin, all shape (B,)."""
    dx, dy = x2 - x1, y2 - y1
    # |start + t step|^2 = radius^2 is a quadratic in t; the segment is t from 0 to 1.
    a, b, c = dx**2 + dy**2, dx * x1 + dy * y1, x1**2 + y1**2 - radius**2
    root = np.sqrt(np.maximum(b**2 - a * c, 0.0))
    a = np.maximum(a, 1e-300)
    low, high = (-b - root) / a, (-b + root) / a
    share = np.maximum(np.minimum(high, 1.0) - np.maximum(low, 0.0), 0.0)
    return np.where(dx**2 + dy**2 > 0, share, c < 0)  # a string without a length is a point
