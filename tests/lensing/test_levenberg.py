"""Batched fits against numpy's least squares and scipy's Levenberg-Marquardt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from torch import Tensor

from deeplense.lensing.fit import Fit, _covariance, best, fit, forward_mode

SHAPE = (6, 8)
PIXELS = SHAPE[0] * SHAPE[1]
TIME = torch.linspace(0, 4, PIXELS, dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(size=shape))


def linear(design: Tensor):
    """Images p @ design (P, H, W) and their derivatives."""

    def linearise(p: Tensor) -> tuple[Tensor, Tensor]:
        return torch.einsum("bp,phw->bhw", p, design), design.expand(len(p), *design.shape)

    return linearise


def decay(p: Tensor) -> Tensor:
    """height * exp(-rate * t) + floor, (B, H, W)."""
    height, rate, floor = (column[:, None] for column in p.unbind(1))
    return (height * torch.exp(-rate * TIME) + floor).unflatten(1, SHAPE)


def linear_decay(p: Tensor) -> tuple[Tensor, Tensor]:
    height, rate, _ = (column[:, None] for column in p.unbind(1))
    shape = torch.exp(-rate * TIME)
    return decay(p), torch.stack([shape, -height * TIME * shape, torch.ones_like(shape)], 1).unflatten(2, SHAPE)


def rosenbrock(p: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals 10 (y - x^2) and x as two pixels."""
    x, y = p.unbind(1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    image = torch.stack([10 * (y - x**2), x], 1)[:, None]
    return image, torch.stack([torch.stack([-20 * x, one], 1), torch.stack([10 * one, zero], 1)], 1)[:, :, None]


def test_a_linear_problem_is_numpys():
    design, data = random(3, *SHAPE, seed=1), random(5, *SHAPE, seed=2)
    sigma = torch.tensor(np.random.default_rng(3).uniform(0.5, 2, data.shape))
    found = fit(None, data, sigma, torch.zeros(5, 3).double(), linearise=linear(design))
    for i in range(5):
        weighted = (design / sigma[i]).flatten(1).numpy().T
        target = (data[i] / sigma[i]).flatten().numpy()
        expected, rest, *_ = np.linalg.lstsq(weighted, target, rcond=None)
        np.testing.assert_allclose(found.parameters[i].numpy(), expected, atol=1e-5)
        assert found.chi2[i].item() == pytest.approx(rest.item() / PIXELS, rel=1e-9)
        np.testing.assert_allclose(found.residual[i].flatten().numpy(), weighted @ expected - target, atol=1e-4)
        np.testing.assert_allclose(found.covariance[i].numpy(), np.linalg.inv(weighted.T @ weighted), rtol=1e-6)


def test_a_curved_problem_is_scipys():
    truth = torch.tensor([[3.0, 0.7, 0.4], [1.5, 2.0, -1.0], [8.0, 0.3, 2.0]]).double()
    sigma = torch.full((3, *SHAPE), 0.05).double()
    data = decay(truth) + sigma * random(3, *SHAPE)
    start = torch.tensor([[1.0, 1.0, 0.0]]).double().repeat(3, 1)
    found = fit(None, data, sigma, start, linearise=linear_decay)
    for i in range(3):

        def residual(p, i=i):
            return ((decay(torch.tensor(p)[None])[0] - data[i]) / sigma[i]).flatten().numpy()

        expected = least_squares(residual, start[i].numpy(), method="lm", xtol=1e-12, ftol=1e-12)
        covariance = np.linalg.inv(expected.jac.T @ expected.jac)
        scatter = np.sqrt(np.diag(covariance))
        assert (np.abs(found.parameters[i].numpy() - expected.x) < 0.01 * scatter).all()
        assert found.chi2[i].item() == pytest.approx(2 * expected.cost / PIXELS, rel=1e-5)
        np.testing.assert_allclose(found.covariance[i].sqrt().diagonal().numpy(), scatter, rtol=1e-3)
        np.testing.assert_allclose(found.covariance[i].numpy(), covariance, rtol=0.01, atol=1e-9)


def test_forward_mode_finds_the_same_slopes():
    p = torch.tensor([[3.0, 0.7, 0.4], [1.5, 2.0, -1.0]]).double()
    torch.testing.assert_close(forward_mode(decay)(p), linear_decay(p))


def test_a_narrow_valley():
    """Rosenbrock's function, minimum 0 at (1, 1), from its classical start and two others."""
    start = torch.tensor([[-1.2, 1.0], [3.0, -2.0], [0.0, 0.0]]).double()
    data = torch.tensor([[0.0, 1.0]]).double().repeat(3, 1)[:, None]
    found = fit(None, data, torch.ones_like(data), start, 100, linearise=rosenbrock)
    torch.testing.assert_close(found.parameters, torch.ones(3, 2).double(), rtol=1e-3, atol=0)


def test_an_image_is_fitted_as_if_it_were_alone():
    start, data = torch.tensor([[1.0, 1.0, 0.0]]).double().repeat(4, 1), 3 + random(4, *SHAPE)
    sigma = torch.ones_like(data)
    together = fit(None, data, sigma, start, 12, linearise=linear_decay)
    for i in range(4):
        row = slice(i, i + 1)
        alone = fit(None, data[row], sigma[row], start[row], 12, linearise=linear_decay)
        torch.testing.assert_close(together.parameters[row], alone.parameters, rtol=1e-6, atol=1e-9)


def test_no_steps_leave_the_start():
    start, data = torch.tensor([[1.0, 1.0, 0.0]]).double(), random(1, *SHAPE)
    found = fit(None, data, torch.ones_like(data), start, 0, linearise=linear_decay)
    assert torch.equal(found.parameters, start)
    assert found.chi2.item() == pytest.approx((decay(start) - data).square().mean().item(), rel=1e-12)


@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")])
def test_pixels_of_infinite_noise_do_not_count(value):
    design, data = random(2, *SHAPE, seed=1), random(1, *SHAPE, seed=2)
    sigma = torch.ones_like(data)
    data[:, 1:3, 2:5], sigma[:, 1:3, 2:5] = value, torch.inf
    found = fit(None, data, sigma, torch.zeros(1, 2).double(), linearise=linear(design))
    keep = sigma[0].isfinite()
    expected, rest, *_ = np.linalg.lstsq(design[:, keep].numpy().T, data[0, keep].numpy(), rcond=None)
    np.testing.assert_allclose(found.parameters[0].numpy(), expected, atol=1e-5)
    assert found.chi2.item() == pytest.approx(rest.item() / (PIXELS - 6), rel=1e-9)
    assert not found.residual[0, ~keep].any() and found.covariance.isfinite().all()


def test_steps_end_at_the_bounds():
    truth = torch.tensor([[3.0, 0.7, 0.4]]).double()
    bounds = torch.tensor([0.0, 1.0, -9.0]).double(), torch.tensor([9.0, 5.0, 9.0]).double()
    data = decay(truth)
    start = torch.tensor([[1.0, 0.1, 0.0]]).double()  # beyond them, too
    found = fit(None, data, torch.ones_like(data), start, 12, linearise=linear_decay, bounds=bounds)

    def residual(p):
        return (decay(torch.tensor(p)[None]) - data).flatten().numpy()

    expected = least_squares(residual, [1.0, 1.5, 0.0], bounds=tuple(b.numpy() for b in bounds))
    np.testing.assert_allclose(found.parameters[0].numpy(), expected.x, rtol=1e-4)
    assert found.parameters[0, 1] == 1.0
    assert found.chi2.item() == pytest.approx(2 * expected.cost / PIXELS, rel=1e-4)


def test_a_parameter_without_effect_stays_and_is_not_known():
    design, data = random(3, *SHAPE, seed=1), random(1, *SHAPE, seed=2)
    design[1] = 0
    start = torch.tensor([[0.0, 7.0, 0.0]]).double()
    found = fit(None, data, torch.ones_like(data), start, linearise=linear(design))
    expected = np.linalg.lstsq(design[[0, 2]].flatten(1).numpy().T, data.flatten().numpy(), rcond=None)[0]
    assert found.parameters[0, 1] == 7
    np.testing.assert_allclose(found.parameters[0, [0, 2]].numpy(), expected, atol=1e-5)
    others = found.covariance[0][[0, 2]][:, [0, 2]].numpy()
    normal = design[[0, 2]].flatten(1) @ design[[0, 2]].flatten(1).T
    np.testing.assert_allclose(others, np.linalg.inv(normal.numpy()), rtol=1e-6)
    assert found.covariance[0, 1, 1] == torch.inf and not found.covariance[0, 1, [0, 2]].any()


def test_nothing_is_known_where_no_pixel_counts():
    data = random(1, *SHAPE)
    found = fit(None, data, torch.full_like(data, torch.inf), torch.ones(1, 3).double(), linearise=linear_decay)
    assert torch.equal(found.parameters, torch.ones(1, 3).double())
    assert (found.covariance[0].diagonal() == torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("unit", [1.0, 1e5, 1e-4])
def test_parameters_of_very_different_size_converge_in_ten_steps(unit, dtype):
    """A height and a floor in any unit beside a rate near 1: the steps do not depend on the unit."""
    truth = torch.tensor([[3.0, 0.7, 0.4], [2.0, 0.3, 1.0]]).double() * torch.tensor([unit, 1.0, unit])
    start = torch.tensor([[2.0, 1.2, 0.0]]).double().repeat(2, 1) * torch.tensor([unit, 1.0, unit])
    data, sigma = decay(truth).to(dtype), torch.full((2, *SHAPE), 0.01 * unit, dtype=dtype)

    def linearise(p: Tensor) -> tuple[Tensor, Tensor]:
        image, slopes = linear_decay(p.double())
        return image.to(dtype), slopes.to(dtype)

    found = fit(None, data, sigma, start.to(dtype), 10, linearise=linearise)
    torch.testing.assert_close(found.parameters.double(), truth, rtol=1e-3, atol=0)
    assert found.chi2.max() < 1e-3 and found.covariance.isfinite().all()


def test_the_best_of_several_fits_is_chosen_for_each_image():
    def made(value: float, chi2: list[float]) -> Fit:
        covariance = torch.eye(2).repeat(3, 1, 1) * value
        return Fit(torch.full((3, 2), value), torch.full((3, 4, 4), value), torch.tensor(chi2), covariance)

    chosen = best([made(1.0, [1.0, 5.0, float("nan")]), made(2.0, [2.0, 3.0, 9.0])])
    assert chosen.parameters[:, 0].tolist() == chosen.residual[:, 0, 0].tolist() == [1.0, 2.0, 2.0]
    assert chosen.chi2.tolist() == [1.0, 3.0, 9.0] and chosen.covariance[:, 0, 0].tolist() == [1.0, 2.0, 2.0]


def test_a_matrix_that_rounding_left_indefinite_tells_nothing():
    """Two parameters of the same effect but for rounding: the inverse would have variances below zero."""
    normal = torch.tensor([[[1.0, 1 + 1e-6, 0.0], [1 + 1e-6, 1.0, 0.0], [0.0, 0.0, 1.0]]]).double()
    assert (np.linalg.inv(normal[0].numpy()).diagonal() < 0).any()
    assert (_covariance(normal)[0].diagonal() == torch.inf).all()
