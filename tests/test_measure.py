"""One image in, a mass model out: against the truth of simulated images, and what is refused."""

import json

import numpy as np
import pytest
import torch
from astropy.io import fits

from deeplense.errors import ConfigError, DataError, RunError
from deeplense.evaluate import coolest
from deeplense.lensing.critical import critical_curves
from deeplense.lensing.smooth import Camera, SmoothLens
from deeplense.measure import measure


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    """An image of a known lens, its noise map and its PSF as FITS files."""
    folder = tmp_path_factory.mktemp("observed")
    offset = np.arange(-4, 5) * 0.08
    kernel = np.exp(-(offset**2 + offset[:, None] ** 2) / (2 * 0.06**2))
    kernel /= kernel.sum()
    lens = SmoothLens(Camera((50, 50), 0.08, 2, 4, torch.from_numpy(kernel)), {"psf_fwhm": 0.1})
    truth = {"theta_E": 1.0, "e1": 0.1, "gamma1": 0.03, "source_x": 0.1, "source_y": -0.05, "R_sersic": 0.2}
    truth |= {"n_sersic": 1.2, "flux": 400.0}
    p = torch.tensor([[truth.get(name, 0.0) for name in lens.names]], dtype=torch.float64)
    image = lens.render(p)[0].numpy()
    sigma = np.full_like(image, image.max() / 40)
    image = image + sigma * np.random.default_rng(0).normal(size=image.shape)
    image[20, 20] = np.nan
    for name, part in (("image", image), ("noise", sigma), ("psf", kernel)):
        fits.writeto(folder / f"{name}.fits", part)
    return folder


def run(observed, out, **changes):
    files = {"psf": str(observed / "psf.fits"), "noise_map": observed / "noise.fits", "pixel_scale": 0.08}
    return measure(None, observed / "image.fits", out, **files | changes)


def test_a_known_lens_is_found_and_written(observed, tmp_path):
    found = run(observed, tmp_path / "lens")
    assert abs(found.values["theta_E"] - 1.0) < 5 * found.std["theta_E"] < 0.05
    assert abs(found.values["e1"] - 0.1) < 5 * found.std["e1"]
    assert found.chi2 == pytest.approx(1, abs=5 * np.sqrt(2 / 2500))
    written = json.loads((tmp_path / "lens" / "lens.json").read_text())
    sie = written["lensing_entities"][0]["mass_model"][0]
    assert sie["type"] == "SIE"
    assert sie["parameters"]["theta_E"]["point_estimate"]["value"] == found.values["theta_E"]
    with fits.open(tmp_path / "lens" / "lens.fits") as units:
        assert np.isnan(units["RESIDUAL"].data[20, 20]) and np.isnan(units["RESIDUAL"].data).sum() == 1
    assert (tmp_path / "lens" / "lens.png").stat().st_size > 10_000
    with pytest.raises(RunError, match="never overwritten"):
        run(observed, tmp_path / "lens")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"pixel_scale": None}, ConfigError, "--pixel-scale"),
        ({"pixel_scale": -1.0}, ConfigError, "above 0"),
        ({"source": "blob"}, ConfigError, "sersic or pixels"),
        ({"mask_radius": 9.0}, DataError, "too few pixels"),
        ({"psf": None, "lens_light": True}, ConfigError, "--psf"),
        ({"psf": "nowhere.fits"}, ConfigError, "no PSF file"),
        ({"noise_map": "psf"}, DataError, "shape"),
    ],
)
def test_what_cannot_be_fitted_is_refused_and_nothing_is_written(observed, tmp_path, changes, error, words):
    if changes.get("noise_map") == "psf":
        changes = {"noise_map": observed / "psf.fits"}
    with pytest.raises(error, match=words):
        run(observed, tmp_path / "lens", **changes)
    assert not (tmp_path / "lens").exists()


def test_angles_of_the_standard_count_from_the_y_axis():
    assert coolest.position_angle(np.pi / 2) == pytest.approx(0)
    assert coolest.position_angle(0.0) == pytest.approx(90)
    assert coolest.position_angle(np.radians(135)) == pytest.approx(45)


def test_the_critical_curve_of_a_round_lens_is_its_einstein_ring_and_the_caustic_a_point():
    lens = SmoothLens(Camera((10, 10), 0.1), dict.fromkeys(("e1", "e2"), 0.0))
    p = torch.tensor([{"theta_E": 1.3, "R_sersic": 1.0, "n_sersic": 1.0}.get(name, 0.0) for name in lens.names])
    critical, caustics = critical_curves(lens, p, 3.0)
    assert len(critical) == 1
    np.testing.assert_allclose(np.hypot(*critical[0].T), 1.3, atol=0.01)
    np.testing.assert_allclose(caustics[0], 0, atol=0.02)
