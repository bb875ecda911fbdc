"""Haloes along the line of sight, gathered in a few planes, and the sheets of negative mass that make up for them.

The universe has its mean density already: what haloes add on average is taken away again by a uniform sheet in each
plane (as in Gilman et al. 2020, arXiv:1908.06983), so that they bend rays more here and less there, but do not focus.
Without it a classifier would find the mean mass. Positions are those that one would see if nothing bent the rays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.stats import poisson

from deeplense.errors import ConfigError
from deeplense.lensing import haloes
from deeplense.lensing.cosmology import ARCSEC, angular_diameter_distances, comoving_distance
from deeplense.simulate.preset import LineOfSight, Preset, Sphere, World
from deeplense.simulate.substructure import Columns

# Of the haloes; of the planes that the truth tells of; and what a renderer has to know of the planes beside.
HALO_KEYS = ("los_x", "los_y", "los_z", "M_los", "los_alpha_Rs", "los_Rs", "los_r_trunc")
PLANE_KEYS = ("los_kappa", "los_kappa_z")
LAYOUT_KEYS = ("los_chi", "los_room", "los_main")
# Each plane has room for as many haloes as one image in this many would exceed, and grows by steps: compiled code
# meets one shape nearly always.
ONE_IN, STEP = 1000, 4
MOST = 20_000  # haloes in the way of one lens; more would not fit in memory
# Points of the integrals over masses.
NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)


@dataclass(frozen=True)
class Planes:
    """Lens planes, front to back, shape (P,) each.

    Attributes:
        z: redshift.
        chi: comoving distance, Mpc.
        radius: of the cone, arcsec.
        volume: of the slab of the cone whose haloes are moved to the plane, comoving Mpc^3.
        main: which of them is the lens's.
        chi_source: comoving distance of the source, Mpc.
    """

    z: np.ndarray
    chi: np.ndarray
    radius: np.ndarray
    volume: np.ndarray
    main: int
    chi_source: float


def given(world: World, kind: int) -> LineOfSight | None:
    """What lies in front of and behind the lenses of a class: None where there is nothing."""
    priors = world.line_of_sight
    if priors is None or not world.has_line_of_sight:
        return None
    return priors if priors.is_in_all_classes or isinstance(_substructure(world, kind), Sphere) else None


def check(preset: Preset, world: World) -> None:
    """Raises ConfigError if an image would have more haloes than can be traced."""
    priors = world.line_of_sight
    if priors is None or not world.has_line_of_sight:
        return
    number = priors.delta.high * float(expected(priors, planes(preset, world)).sum())
    if not number <= MOST:
        raise ConfigError(
            f"line_of_sight puts {number:.2g} haloes in the way of a lens, {MOST:,} are the most: choose a smaller "
            "delta or radius, or a larger lowest mass"
        )


def planes(preset: Preset, world: World) -> Planes:
    """Where the planes of a world are."""
    priors, theta_E = world.line_of_sight, world.lens.theta_E
    assert priors is not None
    return _planes(preset.z_lens, preset.z_source, priors.planes, priors.radius, theta_E.low, theta_E.high)


@cache
def _planes(z_lens: float, z_source: float, number: int, radius: float, low: float, high: float) -> Planes:
    """Each plane stands in the middle of its slab; the lens's has half a slab of either side.

    Up to the lens the cone has the radius of the image. Behind it, an isothermal lens has moved a ray at theta to
    theta - w theta_E, with w from 0 at the lens to 1 at the source: all rays are inside of what is taken here.
    """
    lens, source = comoving_distance(np.array([z_lens, z_source])).tolist()
    front = min(number - 1, max(0, round(number * lens / source - 0.5)))
    back = number - 1 - front
    widths = lens / (front + 0.5), (source - lens) / (back + 0.5)
    chi = np.concatenate([(np.arange(front) + 0.5) * widths[0], lens + np.arange(back + 1) * widths[1]])
    z = np.interp(chi, *_redshifts(z_source))
    z[front] = z_lens
    chi = comoving_distance(z)  # of the very redshifts that the truth tells
    edges = np.concatenate([np.arange(front + 1) * widths[0], lens + (np.arange(back + 1) + 0.5) * widths[1]])
    moved = np.clip((1 - lens / chi) * source / (source - lens), 0.0, 1.0)
    angle = np.minimum(np.maximum(radius - moved * low, moved * high), radius)
    volume = math.pi * (angle * ARCSEC) ** 2 * np.diff(edges**3) / 3
    return Planes(z, chi, angle, volume, front, source)


def _redshifts(z_source: float) -> tuple[np.ndarray, np.ndarray]:
    z = np.linspace(0, z_source, 2001)
    return comoving_distance(z), z


def none(num: int) -> Columns:
    """No haloes in the way of ``num`` lenses."""
    columns = {name: np.zeros((num, 0)) for name in (*HALO_KEYS, *PLANE_KEYS, *LAYOUT_KEYS)}
    return columns | {"n_los": np.zeros(num, dtype=np.int64), "los_main": np.zeros(num)}


def draw(
    kind: int, preset: Preset, world: World, columns: Columns, strength: float, rng: np.random.Generator
) -> Columns:
    """The haloes of many lenses of one class, beside what is drawn of the lenses.

    Args:
        kind: 0 none, 1 and 2 what the world calls sphere and vort.
        columns: of the lenses; ``half_mode_mass`` is that of their subhaloes, Msun, shape (B,).
        strength: factor on the masses.

    Returns:
        ``n_los`` how many, shape (B,); ``los_kappa`` the convergence of each plane's sheet, 0 or less, and
        ``los_kappa_z``, shape (B, P); in shape (B, N), plane after plane, padded with no mass: ``los_x``, ``los_y``
        (arcsec), ``los_z``, ``M_los`` (M200, Msun), ``los_alpha_Rs``, ``los_Rs``, ``los_r_trunc`` (arcsec). For all the
        same: ``los_room`` of each plane in these, shape (B, P), ``los_chi`` of planes and source, Mpc, shape
        (B, P + 1), and ``los_main``, the number of the lens's plane.
    """
    priors, num = given(world, kind), len(columns["theta_E"])
    if priors is None:
        return none(num)
    where, half_mode_mass = planes(preset, world), columns["half_mode_mass"][:, None]
    delta = priors.delta.sample(rng, num)
    cold = rng.poisson(delta[:, None] * expected(priors, where))
    drawn, sheets = [], []
    for plane, number in enumerate(cold.T):
        shape = num, int(number.max())
        mass = priors.mass.sample(rng, shape)
        is_there = np.arange(shape[1]) < number[:, None]
        is_there &= rng.uniform(size=shape) < haloes.suppression(mass, half_mode_mass, is_field=True)
        distance = where.radius[plane] * np.sqrt(rng.uniform(size=shape))
        angle = rng.uniform(0, 2 * math.pi, shape)
        scatter = rng.normal(0.0, priors.concentration_scatter, shape)
        part = {"los_x": distance * np.cos(angle), "los_y": distance * np.sin(angle)}
        part |= {"los_z": np.full(shape, where.z[plane]), "M_los": mass * strength}
        part |= _extend(priors, preset, where.z[plane], mass * strength, half_mode_mass, scatter)
        drawn.append((is_there, part))
        sheets.append(-delta * _mean_kappa(priors, preset, where, plane, half_mode_mass, strength))
    kept, room = _pack(drawn, rooms(kind, preset, world))
    layout: dict[str, Any] = {"los_kappa_z": where.z, "los_chi": [*where.chi, where.chi_source], "los_room": room}
    same = {name: np.tile(value, (num, 1)) for name, value in layout.items()} | {"los_main": np.full(num, where.main)}
    return {"n_los": (kept["M_los"] > 0).sum(1), "los_kappa": np.stack(sheets, 1)} | kept | same


def expected(priors: LineOfSight, where: Planes) -> np.ndarray:
    """How many haloes of cold dark matter each plane has on average where ``delta`` is 1, shape (P,)."""
    m, weight = _masses(priors)
    return haloes.field_number(where.z) * where.volume * (_spectrum(priors, m) * weight).sum()


def _spectrum(priors: LineOfSight, mass: np.ndarray) -> np.ndarray:
    """m dn/dm over that at 1e8 Msun."""
    assert priors.mass.power_law is not None
    return (mass / 1e8) ** (priors.mass.power_law[0] + 1)


def _masses(priors: LineOfSight) -> tuple[np.ndarray, np.ndarray]:
    """Masses in Msun and weights, with which a sum is an integral over the logarithm of mass."""
    low, high = priors.mass.low, priors.mass.high
    half = math.log(high / low) / 2
    return low * np.exp(half * (NODES + 1)), half * WEIGHTS


def _extend(
    priors: LineOfSight,
    preset: Preset,
    z: float,
    mass: np.ndarray,
    half_mode_mass: np.ndarray,
    scatter: np.ndarray | float,
) -> Columns:
    """Strength, scale radius and truncation of haloes of a plane, shape of ``mass``."""
    median = haloes.concentration(mass, z) * haloes.concentration_drop(mass, half_mode_mass)
    concentration = median * 10**scatter
    alpha_Rs, Rs = haloes.halo_scales(mass, concentration, angular_diameter_distances(z, preset.z_source), z)
    sizes = {"los_alpha_Rs": alpha_Rs, "los_Rs": Rs}
    return sizes | {"los_r_trunc": Rs * concentration * priors.r_trunc} if priors.profile == "tnfw" else sizes


def _mean_kappa(
    priors: LineOfSight, preset: Preset, where: Planes, plane: int, half_mode_mass: np.ndarray, strength: float
) -> np.ndarray:
    """Mean convergence of a plane's haloes in the middle of the cone where ``delta`` is 1, shape (B,).

    It is their number times the mass that each has inside of the cone's radius: by symmetry, what haloes all over the
    disc put on its middle is what one in the middle puts on the disc.
    """
    m, weight = _masses(priors)
    size = _extend(priors, preset, where.z[plane], m * strength, half_mode_mass, 0.0)
    radius = torch.tensor(where.radius[plane], dtype=torch.float64)
    pull = haloes.pull(radius, *(torch.from_numpy(value) for value in size.values())).numpy()
    per_mass = _spectrum(priors, m) * haloes.suppression(m, half_mode_mass, is_field=True) * weight
    return haloes.field_number(where.z[plane]) * where.volume[plane] * (per_mass * pull).sum(1)


def rooms(kind: int, preset: Preset, world: World) -> tuple[int, ...]:
    """Room for haloes in each plane, enough for nearly all images of a class."""
    priors = given(world, kind)
    if priors is None:
        return ()
    m, weight = _masses(priors)
    spectrum = _spectrum(priors, m) * weight
    warmth = getattr(_substructure(world, kind), "half_mode_mass", None)
    share = haloes.suppression(m, warmth.low if warmth else 0.0, is_field=True)
    mean = expected(priors, planes(preset, world)) * (spectrum * share).sum() / spectrum.sum()
    return tuple(int(n) for n in poisson.ppf(1 - 1 / ONE_IN, priors.delta.high * mean))


def _substructure(world: World, kind: int) -> object:
    return (None, world.sphere, world.vort)[kind]


def _pack(drawn: list[tuple[np.ndarray, Columns]], rooms: tuple[int, ...]) -> tuple[Columns, tuple[int, ...]]:
    """Planes one after another: in each the haloes that are there first, then no mass, up to its room."""
    most = [int(is_there.sum(1).max(initial=0)) for is_there, _ in drawn]
    more = STEP * max(-(-max(0, m - room) // STEP) for m, room in zip(most, rooms, strict=True))
    packed: dict[str, list[np.ndarray]] = {name: [] for name in HALO_KEYS}
    for (is_there, part), room in zip(drawn, rooms, strict=True):
        order = np.argsort(~is_there, axis=1, kind="stable")[:, : room + more]
        kept = np.take_along_axis(is_there, order, 1)
        for name, values in part.items():
            value = np.where(kept, np.take_along_axis(values, order, 1), 0.0)
            packed[name].append(np.pad(value, ((0, 0), (0, room + more - value.shape[1]))))
    nothing = np.zeros((len(drawn[0][0]), 0))
    columns = {name: np.concatenate([nothing, *values], 1) for name, values in packed.items()}
    return columns, tuple(room + more for room in rooms)


def first_those_that_are_there(columns: Columns) -> Columns:
    """The columns with the haloes of all planes in front of the padding, as a table of truth has them."""
    order = np.argsort(columns["M_los"] == 0, axis=1, kind="stable")
    moved = {name: np.take_along_axis(columns[name], order, 1) for name in HALO_KEYS if columns[name].shape[1]}
    return {name: value for name, value in (columns | moved).items() if name not in LAYOUT_KEYS}
