"""Sersic light against lenstronomy and against integrals; magnitudes against their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lenstronomy.LightModel.light_model import LightModel
from lenstronomy.LightModel.Profiles.sersic import Sersic
from lenstronomy.Util.data_util import cps2magnitude, magnitude2cps
from scipy.integrate import quad
from scipy.optimize import brentq

from deeplense.lensing import light
from deeplense.lensing.raytrace import make_grid
from peer import column

GRID = make_grid(41, 0.05, dtype=torch.float64)
KEYS = ("amp", "R_sersic", "n_sersic", "e1", "e2", "center_x", "center_y")


def radial(r: float, R_sersic: float, n_sersic: float) -> float:
    """Brightness at a radius on the x axis of a round profile of unit amplitude."""
    shape = (column(1.0), column(R_sersic), column(n_sersic), *(column(0.0) for _ in range(4)))
    return light.sersic(torch.full((1, 1), r).double(), torch.zeros(1, 1).double(), *shape).item()


@pytest.mark.parametrize("seed", range(12))
def test_sersic_is_lenstronomys(seed):
    rng = np.random.default_rng(seed)
    shape = (rng.uniform(1, 50), rng.uniform(0.1, 1), rng.uniform(0.5, 6))
    values = (*shape, *rng.uniform(-0.3, 0.3, 2), *rng.uniform(-0.3, 0.3, 2))
    ours = light.sersic(*GRID, *(column(v) for v in values))[0].numpy()
    kwargs = dict(zip(KEYS, values, strict=True))
    theirs = LightModel(["SERSIC_ELLIPSE"]).surface_brightness(*(g.numpy().ravel() for g in GRID), [kwargs])
    assert np.abs(ours / theirs.reshape(ours.shape) - 1).max() < 1e-6


def test_the_cusp_is_finite():
    centre = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    brightness = light.sersic(centre, centre, *(column(v) for v in (1.0, 0.4, 4.0, 0.1, 0.0, 0.0, 0.0)))
    (slope,) = torch.autograd.grad(brightness.sum(), centre)
    theirs = LightModel(["SERSIC_ELLIPSE"]).surface_brightness(
        np.zeros(1), np.zeros(1), [dict(zip(KEYS, (1.0, 0.4, 4.0, 0.1, 0.0, 0.0, 0.0), strict=True))]
    )
    assert brightness.item() == pytest.approx(theirs[0], rel=1e-9) and torch.isfinite(slope).all()


@pytest.mark.parametrize(("n_sersic", "half"), [(0.5, 0.015), (1.0, 0.004), (2.5, 1e-4), (4.0, 1e-3)])
def test_flux_is_the_integral(n_sersic, half):
    inner, outer = (
        quad(lambda r: 2 * math.pi * r * radial(r, 0.4, n_sersic), low, high, limit=200, epsrel=1e-10)[0]
        for low, high in ((0, 0.4), (0.4, 0.4 * 3000))
    )
    flux = light.sersic_flux(column(1.0), column(0.4), column(n_sersic)).item()
    assert flux == pytest.approx(inner + outer, rel=1e-5)
    # b_n is a linear fit: the half-light radius is not quite R_sersic.
    radius = brentq(lambda r: quad(lambda s: 2 * math.pi * s * radial(s, 0.4, n_sersic), 0, r)[0] - flux / 2, 0.3, 0.5)
    assert radius == pytest.approx(0.4, rel=1.1 * half)


def test_flux_of_an_ellipse_is_that_of_the_circle():
    x, y = make_grid(800, 0.01, dtype=torch.float64)
    values = (2.0, 0.3, 1.0, 0.25, -0.2, 0.01, 0.02)
    total = light.sersic(x, y, *(column(v) for v in values)).sum() * 0.01**2
    assert light.sersic_flux(*(column(v) for v in values[:3])).item() == pytest.approx(total.item(), rel=1e-4)


@pytest.mark.parametrize("n_sersic", [0.6, 1.5, 4.0])
def test_flux_is_lenstronomys(n_sersic):
    theirs = Sersic().total_flux(3.0, 0.7, n_sersic, e1=0.2, e2=0.1)
    assert light.sersic_flux(column(3.0), column(0.7), column(n_sersic)).item() == pytest.approx(theirs, rel=1e-10)


def test_magnitudes_are_lenstronomys_and_come_back():
    magnitude = column(18.3, 22.5, 27.0)
    counts = light.magnitude_to_counts(magnitude, 25.94)
    assert counts.numpy() == pytest.approx(magnitude2cps(magnitude.numpy(), 25.94), rel=1e-12)
    assert light.magnitude_to_counts(column(25.94), 25.94).item() == pytest.approx(1.0)
    assert light.counts_to_magnitude(counts, 25.94).numpy() == pytest.approx(cps2magnitude(counts.numpy(), 25.94))
    torch.testing.assert_close(light.counts_to_magnitude(counts, 25.94), magnitude)


@pytest.mark.parametrize("ellipticity", [(0.1, -0.2), (0.0, 0.0)])
def test_gradients_of_every_parameter(ellipticity):
    x, y = torch.tensor([[0.3, -0.1, 0.7]]).double(), torch.tensor([[-0.4, 0.25, 0.1]]).double()
    values = (2.0, 0.4, 1.7, *ellipticity, 0.05, -0.03)
    inputs = tuple(v.requires_grad_() for v in (x, y, *(column(v) for v in values)))
    assert torch.autograd.gradcheck(light.sersic, inputs, atol=1e-4, rtol=1e-4)


def test_gradients_of_flux_and_magnitude():
    inputs = tuple(column(*v).requires_grad_() for v in ((1.0, 2.0), (0.3, 0.7), (1.0, 3.0)))
    assert torch.autograd.gradcheck(light.sersic_flux, inputs)
    assert torch.autograd.gradcheck(light.magnitude_to_counts, (column(25.0).requires_grad_(), 24.0))
    assert torch.autograd.gradcheck(light.counts_to_magnitude, (column(0.3).requires_grad_(), 24.0))


def test_a_batch_is_its_images_one_by_one_in_both_precisions():
    values = torch.tensor(
        [[1.0, 2.0], [0.3, 0.6], [1.0, 3.0], [0.1, 0.0], [-0.2, 0.0], [0.0, 0.1], [0.2, 0.0]]
    ).double()
    batch = light.sersic(*GRID, *values)
    for i in range(2):
        alone = light.sersic(*GRID, *values[:, i : i + 1])[0]
        torch.testing.assert_close(batch[i], alone, rtol=1e-12, atol=0)
    single = light.sersic(*(g.float() for g in GRID), *values.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), batch, rtol=2e-4, atol=1e-6)
