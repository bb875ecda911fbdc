"""Blurring against scipy's filters; noise against scipy's distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage, signal, stats

from deeplense.lensing import observe
from peer import column

IMAGE = torch.tensor(np.random.default_rng(0).random((3, 21, 17)))


@pytest.mark.parametrize("radius", [1, 4, 7])
def test_gaussian_is_scipys(radius):
    sigmas = (0.5, 1.3, 3.0)
    ours = observe.blur_gaussian(IMAGE, column(*sigmas), radius).numpy()
    for image, sigma, blurred in zip(IMAGE.numpy(), sigmas, ours, strict=True):
        theirs = ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=radius / sigma)
        assert np.abs(blurred - theirs).max() < 1e-12


def test_gaussian_keeps_the_flux():
    image = torch.zeros(1, 31, 31, dtype=torch.float64)
    image[0, 15, 14] = 5.0
    blurred = observe.blur_gaussian(image, column(1.7), 8)
    assert blurred.sum().item() == pytest.approx(5.0, rel=1e-12)
    assert torch.equal(blurred.flip(1), blurred)
    # A level sky stays level up to the border.
    torch.testing.assert_close(observe.blur_gaussian(torch.ones(1, 9, 9), torch.ones(1), 5), torch.ones(1, 9, 9))


def test_no_width_is_no_blur():
    assert torch.equal(observe.blur_gaussian(IMAGE, column(0.0, 0.0, 0.0), 3), IMAGE)


def test_width_of_the_psf():
    image = torch.zeros(1, 41, 41, dtype=torch.float64)
    image[0, 20, 20] = 1.0
    profile = observe.blur_gaussian(image, column(10 * observe.FWHM_TO_SIGMA), 20)[0, 20]
    assert (profile[15] / profile[20]).item() == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_kernel_is_scipys_convolution(size):
    kernel = np.random.default_rng(1).random((size, size))
    ours = observe.blur_kernel(IMAGE, torch.tensor(kernel)).numpy()
    theirs = [signal.convolve2d(image, kernel, mode="same") for image in IMAGE.numpy()]
    assert np.abs(ours - theirs).max() < 1e-12


def test_blurs_have_gradients():
    image = IMAGE[:2, :5, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, s: observe.blur_gaussian(a, s, 2), (image, column(0.7, 1.4).requires_grad_())
    )
    kernel = torch.tensor(np.random.default_rng(2).random((3, 3))).requires_grad_()
    assert torch.autograd.gradcheck(observe.blur_kernel, (image, kernel))
    noise = (image.detach() + 1).requires_grad_()
    assert torch.autograd.gradcheck(observe.signal_to_noise, (image, noise))


def test_blurs_in_single_precision_and_one_by_one():
    sigma, kernel = column(0.5, 1.3, 3.0), torch.ones(3, 3, dtype=torch.float64) / 9
    for blur, args in ((observe.blur_gaussian, (sigma, 4)), (observe.blur_kernel, (kernel,))):
        double = blur(IMAGE, *args)
        single = blur(IMAGE.float(), *(a.float() if isinstance(a, torch.Tensor) else a for a in args))
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-6)
    alone = torch.cat([observe.blur_gaussian(IMAGE[i : i + 1], sigma[i : i + 1], 4) for i in range(3)])
    torch.testing.assert_close(alone, observe.blur_gaussian(IMAGE, sigma, 4), rtol=1e-12, atol=0)


def test_signal_to_noise_adds_in_quadrature():
    image, noise = torch.full((2, 4, 4), 3.0), torch.full((2, 4, 4), 2.0)
    assert observe.signal_to_noise(image, noise).tolist() == [6.0, 6.0]


# The quantile is a function of z, so its exact distribution follows from a fine, even sweep of probabilities.
SWEEP = torch.tensor(stats.norm.ppf((np.arange(400_000) + 0.5) / 400_000))


@pytest.mark.parametrize(
    ("mean", "distance"),
    [
        *((0.0, 1e-9), (0.01, 1e-5), (0.5, 1e-5), (2.0, 1e-5), (4.99, 1e-5)),
        *((5.01, 5e-3), (8.0, 4e-3), (30.0, 1e-3), (100.0, 1e-3), (1000.0, 1e-3)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_poisson_is_scipys(mean, distance, dtype):
    z = SWEEP.to(dtype)
    counts = observe.poisson(torch.full_like(z, mean), z)
    assert counts.dtype == dtype and torch.equal(counts, counts.round()) and counts.min() >= 0
    counts = counts.double()
    # The sweep itself, at 400,000 points, leaves out a little of the tails.
    assert counts.mean().item() == pytest.approx(mean, rel=1e-3, abs=1e-5)
    assert counts.var().item() == pytest.approx(mean, rel=3e-3, abs=1e-5)
    frequency = np.bincount(counts.long().numpy()) / len(z)
    expected = stats.poisson(mean).pmf(np.arange(len(frequency)))
    assert (np.abs(frequency - expected).sum() + 1 - expected.sum()) / 2 < distance


def test_poisson_of_mixed_means_grows_with_the_deviate():
    mean = torch.tensor([0.0, 0.5, 4.0, 6.0, 50.0, 1e4])[:, None].expand(6, 301)
    z = torch.linspace(-4, 4, 301).expand(6, 301)
    counts = observe.poisson(mean, z)
    assert (counts.diff(dim=1) >= 0).all()
    middle = counts[:, 150]
    assert middle.tolist() == stats.poisson(mean[:, 0].numpy()).median().tolist()


@pytest.mark.parametrize("z", [-6.0, 6.0])
def test_poisson_far_out_in_the_tails(z):
    mean = torch.tensor([0.0, 0.3, 4.9, 5.1, 20.0, 1000.0], dtype=torch.float64)
    counts = observe.poisson(mean, torch.full_like(mean, z))
    exact = np.maximum(stats.poisson(mean.numpy()).ppf(stats.norm.cdf(z)), 0)
    assert np.abs(counts.numpy() - exact).max() <= 1
