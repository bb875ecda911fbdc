"""Dark-matter substructure: subhaloes (sphere) or a vortex (vort), with the part of its mass inside theta_E."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from deeplense.simulate.preset import Sphere, Vortex, World

Truth = dict[str, Any]
NONE: Truth = {
    "f_sub": 0.0,
    "n_sub": 0,
    "sub_x": np.zeros(0),
    "sub_y": np.zeros(0),
    "sub_theta_E": np.zeros(0),
    "vortex_theta_E": 0.0,
    "vortex_x1": math.nan,
    "vortex_y1": math.nan,
    "vortex_x2": math.nan,
    "vortex_y2": math.nan,
}


def draw(kind: int, world: World, theta_E: float, strength: float, rng: np.random.Generator) -> Truth:
    """The substructure of one lens: 0 none, 1 sphere, 2 vort.

    Args:
        theta_E: Einstein radius of the whole lens, arcsec; masses are shares of its theta_E^2.
        strength: factor on the substructure's mass; above 1 for the easy end of a curriculum.

    Returns:
        The keys of ``NONE``: positions and Einstein radii in arcsec; ``f_sub`` the share of the lens's mass.
    """
    if kind == 0:
        return dict(NONE)
    if kind == 1:
        return NONE | draw_sphere(world.sphere, theta_E, strength, rng)
    return NONE | draw_vortex(world.vort, theta_E, strength, rng)


def draw_sphere(priors: Sphere, theta_E: float, strength: float, rng: np.random.Generator) -> Truth:
    """Point masses in all directions, their masses scaled to a share of the lens's mass."""
    number = int(priors.number.sample(rng))
    f_sub = float(priors.f_sub.sample(rng)) * strength if number else 0.0
    mass = priors.mass.sample(rng, number)
    radius = priors.radius.sample(rng, number)
    angle = rng.uniform(0, 2 * math.pi, number)
    share = f_sub * mass / mass.sum() if number else mass
    return {
        "f_sub": f_sub,
        "n_sub": number,
        "sub_x": radius * np.cos(angle),
        "sub_y": radius * np.sin(angle),
        "sub_theta_E": theta_E * np.sqrt(share),
    }


def draw_vortex(priors: Vortex, theta_E: float, strength: float, rng: np.random.Generator) -> Truth:
    """A straight string of uniform mass."""
    f_sub = float(priors.f_sub.sample(rng)) * strength
    half, phi = priors.length.sample(rng) / 2, priors.phi.sample(rng)
    offset, offset_angle = priors.offset.sample(rng), priors.offset_angle.sample(rng)
    x, y = offset * math.cos(offset_angle), offset * math.sin(offset_angle)
    dx, dy = half * math.cos(phi), half * math.sin(phi)
    return {
        "f_sub": f_sub,
        "vortex_theta_E": theta_E * math.sqrt(f_sub),
        "vortex_x1": x - dx,
        "vortex_y1": y - dy,
        "vortex_x2": x + dx,
        "vortex_y2": y + dy,
    }


def mass_inside(truth: Truth, radius: float, center: tuple[float, float]) -> float:
    """Substructure mass inside a circle of the lens plane, as a theta_E^2 in arcsec^2."""
    distance = np.hypot(truth["sub_x"] - center[0], truth["sub_y"] - center[1])
    haloes = float((truth["sub_theta_E"][distance < radius] ** 2).sum())
    if truth["vortex_theta_E"] == 0:
        return haloes
    ends = np.array([[truth["vortex_x1"], truth["vortex_y1"]], [truth["vortex_x2"], truth["vortex_y2"]]])
    return haloes + truth["vortex_theta_E"] ** 2 * share_inside(ends - center, radius)


def share_inside(ends: np.ndarray, radius: float) -> float:
    """The share of a segment (two ends, shape (2, 2)) that lies inside a circle about the origin."""
    step = ends[1] - ends[0]
    # |start + t step|^2 = radius^2 is a quadratic in t; the segment is t from 0 to 1.
    a, b, c = step @ step, step @ ends[0], ends[0] @ ends[0] - radius**2
    root2 = b**2 - a * c
    if root2 <= 0:
        return 0.0
    low, high = (-b - math.sqrt(root2)) / a, (-b + math.sqrt(root2)) / a
    return max(0.0, min(high, 1.0) - max(low, 0.0))
