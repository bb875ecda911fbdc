"""Deflections in float64: against lenstronomy, against closed forms, and what every lens must obey."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from deeplense.lensing import deflection
from deeplense.lensing.raytrace import make_grid
from peer import column, deflect, largest_relative_error

GRID = make_grid(40, 0.1, dtype=torch.float64)
SIE_KEYS = ("theta_E", "e1", "e2", "center_x", "center_y")
STRING = {"theta_E": 0.25, "x1": -0.41, "y1": 0.33, "x2": 0.37, "y2": -0.17}


def random_sie(rng: np.random.Generator) -> dict[str, float]:
    e, phi = rng.uniform(0, 0.5), rng.uniform(0, math.pi)
    shape = {"e1": e * math.cos(2 * phi), "e2": e * math.sin(2 * phi)}
    center = {"center_x": rng.uniform(-0.3, 0.3), "center_y": rng.uniform(-0.3, 0.3)}
    return {"theta_E": rng.uniform(0.3, 2.5)} | shape | center


def columns(values: dict[str, float]) -> list[Tensor]:
    return [column(v) for v in values.values()]


def rays(num: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x, y = np.random.default_rng(seed).uniform(-2, 2, (2, 1, num))
    return torch.tensor(x, dtype=dtype), torch.tensor(y, dtype=dtype)


# One call of each lens with parameters for two images; used for what must hold for all of them.
LENSES = {
    "sie": (deflection.deflect_sie, [[1.2, 0.8], [0.1, -0.3], [0.2, 0.05], [0.03, -0.1], [-0.05, 0.07]]),
    "sie round": (deflection.deflect_sie, [[1.2, 0.8], [0.0, 0.0], [0.0, 0.0], [0.03, -0.1], [-0.05, 0.07]]),
    "shear": (deflection.deflect_shear, [[0.05, -0.1], [0.02, 0.2]]),
    "points": (
        deflection.deflect_points,
        [[[0.1, 0.2, 0.0], [0.3, 0.05, 0.0]], [[0.31, -1.03, 0.0]] * 2, [[0.71, 0.52, 0.0], [-0.9, 0.11, 0.0]]],
    ),
    "string": (
        deflection.deflect_string,
        [[0.25, 0.1], [-0.41, 0.1], [0.33, 0.2], [0.37, 0.1], [-0.17, 1.3]],
    ),
}


@pytest.fixture(params=LENSES)
def lens(request):
    function, parameters = LENSES[request.param]
    return function, [torch.tensor(p, dtype=torch.float64) for p in parameters]


@pytest.mark.parametrize("seed", range(12))
def test_sie_is_lenstronomys(seed):
    values = random_sie(np.random.default_rng(seed))
    ours = deflection.deflect_sie(*GRID, *columns(values))
    assert largest_relative_error([a[0] for a in ours], deflect(["SIE"], [values], *GRID)) < 1e-6


@pytest.mark.parametrize("q", [0.2, 0.5, 0.9, 0.99, 0.9999, 1 - 1e-6, 1 - 1e-8, 1 - 1e-10, 1.0])
def test_sie_from_flat_to_round(q):
    e1, e2 = deflection.axis_ratio_to_ellipticity(column(q), column(0.7))
    values = dict(zip(SIE_KEYS, (1.3, e1.item(), e2.item(), 0.02, -0.01), strict=True))
    ours = deflection.deflect_sie(*GRID, *columns(values))
    assert largest_relative_error([a[0] for a in ours], deflect(["SIE"], [values], *GRID)) < 1e-6


def test_round_sie_is_the_isothermal_sphere():
    x, y = GRID
    ours = deflection.deflect_sie(x, y, *(column(v) for v in (1.3, 0.0, 0.0, 0.0, 0.0)))
    r = torch.hypot(x, y)
    assert largest_relative_error([a[0] for a in ours], ((1.3 * x / r).numpy(), (1.3 * y / r).numpy())) < 1e-8


@pytest.mark.parametrize("ellipticity", [(0.1, 0.2), (0.0, 0.0)])
def test_a_ray_through_the_centre_goes_straight_on(ellipticity):
    centre = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    alpha = deflection.deflect_sie(centre, centre, *(column(v) for v in (1.3, *ellipticity, 0.0, 0.0)))
    assert [a.item() for a in alpha] == [0.0, 0.0]
    gradient = torch.autograd.grad(alpha[0].sum(), centre)[0]
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("seed", range(4))
def test_shear_is_lenstronomys(seed):
    gamma1, gamma2 = np.random.default_rng(seed).uniform(-0.3, 0.3, 2)
    ours = deflection.deflect_shear(*GRID, column(gamma1), column(gamma2))
    theirs = deflect(["SHEAR"], [{"gamma1": gamma1, "gamma2": gamma2}], *GRID)
    assert largest_relative_error([a[0] for a in ours], theirs) < 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_points_are_lenstronomys(seed):
    rng = np.random.default_rng(seed)
    theta_E, x, y = 10 ** rng.uniform(-4, -0.5, 25), *rng.uniform(-2, 2, (2, 25))
    kwargs = [{"theta_E": e, "center_x": a, "center_y": b} for e, a, b in zip(theta_E, x, y, strict=True)]
    theirs = deflect(["POINT_MASS"] * 25, kwargs, *GRID)
    ours = deflection.deflect_points(*GRID, *(torch.tensor(v)[None] for v in (theta_E, x, y)))
    assert largest_relative_error([a[0] for a in ours], theirs) < 1e-6


@pytest.mark.parametrize("distance", [1e-3, 1e-2, 0.1])
def test_a_ray_close_to_a_point(distance):
    x, y = column(distance)[None], column(0.0)[None]
    alpha_x, alpha_y = deflection.deflect_points(x, y, *(column(v)[None] for v in (0.1, 0.0, 0.0)))
    assert alpha_x.item() == pytest.approx(0.01 / distance, rel=1e-6) and alpha_y.item() == 0


def test_a_ray_that_hits_a_point_or_an_end_is_finite():
    zero = torch.zeros(1, 1)
    hit = [a.item() for a in deflection.deflect_points(zero, zero, torch.full((1, 1), 0.1), zero, zero)]
    assert hit == [0.0, 0.0]
    ends = deflection.deflect_string(zero, zero, *(torch.tensor([v]) for v in (0.1, 0.0, 0.0, 1.0, 0.0)))
    assert all(torch.isfinite(a).all() for a in ends)


@pytest.mark.parametrize("seed", range(4))
def test_string_is_the_limit_of_2000_points(seed):
    rng = np.random.default_rng(seed)
    theta_E, (x1, y1, x2, y2) = rng.uniform(0.05, 0.4), rng.uniform(-1, 1, 4)
    part = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    x, y = x1 + part * (x2 - x1), y1 + part * (y2 - y1)
    points = deflection.deflect_points(
        *GRID, torch.full((1, 2000), theta_E / math.sqrt(2000)).double(), x[None], y[None]
    )
    string = deflection.deflect_string(*GRID, *(column(v) for v in (theta_E, x1, y1, x2, y2)))
    # Near the string the points are seen one by one: their spacing squared over the distance squared.
    apart = torch.stack([torch.hypot(GRID[0] - a, GRID[1] - b) for a, b in zip(x, y, strict=True)]).amin(0) > 0.05
    assert apart.sum() > 1400
    ours, theirs = ([a[0][apart] for a in field] for field in (string, points))
    assert largest_relative_error(ours, [a.numpy() for a in theirs]) < 1e-5


def test_string_jumps_by_its_line_density():
    # Gauss's theorem for a flat box about a piece of it: pi theta_E^2 / length on either side.
    alpha = deflection.deflect_string(
        column(0.1, 0.1)[:, None], column(1e-6, -1e-6)[:, None], *(column(v) for v in (0.3, -0.5, 0.0, 0.5, 0.0))
    )
    above, below = alpha[1].flatten().tolist()
    assert above == pytest.approx(math.pi * 0.09, rel=1e-5) and below == pytest.approx(-math.pi * 0.09, rel=1e-5)


@pytest.mark.parametrize("radius", [0.9, 3.0])
def test_flux_through_a_circle_is_the_mass_inside(radius):
    """Gauss's theorem: the mean radial deflection on a circle is (theta_E of the mass inside)^2 / radius."""
    angle = torch.arange(4096, dtype=torch.float64)[None] * (2 * math.pi / 4096)
    x, y = radius * torch.cos(angle), radius * torch.sin(angle)

    def mass(field):
        return float((field[0] * torch.cos(angle) + field[1] * torch.sin(angle)).mean() * radius)

    string = deflection.deflect_string(x, y, *columns(STRING))
    assert mass(string) == pytest.approx(0.25**2, rel=1e-9)
    points = deflection.deflect_points(x, y, *(column(*v)[None] for v in ((0.1, 0.2, 0.3), (0.2, 0.5, 5.0), (0, 0, 0))))
    assert mass(points) == pytest.approx(0.1**2 + 0.2**2, rel=1e-9)
    sphere = deflection.deflect_sie(x, y, *(column(v) for v in (1.2, 0.0, 0.0, 0.0, 0.0)))
    assert mass(sphere) == pytest.approx(1.2 * radius, rel=1e-9)


def jacobian(function, parameters: list[Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """d alpha_x / dx, d alpha_x / dy, d alpha_y / dx, d alpha_y / dy of every ray, by autograd."""
    x, y = (v.expand(2, *v.shape[-2:]).clone().requires_grad_() for v in (x, y))
    return tuple(
        d for a in function(x, y, *parameters) for d in torch.autograd.grad(a.sum(), (x, y), retain_graph=True)
    )


def test_curl_is_zero(lens):
    _, xy, yx, _ = jacobian(*lens, *rays(200, seed=1))
    assert (xy - yx).abs().max() < 1e-6 * xy.abs().max()


def test_divergence_is_twice_the_convergence(lens):
    function, parameters = lens
    x, y = rays(200, seed=2)
    xx, _, _, yy = jacobian(function, parameters, x, y)
    kappa = torch.zeros(())
    if function is deflection.deflect_sie:
        kappa = deflection.converge_sie(x, y, *parameters)
    # Points, strings and shear have no mass where no ray hits them.
    assert (xx + yy - 2 * kappa).abs().max() < 1e-6 * xx.abs().max()


def test_convergence_of_the_sphere():
    x, y = rays(50, seed=3)
    kappa = deflection.converge_sie(x, y, *(column(v) for v in (1.3, 0.0, 0.0, 0.1, -0.2)))
    torch.testing.assert_close(kappa[0], 1.3 / (2 * torch.hypot(x - 0.1, y + 0.2)), rtol=1e-9, atol=0)


def test_gradients_of_every_parameter(lens):
    function, parameters = lens
    x, y = (v.requires_grad_() for v in rays(3, seed=4))
    inputs = (x, y, *(p.clone().requires_grad_() for p in parameters))
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=2e-5, rtol=1e-4)


def test_gradients_of_the_convergence():
    inputs = (*rays(3, seed=4), *(column(v) for v in (1.2, 0.1, -0.2, 0.03, -0.05)))
    assert torch.autograd.gradcheck(deflection.converge_sie, tuple(v.requires_grad_() for v in inputs))


@pytest.mark.parametrize("e", [0.0, 1e-16, 1e-13, 1e-11, 1e-9])
def test_gradient_in_the_ellipticity_of_a_round_lens(e):
    """To first order alpha = theta_E [theta / r + e1 A + e2 B]; A and B by a finite difference of lenstronomy."""
    x, y = rays(20, seed=5)
    values = [column(v).requires_grad_() for v in (1.2, e, -e, 0.0, 0.0)]
    ours = torch.stack(deflection.deflect_sie(x, y, *values)).sum((1, 2, 3))
    for number, name in ((1, "e1"), (2, "e2")):
        gradient = [torch.autograd.grad(a, values[number], retain_graph=True)[0].item() for a in ours]
        kwargs = dict(zip(SIE_KEYS, (1.2, 0.0, 0.0, 0.0, 0.0), strict=True))
        up, down = (deflect(["SIE"], [kwargs | {name: h}], x, y) for h in (1e-4, -1e-4))
        expected = [(u - d).sum() / 2e-4 for u, d in zip(up, down, strict=True)]
        assert gradient == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_single_precision(lens):
    function, parameters = lens
    double = function(*rays(500, seed=6), *parameters)
    single = function(*rays(500, seed=6, dtype=torch.float32), *(p.float() for p in parameters))
    assert all(a.dtype == torch.float32 for a in single)
    scale = max(float(a.abs().median()) for a in double)
    assert all(float((s - d).abs().median()) < 3e-5 * scale for s, d in zip(single, double, strict=True))


def test_a_batch_is_its_images_one_by_one(lens):
    function, parameters = lens
    x, y = rays(30, seed=7)
    batch = function(x, y, *parameters)
    own_rays = function(x.expand(2, 1, 30), y.expand(2, 1, 30), *parameters)
    for i in range(2):
        alone = function(x, y, *(p[i : i + 1] for p in parameters))
        for many, rayed, one in zip(batch, own_rays, alone, strict=True):
            assert many.shape == (2, 1, 30) and torch.equal(many, rayed)
            torch.testing.assert_close(many[i], one[0], rtol=1e-12, atol=1e-14)


def test_padding_changes_nothing():
    x, y = GRID
    haloes = [column(*v)[None] for v in ((0.1, 0.2), (0.31, -1.0), (0.7, 0.5))]
    padded = [torch.nn.functional.pad(v, (0, 6)) for v in haloes]
    bare = deflection.deflect_points(x, y, *haloes)
    assert all(torch.equal(a, b) for a, b in zip(bare, deflection.deflect_points(x, y, *padded), strict=True))


def test_no_haloes_at_all():
    none = torch.zeros(2, 0, dtype=torch.float64)
    alpha = deflection.deflect_points(*GRID, none, none, none)
    assert all(a.shape == (2, 40, 40) and not a.any() for a in alpha)


@pytest.mark.parametrize("q", [0.3, 0.9])
@pytest.mark.parametrize("phi", [-1.2, 0.0, 0.4])
def test_ellipticity_round_trip(q, phi):
    e1, e2 = deflection.axis_ratio_to_ellipticity(column(q), column(phi))
    assert [v.item() for v in deflection.ellipticity_to_axis_ratio(e1, e2)] == pytest.approx([q, phi])
