"""Galaxies by the column: magnitudes, sizes, shapes, arms and knots drawn from priors, and the distances they need."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from deeplense.lensing import cosmology
from deeplense.lensing.cosmology import ARCSEC
from deeplense.simulate.survey_priors import CLUMPS, NEIGHBOURS, Arm, Clumps, Shapes, SurveyWorld

Columns = dict[str, np.ndarray]
SPEED_OF_LIGHT = 299792.458
# The magnitude of what is not there.
DARK = np.inf


def early(
    world: SurveyWorld,
    magnitude: np.ndarray,
    z: np.ndarray,
    rng: np.random.Generator,
    prefix: str,
    colours: bool = True,
) -> Columns:
    """An early-type galaxy by its magnitude in the reference band and its redshift, any shape."""
    given, size = world.early, magnitude.size
    c = {
        "R_sersic": half_light_radius(given, magnitude, z, rng),
        "n_sersic": given.n_sersic.sample(rng, size).reshape(z.shape),
    }
    c["e1"], c["e2"] = ellipticity(given.q.sample(rng, size).reshape(z.shape), rng)
    if colours:
        c["magnitude"] = world.red.sample(magnitude, z, world.bands, rng)
    return {f"{prefix}_{name}": value for name, value in c.items()}


def galaxy(
    world: SurveyWorld, is_red: np.ndarray, magnitude: np.ndarray, z: np.ndarray, rng: np.random.Generator
) -> Columns:
    """Early types where ``is_red``, late types elsewhere: size, shape and magnitudes in all bands, any shape."""
    c = {"magnitude": either(world, is_red, magnitude, z, rng)}
    size, shape = magnitude.size, magnitude.shape
    radius = (half_light_radius(given, magnitude, z, rng) for given in (world.early, world.late))
    n_sersic, q = (
        [getattr(given, name).sample(rng, size).reshape(shape) for given in (world.early, world.late)]
        for name in ("n_sersic", "q")
    )
    c["R_sersic"], c["n_sersic"] = np.where(is_red, *radius), np.where(is_red, *n_sersic)
    c["e1"], c["e2"] = ellipticity(np.where(is_red, *q), rng)
    return c


def either(
    world: SurveyWorld, is_red: np.ndarray, magnitude: np.ndarray, z: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    red, blue = (track.sample(magnitude, z, world.bands, rng) for track in (world.red, world.blue))
    return np.where(is_red[..., None], red, blue)


def arms(given: Arm, num: int, rng: np.random.Generator) -> Columns:
    names = ("number", "pitch", "contrast", "sharpness")
    drawn = {f"arms_{name}": getattr(given, name).sample(rng, num).astype(float) for name in names}
    # Half of the galaxies turn the other way.
    drawn["arms_pitch"] *= rng.choice([-1, 1], num)
    drawn["arms_number"] = np.fmax(np.round(drawn["arms_number"]), 1)
    return drawn | {"arms_phase": random_angle(num, rng)}


def clumps(given: Clumps, c: Columns, bands: tuple[str, ...], rng: np.random.Generator) -> Columns:
    """Knots of the galaxy in ``c``, somewhat bluer than it, whose light is taken from it."""
    num = len(c["source_R_sersic"])
    shape, size = (num, CLUMPS), num * CLUMPS
    is_there = np.arange(CLUMPS) < given.number.sample(rng, num)[:, None]
    weight = is_there * rng.uniform(0.5, 1.5, shape)
    drawn = {"clump_share": weight / np.fmax(weight.sum(1, keepdims=True), 1e-9)}
    share = (given.share.sample(rng, num) * is_there.any(1))[:, None]
    # From the bluest band to the reddest; a single band has no colour.
    bluer = np.linspace(-0.2, 0.1, len(bands)) * (len(bands) > 1)
    with np.errstate(divide="ignore"):
        drawn["clump_magnitude"] = take_share(c["source_magnitude"], share) + bluer
    drawn["source_magnitude"] = take_share(c["source_magnitude"], 1 - share)
    drawn["clump_radius"] = c["source_R_sersic"][:, None] * given.radius.sample(rng, size).reshape(shape)
    distance = c["source_R_sersic"][:, None] * np.sqrt(rng.uniform(0, 2.5, shape))
    x, y = in_plane(c["source_e1"], c["source_e2"], *polar(distance, random_angle(size, rng).reshape(shape)))
    return drawn | {"clump_x": c["source_x"][:, None] + x, "clump_y": c["source_y"][:, None] + y}


def in_plane(e1: np.ndarray, e2: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions in a round disc (num, k) to those in the ellipse of e1, e2 (num,): stretched along the major axis."""
    e, phi = np.hypot(e1, e2)[:, None], (np.arctan2(e2, e1) / 2)[:, None]
    stretch = np.sqrt(np.sqrt((1 + e) / (1 - e)))
    along, across = x * stretch, y / stretch
    return along * np.cos(phi) - across * np.sin(phi), along * np.sin(phi) + across * np.cos(phi)


def padded(first: Columns) -> Columns:
    """One companion an image, (num, ...) -> (num, NEIGHBOURS, ...), the other places dark."""
    dark = {"neighbour_magnitude": DARK, "neighbour_R_sersic": 1.0, "neighbour_n_sersic": 1.0}
    padded = {}
    for name, value in first.items():
        padded[name] = np.full((len(value), NEIGHBOURS, *value.shape[1:]), dark.get(name, 0.0))
        padded[name][:, 0] = value
    return padded


def half_light_radius(given: Shapes, magnitude: np.ndarray, z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half-light radius in arcsec from the size-luminosity relation, any shape."""
    absolute = magnitude - distance_modulus(z)
    dex = -given.R_slope * (absolute + 22) + rng.normal(0, given.R_scatter, z.shape)
    return np.clip(given.R_kpc * 10**dex / (1e3 * ARCSEC * angular_distance(z)), 0.05, 6.0)


def take_share(magnitude: np.ndarray, share: np.ndarray) -> np.ndarray:
    """The magnitude of a share of the light."""
    return magnitude - 2.5 * np.log10(share)


def random_angle(num: int, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0, 2 * math.pi, num)


def polar(length: Any, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return length * np.cos(angle), length * np.sin(angle)


def ellipticity(q: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Components of an axis ratio at any angle, any shape."""
    return polar((1 - q) / (1 + q), rng.uniform(0, 2 * math.pi, q.shape))


@cache
def _distances() -> tuple[np.ndarray, np.ndarray]:
    """Redshifts and comoving distances in Mpc: looked up, since a block of scenes asks for thousands."""
    z = np.linspace(0, 8, 1601)
    return z, cosmology.comoving_distance(z)


def comoving_distance(z: np.ndarray) -> np.ndarray:
    """Mpc, in the cosmology of :mod:`deeplense.lensing.cosmology`; any shape, redshifts up to 8."""
    return np.interp(z, *_distances())


def angular_distance(z: np.ndarray) -> np.ndarray:
    """Angular-diameter distance, Mpc, any shape."""
    return comoving_distance(z) / (1 + z)


def distance_modulus(z: np.ndarray) -> np.ndarray:
    """Magnitude less absolute magnitude without K correction, any shape."""
    return 5 * np.log10(comoving_distance(z) * (1 + z)) + 25


def velocity_dispersion(theta_E: np.ndarray, z_lens: np.ndarray, z_source: np.ndarray) -> np.ndarray:
    """km/s of the isothermal sphere with that Einstein radius (arcsec), any shape; NaN if the source is in front.

    References: Narayan & Bartelmann (astro-ph/9606001), eq. 43.
    """
    lens, source = comoving_distance(z_lens), comoving_distance(z_source)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(source > lens, (source - lens) / source, np.nan)
        return SPEED_OF_LIGHT * np.sqrt(theta_E * ARCSEC / (4 * math.pi * share))
