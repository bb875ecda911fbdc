"""COOLEST's names and angles against its own formulas, and back."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from deeplense.evaluate.coolest import direction, light_model, mass_model, position_angle, read_mass_model
from deeplense.lensing.deflection import converge_sie, deflect_shear
from deeplense.lensing.light import sersic, sersic_flux
from peer import column

NAMES = ("theta_E", "e1", "e2", "center_x", "center_y", "gamma1", "gamma2")
VALUES = dict(zip(NAMES, (1.3, 0.1, -0.2, 0.05, -0.08, 0.03, 0.04), strict=True))
STD = dict.fromkeys(NAMES, 0.01)
POINTS = np.random.default_rng(0).uniform(-2, 2, (2, 5, 5))


def best(profile):
    return {name: parameter["point_estimate"]["value"] for name, parameter in profile["parameters"].items()}


def profiles(entities, model="mass_model"):
    return {profile["type"]: best(profile) for entity in entities for profile in entity.get(model, ())}


def radius(x, y, phi, q, center_x, center_y):
    """The product-average radius of COOLEST: its angle is from the y axis, counter-clockwise, in degrees."""
    angle = np.radians(phi - 90)
    x, y = x - center_x, y - center_y
    along, across = np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y
    return np.sqrt(q * along**2 + across**2 / q)


@pytest.mark.parametrize(("radian", "degrees"), [(0.0, 90), (math.pi / 2, 0), (math.pi / 4, -45), (-math.pi / 4, 45)])
def test_north_is_up_and_east_is_left(radian, degrees):
    assert position_angle(radian) == pytest.approx(degrees)
    assert math.tan(direction(degrees) - radian) == pytest.approx(0, abs=1e-12)


def test_a_lens_that_points_north_east_points_up_and_left():
    # An ellipse along the line y = -x, from upper left to lower right.
    model = profiles(mass_model(VALUES | {"e1": 0.0, "e2": -0.2}, STD))["SIE"]
    assert model["phi"] == pytest.approx(45) and model["q"] == pytest.approx(0.8 / 1.2)


@pytest.mark.parametrize("seed", range(5))
def test_the_convergence_is_that_of_coolest(seed):
    rng = np.random.default_rng(seed)
    values = VALUES | dict(
        zip(NAMES[:5], rng.uniform((0.3, -0.3, -0.3, -0.1, -0.1), (2, 0.3, 0.3, 0.1, 0.1)), strict=True)
    )
    sie = profiles(mass_model(values, STD))["SIE"]
    theirs = 0.5 * sie.pop("theta_E") / radius(*POINTS, **sie)
    grid = (torch.from_numpy(v) for v in POINTS)
    ours = converge_sie(*grid, *(column(values[name]) for name in NAMES[:5]))[0].numpy()
    assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize(("gamma1", "gamma2"), [(0.03, 0.04), (-0.1, 0.02), (0.0, -0.05), (0.06, 0.0)])
def test_the_shear_is_that_of_coolest(gamma1, gamma2):
    shear = profiles(mass_model(VALUES | {"gamma1": gamma1, "gamma2": gamma2}, STD))["ExternalShear"]
    angle, (x, y) = 2 * np.radians(shear["phi_ext"] - 90), POINTS
    g1, g2 = shear["gamma_ext"] * np.cos(angle), shear["gamma_ext"] * np.sin(angle)
    ours = deflect_shear(*(torch.from_numpy(v) for v in POINTS), column(gamma1), column(gamma2))
    for mine, theirs in zip(ours, (g1 * x + g2 * y, g2 * x - g1 * y), strict=True):
        assert mine[0].numpy() == pytest.approx(theirs)


def test_light_is_that_of_coolest():
    keys = {"R_sersic": "R", "n_sersic": "n", "e1": "e1", "e2": "e2", "x": "x", "y": "y", "flux": "flux"}
    values = {"R": 0.3, "n": 1.7, "e1": 0.1, "e2": 0.2, "x": 0.1, "y": -0.2, "flux": 40.0}
    entity = light_model(values, dict.fromkeys(values, 0.1), "source", keys, 2.0)
    part = profiles([entity], "light_model")["Sersic"]
    ellipse = {name: part[name] for name in ("phi", "q", "center_x", "center_y")}
    b = 1.9992 * part["n"] - 0.3271
    theirs = part["I_eff"] * np.exp(-b * ((radius(*POINTS, **ellipse) / part["theta_eff"]) ** (1 / part["n"]) - 1))
    shape = [column(values[k]) for k in ("R", "n", "e1", "e2", "x", "y")]
    amplitude = 40.0 / sersic_flux(column(1.0), *shape[:2])
    ours = sersic(*(torch.from_numpy(v) for v in POINTS), amplitude, *shape)[0].numpy()
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert entity["type"] == "Galaxy" and entity["redshift"] == 2.0


@pytest.mark.parametrize("seed", range(8))
def test_a_mass_model_comes_back(seed):
    rng = np.random.default_rng(seed)
    values = dict(zip(NAMES, (rng.uniform(0.2, 2), *rng.uniform(-0.3, 0.3, 6)), strict=True))
    text = json.dumps(mass_model(values, STD, 0.5))
    assert read_mass_model(json.loads(text)) == pytest.approx(values)


def test_uncertainties_are_propagated():
    values, scatter = VALUES | {"e1": 0.15, "e2": 0.1, "gamma1": -0.05, "gamma2": 0.06}, 0.004
    (lens, field) = mass_model(values, dict.fromkeys(NAMES, scatter))
    draws = {name: np.random.default_rng(1).normal(values[name], scatter, 20000) for name in NAMES[1:3] + NAMES[5:]}
    draws = {name: np.random.default_rng(i).permutation(d) for i, (name, d) in enumerate(draws.items())}
    e, gamma = (np.hypot(draws[a], draws[b]) for a, b in (("e1", "e2"), ("gamma1", "gamma2")))
    spread = {
        "q": np.std((1 - e) / (1 + e)),
        "phi": np.degrees(np.std(np.arctan2(draws["e2"], draws["e1"]) / 2)),
        "gamma_ext": np.std(gamma),
        "phi_ext": np.degrees(np.std(np.arctan2(draws["gamma2"], draws["gamma1"]) / 2)),
    }
    for entity in (lens, field):
        for name, parameter in entity["mass_model"][0]["parameters"].items():
            told = parameter["posterior_stats"]
            half = (told["percentile_84th"] - told["percentile_16th"]) / 2
            assert half == pytest.approx(spread.get(name, scatter), rel=0.05)
            assert told["mean"] == told["median"] == parameter["point_estimate"]["value"]


def test_a_round_lens_has_no_angle():
    entities = mass_model(VALUES | {"e1": 0.0, "e2": 0.0, "gamma1": 0.0, "gamma2": 0.0}, STD)
    stats = entities[0]["mass_model"][0]["parameters"]["phi"]["posterior_stats"]
    assert profiles(entities)["SIE"]["q"] == 1 and stats["percentile_84th"] - stats["percentile_16th"] >= 180
    json.dumps(entities, allow_nan=False)
