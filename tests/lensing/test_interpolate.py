"""Observed galaxies as sources, against Gaussians in closed form and against lenstronomy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lenstronomy.LightModel.light_model import LightModel

from deeplense.lensing.light import interpolate
from deeplense.lensing.raytrace import make_grid
from peer import column

SIZE = 61
INDEX = torch.zeros(1, dtype=torch.int64)


def gaussian(x: np.ndarray, y: np.ndarray, long: float, short: float, phi: float) -> np.ndarray:
    """Elliptical Gaussian of flux 1 with its long axis at the angle phi from x to y."""
    along, across = x * np.cos(phi) + y * np.sin(phi), y * np.cos(phi) - x * np.sin(phi)
    return np.exp(-((along / long) ** 2 + (across / short) ** 2) / 2) / (2 * np.pi * long * short)


def stamp(long: float = 7.0, short: float = 5.0, phi: float = 0.0) -> torch.Tensor:
    """The Gaussian on pixels, lengths in pixels."""
    x, y = (g.numpy() for g in make_grid(SIZE, 1.0, dtype=torch.float64))
    return torch.from_numpy(gaussian(x, y, long, short, phi))[None]


@pytest.mark.parametrize("angle", [0.0, 0.5, 2.0, -1.2])
@pytest.mark.parametrize("scale", [0.03, 0.05])
def test_a_gaussian_is_its_closed_form(angle, scale):
    x, y = make_grid(80, 0.025, dtype=torch.float64)
    ours = interpolate(x, y, stamp(phi=0.4), INDEX, *(column(v) for v in (scale, angle, 0.11, -0.07, 3.0)))[0].numpy()
    exact = 3 * gaussian(x.numpy() - 0.11, y.numpy() + 0.07, 7 * scale, 5 * scale, 0.4 + angle)
    # A line between two pixels falls below the curve by a quarter of h^2 f'': 1 % of the peak for 5 pixels.
    assert np.abs(ours - exact).max() < 0.01 * exact.max()
    assert ours.sum() * 0.025**2 == pytest.approx(exact.sum() * 0.025**2, rel=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_lenstronomys(seed):
    rng = np.random.default_rng(seed)
    image = np.zeros((SIZE, SIZE))
    image[8:-8, 8:-8] = rng.random((SIZE - 16, SIZE - 16))
    image = torch.from_numpy(image / image.sum())[None]
    scale, angle, center_x, center_y = 0.04, rng.uniform(-3, 3), *rng.uniform(-0.3, 0.3, 2)
    # At the centres of the pixels every interpolation is the same; positions by complex numbers.
    pixel = rng.integers(8, SIZE - 8, (2, 1, 50)) - (SIZE - 1) / 2
    place = (pixel[0] + 1j * pixel[1]) * scale * np.exp(1j * angle) + center_x + 1j * center_y
    x, y = torch.from_numpy(place.real), torch.from_numpy(place.imag)
    numbers = (column(v) for v in (scale, angle, center_x, center_y, 2.0))
    ours = interpolate(x, y, image, INDEX, *numbers)[0].numpy().ravel()
    kwargs = {"image": image[0].numpy() * 2 / scale**2, "amp": 1.0, "phi_G": angle, "scale": scale}
    kwargs |= {"center_x": center_x, "center_y": center_y}
    theirs = LightModel(["INTERPOL"]).surface_brightness(x.numpy().ravel(), y.numpy().ravel(), [kwargs])
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize(("num_pix", "pixel_scale", "supersampling"), [(100, 0.05, 1), (50, 0.1, 4)])
def test_flux_of_an_unlensed_galaxy_is_kept(num_pix, pixel_scale, supersampling):
    grainy = np.random.default_rng(0).random((1, SIZE, SIZE)) * stamp().numpy()
    images = torch.from_numpy(grainy / grainy.sum())
    x, y = make_grid(num_pix, pixel_scale, supersampling, dtype=torch.float64)
    numbers = (column(v) for v in (0.05, 0.7, 0.1, 0.2, 5.0))
    light = interpolate(x, y, images, INDEX, *numbers)
    assert light.sum().item() * (pixel_scale / supersampling) ** 2 == pytest.approx(5.0, rel=0.01)


def test_zero_outside_the_image():
    x, y = make_grid(101, 0.1, dtype=torch.float64)
    flat = torch.ones(1, SIZE, SIZE, dtype=torch.float64) / SIZE**2
    light = interpolate(x, y, flat, INDEX, *(column(v) for v in (0.05, 0.0, 0.0, 0.0, 1.0)))[0]
    # A square of 61 pixels of 0.05 arcsec; half a pixel beyond the last centre it has fallen off.
    is_inside = (x.abs() < 1.49) & (y.abs() < 1.49)
    is_outside = (x.abs() > 1.56) | (y.abs() > 1.56)
    np.testing.assert_allclose(light[is_inside], 1 / (SIZE * 0.05) ** 2)
    assert (light[is_outside] == 0).all() and (light >= 0).all()


def test_gradients_of_positions_and_numbers():
    # Away from the lines between pixels, where the slope jumps.
    x, y = torch.tensor([[0.013, -0.121, 0.242]]).double(), torch.tensor([[-0.037, 0.214, 0.117]]).double()
    numbers = [column(v) for v in (0.03, 0.4, 0.021, -0.013, 2.0)]
    inputs = [v.requires_grad_() for v in (x, y, *numbers)]
    images = stamp()
    assert torch.autograd.gradcheck(lambda x, y, *rest: interpolate(x, y, images, INDEX, *rest), inputs, eps=1e-7)
    # The slope in the centre is that of the Gaussian.
    (slope,) = torch.autograd.grad(interpolate(x, y, images, INDEX, *inputs[2:])[0, 0, 2], inputs[4])
    step, at = 1e-5, (x[0, 2].item() - 0.021, y[0, 2].item() + 0.013)
    low, high = (2 * gaussian(at[0] - s, at[1], 7 * 0.03, 5 * 0.03, 0.4) for s in (-step, step))
    assert slope.item() == pytest.approx((high - low) / (2 * step), rel=0.1)


def test_a_batch_is_its_images_one_by_one_in_both_precisions():
    x, y = make_grid(40, 0.05, dtype=torch.float64)
    images = torch.cat([stamp(), stamp(4.0, 3.0, 1.0)])
    index = torch.tensor([1, 0, 1])
    rows = torch.tensor([[0.03, 0.05, 0.04], [0.0, 1.0, -2.0], [0.1, 0.0, -0.1], [0.0, 0.2, 0.1], [1.0, 2.0, 3.0]])
    numbers = rows.double()
    batch = interpolate(x, y, images, index, *numbers)
    for i in range(3):
        alone = interpolate(x, y, images[index[i]][None], INDEX, *numbers[:, i : i + 1])[0]
        torch.testing.assert_close(batch[i], alone, rtol=1e-12, atol=1e-15)
    single = interpolate(x.float(), y.float(), images.float(), index, *rows.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), batch, rtol=1e-3, atol=1e-4 * batch.max().item())
