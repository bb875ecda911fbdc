"""One contract for every shipped preset and fidelity: images, truth, lenstronomy's picture, and noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

import peer
from deeplense.errors import ConfigError
from deeplense.simulate import preset as presets
from deeplense.simulate.generate import BLOCK, Simulator
from deeplense.simulate.preset import World
from deeplense.simulate.preview import write_preview

SHIPPED = [(name, fidelity) for name in presets.names() for fidelity in presets.load(name).fidelities]
LENSES = [s for s in SHIPPED if isinstance(presets.load(s[0]).world(s[1]), World)]
FEW = 12
CLASSES = {"model-1", "model-2", "model-3"}


@pytest.fixture(scope="module", params=SHIPPED, ids="-".join)
def made(request):
    """A simulator and its first block."""
    simulator = Simulator(*request.param, seed=4)
    return simulator, simulator.block(0)


def test_images_are_finite_labelled_and_told_about(made):
    simulator, block = made
    assert block.images.shape == (BLOCK, *simulator.shape) and np.isfinite(block.images).all()
    assert block.classes == simulator.classes and set(np.unique(block.label)) <= set(range(len(block.classes)))
    assert block.params.num_rows == BLOCK and block.pixel_scale == simulator.preset.pixel_scale
    assert not set(block.params.column_names) & {"name", "label", "image"}
    assert (block.params["snr"].to_numpy() > 0).all()
    assert len(np.unique(block.images.reshape(BLOCK, -1), axis=0)) == BLOCK


def test_a_preset_is_the_same_again_and_in_any_order(made):
    simulator, block = made
    again = Simulator(**simulator.recipe())
    index = np.array([31, 2, 40])
    np.testing.assert_array_equal(again.images(index).images, block.images[index])
    assert again.provenance() == simulator.provenance()
    assert again.truth(31)["theta_E"] == block.params["theta_E"][31].as_py()


def test_a_preview_is_drawn(made, tmp_path):
    simulator, _ = made
    path = write_preview(simulator, tmp_path / "new" / "preview.png")
    assert path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size > 20_000
    with pytest.raises(ConfigError, match=r"\.png, \.pdf or \.svg"):
        write_preview(simulator, tmp_path / "preview.jpeg2")


@pytest.mark.parametrize("num", [FEW, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "fidelity"), LENSES, ids=map("-".join, LENSES))
def test_scenes_are_those_of_lenstronomy(name, fidelity, num):
    simulator = Simulator(name, fidelity, seed=9)
    index = np.arange(num)
    single, double = (simulator.noiseless(index, dtype)[:, 0] for dtype in (torch.float32, torch.float64))
    for i in index:
        theirs = peer.scene(simulator.truth(int(i)), simulator)
        assert np.abs(single[i] - theirs).max() < 1e-4 * theirs.max()
        assert np.abs(double[i] - theirs).max() < 1e-8 * theirs.max()


def test_noise_has_the_mean_and_variance_of_the_electrons(made):
    simulator, _ = made
    exposure = simulator.exposure
    if exposure.noise != "photons" or exposure.scaling != "electrons":
        pytest.skip("these images are not in electrons")
    index = range(BLOCK)
    images = simulator.images(index)
    keep = np.ones(len(index), dtype=bool)
    if "artefact" in images.params.column_names:
        # Spikes of stars and faults of the detector are no noise.
        star = images.params[f"star_magnitude_{exposure.bands[-1]}"].to_pylist()
        keep = np.array(
            [a == "" and s is None for a, s in zip(images.params["artefact"].to_pylist(), star, strict=True)]
        )
    seconds = images.params["exposure_time"].to_numpy()[:, None, None]
    mean = (simulator.noiseless(index)[:, 0].astype(float) * seconds)[keep]
    variance = mean + exposure.sky[0] * seconds[keep] + exposure.read_variance[0]
    residual = images.images[keep, 0] - mean
    expected = variance.mean()
    assert abs(residual.mean()) < 4 * np.sqrt(expected / residual.size)
    # The variance of a variance of Gaussian noise; brighter pixels make it less sure.
    assert (residual**2).mean() == pytest.approx(expected, rel=0.01)


def test_noise_twice_is_that_of_two_poisson_draws():
    """Model I as published: Poisson counts of a mean that is noisy already; sky pixels against numpy's own draws."""
    simulator = Simulator("model-1", "published", seed=2)
    block = simulator.block(0)
    assert (block.images == np.floor(block.images)).all() and (block.images >= 0).all()
    seconds = block.params["exposure_time"].to_numpy()
    rng = np.random.default_rng(0)
    for image, time in zip(block.images[:8, 0], seconds[:8], strict=True):
        sky = image[:15].ravel()
        theirs = rng.poisson(np.clip(rng.normal(0, 0.01 * time, 200_000), 0, None))
        spread = theirs.std()
        assert sky.mean() == pytest.approx(theirs.mean(), abs=5 * spread / np.sqrt(sky.size))
        assert sky.std() == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_models_know_the_axion_and_both_names_of_the_classes(name):
    from deeplense.data.classes import order

    simulator = Simulator(name, "physical", seed=1)
    assert simulator.classes == ("no_sub", "cdm", "axion")
    assert list(order(["axion", "cdm", "no_sub"])) == ["no_sub", "cdm", "axion"]
    table = simulator.block(0).params
    mass = np.array([np.nan if m is None else m for m in table["log10_m_axion"].to_pylist()])
    assert np.isfinite(mass).tolist() == [i % 3 == 2 for i in range(BLOCK)]
    assert np.nanmin(mass) >= -24 and np.nanmax(mass) <= -22
    # Twice the de Broglie wavelength, 0.06" / (2 m / 1e-22 eV).
    length = np.hypot(*(table[f"vortex_{a}2"].to_numpy() - table[f"vortex_{a}1"].to_numpy() for a in "xy"))
    np.testing.assert_allclose(length[2::3], 2 * 0.06 / (2 * 10 ** (mass[2::3] + 22)), rtol=1e-9)


def test_published_models_are_as_coded():
    """Facts of DeepLenseSim: one macro lens for all, 25 point masses with 1e6 to 1e10 of its 1e12 Msun, slope -0.9."""
    for name, theta_E in (("model-1", 1.28149), ("model-2", 0.812868), ("model-3", 0.812868)):
        simulator = Simulator(name, "published", seed=3)
        rows = [simulator.truth(i) for i in range(1, 600, 3)]
        assert {row["theta_E"] for row in rows} == {theta_E} and {row["n_sub"] for row in rows} == {25}
        assert all(row["e1"] == pytest.approx(0.1, abs=1e-7) for row in rows)
        # A deflection shrunk by f is a mass of f times as many shares of a lens that is shrunk by f^2.
        shrunk = theta_E / 1.28149
        mass = np.concatenate([row["sub_theta_E"] for row in rows]) ** 2 / theta_E**2 * shrunk * 1e12
        assert mass.min() >= 1e6 and mass.max() <= 1.001e10
        # p(m) ~ m^-0.9: m^0.1 is uniform.
        part = (mass**0.1 - 1e6**0.1) / (1e10**0.1 - 1e6**0.1)
        assert np.abs(np.sort(part) - np.linspace(0, 1, len(part))).max() < 1.6 / np.sqrt(len(part))
        radius = np.concatenate([np.hypot(row["sub_x"], row["sub_y"]) for row in rows])
        assert radius.min() >= 0.25 and radius.max() <= 2.0


def test_settings_change_a_preset_and_are_recorded():
    few = Simulator("hsc-gri", settings={"positive_fraction": 0.0, "kinds": {"star": 1.0}})
    block = few.block(0)
    assert not block.label.any() and set(block.params["kind"].to_pylist()) == {"star"}
    assert few.provenance()["settings"]["positive_fraction"] == 0.0
    assert few.provenance()["preset_hash"] != Simulator("hsc-gri").provenance()["preset_hash"]
    small = Simulator("common-test", settings={"num_pix": 16, "pixel_scale": 0.3, "lens.theta_E": 1.1})
    assert small.shape == (1, 16, 16) and small.truth(0)["theta_E"] == 1.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positive_fractoin": 0.1}, r"positive_fractoin.*did you mean 'positive_fraction'"),
        ({"lens.z": {"unifrom": [0.2, 0.5]}}, r"lens\.z\.unifrom.*did you mean 'uniform'"),
        ({"source.arms.pich": 0.3}, r"source\.arms\.pich.*did you mean 'pitch'"),
        ({"zebra": 1}, r"zebra.*allowed: about, blue"),
        ({"positive_fraction": 1.5}, "share from 0 to 1"),
        ({"kindss.star": 1}, "did you mean 'kinds'"),
        ({"kinds.galaxy": 1}, "elliptical"),
        ({"observation.bands": ["u"]}, "bands"),
    ],
)
def test_settings_that_do_not_exist_are_named(settings, message):
    with pytest.raises(ConfigError, match=message) as raised:
        Simulator("hsc-gri", settings=settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "key", "meant"),
    [
        ("dark-matter", "vort.sigma_sb", "sigma_sub"),
        ("dark-matter", "line_of_sight.detla", "delta"),
        ("model-1", "vort.lenght", "length"),
        ("model-1", "sphere.halfmode_mass", "half_mode_mass"),
    ],
)
def test_keys_of_substructure_name_the_nearest_of_their_own_table(name, key, meant):
    with pytest.raises(ConfigError, match=rf"{key}: there is no such key; did you mean '{meant}'\?$"):
        Simulator(name, settings={key: 1.0})


def test_a_preset_of_ones_own(tmp_path):
    text = (presets._folder() / "model-2.toml").read_text().replace("num_pix = 64", "num_pix = 20")
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert Simulator(str(path)).shape == (1, 20, 20)
    path.write_text(text + "\nfoo = 3\n")
    with pytest.raises(ConfigError, match=r"mine\.toml.*foo"):
        Simulator(str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        Simulator(str(tmp_path / "none.toml"))


def test_bands_are_blurred_and_exposed_as_the_card_says():
    """hsc-gri without scaling: the sky noise of each band, and a star's image, which is the PSF."""
    settings = {"observation.scaling": "electrons", "positive_fraction": 0.0, "kinds": {"star": 1.0}}
    settings |= {"neighbours.number": 0, "nuisances.artefact_fraction": 0.0, "star.magnitude": 20.0}
    simulator = Simulator("hsc-gri", seed=1, settings=settings)
    exposure, block = simulator.exposure, simulator.block(0)
    for channel, band in enumerate(exposure.bands):
        time = block.params[f"exposure_time_{band}"].to_numpy()
        corner = block.images[:, channel, :10, :10]
        expected = exposure.sky[channel] * time + exposure.read_variance[channel]
        assert (corner**2).mean((1, 2)).mean() == pytest.approx(expected.mean(), rel=0.05)
        fwhm = block.params[f"psf_fwhm_{band}"].to_numpy() / 0.168
        for image, width in zip(simulator.noiseless(range(4))[:, channel], fwhm, strict=False):
            # Pixels of a star's image above half its peak: a disc of one FWHM across, and the star's own pixel.
            fine = ndimage.zoom(image.astype(float), 4, order=3)
            area = (fine > fine.max() / 2).sum() / 16
            assert 2 * np.sqrt(area / np.pi) == pytest.approx(np.hypot(width, 1), rel=0.12)
