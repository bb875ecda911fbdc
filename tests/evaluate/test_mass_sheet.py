"""The mass-sheet degeneracy against closed forms of discs, spheres and sheets, and against numpy's least squares."""

import numpy as np
import pytest
import torch

from deeplense.errors import DataError
from deeplense.evaluate.mass_sheet import deflection_error, no_lensing_error
from deeplense.lensing.deflection import deflect_shear, deflect_sheet, deflect_sie
from deeplense.lensing.raytrace import make_grid

R = 2.0
FINE = make_grid(400, 4.2 / 400, dtype=torch.float64)


def sie(theta, theta_E, e1=0.0, e2=0.0, x=0.0):
    numbers = [torch.as_tensor(value, dtype=torch.float64).expand(len(theta_E)) for value in (theta_E, e1, e2, x, 0.0)]
    return deflect_sie(*theta, *numbers)


def test_transformed_deflection_has_no_error_and_its_lambda_is_found():
    theta = make_grid(50, 0.1, dtype=torch.float64)
    alpha = sie(theta, torch.tensor([0.8, 1.0, 1.3]), e1=0.1, e2=-0.2, x=0.05)
    scale = torch.tensor([0.8, 1.0, 1.25], dtype=torch.float64)[:, None, None]
    moved = [scale * a + (1 - scale) * t + b for a, t, b in zip(alpha, theta, (0.3, -0.2), strict=True)]
    found = deflection_error(alpha, moved, *theta, R)
    torch.testing.assert_close(found.rmse, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(found.scale, scale.ravel())


def test_noise_of_a_known_size_gives_its_size():
    """Noise in the truth is left, but for 3 numbers fitted to 2n; noise in the fit is damped where lambda gives way."""
    theta = make_grid(80, 0.05, dtype=torch.float64)
    alpha, s = sie(theta, torch.full((20,), 1.0)), 0.03
    generator = torch.Generator().manual_seed(0)
    noisy = [a + s * torch.randn(a.shape, generator=generator, dtype=a.dtype) for a in alpha]
    n = int((theta[0] ** 2 + theta[1] ** 2 <= R**2).sum())
    found = deflection_error(alpha, noisy, *theta, R).rmse
    tolerance = 5 / np.sqrt(4 * n * 20)  # of the mean of 20 such
    assert found.square().mean().sqrt().item() == pytest.approx(s * np.sqrt(2 * (1 - 3 / (2 * n))), rel=tolerance)
    spread = R**2 / 2 - 4 * R / 3 + 1  # <|beta|^2> of a sphere with theta_E = 1
    damped = np.sqrt(2 * s**2 * spread / (spread + 2 * s**2))
    found = deflection_error(noisy, alpha, *theta, R).rmse
    assert found.square().mean().sqrt().item() == pytest.approx(damped, rel=2 * tolerance)


@pytest.mark.parametrize("radius", [1.3, 2.0])
def test_no_lensing_against_an_isothermal_sphere_leaves_a_third_of_its_radius(radius):
    """The least <|theta_E - (1 - lambda) r|^2> is theta_E^2 (1 - <r>^2 / <r^2>), with <r> = 2R/3 and <r^2> = R^2/2."""
    theta_E = torch.tensor([0.5, 1.2])
    found = no_lensing_error(sie(FINE, theta_E), *FINE, radius)
    np.testing.assert_allclose(found.rmse, theta_E / 3, rtol=3e-3)
    np.testing.assert_allclose(found.scale, 1 - 4 * theta_E / (3 * radius), atol=3e-3)


def test_isothermal_sphere_of_a_wrong_radius():
    """beta is radial, r - t: the regression of r - 1 on r - t in moments of the disc."""
    t = np.array([0.7, 1.0, 1.1])
    first, second = 2 * R / 3, R**2 / 2
    spread = second - 2 * t * first + t**2
    shared = second - (1 + t) * first + t
    expected = second - 2 * first + 1 - shared**2 / spread
    found = deflection_error(sie(FINE, torch.tensor(t)), sie(FINE, torch.ones(3)), *FINE, R)
    np.testing.assert_allclose(found.scale, shared / spread, rtol=3e-3)
    np.testing.assert_allclose(found.rmse**2, expected, rtol=3e-3, atol=1e-6)


def test_no_lensing_explains_a_sheet_of_mass_but_no_shear():
    kappa, gamma = torch.tensor([0.3, -0.1], dtype=torch.float64), torch.tensor([0.1, 0.2], dtype=torch.float64)
    sheet = no_lensing_error(deflect_sheet(*FINE, kappa), *FINE, R)
    np.testing.assert_allclose(sheet.rmse, [0, 0], atol=1e-12)
    np.testing.assert_allclose(sheet.scale, 1 - kappa)
    shear = no_lensing_error(deflect_shear(*FINE, gamma, torch.zeros(2, dtype=torch.float64)), *FINE, R)
    np.testing.assert_allclose(shear.rmse, gamma * R / np.sqrt(2), rtol=3e-3)  # <x^2 + y^2> = R^2 / 2
    np.testing.assert_allclose(shear.scale, [1, 1], atol=1e-9)


def test_equals_least_squares_of_numpy():
    theta = make_grid(12, 0.3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    fit, true = (torch.randn(2, 3, 12, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    found = deflection_error(tuple(fit), tuple(true), *theta, 1.5)
    inside = (theta[0] ** 2 + theta[1] ** 2 <= 1.5**2).numpy()
    n = inside.sum()
    for k in range(3):
        left = np.concatenate([(fit[c, k] - theta[c]).numpy()[inside] for c in (0, 1)])
        right = np.concatenate([(true[c, k] - theta[c]).numpy()[inside] for c in (0, 1)])
        shifts = np.repeat(np.eye(2), n, axis=0)
        (scale, *_), total, *_ = np.linalg.lstsq(np.column_stack([left, shifts]), right, rcond=None)
        assert found.scale[k].item() == pytest.approx(scale)
        assert found.rmse[k].item() == pytest.approx(np.sqrt(total[0] / n))


def test_rays_that_meet_in_a_point_say_nothing_on_the_scale():
    """Then what is left is the spread of the true source plane; single precision is enough to ask."""
    theta = make_grid(60, 0.07)
    alpha = sie(theta, torch.tensor([1.0]))
    found = deflection_error(tuple(t[None].expand(1, -1, -1) for t in theta), alpha, *theta, R)
    assert found.scale.tolist() == [0]
    beta = [(t - a[0]).double()[theta[0] ** 2 + theta[1] ** 2 <= R**2] for t, a in zip(theta, alpha, strict=True)]
    expected = np.sqrt(sum(np.var(part.numpy()) for part in beta))
    assert found.rmse.item() == pytest.approx(expected, rel=1e-6)
    assert found.rmse.dtype == torch.float64


def test_positions_of_each_image():
    theta = make_grid(20, 0.2, dtype=torch.float64)
    alpha, wrong = sie(theta, torch.tensor([1.0, 0.8])), sie(theta, torch.tensor([0.9, 0.9]))
    one = deflection_error(wrong, alpha, *theta, R)
    each = deflection_error(wrong, alpha, *(t.expand(2, -1, -1) for t in theta), R)
    torch.testing.assert_close(one.rmse, each.rmse)
    assert one.rmse.min() > 1e-3


def test_what_cannot_be_compared():
    theta = make_grid(10, 0.2)
    alpha = sie(theta, torch.tensor([1.0]))
    with pytest.raises(DataError, match="give \\(B, H, W\\)"):
        deflection_error(alpha, tuple(a[0] for a in alpha), *theta, R)
    with pytest.raises(DataError, match="widen the radius"):
        deflection_error(alpha, alpha, *theta, 0.05)
    with pytest.raises(DataError, match="NaN"):
        deflection_error((alpha[0] * torch.nan, alpha[1]), alpha, *theta, R)
