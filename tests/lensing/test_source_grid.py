"""Sources on a grid: against direct linear algebra and the density of a Gaussian, and on simulated lenses."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from scipy import ndimage, optimize, stats

from deeplense.errors import ConfigError
from deeplense.lensing.light import sersic
from deeplense.lensing.observe import FWHM_TO_SIGMA, gaussian_kernel
from deeplense.lensing.smooth import Camera, SmoothLens
from deeplense.lensing.source_grid import Frame, Regularisation, SourceGrid, refine

TRUTH = {
    "theta_E": 1.0, "e1": 0.08, "e2": -0.05, "gamma1": 0.03, "gamma2": 0.02, "center_x": 0.02, "center_y": -0.01,
    "source_x": 0.09, "source_y": -0.06, "R_sersic": 0.2, "n_sersic": 0.5, "source_e1": 0.1, "source_e2": 0.05,
    "psf_fwhm": 0.1, "flux": 150.0, "sky": 0.0,
}  # fmt: skip
NUM_LENS = 7


def pixelated_psf(pixel_scale: float, fwhm: float = 0.1, radius: int = 4) -> np.ndarray:
    row = gaussian_kernel(torch.tensor([fwhm * FWHM_TO_SIGMA / pixel_scale]).double(), radius)[0].numpy()
    return np.outer(row, row)


class Sky:
    """A simulated lens of 50 x 50 pixels, in float64."""

    def __init__(self, size: int = 50, pixel_scale: float = 0.06, supersampling: int = 3):
        self.camera = Camera((size, size), pixel_scale, supersampling)
        self.lens = SmoothLens(self.camera)
        self.p = torch.tensor([[TRUTH[name] for name in self.lens.names]]).double()
        self.theta = self.camera.grid(like=self.p)
        self.image = self.lens.render(self.p)[0].numpy()
        self.kernel = pixelated_psf(pixel_scale)

    def trace(self, lens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = self.p.clone()
        p[0, :NUM_LENS] = torch.from_numpy(lens)
        alpha = self.lens.deflect(p, *self.theta)
        return tuple((t - a[0]).numpy() for t, a in zip(self.theta, alpha, strict=True))

    def frame(self, noise: float, seed: int = 0, outer: float = 1.45, sigma: float | None = None) -> Frame:
        x, y = (t.numpy() for t in self.camera.grid(1, like=self.p))
        counts = np.hypot(x, y) < outer
        noisy = self.image + noise * np.random.default_rng(seed).standard_normal(self.image.shape)
        return Frame(noisy, np.where(counts, sigma or noise, np.inf), self.kernel, self.camera.supersampling)


SKY = Sky()
LENS = np.array([TRUTH[name] for name in SKY.lens.names[:NUM_LENS]])


def small(seed: int = 0) -> tuple[Frame, np.ndarray, np.ndarray, SourceGrid]:
    """A random image of 12 x 11 pixels with masked ones, behind rays that go anywhere."""
    rng = np.random.default_rng(seed)
    sigma = rng.uniform(0.5, 2, (12, 11))
    sigma[rng.random(sigma.shape) < 0.2] = np.inf
    kernel = rng.random((5, 5))
    beta = rng.uniform(-1, 1, (2, 24, 22))
    frame = Frame(rng.normal(size=(12, 11)), sigma, kernel / kernel.sum(), 2)
    return frame, beta[0], beta[1], SourceGrid(0.05, -0.1, 1.6, 7)


def brute_response(frame: Frame, beta_x: np.ndarray, beta_y: np.ndarray, grid: SourceGrid) -> np.ndarray:
    """Each pixel of the source alone, lensed by scipy's interpolation and blurred by scipy's convolution."""
    n, s = grid.num_pix, frame.supersampling
    at = [(b - c) / grid.spacing + (n - 1) / 2 for b, c in ((beta_y, grid.center_y), (beta_x, grid.center_x))]
    columns = []
    for one in np.eye(n * n).reshape(-1, n, n):
        rays = ndimage.map_coordinates(one, at, order=1, mode="constant", prefilter=False)
        rays[(np.minimum(*at) < 0) | (np.maximum(*at) > n - 1)] = 0
        binned = rays.reshape(rays.shape[0] // s, s, rays.shape[1] // s, s).mean((1, 3))
        columns.append(ndimage.convolve(binned, frame.kernel, mode="nearest").ravel())
    used = np.isfinite(frame.sigma).ravel()
    return np.stack(columns, 1)[used] / frame.sigma.ravel()[used, None]


def test_response_is_interpolation_binning_and_convolution():
    frame, beta_x, beta_y, grid = small()
    expected = brute_response(frame, beta_x, beta_y, grid)
    assert frame.response(grid, beta_x, beta_y) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["curvature", "gradient"])
def test_regularisation_sums_squared_differences(kind):
    source = np.random.default_rng(1).normal(size=(6, 6))
    zero_around = np.pad(source, 1)
    if kind == "gradient":
        expected = sum(np.square(np.diff(zero_around[cut], axis=a)).sum() for a, cut in INSIDE)
    else:
        second = (np.diff(zero_around, 2, axis=0)[:, 1:-1], np.diff(zero_around, 2, axis=1)[1:-1])
        expected = sum(np.square(d).sum() for d in second)
    prior = Regularisation(kind, 6)
    assert source.ravel() @ prior.matrix @ source.ravel() == pytest.approx(expected)
    assert prior.log_det == pytest.approx(np.linalg.slogdet(prior.matrix)[1])
    assert prior.root.T @ prior.root == pytest.approx(prior.matrix)


INSIDE = ((0, np.s_[:, 1:-1]), (1, np.s_[1:-1]))


@pytest.mark.parametrize("kind", ["curvature", "gradient"])
@pytest.mark.parametrize("strength", [0.01, 3.0])
def test_solution_and_evidence_are_those_of_a_gaussian(kind, strength):
    frame, beta_x, beta_y, grid = small(2)
    response, prior = brute_response(frame, beta_x, beta_y, grid), Regularisation(kind, 7)
    used = np.isfinite(frame.sigma)
    data = (frame.data / frame.sigma)[used]
    root = np.sqrt(strength) * np.linalg.cholesky(prior.matrix).T
    stacked = np.vstack([response, root])
    source = np.linalg.lstsq(stacked, np.concatenate([data, np.zeros(49)]), rcond=None)[0]
    found = frame.solve(beta_x, beta_y, grid, strength, kind)
    assert found.source.ravel() == pytest.approx(source, abs=1e-9)
    assert found.model[used] / frame.sigma[used] == pytest.approx(response @ source, abs=1e-9)
    assert found.chi2 == pytest.approx(np.square(data - response @ source).sum())
    # The source is a Gaussian of covariance (strength C)^-1, and so is the image, with the noise added.
    scatter = response @ np.linalg.inv(strength * prior.matrix) @ response.T + np.eye(len(data))
    scatter *= frame.sigma[used][:, None] * frame.sigma[used]
    density = stats.multivariate_normal(cov=scatter, allow_singular=False).logpdf(frame.data[used])
    assert found.log_evidence == pytest.approx(density, rel=1e-8)
    # The trace of the matrix that takes the data to the model.
    smoother = response @ np.linalg.inv(stacked.T @ stacked) @ response.T
    assert found.num_effective == pytest.approx(np.trace(smoother), rel=1e-8)


def test_strength_is_that_of_most_evidence():
    frame = SKY.frame(0.3)
    rays = SKY.trace(LENS)
    grid = frame.grid(*rays, 20)
    found = frame.solve(*rays, grid)
    others = [frame.solve(*rays, grid, found.strength * factor).log_evidence for factor in (0.3, 0.8, 1.25, 3.0)]
    assert found.log_evidence > max(others)


def test_a_source_without_noise_comes_back():
    frame = SKY.frame(0.0, sigma=0.01)
    found = frame.solve(*SKY.trace(LENS), frame.grid(*SKY.trace(LENS), 30))
    truth = true_source(found.grid)
    # Straight lines between values h = 0.07 arcsec apart miss a Gaussian's top by h^2 / (8 sigma^2), about 2 %.
    assert np.abs(found.model - SKY.image)[np.isfinite(frame.sigma)].max() < 0.02 * SKY.image.max()
    assert np.abs(found.source - truth).max() < 0.05 * truth.max()
    assert found.source.sum() == pytest.approx(truth.sum(), rel=0.02)


def true_source(grid: SourceGrid) -> np.ndarray:
    """The Sersic profile at the grid's values, each the mean over its pixel."""
    fine = 9
    left, _, bottom, _ = grid.extent
    n, step = grid.num_pix * fine, grid.spacing / fine
    x, y = (low - grid.spacing / 2 + (np.arange(n) + 0.5) * step for low in (left, bottom))
    theta = torch.meshgrid(torch.from_numpy(y), torch.from_numpy(x), indexing="ij")
    amplitude, R, n_sersic, *shape = SKY.lens._profile(SKY.lens.values(SKY.p))
    values = sersic(theta[1], theta[0], amplitude, R, n_sersic, *shape)[0].numpy()
    return values.reshape(grid.num_pix, fine, grid.num_pix, fine).mean((1, 3))


def test_noise_is_left_in_the_residual():
    chi2, source = [], []
    for seed in range(4):
        frame = SKY.frame(0.15, seed)
        found = frame.solve(*SKY.trace(LENS))
        chi2.append(found.chi2 / (found.num_data - found.num_effective))
        source.append(found.source)
        assert 5 < found.num_effective < 0.5 * found.num_data
    # The scatter of chi^2 / N over four images of 1800 pixels is 1.7 %.
    assert np.mean(chi2) == pytest.approx(1, abs=0.06)
    assert np.abs(np.mean(source, 0) - true_source(found.grid)).mean() < 0.02 * true_source(found.grid).max()


def test_evidence_knows_the_einstein_radius():
    frame = SKY.frame(0.15)

    def worse(theta_E: float) -> float:
        rays = SKY.trace(np.array([theta_E, *LENS[1:]]))
        return -frame.solve(*rays, frame.grid(*rays, 20)).log_evidence

    found = optimize.minimize_scalar(worse, bounds=(0.9, 1.1), method="bounded", options={"xatol": 1e-3}).x
    assert found == pytest.approx(1.0, abs=0.01)


def test_without_a_lens_the_image_is_not_explained():
    frame = SKY.frame(0.15)
    lensed = frame.solve(*SKY.trace(LENS))
    theta = tuple(t.numpy() for t in SKY.theta)
    # As a picture of itself anything fits: the evidence must tell.
    plain = frame.solve(*theta, frame.grid(*theta, 36))
    round_lens = frame.solve(*SKY.trace(np.array([0.6, 0, 0, 0, 0, 0, 0])))
    assert lensed.log_evidence > plain.log_evidence + 100
    assert lensed.log_evidence > round_lens.log_evidence + 100 and round_lens.chi2 > 1.3 * lensed.chi2


def test_refinement_finds_the_lens():
    frame = SKY.frame(0.15, seed=5)
    scale = np.array([0.005, 0.01, 0.01, 0.01, 0.01, 0.005, 0.005])
    start = LENS + scale * np.array([3, -2, 2, 2, -2, 1, -1])
    grid = frame.grid(*SKY.trace(start), 20)
    found = refine(frame, SKY.trace, start, scale, (LENS - 0.3, LENS + 0.3), grid)
    std = np.sqrt(np.diag(found.covariance))
    assert np.abs(found.parameters - LENS)[0] < 0.01
    assert (np.abs(found.parameters - LENS) < 4 * std + 1e-3).all()
    assert found.reconstruction.log_evidence > frame.solve(*SKY.trace(start), grid).log_evidence


def test_a_solution_takes_less_than_a_second():
    frame = SKY.frame(0.15)
    frame.solve(*SKY.trace(LENS), strength=1.0)
    began = time.process_time()
    frame.system(frame.grid(*SKY.trace(LENS)), *SKY.trace(LENS)).residuals(1.0)
    assert time.process_time() - began < 1


def test_what_masked_pixels_say_is_ignored():
    frame = SKY.frame(0.15)
    data = frame.data.copy()
    data[np.isinf(frame.sigma)] = np.nan
    rays, grid = SKY.trace(LENS), frame.grid(*SKY.trace(LENS), 12)
    other = Frame(data, frame.sigma, frame.kernel, frame.supersampling).solve(*rays, grid, 1.0)
    assert other.source == pytest.approx(frame.solve(*rays, grid, 1.0).source)
    assert np.isfinite(other.model).all() and np.isfinite(other.residual).all()


def test_refusals():
    ok = np.ones((4, 4))
    psf = np.ones((1, 1))
    with pytest.raises(ConfigError, match="above 0"):
        Frame(ok, 0 * ok, psf)
    with pytest.raises(ConfigError, match="no pixel"):
        Frame(ok, ok * np.inf, psf)
    with pytest.raises(ConfigError, match="odd square"):
        Frame(ok, ok, np.ones((2, 2)))
    with pytest.raises(ConfigError, match="curvature or gradient"):
        Regularisation("entropy", 5)
    with pytest.raises(ConfigError, match="4 or more"):
        SourceGrid.around(np.zeros(3), np.zeros(3), 2)
