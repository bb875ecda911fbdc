"""Subhaloes and vortices: their masses, where they lie, and the share of them inside a circle."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lenstronomy.LensModel.Profiles.nfw import NFW
from lenstronomy.LensModel.Profiles.tnfw import TNFW
from scipy import integrate, stats

from deeplense.simulate import preset, substructure, truth
from deeplense.simulate.priors import Prior

PRESET = preset.load("common-test")
WORLD = PRESET.world("physical")
THETA_E = 1.3
PLACE = st.floats(-3, 3).map(lambda v: round(v, 3))


def draw(kind: int, num: int, world=WORLD, strength: float = 1.0, seed: int = 0) -> substructure.Columns:
    rng = np.random.default_rng([kind, seed])
    return substructure.draw(kind, PRESET, world, np.full(num, THETA_E), strength, rng)


def draws(kind: int, num: int = 400, strength: float = 1.0) -> list[dict]:
    columns = draw(kind, num, strength=strength)
    keys = {name: columns[name] for name in columns} | dict.fromkeys(truth.BAND_KEYS, np.zeros((num, 1)))
    return [truth.row(keys, place) for place in range(num)]


SPHERES, VORTICES = draws(1), draws(2)


def test_every_kind_tells_the_same_things():
    assert all(set(draw(k, 3)) == set(substructure.none(3)) for k in range(3))


def test_none_has_no_mass():
    columns = draw(0, 2)
    assert not any(columns[name].any() for name in ("f_sub", "n_sub", "vortex_theta_E", "sub_x"))
    assert mass_inside(columns, 10.0, 0.0, 0.0).tolist() == [0, 0]


def test_number_of_subhaloes_is_poisson():
    number = np.array([t["n_sub"] for t in SPHERES])
    assert all(len(t["sub_x"]) == len(t["sub_y"]) == len(t["sub_theta_E"]) == t["n_sub"] for t in SPHERES)
    # Mean 25; the variance of the mean of 400 draws is 25 / 400, that of their variance 2 * 25^2 / 400.
    assert abs(number.mean() - 25) < 3 * math.sqrt(25 / 400) and abs(number.var() - 25) < 3 * 25 * math.sqrt(2 / 400)


def test_masses_have_the_slope_and_sum_to_their_share():
    for row in SPHERES:
        assert (row["sub_theta_E"] ** 2).sum() == pytest.approx(row["f_sub"] * THETA_E**2)
    f_sub = [t["f_sub"] for t in SPHERES]
    assert stats.kstest(f_sub, stats.uniform(*_width(WORLD.sphere.f_sub.uniform)).cdf).pvalue > 0.01
    # The share rescales the masses of an image, which leaves their ratios: with p(m) ~ m^-1.9, the logarithm of a mass
    # over the lowest one is exponential with rate 0.9.
    logs = [np.sort(np.log(t["sub_theta_E"] ** 2)) for t in SPHERES]
    above = np.concatenate([ln_m[1:] - ln_m[0] for ln_m in logs])
    assert 1 / above.mean() == pytest.approx(0.9, rel=0.05)


def test_subhaloes_fill_the_disc_in_all_directions():
    x, y = (np.concatenate([t[name] for t in SPHERES]) for name in ("sub_x", "sub_y"))
    outer = WORLD.sphere.radius.disc[1]
    assert stats.kstest((x**2 + y**2) / outer**2, "uniform").pvalue > 0.01
    assert stats.kstest(np.arctan2(y, x), stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 0.01


def test_no_subhaloes_is_no_mass():
    lonely = WORLD.model_copy(update={"sphere": WORLD.sphere.model_copy(update={"number": Prior(value=0.0)})})
    columns = draw(1, 2, lonely)
    assert not columns["n_sub"].any() and not columns["f_sub"].any() and columns["sub_theta_E"].shape == (2, 0)


def test_vortices_have_the_length_the_mass_and_all_directions():
    x1, y1, x2, y2, theta_E, f_sub = (
        np.array([t[k] for t in VORTICES])
        for k in (*(f"vortex_{e}" for e in ("x1", "y1", "x2", "y2", "theta_E")), "f_sub")
    )
    length, phi = np.hypot(x2 - x1, y2 - y1), np.arctan2(y2 - y1, x2 - x1)
    assert stats.kstest(length, stats.uniform(*_width(WORLD.vort.length.uniform)).cdf).pvalue > 0.01
    assert stats.kstest(phi, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 0.01
    assert np.hypot(x1 + x2, y1 + y2).max() / 2 < WORLD.vort.offset.disc[1]
    assert theta_E**2 == pytest.approx(f_sub * THETA_E**2)
    assert stats.kstest(f_sub, stats.uniform(*_width(WORLD.vort.f_sub.uniform)).cdf).pvalue > 0.01


def _width(limits: tuple[float, float]) -> tuple[float, float]:
    return limits[0], limits[1] - limits[0]


@pytest.mark.parametrize("kind", [1, 2])
def test_strength_is_a_factor_on_the_mass_alone(kind):
    for weak, strong in zip(draws(kind, 5), draws(kind, 5, strength=3.0), strict=True):
        assert strong["f_sub"] == pytest.approx(3 * weak["f_sub"])
        assert strong["sub_theta_E"] == pytest.approx(math.sqrt(3) * weak["sub_theta_E"])
        assert strong["vortex_theta_E"] == pytest.approx(math.sqrt(3) * weak["vortex_theta_E"])
        for name in ("sub_x", "sub_y", "vortex_x1", "vortex_y2"):
            np.testing.assert_array_equal(weak[name], strong[name])


@given(PLACE, PLACE, PLACE, PLACE, st.floats(0.1, 3))
def test_share_inside_is_the_integral(x1, y1, x2, y2, radius):
    if (x1, y1) == (x2, y2):
        return
    part = (np.arange(200_000) + 0.5) / 200_000
    numeric = (np.hypot(x1 + part * (x2 - x1), y1 + part * (y2 - y1)) < radius).mean()
    assert share_inside([[x1, y1], [x2, y2]], radius) == pytest.approx(numeric, abs=2e-5)


def share_inside(ends, radius: float) -> float:
    (x1, y1), (x2, y2) = np.array(ends, dtype=float)[:, :, None]
    return substructure.share_inside(x1, y1, x2, y2, np.array([radius])).item()


def mass_inside(columns, *circle: float) -> np.ndarray:
    num = len(columns["sub_x"])
    return substructure.mass_inside(columns, *(np.full(num, value) for value in circle))


@pytest.mark.parametrize(
    ("ends", "share"),
    [
        ([[-0.5, 0], [0.5, 0]], 1.0),  # inside
        ([[-2, 0], [2, 0]], 0.5),  # right through
        ([[0, 0], [0, 4]], 0.25),  # from the centre out
        ([[-1, 1], [1, 1]], 0.0),  # touches
        ([[2, 0], [3, 0]], 0.0),  # beyond, pointing at the centre
        ([[-1, 2], [1, 2]], 0.0),  # passes by
    ],
)
def test_share_inside_by_hand(ends, share):
    assert share_inside(ends, 1.0) == pytest.approx(share)


def test_mass_inside_a_circle_off_centre():
    columns = substructure.none(1) | {
        "sub_x": np.array([[0.0, 1.0, 0.4]]),
        "sub_y": np.array([[0.0, 1.0, 0.0]]),
        "sub_theta_E": np.array([[0.1, 0.2, 0.3]]),
    }
    assert mass_inside(columns, 0.5, 0.0, 0.0) == pytest.approx(0.01 + 0.09)
    assert mass_inside(columns, 0.5, 1.0, 1.0) == pytest.approx(0.04)
    string = {"vortex_theta_E": 0.2, "vortex_x1": 1.0, "vortex_y1": 1.0, "vortex_x2": 2.0, "vortex_y2": 1.0}
    columns |= {name: np.array([value]) for name, value in string.items()}
    assert mass_inside(columns, 0.5, 1.0, 1.0) == pytest.approx(0.04 + 0.02)


@pytest.mark.parametrize(("Rs", "r_trunc"), [(0.05, 0.2), (0.2, 1.0), (0.5, 5.0), (0.3, None)])
def test_mass_of_extended_haloes_inside_a_circle(Rs, r_trunc):
    """Gauss's theorem against lenstronomy's convergence, ring by ring about the halo.

    Of a ring of radius s about a halo at distance d, the share inside the circle of radius R is
    arccos((s^2 + d^2 - R^2) / (2 s d)) / pi.
    """
    R, distances = 1.1, np.array([0.0, 0.3, 1.0, 1.099, 1.1, 1.1001, 1.3, 2.5])
    profile, size = (NFW(), (Rs, 0.01)) if r_trunc is None else (TNFW(), (Rs, 0.01, r_trunc))
    num, column = len(distances), np.ones((len(distances), 1))
    columns = substructure.none(num) | {"sub_x": distances[:, None] + 0.2, "sub_y": -0.1 * column}
    columns |= {"sub_theta_E": column, "sub_Rs": Rs * column, "sub_alpha_Rs": 0.01 * column}
    columns |= {} if r_trunc is None else {"sub_r_trunc": r_trunc * column}

    def ring(log_s: float, d: float) -> float:
        s = math.exp(log_s)
        xx, _, _, yy = profile.hessian(s, 0.0, *size)
        share = np.arccos(np.clip((s**2 + d**2 - R**2) / (2 * s * d), -1, 1)) / math.pi if d else float(s < R)
        return (xx + yy) / 2 * 2 * s**2 * share

    ours = mass_inside(columns, R, 0.2, -0.1)
    for d, mass in zip(distances, ours, strict=True):
        ends = sorted({math.log(e) for e in (1e-7, abs(R - d), R + d) if e > 0})
        expected = sum(integrate.quad(ring, a, b, (d,), limit=400, epsabs=1e-12)[0] for a, b in pairwise(ends))
        assert mass == pytest.approx(expected, abs=2e-6 * ours[0])
