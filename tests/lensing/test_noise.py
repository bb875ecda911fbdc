"""The noise of pixels from an image's corners, against the noise that was drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from deeplense.lensing.noise import Noise, corners

SIZE = 100


def arc(height: float, size: int = SIZE) -> np.ndarray:
    """A ring in the middle of the image."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return height * np.exp(-((np.hypot(x, y) - size / 5) ** 2) / 18)


def drawn(num: int, height: float, mean: float, std: float) -> Tensor:
    noise = np.random.default_rng(0).normal(mean, std, (num, SIZE, SIZE))
    return torch.tensor(arc(height) + noise, dtype=torch.float32)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (50.0, 3.0), (-0.2, 1e-3)])
def test_corners_are_the_sky(mean, std):
    images = drawn(20, 40 * std, mean, std)
    level, scatter = corners(images)
    pixels = 4 * 13**2
    # Five standard errors; cutting at 4 sigma lowers the scatter by 0.05 %.
    assert (level - mean).abs().max() < 5 * std / pixels**0.5
    assert (scatter / std - 1).abs().max() < 5 / (2 * pixels) ** 0.5
    assert abs(scatter.mean().item() / std - 1) < 5 / (2 * pixels * 20) ** 0.5 + 1e-3
    # The whole image would have said something else.
    assert (images.std((1, 2)) > 2 * std).all()


def test_a_star_in_a_corner_and_missing_pixels_are_left_out():
    images = drawn(4, 0.0, 5.0, 2.0)
    before = corners(images)
    images[:, 2:5, 3:6] = 1e4
    images[1:, 90, 92], images[2:, 95, 95] = torch.nan, torch.inf
    for old, new in zip(before, corners(images), strict=True):
        torch.testing.assert_close(new, old, rtol=0.03, atol=0)


def test_constant_images_have_a_scatter_above_zero():
    level, scatter = corners(torch.full((2, 20, 20), 3.0))
    assert (level == 3).all() and (scatter > 0).all() and (1 / scatter).isfinite().all()


@pytest.mark.parametrize("unit", [1.0, 1e-4, 37.0])
def test_noise_of_photons_in_any_unit(unit):
    """Poisson images in an arbitrary unit: the scatter over many is what one image's corners predict."""
    sky, read = 80.0, 25.0
    rng, mean = np.random.default_rng(1), arc(400.0)
    electrons = rng.poisson(mean + sky, (300, SIZE, SIZE)) + rng.normal(0, read**0.5, (300, SIZE, SIZE)) - sky
    images = torch.tensor(electrons * unit, dtype=torch.float32)
    scatter = corners(images)[1]
    noise = Noise(background_variance=sky + read)
    signal = torch.tensor(mean * unit, dtype=torch.float32).expand_as(images)
    sigma = noise.sigma(signal, scatter)
    truth = torch.tensor(np.sqrt(mean + sky + read) * unit)
    assert float((sigma.mean(0) / truth - 1).abs().max()) < 0.05
    # 300 images tell the scatter of a pixel to 4 %, and a mean over pixels much better.
    seen = images.std(0)
    for part in (mean < 1, mean > 300):
        mask = torch.tensor(part)
        assert float((seen / sigma.mean(0))[mask].mean()) == pytest.approx(1, abs=0.02)
    assert truth.max() > 2 * truth.min()


def test_electrons_need_no_corners():
    signal = torch.tensor([[[0.0, 96.0, -50.0]]])
    sigma = Noise(4.0, is_electrons=True).sigma(signal, torch.tensor([99.0]))
    torch.testing.assert_close(sigma, torch.tensor([[[2.0, 10.0, 2.0]]]))


def test_in_electrons_both_ways_agree():
    """If the corners scatter as the background says, the unit is one electron."""
    signal = torch.linspace(0, 500, 40).view(1, 5, 8)
    told, found = Noise(105.0, True), Noise(105.0)
    scatter = torch.tensor([105.0**0.5])
    torch.testing.assert_close(told.sigma(signal, scatter), found.sigma(signal, scatter))


def test_without_a_background_all_pixels_are_as_noisy_as_the_corners():
    sigma = Noise().sigma(torch.tensor(arc(1e5))[None].float().repeat(2, 1, 1), torch.tensor([2.0, 3.0]))
    assert sigma.shape == (2, SIZE, SIZE) and (sigma[0] == 2).all() and (sigma[1] == 3).all()
