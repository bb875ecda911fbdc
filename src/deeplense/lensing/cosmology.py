"""Distances and the masses that Einstein radii stand for (astropy does the cosmology)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from deeplense.errors import ConfigError

ARCSEC = math.pi / 180 / 3600
Number = TypeVar("Number", float, torch.Tensor, "NDArray[np.float64]")


@dataclass(frozen=True)
class Distances:
    """Angular-diameter distances in Mpc: observer to lens, observer to source, lens to source."""

    lens: float
    source: float
    lens_source: float


@cache
def angular_diameter_distances(
    z_lens: float, z_source: float, H0: float = 70.0, Om0: float = 0.3, Ob0: float = 0.05
) -> Distances:
    """Angular-diameter distances in Mpc of a flat LambdaCDM universe (H0 in km/s/Mpc).

    Raises:
        ConfigError: the source is not behind the lens.
    """
    from astropy.cosmology import FlatLambdaCDM

    if not 0 < z_lens < z_source:
        raise ConfigError(f"z_lens={z_lens}, z_source={z_source}: a lens needs 0 < z_lens < z_source")
    universe = FlatLambdaCDM(H0=H0, Om0=Om0, Ob0=Ob0)
    # In a flat universe comoving distances subtract.
    to_lens, to_source = (float(universe.comoving_distance(z).value) for z in (z_lens, z_source))
    return Distances(to_lens / (1 + z_lens), to_source / (1 + z_source), (to_source - to_lens) / (1 + z_source))


def critical_density(distances: Distances) -> float:
    """Sigma_crit = c^2 D_s / (4 pi G D_l D_ls) in Msun per arcsec^2 of the lens plane.

    References: Narayan & Bartelmann, Lectures on Gravitational Lensing (astro-ph/9606001), eq. 18.
    """
    return mass_of_unit_theta_E(distances) / math.pi


@cache
def mass_of_unit_theta_E(distances: Distances) -> float:
    """Projected mass in Msun inside an Einstein radius of one arcsec, ``M = c^2/(4G) theta_E^2 D_l D_s / D_ls``.

    References: Narayan & Bartelmann (astro-ph/9606001), eq. 21.
    """
    from astropy import constants, units

    per_radian2 = constants.c**2 / (4 * constants.G) * (distances.lens * distances.source / distances.lens_source)
    return float((per_radian2 * units.Mpc).to_value(units.Msun)) * ARCSEC**2


def mass_to_theta_E(mass: Number, distances: Distances) -> Number:
    """Einstein radius in arcsec of a projected mass in Msun (any shape); the inverse of :func:`theta_E_to_mass`."""
    return (mass / mass_of_unit_theta_E(distances)) ** 0.5


def theta_E_to_mass(theta_E: Number, distances: Distances) -> Number:
    """Projected mass in Msun inside an Einstein radius in arcsec (any shape)."""
    return theta_E**2 * mass_of_unit_theta_E(distances)


@cache
def closure_density(z: float, H0: float = 70.0, Om0: float = 0.3, Ob0: float = 0.05) -> float:
    """Critical density of a flat LambdaCDM universe at redshift ``z``, 3 H(z)^2 / (8 pi G), in Msun per Mpc^3."""
    from astropy.cosmology import FlatLambdaCDM

    return float(FlatLambdaCDM(H0=H0, Om0=Om0, Ob0=Ob0).critical_density(z).to_value("Msun / Mpc3"))


def comoving_distance(z: float | np.ndarray, H0: float = 70.0, Om0: float = 0.3, Ob0: float = 0.05) -> np.ndarray:
    """Comoving distance in Mpc to redshifts of any shape, flat LambdaCDM; those of two planes subtract."""
    from astropy.cosmology import FlatLambdaCDM

    return np.asarray(FlatLambdaCDM(H0=H0, Om0=Om0, Ob0=Ob0).comoving_distance(np.asarray(z)).value)
