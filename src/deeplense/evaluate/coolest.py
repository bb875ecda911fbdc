"""A mass model as JSON, with the names and conventions of the COOLEST standard.

COOLEST (Galan et al. 2023, JOSS 8, 5567) names a lens's parts and writes each parameter as a point estimate with the
summary of a posterior. Its axes and radii are ours: x to the right, y upward, product-average ("intermediate") radii.
Angles are degrees from the positive y axis, counter-clockwise, within (-90, 90], as "east of north" where north is up
and east left; ours are from the positive x axis. ``phi`` is that of the major axis; ``phi_ext`` that of a shear with
gamma1 = gamma_ext cos 2 phi and alpha_x = gamma1 x + gamma2 y, with phi from the x axis, about the origin.

References: https://github.com/aymgal/COOLEST, coolest/template/classes/profiles and coolest/api/profiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from deeplense.lensing.light import sersic_flux


def position_angle(radian: float) -> float:
    """Degrees from the y axis, (-90, 90], of a direction given in radian from the x axis."""
    degrees = (math.degrees(radian) - 90) % 180
    return degrees - 180 if degrees > 90 else degrees


def direction(position_angle: float) -> float:
    """Radian from the x axis, [-pi/2, pi/2), of a position angle in degrees: the inverse, but for its sense."""
    return math.radians((position_angle + 180) % 180 - 90)


def mass_model(
    values: Mapping[str, float], std: Mapping[str, float], z_lens: float | None = None
) -> list[dict[str, Any]]:
    """The SIE and the external shear, as COOLEST lists the mass model of a galaxy and of an external field.

    Args:
        values: theta_E, e1, e2, center_x, center_y, gamma1 and gamma2, by our names, arcsec.
        std: their standard deviations; angles and axis ratios get theirs by propagation.
        z_lens: redshift, if it is known.
    """
    q, phi, q_std, phi_std = _axes(values, std, "e1", "e2")
    gamma, gamma_std, phi_ext, phi_ext_std = _shear(values, std)
    sie = {
        "theta_E": _point(values["theta_E"], std["theta_E"]),
        "q": _point(q, q_std),
        "phi": _point(position_angle(phi), phi_std),
        "center_x": _point(values["center_x"], std["center_x"]),
        "center_y": _point(values["center_y"], std["center_y"]),
    }
    shear = {"gamma_ext": _point(gamma, gamma_std), "phi_ext": _point(position_angle(phi_ext), phi_ext_std)}
    return [
        {"type": "Galaxy", "name": "lens", "redshift": z_lens, "mass_model": [{"type": "SIE", "parameters": sie}]},
        {
            "type": "MassField",
            "name": "shear",
            "redshift": z_lens,
            "mass_model": [{"type": "ExternalShear", "parameters": shear}],
        },
    ]


def read_mass_model(entities: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """theta_E, e1, e2, center_x, center_y, gamma1 and gamma2 of what :func:`mass_model` wrote: its inverse."""
    found = {part["type"]: part["parameters"] for entity in entities for part in entity.get("mass_model", ())}
    sie, shear = ({n: p["point_estimate"]["value"] for n, p in found[k].items()} for k in ("SIE", "ExternalShear"))
    e, phi = (1 - sie["q"]) / (1 + sie["q"]), direction(sie["phi"])
    gamma, phi_ext = shear["gamma_ext"], direction(shear["phi_ext"])
    components = {"e1": e * math.cos(2 * phi), "e2": e * math.sin(2 * phi)}
    components |= {"gamma1": gamma * math.cos(2 * phi_ext), "gamma2": gamma * math.sin(2 * phi_ext)}
    return {name: sie[name] for name in ("theta_E", "center_x", "center_y")} | components


def light_model(
    values: Mapping[str, float],
    std: Mapping[str, float],
    name: str,
    keys: Mapping[str, str],
    redshift: float | None = None,
) -> dict[str, Any]:
    """A Sersic profile as a galaxy; ``I_eff`` is the surface brightness at ``theta_eff``, flux per arcsec^2.

    Args:
        values, std: flux, arcsec, and standard deviations, by our names.
        name: of the galaxy.
        keys: which of our names stand for R_sersic, n_sersic, e1, e2, x, y and flux.
        redshift: if it is known.
    """
    q, phi, q_std, phi_std = _axes(values, std, keys["e1"], keys["e2"])
    named = {"theta_eff": "R_sersic", "n": "n_sersic", "center_x": "x", "center_y": "y"}
    parameters = {theirs: _point(values[keys[ours]], std[keys[ours]]) for theirs, ours in named.items()}
    parameters |= {"q": _point(q, q_std), "phi": _point(position_angle(phi), phi_std)}
    size, index = (torch.tensor(values[keys[k]], dtype=torch.float64) for k in ("R_sersic", "n_sersic"))
    peak = values[keys["flux"]] / float(sersic_flux(torch.ones_like(size), size, index))
    # It moves with radius and index, so that the flux's own uncertainty says nothing of it.
    parameters["I_eff"] = _point(peak, math.inf)
    light = [{"type": "Sersic", "parameters": parameters}]
    return {"type": "Galaxy", "name": name, "redshift": redshift, "light_model": light}


def _point(value: float, std: float) -> dict[str, Any]:
    """A parameter: the best value, and a Gaussian posterior's mean and percentiles."""
    posterior = None
    if math.isfinite(std):
        posterior = {"mean": value, "median": value, "percentile_16th": value - std, "percentile_84th": value + std}
    return {"point_estimate": {"value": value}, "posterior_stats": posterior}


def _axes(values: Mapping[str, float], std: Mapping[str, float], one: str, two: str) -> tuple[float, ...]:
    """Axis ratio and angle (radian) of an ellipticity, then their standard deviations, of the angle in degrees."""
    e = math.hypot(values[one], values[two])
    scatter = math.hypot(std[one], std[two]) / math.sqrt(2)
    phi_std = min(math.degrees(scatter / (2 * e)), 90.0) if e > 0 else 90.0
    return (1 - e) / (1 + e), math.atan2(values[two], values[one]) / 2, 2 * scatter / (1 + e) ** 2, phi_std


def _shear(values: Mapping[str, float], std: Mapping[str, float]) -> tuple[float, ...]:
    gamma = math.hypot(values["gamma1"], values["gamma2"])
    scatter = math.hypot(std["gamma1"], std["gamma2"]) / math.sqrt(2)
    phi_std = min(math.degrees(scatter / (2 * gamma)), 90.0) if gamma > 0 else 90.0
    return gamma, scatter, math.atan2(values["gamma2"], values["gamma1"]) / 2, phi_std
