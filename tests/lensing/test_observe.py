"""Blurring against scipy's filters; noise against scipy's distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from astropy.modeling.models import Moffat2D
from scipy import integrate, ndimage, stats

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


def pictures(batch, channels, height=13, width=10, seed=1):
    return torch.tensor(np.random.default_rng(seed).random((batch, channels, height, width)))


# The last two sizes go through Fourier space.
@pytest.mark.parametrize("size", [1, 3, 7, 25, 27, 31])
@pytest.mark.parametrize(("batch", "channels"), [(2, 3), (1, 3), (2, 1), (1, 1)])
def test_blur_is_scipys_convolution(size, batch, channels):
    images, kernels = pictures(2, 3), pictures(batch, channels, size, size, seed=2)
    ours = observe.blur(images, kernels).numpy()
    for b in range(2):
        for c in range(3):
            kernel = kernels[b % batch, c % channels].numpy()
            theirs = ndimage.convolve(images[b, c].numpy(), kernel, mode="nearest")
            assert np.abs(ours[b, c] - theirs).max() < 1e-12 * theirs.max()


@pytest.mark.parametrize("size", [9, 31])
def test_blur_keeps_level_sky_and_flux(size):
    kernel = pictures(1, 1, size, size)
    kernel /= kernel.sum()
    level = torch.full((2, 1, 8, 8), 3.0, dtype=torch.float64)
    torch.testing.assert_close(observe.blur(level, kernel), level, rtol=1e-12, atol=0)
    star = torch.zeros(1, 1, 71, 71, dtype=torch.float64)
    star[..., 35, 35] = 2.0
    around = slice(35 - size // 2, 36 + size // 2)
    torch.testing.assert_close(observe.blur(star, kernel)[..., around, around], 2 * kernel, rtol=1e-12, atol=1e-15)


def test_blur_of_a_gaussian_is_the_separable_one():
    row = observe.gaussian_kernel(column(0.5, 1.3, 3.0), 6)
    kernel = (row[:, :, None] * row[:, None, :])[:, None]
    ours = observe.blur(IMAGE[:, None], kernel)[:, 0]
    torch.testing.assert_close(ours, observe.blur_gaussian(IMAGE, column(0.5, 1.3, 3.0), 6), rtol=1e-12, atol=0)


@pytest.mark.parametrize("length", [1, 62, 83, 84, 124, 127, 187])
def test_fast_length_is_the_next_even_smooth_number(length):
    smooth = {2**a * 3**b * 5**c * 7**d for a in range(1, 9) for b in range(6) for c in range(4) for d in range(4)}
    assert observe._fast_length(length) == min(n for n in smooth if n >= length)


def astropys_moffat(fwhm, beta):
    """astropy's profile, its width found from the FWHM that astropy reports."""
    return Moffat2D(1, 0, 0, fwhm / Moffat2D(1, 0, 0, 1, beta).fwhm, beta)


@pytest.mark.parametrize("beta", [1.5, 2.0, 3.0, 4.765])
def test_moffat_is_astropys(beta):
    kernels = observe.moffat_kernel(column(1.6, 4.6), beta, 7)
    y, x = np.mgrid[-7:8, -7:8]
    for kernel, fwhm in zip(kernels.numpy(), (1.6, 4.6), strict=True):
        theirs = astropys_moffat(fwhm, beta)(x, y)
        assert np.abs(kernel - theirs / theirs.sum()).max() < 1e-14


def test_each_moffat_has_its_own_slope_and_none_is_no_blur():
    fwhm, beta = column(2.0, 3.0), column(2.5, 4.0)
    both = observe.moffat_kernel(fwhm, beta, 5)
    for i in range(2):
        torch.testing.assert_close(both[i], observe.moffat_kernel(fwhm[i : i + 1], beta[i].item(), 5)[0])
    none = observe.moffat_kernel(column(0.0), 3.0, 2)[0]
    assert none[2, 2] == pytest.approx(1, abs=1e-12) and none.sum() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(
    ("radius", "gaussian", "moffat"), [(1.5, 0.998, 0.910), (2.0, 0.99998, 0.962), (3.0, 1.0, 0.991)]
)
def test_flux_within_a_circle(radius, gaussian, moffat):
    """scipy's integrals, and the numbers that the docstrings state."""
    fwhm, beta = 1.7, 3.0
    ours = observe.moffat_flux(column(fwhm), beta, radius * fwhm).item()
    profile = astropys_moffat(fwhm, beta)
    inside, total = (integrate.quad(lambda r: r * profile(r, 0), 0, end)[0] for end in (radius * fwhm, np.inf))
    assert ours == pytest.approx(inside / total, rel=1e-9) and ours == pytest.approx(moffat, abs=6e-4)
    ours = observe.gaussian_flux(column(fwhm), radius * fwhm).item()
    theirs = stats.rayleigh(scale=fwhm * observe.FWHM_TO_SIGMA).cdf(radius * fwhm)
    assert ours == pytest.approx(theirs, rel=1e-12) and ours == pytest.approx(gaussian, abs=1e-4)


def test_blurs_have_gradients():
    image = IMAGE[:2, :5, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, s: observe.blur_gaussian(a, s, 2), (image, column(0.7, 1.4).requires_grad_())
    )
    picture = pictures(2, 2, 4, 3).requires_grad_()
    for size in (3, 27):
        assert torch.autograd.gradcheck(
            lambda a, k, size=size: observe.blur(a, F.pad(k, ((size - 3) // 2,) * 4)),
            (picture, pictures(2, 1, 3, 3, seed=2).requires_grad_()),
        )
    widths = (column(1.5, 2.5).requires_grad_(), column(2.5, 3.5).requires_grad_())
    assert torch.autograd.gradcheck(lambda f, b: observe.moffat_kernel(f, b, 2), widths)
    noise = (image.detach() + 1).requires_grad_()
    assert torch.autograd.gradcheck(observe.signal_to_noise, (image, noise))


@pytest.mark.parametrize("size", [5, 31])
def test_blurs_in_single_precision_and_one_by_one(size):
    sigma = column(0.5, 1.3, 3.0)
    kernels = observe.moffat_kernel(column(2.0, 3.0, 4.0), 3.0, size // 2)[:, None]
    assert observe.moffat_kernel(torch.ones(1), 3.0, 2).dtype == torch.float32
    for blur, image, args in (
        (observe.blur_gaussian, IMAGE, (sigma, 4)),
        (observe.blur, IMAGE[:, None], (kernels,)),
    ):
        double = blur(image, *args)
        single = blur(image.float(), *(a.float() if isinstance(a, torch.Tensor) else a for a in args))
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-6)
        alone = [blur(image[i : i + 1], args[0][i : i + 1], *args[1:]) for i in range(3)]
        torch.testing.assert_close(torch.cat(alone), double, rtol=1e-12, atol=1e-14)


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
