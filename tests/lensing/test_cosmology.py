"""Distances and masses against astropy, lenstronomy and the figure that the published generator missed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from astropy import constants, units
from astropy.cosmology import FlatLambdaCDM
from lenstronomy.Cosmo.lens_cosmo import LensCosmo

from deeplense.errors import ConfigError
from deeplense.lensing import cosmology

REDSHIFTS = [(0.5, 1.0), (0.2, 0.6), (0.881, 2.059), (1.0, 6.0), (0.01, 0.011)]


@pytest.mark.parametrize(("z_lens", "z_source"), REDSHIFTS)
@pytest.mark.parametrize(("H0", "Om0"), [(70.0, 0.3), (67.4, 0.315)])
def test_distances_are_astropys(z_lens, z_source, H0, Om0):
    ours = cosmology.angular_diameter_distances(z_lens, z_source, H0, Om0)
    universe = FlatLambdaCDM(H0=H0, Om0=Om0, Ob0=0.05)
    assert ours.lens == pytest.approx(universe.angular_diameter_distance(z_lens).to_value("Mpc"), rel=1e-10)
    assert ours.source == pytest.approx(universe.angular_diameter_distance(z_source).to_value("Mpc"), rel=1e-10)
    between = universe.angular_diameter_distance(z_lens, z_source).to_value("Mpc")
    assert ours.lens_source == pytest.approx(between, rel=1e-8)


def test_einstein_radius_of_1e12_solar_masses():
    distances = cosmology.angular_diameter_distances(0.5, 1.0)
    # 1.6647 holds for lenstronomy's older solar mass, 1.9891e30 kg; the IAU's, 1.98841e30 kg, makes it 1.6645.
    # (The published generator put luminosity distances here and got 1.2816 arcsec.)
    theta_E = cosmology.mass_to_theta_E(1e12, distances)
    assert theta_E == pytest.approx(1.6645, abs=5e-5)
    older = (6.67384e-11 * 1.9891e30) / (constants.G * constants.M_sun).to_value("m3 / s2")
    assert theta_E * older**0.5 == pytest.approx(1.6647, abs=5e-5)


@pytest.mark.parametrize(("z_lens", "z_source"), REDSHIFTS[:4])
def test_masses_are_lenstronomys(z_lens, z_source):
    distances = cosmology.angular_diameter_distances(z_lens, z_source)
    theirs = LensCosmo(z_lens, z_source, cosmo=FlatLambdaCDM(H0=70, Om0=0.3, Ob0=0.05))
    # Their product of G and the solar mass is 2.8e-4 above the measured one.
    assert cosmology.theta_E_to_mass(1.3, distances) == pytest.approx(theirs.mass_in_theta_E(1.3), rel=3e-4)
    assert cosmology.critical_density(distances) == pytest.approx(theirs.sigma_crit_angle, rel=3e-4)


def test_critical_density_from_first_principles():
    d = cosmology.angular_diameter_distances(0.5, 1.0)
    per_area = constants.c**2 / (4 * np.pi * constants.G) * d.source / (d.lens * d.lens_source) / units.Mpc
    arcsec = (d.lens * units.Mpc * (1 * units.arcsec).to_value("rad")) ** 2
    assert cosmology.critical_density(d) == pytest.approx((per_area * arcsec).to_value("Msun"), rel=1e-10)


@pytest.mark.parametrize("mass", [1e6, 3.3e9, 1e13])
def test_mass_round_trip(mass):
    distances = cosmology.angular_diameter_distances(0.3, 1.7)
    theta_E = cosmology.mass_to_theta_E(mass, distances)
    assert cosmology.theta_E_to_mass(theta_E, distances) == pytest.approx(mass, rel=1e-12)


def test_tensors_keep_shape_type_and_gradient():
    distances = cosmology.angular_diameter_distances(0.5, 1.0)
    mass = torch.tensor([[1e8, 1e9], [1e10, 1e12]], dtype=torch.float64, requires_grad=True)
    theta_E = cosmology.mass_to_theta_E(mass, distances)
    assert theta_E.shape == mass.shape and theta_E.dtype == mass.dtype
    (gradient,) = torch.autograd.grad(theta_E.sum(), mass)
    torch.testing.assert_close(gradient, (theta_E / (2 * mass)).detach())


@pytest.mark.parametrize(("z_lens", "z_source"), [(1.0, 0.5), (0.5, 0.5), (0.0, 1.0), (-0.1, 1.0), (math.nan, 1.0)])
def test_source_in_front_of_the_lens(z_lens, z_source):
    with pytest.raises(ConfigError, match=r"0 < z_lens < z_source"):
        cosmology.angular_diameter_distances(z_lens, z_source)


@pytest.mark.parametrize(("H0", "Om0"), [(70.0, 0.3), (67.4, 0.315)])
def test_comoving_distances_are_astropys(H0, Om0):
    z = np.array([[0.1, 0.5, 1.0], [2.0, 3.0, 6.0]])
    theirs = FlatLambdaCDM(H0=H0, Om0=Om0, Ob0=0.05).comoving_distance(z).to_value("Mpc")
    np.testing.assert_allclose(cosmology.comoving_distance(z, H0, Om0), theirs, rtol=1e-12)
    d = cosmology.angular_diameter_distances(0.5, 1.0, H0, Om0)
    assert cosmology.comoving_distance(0.5, H0, Om0) == pytest.approx(1.5 * d.lens, rel=1e-12)


@pytest.mark.parametrize("z", [0.0, 0.5, 2.0])
def test_closure_density(z):
    """3 H0^2 / (8 pi G) is 2.7754e11 h^2 Msun / Mpc^3 (Peacock 1999, eq. 3.31), and grows as (H / H0)^2."""
    expected = 2.7754e11 * 0.7**2 * (0.3 * (1 + z) ** 3 + 0.7)
    assert cosmology.closure_density(z) == pytest.approx(expected, rel=2e-4)
