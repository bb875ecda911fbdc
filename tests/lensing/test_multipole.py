"""Multipoles against lenstronomy and against their closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lenstronomy.LensModel.lens_model import LensModel

from deeplense.errors import ConfigError
from deeplense.lensing import deflection, multipole
from deeplense.lensing.raytrace import make_grid
from peer import column, deflect, largest_relative_error

GRID = make_grid(40, 0.1, dtype=torch.float64)
KEYS = ("a_m", "phi_m", "center_x", "center_y")


def draw(rng: np.random.Generator) -> dict[str, float]:
    return dict(zip(KEYS, rng.uniform([-0.1, -math.pi, -0.3, -0.3], [0.1, math.pi, 0.3, 0.3]), strict=True))


@pytest.mark.parametrize("m", [2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(4))
def test_multipoles_are_lenstronomys(m, seed):
    values = draw(np.random.default_rng(seed))
    parameters = [column(v) for v in values.values()]
    ours = multipole.deflect_multipole(*GRID, m, *parameters)
    assert largest_relative_error([a[0] for a in ours], deflect(["MULTIPOLE"], [values | {"m": m}], *GRID)) < 1e-12
    kappa = LensModel(["MULTIPOLE"]).kappa(*(g.numpy().ravel() for g in GRID), [values | {"m": m}])
    ours = multipole.converge_multipole(*GRID, m, *parameters)[0].numpy().ravel()
    np.testing.assert_allclose(ours, kappa, atol=1e-11 * np.abs(kappa).max())


def test_images_of_a_batch_are_their_own():
    first, second = draw(np.random.default_rng(1)), draw(np.random.default_rng(2))
    both = multipole.deflect_multipole(*GRID, 4, *(column(first[k], second[k]) for k in KEYS))
    alone = multipole.deflect_multipole(*GRID, 4, *(column(second[k]) for k in KEYS))
    assert torch.equal(both[0][1], alone[0][0]) and torch.equal(both[1][1], alone[1][0])


@pytest.mark.parametrize("m", [3, 4])
def test_divergence_is_twice_the_convergence(m):
    x, y = column(0.3, -1.2, 0.05)[None], column(0.7, 0.4, -0.9)[None]
    parameters = [column(v) for v in (0.05, 0.4, 0.02, -0.01)]

    def alpha(a, b):
        return multipole.deflect_multipole(a, b, m, *parameters)

    xx = torch.func.jvp(alpha, (x, y), (torch.ones_like(x), torch.zeros_like(x)))[1][0]
    yy = torch.func.jvp(alpha, (x, y), (torch.zeros_like(x), torch.ones_like(x)))[1][1]
    kappa = multipole.converge_multipole(x, y, m, *parameters)
    torch.testing.assert_close(xx + yy, 2 * kappa, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("m", [3, 4])
def test_contours_of_convergence_bulge_by_the_relative_strength(m):
    """Around a round lens, kappa = 1/2 where r = theta_E (1 + a_m / theta_E cos(m (phi - phi_m)))."""
    theta_E, a_m, phi_m = 1.3, 0.02, 0.4
    phi = torch.linspace(0, 6, 50, dtype=torch.float64)
    r = theta_E + a_m * torch.cos(m * (phi - phi_m))
    x, y = (r * torch.cos(phi))[None, None], (r * torch.sin(phi))[None, None]
    sphere = deflection.converge_sie(x, y, *(column(v) for v in (theta_E, 0.0, 0.0, 0.0, 0.0)))
    bulge = multipole.converge_multipole(x, y, m, *(column(v) for v in (a_m, phi_m, 0.0, 0.0)))
    torch.testing.assert_close(sphere + bulge, torch.full_like(x, 0.5), rtol=1e-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_centre_is_finite(dtype):
    x, y = (torch.zeros(1, 1, dtype=dtype, requires_grad=True) for _ in range(2))
    parameters = [column(v, dtype=dtype).requires_grad_() for v in (0.05, 0.4, 0.0, 0.0)]
    alpha = multipole.deflect_multipole(x, y, 4, *parameters)
    gradients = torch.autograd.grad(sum(a.sum() for a in alpha), [x, y, *parameters])
    assert all(torch.isfinite(v).all() for v in (*alpha, *gradients)) and alpha[0].dtype == dtype


@pytest.mark.parametrize("m", [3, 4])
def test_gradients(m):
    x, y = column(0.3, -1.2)[None], column(0.7, 0.4)[None]
    inputs = tuple(column(*v).requires_grad_() for v in ((0.05, -0.1), (0.4, 2.0), (0.02, 0.1), (-0.01, 0.0)))
    assert torch.autograd.gradcheck(lambda *p: multipole.deflect_multipole(x, y, m, *p), inputs)


@pytest.mark.parametrize("call", [multipole.deflect_multipole, multipole.converge_multipole])
def test_a_dipole_is_refused(call):
    with pytest.raises(ConfigError, match=r"m=1.*2, 3, 4"):
        call(*GRID, 1, *(column(0.0) for _ in KEYS))
