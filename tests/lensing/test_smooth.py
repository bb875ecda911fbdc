"""Smooth lenses: pictures against lenstronomy, derivatives against automatic ones, light against linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.Profiles.sersic import Sersic, SersicElliptic
from torch import Tensor

import peer
from deeplense.errors import ConfigError
from deeplense.lensing.smooth import BOUNDS, LENS, NAMES, Camera, SmoothLens

CAMERA = Camera((30, 26), 0.1)
# A lens like those of the Common Test; the cases change some of it.
USUAL = {"theta_E": 1.1, "e1": 0.12, "e2": -0.08, "gamma1": 0.04, "gamma2": -0.05, "center_x": 0.03, "center_y": -0.02}
USUAL |= {"source_x": 0.11, "source_y": -0.07, "R_sersic": 0.3, "n_sersic": 1.2, "source_e1": -0.1, "source_e2": 0.2}
USUAL |= {"psf_fwhm": 0.22, "flux": 40.0, "sky": 0.6}
CASES = {
    "usual": {},
    "nearly round": {"e1": 1e-3, "e2": -1e-3},
    "flat": {"e1": 0.4, "e2": 0.3},
    "sheared": {"gamma1": -0.25, "gamma2": 0.2},
    "off centre": {"center_x": 0.43, "center_y": -0.37, "source_x": 0.35, "source_y": -0.3},
    "gaussian source": {"n_sersic": 0.5, "R_sersic": 0.2},
    "cuspy source": {"n_sersic": 4.0},
    "flat source": {"source_e1": 0.35, "source_e2": -0.25},
    "sharp": {"psf_fwhm": 0.1},
    "faint": {"flux": 1e-3, "sky": -0.2},
}


def kernel(size: int = 7) -> Tensor:
    """A lopsided PSF of sum 1."""
    values = torch.tensor(np.random.default_rng(0).random((size, size)))
    return values / values.sum()


def rows(*changes: dict[str, float], without: tuple[str, ...] = ()) -> Tensor:
    names = [name for name in NAMES if name not in without]
    return torch.tensor([[(USUAL | change)[name] for name in names] for change in changes], dtype=torch.float64)


def automatic(lens: SmoothLens, p: Tensor) -> Tensor:
    """Derivatives of ``render`` by each column, (B, P, H, W), by automatic differentiation."""
    directions = [d.expand_as(p).contiguous() for d in torch.eye(p.shape[1], dtype=p.dtype)]
    return torch.stack([torch.autograd.functional.jvp(lens.render, p, d)[1] for d in directions], 1)


def compare(lens: SmoothLens, p: Tensor, tolerance: float = 1e-7) -> None:
    image, slopes = lens.linearise(p)
    # The lens that is rendered is softened by 1e-10 arcsec at its centre.
    torch.testing.assert_close(image, lens.render(p), rtol=1e-8, atol=1e-12)
    expected = automatic(lens, p)
    assert slopes.shape == (len(p), len(lens.names), *lens.camera.shape)
    for i, name in enumerate(lens.names):
        scale = expected[:, i].abs().amax((1, 2), keepdim=True)
        assert ((slopes[:, i] - expected[:, i]).abs() <= tolerance * scale + 1e-14).all(), name


@pytest.mark.parametrize("case", CASES)
def test_slopes_are_the_automatic_ones(case):
    compare(SmoothLens(CAMERA), rows(CASES[case]))


def test_slopes_of_a_batch_are_those_of_its_images():
    lens, p = SmoothLens(CAMERA), rows(*CASES.values())
    compare(lens, p)
    image, slopes = lens.linearise(p)
    for i in range(len(p)):
        alone = lens.linearise(p[i : i + 1])
        torch.testing.assert_close((image[i], slopes[i]), (alone[0][0], alone[1][0]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [7, 27])
def test_slopes_with_a_pixelated_psf(size):
    lens = SmoothLens(Camera((30, 26), 0.1, kernel=kernel(size)))
    compare(lens, rows({}, CASES["flat"], CASES["cuspy source"]))
    assert not lens.linearise(rows({}))[1][:, lens.names.index("psf_fwhm")].any()


@pytest.mark.parametrize("supersampling", [1, 3])
def test_slopes_with_other_rays(supersampling):
    compare(SmoothLens(Camera((20, 20), 0.15, supersampling, psf_radius=6)), rows({}, CASES["flat"]))


def test_fixed_parameters_are_no_columns():
    fixed = {"gamma1": USUAL["gamma1"], "n_sersic": USUAL["n_sersic"], "psf_fwhm": USUAL["psf_fwhm"]}
    lens = SmoothLens(CAMERA, fixed)
    p = rows({}, {"theta_E": 0.8}, without=tuple(fixed))
    assert lens.names == tuple(name for name in NAMES if name not in fixed) and p.shape[1] == len(NAMES) - 3
    compare(lens, p)
    whole, keep = SmoothLens(CAMERA), [NAMES.index(name) for name in lens.names]
    image, slopes = whole.linearise(rows({}, {"theta_E": 0.8}))
    torch.testing.assert_close(lens.linearise(p), (image, slopes[:, keep]), rtol=1e-12, atol=1e-12)
    assert lens.bounds(p)[0].shape == (len(lens.names),)


def test_single_precision_is_near_to_double():
    lens, p = SmoothLens(CAMERA), rows(*(CASES[case] for case in ("usual", "flat", "nearly round", "sheared")))
    double, single = lens.linearise(p), lens.linearise(p.float())
    assert single[0].dtype == single[1].dtype == torch.float32
    for ours, exact in zip(single, double, strict=True):
        scale = exact.abs().amax((-2, -1), keepdim=True)
        assert float(((ours - exact).abs() / scale.clamp_min(1e-9)).max()) < 2e-4


def test_an_exactly_round_lens_has_slopes_in_its_ellipticity():
    """The direction is not defined there; the slope is, as a central difference of the image shows."""
    lens, h = SmoothLens(CAMERA), 3e-4
    slopes = lens.linearise(rows({"e1": 0.0, "e2": 0.0}))[1][0]
    for name in ("e1", "e2"):
        up, down = (lens.render(rows({"e1": 0.0, "e2": 0.0} | {name: step}))[0] for step in (h, -h))
        expected = (up - down) / (2 * h)
        assert float((slopes[NAMES.index(name)] - expected).abs().max()) < 2e-3 * float(expected.abs().max())


def test_no_lens_is_the_source_alone():
    lens = SmoothLens(CAMERA, has_lens=False)
    p = rows({}, CASES["flat"])
    compare(lens, p)
    image, slopes = lens.linearise(p)
    # The source is the same in both, the lens is not.
    torch.testing.assert_close(image[0], image[1], rtol=1e-12, atol=1e-12)
    assert not slopes[:, [NAMES.index(name) for name in LENS]].any()
    x, y = CAMERA.grid(like=p)
    assert not any(alpha.any() for alpha in lens.deflect(p, x, y)) and not lens.converge(p, x, y).any()
    source = galaxy(USUAL)
    expected = SersicElliptic().function(x.numpy(), y.numpy(), **source).reshape(30, 2, 26, 2).mean((1, 3)) * 0.1**2
    sharp = SmoothLens(Camera(CAMERA.shape, 0.1, kernel=torch.ones(1, 1).double()), has_lens=False)
    np.testing.assert_allclose(sharp.render(p)[0].numpy() - USUAL["sky"], expected, rtol=1e-6, atol=1e-9)


def galaxy(values: dict[str, float]) -> dict[str, float]:
    """The source in lenstronomy's words."""
    shape = {"R_sersic": values["R_sersic"], "n_sersic": values["n_sersic"]}
    shape |= {"e1": values["source_e1"], "e2": values["source_e2"]}
    amplitude = values["flux"] / Sersic().total_flux(amp=1.0, **shape)
    return shape | {"amp": amplitude, "center_x": values["source_x"], "center_y": values["source_y"]}


def lenstronomy(values: dict[str, float], size: int) -> np.ndarray:
    lens = [{name: values[name] for name in ("theta_E", "e1", "e2", "center_x", "center_y")}]
    lens.append({name: values[name] for name in ("gamma1", "gamma2")})
    psf = (values["psf_fwhm"], CAMERA.psf_radius)
    image = peer.picture(size, 0.1, LensModel(["SIE", "SHEAR"]), lens, galaxy(values), *psf, supersampling=2)
    return image + values["sky"]


@pytest.mark.parametrize("case", CASES)
def test_images_are_lenstronomys(case):
    values = USUAL | CASES[case]
    for ours in (SmoothLens(Camera((30, 30), 0.1)).render, lambda p: SmoothLens(Camera((30, 30), 0.1)).linearise(p)[0]):
        assert np.abs(ours(rows(CASES[case]))[0].numpy() - lenstronomy(values, 30)).max() < 1e-9 * values["flux"]


def test_flux_is_the_flux_of_the_source():
    """Without a lens, and in a field that holds nearly all of it."""
    lens = SmoothLens(Camera((120, 120), 0.1), {"sky": 0.0}, has_lens=False)
    p = rows({"n_sersic": 1.0, "R_sersic": 0.4}, without=("sky",))
    assert lens.render(p).sum().item() == pytest.approx(USUAL["flux"], rel=2e-3)


@pytest.mark.parametrize("case", ["usual", "nearly round", "flat", "off centre"])
def test_convergence_is_half_the_divergence(case):
    lens, p, h = SmoothLens(CAMERA), rows(CASES[case]), 1e-5
    x, y = (torch.tensor(v) for v in np.random.default_rng(0).uniform(-1.4, 1.4, (2, 10, 10)))
    by_x = lens.deflect(p, x + h, y)[0] - lens.deflect(p, x - h, y)[0]
    by_y = lens.deflect(p, x, y + h)[1] - lens.deflect(p, x, y - h)[1]
    torch.testing.assert_close(lens.converge(p, x, y), (by_x + by_y) / (4 * h), rtol=1e-5, atol=1e-7)


def test_light_is_numpys_least_squares():
    rng, lens, p = np.random.default_rng(1), SmoothLens(CAMERA), rows(*(CASES[c] for c in ("usual", "flat", "sharp")))
    data = lens.render(p) + torch.tensor(rng.normal(0, 0.2, (3, *CAMERA.shape)))
    weight = torch.tensor(rng.uniform(0.5, 2, data.shape))
    lit = lens.light_up(p, data, weight)
    assert torch.equal(lit[:, :-2], p[:, :-2]) and lens.names[-2:] == ("flux", "sky")
    unit = lens.render(rows(*(CASES[c] | {"flux": 1.0, "sky": 0.0} for c in ("usual", "flat", "sharp"))))
    for i in range(3):
        root = weight[i].sqrt().flatten().numpy()
        design = np.stack([unit[i].flatten().numpy(), np.ones_like(root)], 1) * root[:, None]
        expected = np.linalg.lstsq(design, data[i].flatten().numpy() * root, rcond=None)[0]
        np.testing.assert_allclose(lit[i, -2:].numpy(), expected, rtol=1e-8)


def test_light_without_noise_is_exact_whatever_the_guess():
    lens, p = SmoothLens(CAMERA), rows({}, {"flux": 1e5, "sky": -300.0})
    dark = p.clone()
    dark[:, -2:] = torch.tensor([7.0, 1e4])
    data = lens.render(p)
    torch.testing.assert_close(lens.light_up(dark, data, torch.ones_like(data)), p, rtol=1e-9, atol=0)


def test_a_source_is_never_dark():
    """Where the best flux is below zero, a little is left, so that the image has a gradient."""
    lens, p = SmoothLens(CAMERA), rows({})
    data = 5 - lens.render(p)
    lit = lens.light_up(p, data, torch.ones_like(data))
    assert 0 < lit[0, -2] < 1e-2 and lit.isfinite().all() and lens.linearise(lit)[1].isfinite().all()


def test_a_kernel_turns_as_in_a_convolution():
    from scipy import ndimage

    point = rows({"R_sersic": 0.005, "n_sersic": 0.5, "sky": 0.0})
    plain, lopsided = (
        SmoothLens(Camera(CAMERA.shape, 0.1, kernel=k)).render(point)[0].numpy()
        for k in (torch.ones(1, 1).double(), kernel())
    )
    np.testing.assert_allclose(lopsided, ndimage.convolve(plain, kernel().numpy(), mode="nearest"), atol=1e-12)


def test_bounds_hold_what_is_usual():
    lens, p = SmoothLens(CAMERA), rows(*CASES.values())
    low, high = lens.bounds(p)
    assert ((low <= p) & (p <= high)).all()
    assert dict(zip(lens.names, high.tolist(), strict=True))["theta_E"] == BOUNDS["theta_E"][1]
    assert low[lens.names.index("psf_fwhm")].item() == pytest.approx(0.08)


def test_a_parameter_that_does_not_exist():
    with pytest.raises(ConfigError, match="a smooth lens has no 'theta'; it has theta_E, e1"):
        SmoothLens(CAMERA, {"theta": 1.0})
