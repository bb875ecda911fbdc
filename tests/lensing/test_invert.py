"""Lenses of simulated images found again: chi^2, pulls and controls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from deeplense.config import PhysicsConfig
from deeplense.data.module import param_values
from deeplense.lensing.invert import Inversion, evaluate, invert
from deeplense.lensing.noise import corners
from deeplense.lensing.smooth import Camera, SmoothLens
from deeplense.simulate.stream import simulated_set
from deeplense.tasks.inversion import PARAMS
from deeplense.tasks.telescope import telescope_of

NUM = 36


class Lenses:
    """Simulated lenses without substructure, with their truth and a first guess near it."""

    def __init__(self) -> None:
        whole = simulated_set("common-test", "physical", 11, 3 * NUM)
        chosen = whole.select(np.flatnonzero(whole.label == whole.classes.index("no")))
        self.telescope = telescope_of(whole, PhysicsConfig())
        self.truth = torch.from_numpy(param_values(chosen, PARAMS))
        images = torch.from_numpy(chosen.images)[:, 0]
        self.scatter = corners(images)[1]
        self.images = images[:, 25:125, 25:125].contiguous()
        self.noise = self.telescope.noise
        rng = torch.Generator().manual_seed(0)
        moved = 0.05 * self.truth.std(0) * torch.randn(self.truth.shape, generator=rng)
        self.start = torch.nn.functional.pad(self.truth + moved, (0, 2))
        self.camera = Camera((100, 100), 0.05, self.telescope.supersampling, self.telescope.psf_radius)

    def found(self, lens: SmoothLens, steps: int = 12) -> Inversion:
        return invert(lens, self.images, self.start, self.noise, self.scatter, steps)


@pytest.fixture(scope="module")
def lenses():
    return Lenses()


@pytest.fixture(scope="module")
def found(lenses):
    return lenses.found(SmoothLens(lenses.camera))


def test_the_telescope_is_that_of_the_preset(lenses):
    """One orbit of ACS, as its handbook says: 22.2 mag of sky, 4.2 electrons of read noise, 4 exposures of 550 s."""
    sky = 10 ** (-0.4 * (22.2 - 25.94)) * 0.05**2 * 4 * 550
    assert lenses.noise.is_electrons and lenses.telescope.pixel_scale == 0.05
    assert lenses.noise.background_variance == pytest.approx(sky + 4 * 4.2**2, rel=1e-6)
    assert lenses.scatter.mean().item() == pytest.approx(lenses.noise.background_variance**0.5, rel=0.05)


def test_chi2_is_one(lenses, found):
    assert len(found.chi2) == NUM
    assert found.chi2.mean().item() == pytest.approx(1, abs=0.05)
    # The noise is known: no image is beyond what chance allows.
    low, high = chi2.ppf([1e-5, 1 - 1e-5], 100**2 - 16) / 100**2
    assert found.chi2.max() < high * 1.02 and found.chi2.min() > low * 0.98


def test_lenses_are_where_they_were(lenses, found):
    error = found.parameters[:, :-2] - lenses.truth
    assert (error[:, 0].abs() / lenses.truth[:, 0]).max() < 0.01
    before = (lenses.start[:, :-2] - lenses.truth).square().mean(0).sqrt()
    after = error.square().mean(0).sqrt()
    better = {name for name, a, b in zip(PARAMS, after, before, strict=True) if a < b / 2}
    assert {"theta_E", "e1", "e2", "source_x", "source_y"} <= better


def test_errors_are_what_the_covariance_says(lenses, found):
    sigma = found.covariance.diagonal(dim1=1, dim2=2)[:, :-2].sqrt()
    pull = ((found.parameters[:, :-2] - lenses.truth) / sigma).double()
    # The sum of squares of 36 pulls is a chi^2 of 36 degrees of freedom.
    low, high = (chi2.ppf([1e-4, 1 - 1e-4], NUM) / NUM) ** 0.5
    rms = pull.square().mean(0).sqrt()
    assert low < rms[0] < high
    assert low < rms.median() < high


def test_model_residual_and_image_fit_together(lenses, found):
    signal = found.model - found.parameters[:, -1, None, None]
    sigma = lenses.noise.sigma(signal, lenses.scatter)
    torch.testing.assert_close(found.residual, (lenses.images - found.model) / sigma, rtol=0.02, atol=0.02)
    torch.testing.assert_close(found.chi2, found.residual.square().mean((1, 2)), rtol=1e-4, atol=0)
    again = SmoothLens(lenses.camera).render(found.parameters)
    assert float((found.model - again).abs().max()) < 1e-3 * float(again.max())


def test_without_deflection_nothing_fits(lenses, found):
    unlensed = lenses.found(SmoothLens(lenses.camera, has_lens=False))
    assert (unlensed.chi2 > 10 * found.chi2).float().mean() > 0.9
    assert unlensed.chi2.median() > 10 * found.chi2.median()
    assert torch.equal(unlensed.parameters[:, 0], lenses.start[:, 0].clamp(0.02, 20))
    assert (unlensed.covariance[:, 0, 0] == torch.inf).all()


def test_chunks_are_told_and_change_nothing(lenses, found):
    told = []
    part = slice(6, 17)
    again = invert(
        SmoothLens(lenses.camera),
        lenses.images[part],
        lenses.start[part],
        lenses.noise,
        lenses.scatter[part],
        on_chunk=told.append,
    )
    assert sum(told) == 11 and len(told) == 2
    torch.testing.assert_close(again.chi2, found.chi2[part], rtol=1e-4, atol=0)


def test_a_guess_is_judged_as_it_is(lenses):
    lens = SmoothLens(lenses.camera)
    exact = torch.nn.functional.pad(lenses.truth, (0, 2))
    variance = torch.eye(len(PARAMS)).expand(NUM, -1, -1) * 4.0
    truth = evaluate(lens, lenses.images, exact, variance, lenses.noise, lenses.scatter)
    guess = evaluate(lens, lenses.images, lenses.start, variance, lenses.noise, lenses.scatter)
    assert truth.chi2.mean().item() == pytest.approx(1, abs=0.05) and guess.chi2.mean() > truth.chi2.mean() + 0.1
    assert torch.equal(truth.parameters[:, :-2], lenses.truth)
    assert (truth.parameters[:, -2] > 0).all()
    assert torch.equal(truth.covariance[0].diagonal()[:-2], torch.full((len(PARAMS),), 4.0).double())
    none = lenses.found(lens, steps=0)
    torch.testing.assert_close(none.parameters, guess.parameters, rtol=0.05, atol=1e-2)
    torch.testing.assert_close(none.chi2, guess.chi2, rtol=0.02, atol=0)


def test_what_is_known_is_left_alone(lenses):
    fixed = {"gamma1": 0.0, "gamma2": 0.0}
    lens = SmoothLens(lenses.camera, fixed)
    keep = [i for i, name in enumerate((*PARAMS, "flux", "sky")) if name not in fixed]
    found = invert(lens, lenses.images[:8], lenses.start[:8, keep], lenses.noise, lenses.scatter[:8])
    assert found.parameters.shape == (8, len(keep)) and found.covariance.shape == (8, len(keep), len(keep))
    assert found.chi2.isfinite().all()


def test_a_pixelated_psf_is_not_lost_where_code_would_be_compiled(lenses):
    kernel = torch.zeros(5, 5)
    kernel[2, 1:4] = 1 / 3
    lens = SmoothLens(Camera((100, 100), 0.05, 1, kernel=kernel), {"psf_fwhm": 0.1})
    start = torch.cat([lenses.start[:2, :-3], lenses.start[:2, -2:]], 1)
    how = (lens, lenses.images[:2], start, lenses.noise, lenses.scatter[:2], 2)
    torch.testing.assert_close(invert(*how, compile=True).model, invert(*how).model)
