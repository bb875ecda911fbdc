"""Haloes against lenstronomy, against the textbook formulae in forty digits, and what every halo must obey."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from astropy.cosmology import FlatLambdaCDM
from lenstronomy.Cosmo.lens_cosmo import LensCosmo
from lenstronomy.LensModel.lens_model import LensModel
from torch import Tensor

from deeplense.lensing import haloes
from deeplense.lensing.cosmology import angular_diameter_distances
from deeplense.lensing.raytrace import make_grid
from peer import column, deflect, largest_relative_error

GRID = make_grid(40, 0.1, dtype=torch.float64)
NFW_KEYS, TNFW_KEYS = ("alpha_Rs", "Rs"), ("alpha_Rs", "Rs", "r_trunc")
TAU = [0.08, 0.3, 1.0, 2.5, 10.0, 50.0]


def row(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """A parameter of shape (1, N)."""
    return torch.tensor([values], dtype=dtype)


def names_of(parameters: dict[str, tuple[float, ...]]) -> list[dict[str, float]]:
    """The haloes of one image, as lenstronomy takes them."""
    rows = [dict(zip(parameters, values, strict=True)) for values in zip(*parameters.values(), strict=True)]
    return [{"center_x": r.pop("x"), "center_y": r.pop("y")} | r for r in rows]


def draw(rng: np.random.Generator, num: int, truncated: bool) -> dict[str, tuple[float, ...]]:
    """Haloes off the rays of the grid: from a tenth of a pixel to twice the image in scale radius."""
    values = {"alpha_Rs": 10 ** rng.uniform(-4, 0, num), "Rs": 10 ** rng.uniform(-2, 1, num)}
    if truncated:
        values["r_trunc"] = values["Rs"] * 10 ** rng.uniform(-1, 1.5, num)
    return {k: tuple(v) for k, v in values.items()} | {k: tuple(rng.uniform(-2, 2, num)) for k in ("x", "y")}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("kind", "name"), [("nfw", "NFW"), ("tnfw", "TNFW")])
def test_haloes_are_lenstronomys(kind, name, seed):
    values = draw(np.random.default_rng(seed), 5, kind == "tnfw")
    # lenstronomy's TNFW is constant inside a thousandth of Rs, and short of digits a little outside.
    distance = [
        torch.hypot(GRID[0] - x, GRID[1] - y) / Rs
        for x, y, Rs in zip(values["x"], values["y"], values["Rs"], strict=True)
    ]
    clear = torch.stack(distance).amin(0) > 0.01
    x, y = (g[clear][None] for g in GRID)
    assert x.numel() > 1000
    parameters = [row(*v) for v in values.values()]
    ours = getattr(haloes, f"deflect_{kind}")(x, y, *parameters)
    assert (
        largest_relative_error([a[0] for a in ours], [a[0] for a in deflect([name] * 5, names_of(values), x, y)]) < 1e-9
    )
    kappa = LensModel([name] * 5).kappa(x[0].numpy(), y[0].numpy(), names_of(values))
    ours = getattr(haloes, f"converge_{kind}")(x, y, *parameters)[0, 0].numpy()
    # lenstronomy's own convergence has lost digits where it is next to nothing, far outside the truncation.
    assert (np.abs(ours - kappa) / (kappa + 1e-6 * kappa.max())).max() < 1e-8


@pytest.mark.parametrize("kind", ["nfw", "tnfw"])
def test_lenstronomy_next_to_the_scale_radius(kind):
    x = row(*(1 + s * 10.0**-d for d in range(1, 9) for s in (-1, 1)), 1.0)[None]
    values = {"Rs": 1.0, "alpha_Rs": 0.3} | ({"r_trunc": 2.0} if kind == "tnfw" else {})
    parameters = [row(values[k]) for k in (TNFW_KEYS if kind == "tnfw" else NFW_KEYS)] + [row(0.0), row(0.0)]
    ours = getattr(haloes, f"deflect_{kind}")(x, x * 0, *parameters)
    theirs = deflect([kind.upper()], [values], x, x * 0)
    assert largest_relative_error(ours, theirs) < 1e-6


def exact(x: float, tau: float | None) -> float:
    """alpha(x) / alpha_Rs at Rs = 1 by the textbook formula, in forty digits."""
    with mpmath.workdps(40):
        x, tau = mpmath.mpf(x), None if tau is None else mpmath.mpf(tau)
        F = mpmath.mpf(1) if x == 1 else mpmath.re(mpmath.acosh(1 / x) / mpmath.sqrt(mpmath.mpc(1 - x**2)))
        if tau is None:
            return float((mpmath.log(x / 2) + F) / x / (1 - mpmath.log(2)))
        q = mpmath.sqrt(tau**2 + x**2)
        L = mpmath.log(x / (tau + q))
        bracket = (tau**2 + 1 + 2 * (x**2 - 1)) * F + tau * mpmath.pi + (tau**2 - 1) * mpmath.log(tau)
        bracket += q * (-mpmath.pi + (tau**2 - 1) / tau * L)
        return float((tau / (tau**2 + 1)) ** 2 * bracket / x / (1 - mpmath.log(2)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("tau", [None, *TAU])
def test_every_radius_to_the_precision_of_the_dtype(tau, dtype, tolerance):
    """From the centre to a thousand scale radii, and on both sides of each border between two formulae."""
    borders = [b * s for b in (0.2, 0.5, 1.0) for s in (1 - 1e-3, 1 - 1e-6, 1, 1 + 1e-6, 1 + 1e-3)]
    x = torch.tensor(np.concatenate([np.logspace(-7, 3, 60), borders]), dtype=dtype)[None, None]
    parameters = [row(v, dtype=dtype) for v in (1.0, 1.0, *([tau] if tau else []), 0.0, 0.0)]
    alpha, across = (haloes.deflect_tnfw if tau else haloes.deflect_nfw)(x, torch.zeros_like(x), *parameters)
    rounded = parameters[2].item() if tau else None
    expected = np.array([exact(v, rounded) for v in x.flatten().tolist()])
    assert alpha.dtype == dtype and not across.any()
    assert np.abs(alpha.flatten().double().numpy() - expected).max() < tolerance * expected.max()


def test_deflection_at_the_scale_radius_is_the_parameter():
    alpha = haloes.deflect_nfw(row(0.5)[None], row(0.0)[None], row(0.2), row(0.5), row(0.0), row(0.0))
    assert alpha[0].item() == pytest.approx(0.2, rel=1e-14) and alpha[1].item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wide_truncation_is_none(dtype):
    x, y = make_grid(20, 0.3, dtype=dtype)
    values = [row(v, dtype=dtype) for v in (0.2, 0.5)], [row(v, dtype=dtype) for v in (0.11, -0.2)]
    whole = haloes.deflect_nfw(x, y, *values[0], *values[1])[0]
    wide = haloes.deflect_tnfw(x, y, *values[0], row(1e5, dtype=dtype), *values[1])[0]
    torch.testing.assert_close(wide, whole, rtol=1e-4, atol=1e-6)


# One call of each halo with parameters for two images, the second of which has one halo and padding.
HALOES = {
    "nfw": [[[0.2, 0.05], [0.1, 0.0]], [[0.4, 2.0], [0.7, 0.0]]],
    "tnfw": [[[0.2, 0.05], [0.1, 0.0]], [[0.4, 2.0], [0.7, 0.0]], [[0.6, 1.1], [9.0, 0.0]]],
}
CENTERS = [[[0.31, -1.03], [0.52, 0.0]], [[0.71, 0.52], [-0.9, 0.0]]]


@pytest.fixture(params=HALOES)
def halo(request):
    parameters = [torch.tensor(p, dtype=torch.float64) for p in HALOES[request.param] + CENTERS]
    return getattr(haloes, f"deflect_{request.param}"), getattr(haloes, f"converge_{request.param}"), parameters


def test_divergence_is_twice_the_convergence(halo):
    deflect_it, converge_it, parameters = halo
    x, y = (torch.tensor(v)[None] for v in np.random.default_rng(0).uniform(-2, 2, (2, 1, 200)))
    # Rays at the borders between two formulae, of the first halo.
    x = torch.cat([x, row(0.31 + 0.4 * 0.2, 0.31 + 0.4, 0.31)[None]], 2)
    y = torch.cat([y, row(0.71, 0.71, 0.71 + 0.4)[None]], 2)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    xx, yx = torch.func.jvp(lambda a, b: deflect_it(a, b, *parameters), (x, y), (one, zero))[1]
    xy, yy = torch.func.jvp(lambda a, b: deflect_it(a, b, *parameters), (x, y), (zero, one))[1]
    torch.testing.assert_close(xx + yy, 2 * converge_it(x, y, *parameters), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(xy, yx, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("radius", [0.05, 0.4, 3.0])
def test_mean_convergence_is_the_deflection_over_the_radius(halo, radius):
    deflect_it, converge_it, parameters = halo
    one = [p[1:, :1] for p in parameters[:-2]] + [row(0.0), row(0.0)]
    # Gauss-Legendre in the square root of R, which takes the logarithm out of the centre.
    nodes, weights = np.polynomial.legendre.leggauss(60)
    s = math.sqrt(radius) * (nodes + 1) / 2
    kappa = converge_it(torch.tensor(s**2)[None, None], torch.zeros(1, 1, 60).double(), *one)[0, 0].numpy()
    mean = (kappa * s**2 * 2 * s * weights).sum() * math.sqrt(radius) / 2 * 2 / radius**2
    alpha = deflect_it(row(radius)[None], row(0.0)[None], *one)[0].item()
    assert mean == pytest.approx(alpha / radius, rel=1e-9)


def test_total_mass_of_a_truncated_halo():
    """Far outside alpha r is M / M(theta_E = 1), Baltz et al.'s eq. A4 for the mass."""
    Rs, tau = 0.4, 3.0
    x = row(1e7)[None]
    alpha = haloes.deflect_tnfw(x, x * 0, row(0.1), row(Rs), row(tau * Rs), row(0.0), row(0.0))[0].item()
    share = (tau / (tau**2 + 1)) ** 2 * ((tau**2 - 1) * math.log(tau) + tau * math.pi - tau**2 - 1)
    assert alpha * 1e7 == pytest.approx(0.1 * Rs / (1 - math.log(2)) * share, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padding_and_centre_give_no_nan(halo, dtype):
    deflect_it, converge_it, parameters = halo
    parameters = [p.to(dtype).requires_grad_() for p in parameters]
    # A ray through each centre, and one at the scale radius of the first halo.
    x, y = (torch.tensor([v], dtype=dtype).requires_grad_() for v in ([0.31, 0.0, 0.71], [0.71, 0.0, 0.71]))
    alpha = deflect_it(x, y, *parameters)
    total = sum(a.sum() for a in alpha) + converge_it(x, y, *parameters).sum()
    gradients = torch.autograd.grad(total, [x, y, *parameters])
    assert all(torch.isfinite(v).all() for v in (*alpha, *gradients))


def test_padding_deflects_nothing(halo):
    deflect_it, converge_it, parameters = halo
    alone = [p[1:, :1] for p in parameters]
    both, one = deflect_it(*GRID, *parameters), deflect_it(*GRID, *alone)
    assert torch.equal(both[0][1], one[0][0]) and torch.equal(both[1][1], one[1][0])
    assert torch.equal(converge_it(*GRID, *parameters)[1], converge_it(*GRID, *alone)[0])
    assert not deflect_it(*GRID, *(p[:, :0] for p in parameters))[0].any()


def test_gradients(halo):
    deflect_it, _, parameters = halo
    x, y = row(0.35, -1.2, 0.9, 1.7)[None], row(0.75, 0.5, -1.4, 1.9)[None]
    inputs = [p[:1].clone().requires_grad_() for p in parameters]
    assert torch.autograd.gradcheck(lambda *p: deflect_it(x, y, *p), inputs, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(("z_lens", "z_source"), [(0.5, 1.5), (0.2, 0.6), (0.9, 3.0)])
@pytest.mark.parametrize("c", [4.0, 15.0, 60.0])
def test_sizes_are_lenstronomys(z_lens, z_source, c):
    mass = np.logspace(6, 14, 9)
    theirs = LensCosmo(z_lens, z_source, cosmo=FlatLambdaCDM(H0=70, Om0=0.3, Ob0=0.05))
    Rs_theirs, alpha_theirs = theirs.nfw_physical2angle(mass, c)
    alpha_Rs, Rs = haloes.halo_scales(mass, c, angular_diameter_distances(z_lens, z_source), z_lens)
    # lenstronomy's critical density of today, 2.77537e11 h^2, and its G Msun are 1e-4 and 2.8e-4 off today's.
    np.testing.assert_allclose(Rs, Rs_theirs, rtol=2e-4)
    np.testing.assert_allclose(alpha_Rs, alpha_theirs, rtol=5e-4)


def test_mass_inside_r200_is_the_mass():
    """The three-dimensional profile that alpha_Rs and Rs stand for, integrated to r200 in another way."""
    d = angular_diameter_distances(0.5, 1.5)
    alpha_Rs, Rs = haloes.halo_scales(np.array([3e9]), np.array([12.0]), d, 0.5)
    r200 = 12 * Rs * d.lens * math.pi / 180 / 3600
    universe = FlatLambdaCDM(H0=70, Om0=0.3, Ob0=0.05)
    density = universe.critical_density(0.5).to_value("Msun / Mpc3")
    assert 4 / 3 * math.pi * 200 * density * r200**3 == pytest.approx(3e9, rel=1e-10)
    theirs = LensCosmo(0.5, 1.5, cosmo=universe).nfw_angle2physical(Rs[0], alpha_Rs[0])
    assert theirs[2] == pytest.approx(12, rel=1e-3) and theirs[4] == pytest.approx(3e9, rel=1e-3)


def test_padding_has_no_size():
    alpha_Rs, Rs = haloes.halo_scales(np.array([[1e9, 0.0]]), 10.0, angular_diameter_distances(0.5, 1.0), 0.5)
    assert alpha_Rs.shape == Rs.shape == (1, 2) and alpha_Rs[0, 1] == Rs[0, 1] == 0 < alpha_Rs[0, 0]


# colossus 1.4.0: concentration(M h, "200c", z, model="dutton14") with h = 0.671.
CONCENTRATIONS = [
    (1e10, 0.0, 13.319902),
    (1e12, 0.0, 8.365676),
    (1e12, 0.5, 6.762669),
    (1e11, 1.0, 6.542243),
    (1e13, 2.0, 3.731373),
    (1e14, 0.3, 4.821701),
]


@pytest.mark.parametrize(("mass", "z", "expected"), CONCENTRATIONS)
def test_concentration_is_dutton_and_maccios(mass, z, expected):
    assert haloes.concentration(np.array([mass]), z)[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("is_field", [False, True])
def test_suppression(is_field):
    mass = np.logspace(5, 12, 50)
    ratio = haloes.suppression(mass, 1e8, is_field)
    assert np.all(haloes.suppression(mass, 0.0, is_field) == 1) and np.all(np.diff(ratio) > 0)
    # At m = a M_hm the ratio is 2^c; far below it is the power law (a M_hm / m)^(b c).
    a, c, slope = (2.3, -1.0, 0.8) if is_field else (4.2, -0.2, 0.5)
    assert haloes.suppression(np.array(a * 1e8), 1e8, is_field) == pytest.approx(2**c, rel=1e-12)
    deep = haloes.suppression(np.array([1.0, 10.0]), 1e10, is_field)
    assert math.log10(deep[1] / deep[0]) == pytest.approx(slope, abs=1e-6)


def test_warm_haloes_are_less_concentrated():
    mass = np.logspace(6, 12, 40)
    assert np.all(haloes.concentration_drop(mass, 0.0) == 1)
    assert np.all(np.diff(haloes.concentration_drop(mass, 1e7)) > 0)
    assert haloes.concentration_drop(np.array(60e7), 1e7) == pytest.approx(2**-0.17, rel=1e-12)


def test_tidal_radius():
    assert haloes.tidal_radius(np.array(1e7), np.array(50.0)) == pytest.approx(1.4, rel=1e-12)
    # A Roche radius: the mean density inside it follows that of an isothermal host, r^-2.
    assert haloes.tidal_radius(np.array(8e7), np.array(50.0)) == pytest.approx(2.8, rel=1e-12)
    assert haloes.tidal_radius(np.array(1e7), np.array(400.0)) == pytest.approx(5.6, rel=1e-12)


@pytest.mark.parametrize("kind", ["nfw", "tnfw"])
def test_lenstronomys_mean_halo_keeps_its_column_order(kind):
    """alpha_Rs comes before Rs here: swapping two columns of equal shape must not go unseen."""
    parameters = [row(v) for v in ((0.3, 1.7, 2.0) if kind == "tnfw" else (0.3, 1.7))] + [row(0.0), row(0.0)]
    alpha = getattr(haloes, f"deflect_{kind}")(column(1.7)[None], column(0.0)[None], *parameters)[0].item()
    values = {"Rs": 1.7, "alpha_Rs": 0.3} | ({"r_trunc": 2.0} if kind == "tnfw" else {})
    assert alpha == pytest.approx(deflect([kind.upper()], [values], column(1.7), column(0.0))[0][0], rel=1e-12)
