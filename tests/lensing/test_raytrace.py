"""Grids, images of whole scenes against lenstronomy, and magnification against its closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from astropy.cosmology import FlatLambdaCDM
from lenstronomy.LensModel.lens_model import LensModel

from deeplense.errors import ConfigError
from deeplense.lensing import cosmology, deflection, haloes, light, observe, raytrace
from peer import column, picture

PIXEL_SCALE = 0.05


def random_scene(seed: int) -> tuple[dict, dict, dict, list[dict]]:
    """A SIE, a shear, a Sersic source and five point masses."""
    rng = np.random.default_rng(seed)
    e = rng.uniform(-0.2, 0.2, 4)
    centers = rng.uniform(-0.1, 0.1, 4)
    sie = {"theta_E": rng.uniform(0.6, 1.1), "e1": e[0], "e2": e[1], "center_x": centers[0], "center_y": centers[1]}
    shear = dict(zip(("gamma1", "gamma2"), rng.uniform(-0.1, 0.1, 2), strict=True))
    shape = {"amp": rng.uniform(5, 20), "R_sersic": rng.uniform(0.2, 0.5), "n_sersic": rng.uniform(0.6, 2.5)}
    source = shape | {"e1": e[2], "e2": e[3], "center_x": centers[2], "center_y": centers[3]}
    haloes = [
        {"theta_E": 10 ** rng.uniform(-3, -1), "center_x": x, "center_y": y} for x, y in rng.uniform(-1.5, 1.5, (5, 2))
    ]
    return sie, shear, source, haloes


def draw(sie, shear, source, haloes, num_pix, rays, fwhm, radius) -> np.ndarray:
    """The same scene by our physics core, flux per pixel."""
    x, y = raytrace.make_grid(num_pix, PIXEL_SCALE, rays, torch.float64)
    points = [column(*(h[name] for h in haloes))[None] for name in ("theta_E", "center_x", "center_y")]
    beta = raytrace.trace(
        x,
        y,
        deflection.deflect_sie(x, y, *(column(v) for v in sie.values())),
        deflection.deflect_shear(x, y, *(column(v) for v in shear.values())),
        deflection.deflect_points(x, y, *points),
    )
    image = raytrace.bin_pixels(light.sersic(*beta, *(column(v) for v in source.values())), rays) * PIXEL_SCALE**2
    if fwhm is None:
        return image[0].numpy()
    return observe.blur_gaussian(image, column(fwhm * observe.FWHM_TO_SIGMA / PIXEL_SCALE), radius)[0].numpy()


@pytest.mark.parametrize(
    ("num_pix", "rays", "fwhm", "radius"),
    [(64, 1, None, 0), (64, 1, 0.087, 3), (64, 2, 0.235, 8), (45, 3, 0.1, 4), (64, 5, None, 0)],
)
@pytest.mark.parametrize("seed", range(3))
def test_images_are_lenstronomys(num_pix, rays, fwhm, radius, seed):
    sie, shear, source, haloes = random_scene(seed)
    lens = LensModel(["SIE", "SHEAR"] + ["POINT_MASS"] * len(haloes))
    theirs = picture(num_pix, PIXEL_SCALE, lens, [sie, shear, *haloes], source, fwhm, radius, rays)
    ours = draw(sie, shear, source, haloes, num_pix, rays, fwhm, radius)
    assert np.abs(ours - theirs).max() < 1e-5 * theirs.max()
    assert np.abs(ours / theirs - 1).max() < 1e-5


@pytest.mark.parametrize("rays", [1, 3])
def test_grid_is_centred_and_x_is_the_column(rays):
    x, y = raytrace.make_grid(4, 0.5, rays, torch.float64)
    assert x.shape == (4 * rays, 4 * rays)
    assert x[0].tolist() == y[:, 0].tolist() and torch.equal(x, y.T)
    torch.testing.assert_close(x[0], -x[0].flip(0))
    torch.testing.assert_close(x[0].diff(), torch.full((4 * rays - 1,), 0.5 / rays).double())
    # The rays of a pixel are spread evenly about its middle.
    torch.testing.assert_close(x[0].view(4, rays).mean(1), column(-0.75, -0.25, 0.25, 0.75))


def test_binning_is_the_mean_over_the_rays_of_a_pixel():
    image = torch.arange(72, dtype=torch.float64).view(2, 6, 6)
    expected = image.numpy().reshape(2, 3, 2, 3, 2).mean((2, 4))
    assert np.array_equal(raytrace.bin_pixels(image, 2).numpy(), expected)
    assert raytrace.bin_pixels(image, 1) is image


def test_trace_subtracts_every_deflection():
    x, y = raytrace.make_grid(3, 1.0, dtype=torch.float64)
    first, second = (torch.full((2, 3, 3), v).double() for v in (0.25, 0.5))
    beta_x, beta_y = raytrace.trace(x, y, (first, second), (second, second))
    assert torch.equal(beta_x, (x - 0.75).expand(2, 3, 3)) and torch.equal(beta_y, (y - 1.0).expand(2, 3, 3))
    assert raytrace.trace(x, y)[0] is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_magnification_of_the_isothermal_sphere(dtype):
    x, y = raytrace.make_grid(24, 0.2, dtype=dtype)
    values = [column(v, dtype=dtype) for v in (1.2, 0.0, 0.0, 0.0, 0.0)]
    mu = raytrace.magnify(lambda a, b: deflection.deflect_sie(a, b, *values), x, y)[0]
    expected = 1 / (1 - 1.2 / torch.hypot(x, y))
    near_critical = expected.abs() > 50
    assert mu.dtype == dtype and near_critical.sum() < 20
    tolerance = 1e-7 if dtype == torch.float64 else 5e-3
    torch.testing.assert_close(mu[~near_critical], expected[~near_critical], rtol=tolerance, atol=0)


def test_magnification_of_a_point_and_a_shear():
    x, y = raytrace.make_grid(10, 0.37, dtype=torch.float64)
    point = raytrace.magnify(
        lambda a, b: deflection.deflect_points(a, b, *(column(v)[None] for v in (0.8, 0.0, 0.0))), x, y
    )[0]
    torch.testing.assert_close(point, 1 / (1 - (0.8**2 / (x**2 + y**2)) ** 2), rtol=1e-6, atol=0)
    shear = raytrace.magnify(lambda a, b: deflection.deflect_shear(a, b, column(0.1), column(-0.2)), x, y)
    torch.testing.assert_close(shear, torch.full((1, 10, 10), 1 / (1 - 0.05)).double())


def test_magnification_is_the_ratio_of_areas():
    """A small triangle of rays keeps its shape times the inverse of mu, whatever the lens."""
    parameters = [column(v) for v in (1.0, 0.2, -0.1, 0.05, 0.0)]
    x, y = column(0.8, -1.3, 0.2)[None], column(0.9, 0.4, -0.5)[None]
    mu = raytrace.magnify(lambda a, b: deflection.deflect_sie(a, b, *parameters), x, y)
    step = 1e-5
    corners = [(x, y), (x + step, y), (x, y + step)]
    (x0, y0), (x1, y1), (x2, y2) = (raytrace.trace(a, b, deflection.deflect_sie(a, b, *parameters)) for a, b in corners)
    area = ((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)) / step**2
    torch.testing.assert_close(mu, 1 / area, rtol=1e-3, atol=0)


def test_gradients_through_a_whole_image():
    x, y = raytrace.make_grid(6, 0.5, 2, torch.float64)

    def image(theta_E, e1, gamma1, R_sersic, sigma):
        zero = torch.zeros_like(theta_E)
        sie = deflection.deflect_sie(x, y, theta_E, e1, zero, zero, zero)
        beta = raytrace.trace(x, y, sie, deflection.deflect_shear(x, y, gamma1, zero))
        source = (torch.ones_like(zero), R_sersic, torch.ones_like(zero), zero, zero, zero + 0.1, zero)
        return observe.blur_gaussian(raytrace.bin_pixels(light.sersic(*beta, *source), 2), sigma, 2)

    inputs = tuple(column(*v).requires_grad_() for v in ((1.0, 0.7), (0.1, 0.2), (0.05, 0.0), (0.4, 0.6), (0.8, 1.2)))
    assert torch.autograd.gradcheck(image, inputs, atol=1e-4, rtol=1e-4)


def test_gradients_of_the_magnification():
    x, y = column(0.8, -1.3)[None], column(0.9, 0.4)[None]

    def magnify(*parameters):
        return raytrace.magnify(lambda a, b: deflection.deflect_sie(a, b, *parameters), x, y)

    inputs = tuple(column(v).requires_grad_() for v in (1.0, 0.2, -0.1, 0.05, 0.0))
    assert torch.autograd.gradcheck(magnify, inputs, atol=1e-4, rtol=1e-4)


def test_area_of_the_einstein_ring_is_that_of_the_product_average_radius():
    """The critical curve of a SIE encloses pi theta_E^2 (Kassiola & Kovner 1993): kappa = 1/2 on it."""
    parameters = [column(v) for v in (1.1, 0.15, 0.1, 0.0, 0.0)]
    x, y = raytrace.make_grid(400, 0.01, dtype=torch.float64)
    inside = deflection.converge_sie(x, y, *parameters) > 0.5
    assert math.sqrt(inside.sum().item() * 0.01**2 / math.pi) == pytest.approx(1.1, rel=2e-3)


PLANES = (0.1, 0.25, 0.4, 0.5, 0.7, 0.9, 1.2)
Z_SOURCE = 1.5


def line_of_sight(seed: int) -> tuple[list[dict], list[dict]]:
    """A SIE and a shear at z = 0.5, and haloes in six other planes (two of them in one)."""
    sie, shear, _, _ = random_scene(seed)
    rng = np.random.default_rng(seed)
    keys = ("Rs", "alpha_Rs", "center_x", "center_y")
    zs = [0.1, 0.25, 0.4, 0.7, 0.7, 0.9, 1.2]
    drawn = rng.uniform([0.1, 0.01, -1.5, -1.5], [1.0, 0.1, 1.5, 1.5], (7, 4))
    return [sie, shear], [{"z": z} | dict(zip(keys, v, strict=True)) for z, v in zip(zs, drawn, strict=True)]


def planes_of(macro: list[dict], found: list[dict]) -> list:
    """One deflection function for each redshift of ``PLANES``."""

    def smooth(x, y):
        sie = deflection.deflect_sie(x, y, *(column(v) for v in macro[0].values()))
        shear = deflection.deflect_shear(x, y, *(column(v) for v in macro[1].values()))
        return sie[0] + shear[0], sie[1] + shear[1]

    def haloes_at(z):
        columns = [
            column(*(h[k] for h in found if h["z"] == z))[None] for k in ("alpha_Rs", "Rs", "center_x", "center_y")
        ]
        return lambda x, y: haloes.deflect_nfw(x, y, *columns)

    return [smooth if z == 0.5 else haloes_at(z) for z in PLANES]


@pytest.mark.parametrize("seed", range(3))
def test_several_planes_are_lenstronomys(seed):
    x, y = raytrace.make_grid(20, 0.17, dtype=torch.float64)
    macro, found = line_of_sight(seed)
    universe = FlatLambdaCDM(H0=70, Om0=0.3, Ob0=0.05)
    redshifts = [0.5, 0.5, *(h["z"] for h in found)]
    theirs = LensModel(
        ["SIE", "SHEAR"] + ["NFW"] * 7,
        lens_redshift_list=redshifts,
        z_source=Z_SOURCE,
        multi_plane=True,
        cosmo=universe,
        distance_ratio_sampling=False,
    )
    kwargs = macro + [{k: v for k, v in h.items() if k != "z"} for h in found]
    expected = theirs.ray_shooting(x.numpy().ravel(), y.numpy().ravel(), kwargs)
    distances = torch.tensor(cosmology.comoving_distance(np.array([*PLANES, Z_SOURCE])))
    beta = raytrace.trace_planes(x, y, planes_of(macro, found), distances)
    for ours, want in zip(beta, expected, strict=True):
        assert ours.shape == (1, 20, 20) and np.abs(ours.numpy().ravel() - want).max() < 1e-8
    # The planes do matter: all in one, the same haloes bend the rays otherwise.
    single = raytrace.trace(x, y, *(plane(x, y) for plane in planes_of(macro, found)))
    assert (single[0] - beta[0]).abs().max() > 1e-3


def test_one_plane_is_trace_to_the_last_digit():
    x, y = raytrace.make_grid(16, 0.2)
    parameters = [column(v, dtype=torch.float32) for v in (1.1, 0.1, 0.05, 0.02, 0.0)]
    alpha = deflection.deflect_sie(x, y, *parameters)
    planes = [lambda a, b: deflection.deflect_sie(a, b, *parameters)]
    beta = raytrace.trace_planes(x, y, planes, column(1300.0, 2400.0, dtype=torch.float32))
    expected = raytrace.trace(x, y, alpha)
    assert torch.equal(beta[0], expected[0]) and torch.equal(beta[1], expected[1])


def test_planes_at_almost_one_distance_are_one_plane():
    x, y = raytrace.make_grid(16, 0.2, dtype=torch.float64)
    parameters = [[column(v) for v in (1.1, e1, 0.05, 0.02, 0.0)] for e1 in (0.1, -0.2)]
    planes = [lambda a, b, p=p: deflection.deflect_sie(a, b, *p) for p in parameters]
    beta = raytrace.trace_planes(x, y, planes, column(1300.0, 1300.0 + 1e-9, 2400.0))
    expected = raytrace.trace(x, y, *(deflection.deflect_sie(x, y, *p) for p in parameters))
    torch.testing.assert_close(beta[0], expected[0], rtol=0, atol=1e-9)


def test_each_image_has_its_own_distances():
    x, y = raytrace.make_grid(8, 0.4, dtype=torch.float64)
    macro, found = line_of_sight(0)
    planes = planes_of(macro, found)[:3]
    first, second = column(400.0, 900.0, 1500.0, 4000.0), column(300.0, 1100.0, 2000.0, 3000.0)
    both = raytrace.trace_planes(x, y, planes, torch.stack([first, second]))
    for n, distances in enumerate((first, second)):
        alone = raytrace.trace_planes(x, y, planes, distances)
        torch.testing.assert_close(both[0][n], alone[0][0], rtol=0, atol=1e-13)


def test_gradients_through_several_planes():
    x, y = column(0.8, -1.3)[None], column(0.9, 0.4)[None]

    def beta(theta_E, alpha_Rs, distances):
        zero, one = torch.zeros_like(theta_E), torch.ones_like(alpha_Rs)
        halo = lambda a, b: haloes.deflect_nfw(a, b, alpha_Rs, one, 0.1 * one, 0.2 * one)  # noqa: E731
        main = lambda a, b: deflection.deflect_sie(a, b, theta_E, zero + 0.1, zero, zero, zero)  # noqa: E731
        return raytrace.trace_planes(x, y, [halo, main], distances)

    inputs = (column(1.0), column(0.1)[None], column(0.5, 1.0, 2.0))
    assert torch.autograd.gradcheck(beta, tuple(v.requires_grad_() for v in inputs), atol=1e-5)


def test_distances_that_do_not_fit_the_planes():
    x, y = raytrace.make_grid(4, 0.5)
    with pytest.raises(ConfigError, match="2 planes need 3 distances"):
        raytrace.trace_planes(x, y, [lambda a, b: (a, b)] * 2, column(1.0, 2.0))
