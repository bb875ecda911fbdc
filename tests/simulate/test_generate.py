"""Images: reproducible to the bit, complete in their truth, and as noisy as the electrons say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import peer
from deeplense.errors import ConfigError
from deeplense.lensing.cosmology import angular_diameter_distances, theta_E_to_mass
from deeplense.simulate import preset as presets
from deeplense.simulate.dataset import write_set
from deeplense.simulate.generate import BLOCK, Simulator, concatenate
from deeplense.simulate.render import render
from deeplense.simulate.scene import Scenes
from deeplense.simulate.stream import simulated_set

FIDELITIES = ("published", "physical")
TRUTH = {
    *("theta_E", "theta_E_macro", "e1", "e2", "gamma1", "gamma2", "center_x", "center_y", "z_lens", "z_source"),
    *("source_x", "source_y", "source_e1", "source_e2", "R_sersic", "n_sersic", "magnitude", "psf_fwhm", "snr"),
    *("f_sub", "n_sub", "sub_x", "sub_y", "sub_theta_E", "M_sub", "sub_alpha_Rs", "sub_Rs", "sub_r_trunc"),
    *("a_3", "phi_3", "a_4", "phi_4", "exposure_time", "half_mode_mass", "log10_m_axion"),
    *("vortex_theta_E", "vortex_x1", "vortex_y1", "vortex_x2", "vortex_y2", "vortex_mass"),
}


@pytest.fixture(scope="module", params=FIDELITIES)
def made(request):
    """A simulator and its second block of images."""
    simulator = Simulator("common-test", request.param, seed=5)
    return simulator, simulator.block(1)


def small(fidelity: str = "physical", seed: int = 0, **options) -> Simulator:
    """The same scenes on 16 coarse pixels: for what does not depend on the pictures."""
    preset = presets.load("common-test").model_copy(update={"num_pix": 16, "pixel_scale": 0.3})
    return Simulator(preset, fidelity, seed, **options)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_image_is_the_same_alone(made, threads):
    simulator, block = made
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        alone = Simulator("common-test", simulator.fidelity, seed=5).images([BLOCK + 17])
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(alone.images[0], block.images[17])
    assert alone.params.equals(block.params.slice(17, 1)) and list(alone.name) == [block.name[17]]


def test_an_image_is_the_same_in_any_order_and_batch(made):
    simulator, block = made
    index = np.array([BLOCK + 40, 3, BLOCK + 2, BLOCK + 40])
    mixed = simulator.images(index)
    np.testing.assert_array_equal(mixed.images[[0, 2, 3]], block.images[[40, 2, 40]])
    assert list(mixed.name) == [f"{i:08d}" for i in index]
    assert mixed.label.tolist() == (index % 3).tolist()


def test_an_image_is_the_same_in_any_shard(made):
    simulator, block = made
    parts = list(simulator.stream(BLOCK - 5, BLOCK + 20))
    assert [len(p) for p in parts] == [5, 20]
    np.testing.assert_array_equal(parts[1].images, block.images[:20])
    (middle,) = simulator.stream(BLOCK + 7, BLOCK + 9)
    np.testing.assert_array_equal(middle.images, block.images[7:9])
    np.testing.assert_array_equal(concatenate(parts).images[5:], block.images[:20])


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, BLOCK), (10, 3 * BLOCK), (BLOCK - 1, BLOCK + 1), (7, 7)])
def test_stream_is_every_image_once_in_order(start, stop):
    parts = list(small("published").stream(start, stop))
    assert [n for p in parts for n in p.name] == [f"{i:08d}" for i in range(start, stop)]


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_every_image_is_another_one(fidelity):
    sets = [small(fidelity, seed).block(number) for seed, number in ((0, 0), (0, 1), (1, 0))]
    sets += [small(fidelity, 0, strength=2.0).block(0)]
    images = np.concatenate([s.images for s in sets[:3]])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == 3 * BLOCK
    # Strength changes substructure and nothing else, noise included.
    is_same = (sets[0].images == sets[3].images).all((1, 2, 3))
    assert is_same[sets[0].label == 0].all() and not is_same[sets[0].label != 0].any()


def test_classes_take_turns(made):
    _, block = made
    assert block.classes == ("no", "sphere", "vort") and set(block.class_counts().values()) == {BLOCK // 3}
    assert block.label.tolist() == [i % 3 for i in range(BLOCK, 2 * BLOCK)]
    has = {name: np.array(block.params[name].to_pylist()) > 0 for name in ("n_sub", "vortex_theta_E")}
    assert has["n_sub"].tolist() == (block.label == 1).tolist()
    assert has["vortex_theta_E"].tolist() == (block.label == 2).tolist()


def test_images_are_finite_and_scaled_as_the_preset_says(made):
    simulator, block = made
    assert block.images.shape == (BLOCK, 1, 150, 150) == (BLOCK, *simulator.shape) and block.pixel_scale == 0.05
    assert np.isfinite(block.images).all()
    low, high = block.images.min((1, 2, 3)), block.images.max((1, 2, 3))
    if simulator.fidelity == "published":
        assert (low == 0).all() and (high == 1).all()
    else:
        # Read-out noise: negative pixels and no whole numbers; the sky is subtracted.
        assert (low < 0).all() and abs(np.median(block.images[:, 0, :10, :10])) < 5


def test_provenance_is_enough_to_make_the_set_again(made):
    _, block = made
    given = block.provenance
    again = Simulator(given["preset"], given["fidelity"], given["seed"], given["strength"])
    assert given["engine"] == "eager" and given["simulator"].startswith("deeplense ")
    assert again.provenance() == given
    assert again.truth(BLOCK + 1)["theta_E"] == block.params["theta_E"][1].as_py()


def test_truth_is_complete(made):
    _, block = made
    assert set(block.params.column_names) == TRUTH and block.params.num_rows == BLOCK
    distances = angular_diameter_distances(0.5, 1.0)
    for row, label in zip(block.params.to_pylist(), block.label, strict=True):
        whole = theta_E_to_mass(row["theta_E"], distances)
        assert len(row["sub_x"]) == len(row["sub_y"]) == len(row["M_sub"]) == row["n_sub"]
        mass = sum(row["M_sub"]) if label == 1 else row["vortex_mass"]
        assert mass == pytest.approx(row["f_sub"] * whole)
        assert (row["z_lens"], row["z_source"]) == (0.5, 1.0)
        assert all((row[f"vortex_{end}"] is None) == (label != 2) for end in ("x1", "y1", "x2", "y2"))


def test_the_truth_makes_the_image_again_in_lenstronomy(made):
    simulator, block = made
    exposure, index = simulator.exposure, np.arange(BLOCK, BLOCK + 15)
    single, double = (simulator.noiseless(index, dtype)[:, 0] for dtype in (torch.float32, torch.float64))
    for place, row in enumerate(block.params.to_pylist()[:15]):
        theirs = peer.scene(row, simulator)
        assert np.abs(single[place] - theirs).max() < 1e-4 * theirs.max()
        assert np.abs(double[place] - theirs).max() < 1e-5 * theirs.max()
        # What was exposed is this very scene: the signal-to-noise ratio of the table, and the image itself.
        mean = (theirs + exposure.sky[0]) * row["exposure_time"]
        variance = mean + exposure.read_variance[0]
        assert row["snr"] == pytest.approx(np.sqrt(((theirs * row["exposure_time"]) ** 2 / variance).sum()), rel=1e-4)
        image = block.images[place, 0]
        if exposure.scaling == "electrons":
            assert ((image - theirs * row["exposure_time"]) ** 2 / variance).mean() == pytest.approx(1, abs=0.05)
        else:
            assert np.corrcoef(image.ravel(), theirs.ravel())[0, 1] > 0.995


@pytest.fixture(scope="module")
def exposures():
    """Residuals (image - mean) and variances in electrons of two blocks."""
    simulator = Simulator("common-test", "physical", seed=8)
    exposure, index = simulator.exposure, range(2 * BLOCK)
    images = simulator.images(index)
    seconds = images.params["exposure_time"].to_numpy()[:, None, None]
    mean = simulator.noiseless(index)[:, 0] * seconds
    variance = mean + exposure.sky[0] * seconds + exposure.read_variance[0]
    return (images.images[:, 0] - mean).astype(float), variance.astype(float)


def test_noise_has_the_mean_and_variance_of_the_electrons(exposures):
    residual, variance = (v.ravel() for v in exposures)
    # A million sky pixels, and as many bright ones as there are.
    for low, high in ((0, 0.7), (0.7, 0.9), (0.9, 0.97), (0.97, 1)):
        edges = np.quantile(variance, (low, high))
        r, v = (a[(variance >= edges[0]) & (variance <= edges[1])] for a in (residual, variance))
        assert abs(r.mean()) < 4 * np.sqrt(v.mean() / len(r))
        assert (r**2).mean() == pytest.approx(v.mean(), rel=0.01)


def test_noise_is_white(exposures):
    deviate = exposures[0] / np.sqrt(exposures[1])
    bound = 4 / np.sqrt(deviate[:, 1:, 1:].size)
    shifts = (deviate[:, 1:] * deviate[:, :-1], deviate[:, :, 1:] * deviate[:, :, :-1], deviate[1:] * deviate[:-1])
    assert all(abs(product.mean()) < bound for product in shifts)


def test_noise_of_a_fixed_scene_averages_out():
    """Many images of one scene: the sky and the source in electrons, by the truth."""
    values = presets.load("common-test").model_dump(exclude_unset=True)
    world = values["fidelities"]["physical"]
    for part in ("lens", "source", "observation"):
        fixed = {k: v for k, v in world[part].items() if isinstance(v, dict) and "value" not in v}
        # The middle of a range, or the mean of a normal.
        world[part] |= {
            k: float(np.mean(next(iter(v.values())))) if "normal" not in v else 0.0 for k, v in fixed.items()
        }
    values["num_pix"] = 40
    simulator = Simulator(presets.Preset.model_validate(values), seed=3)
    index = np.arange(0, 3 * 600, 3)
    images = np.concatenate([simulator.block(n).images[::3, 0] for n in range(len(index) * 3 // BLOCK)]).astype(float)
    seconds = simulator.truth(0)["exposure_time"]
    mean = simulator.noiseless([0])[0, 0] * seconds
    variance = mean + simulator.exposure.sky[0] * seconds + 4 * 4.2**2
    assert images.mean(0).sum() == pytest.approx(mean.sum(), rel=0.01)
    assert images.var(0, ddof=1).mean() == pytest.approx(variance.mean(), rel=0.01)


# The compiler's single-precision atanh loses digits near zero, where a round lens has its argument.
@pytest.mark.slow
@pytest.mark.parametrize(("fidelity", "tolerance"), [("published", 3e-5), ("physical", 1e-5)])
def test_the_compiled_engine_agrees_with_the_eager_one(fidelity, tolerance):
    eager, compiled = (Simulator("common-test", fidelity, seed=2, compile=c) for c in (False, True))
    assert compiled.provenance()["engine"] == "compiled"
    engines = torch.compile(render, dynamic=False), render
    for kind, columns in enumerate(eager.groups(0)):
        setting = (Scenes.of(columns), eager.preset, eager.world, eager.exposure, kind)
        ours, theirs = (draw(*setting) for draw in engines)
        assert ((ours - theirs).abs().amax((1, 2, 3)) < tolerance * theirs.amax((1, 2, 3))).all()
    images = [s.block(0).images for s in (eager, compiled)]
    # A mean that differs in the last digit can move a pixel by one electron.
    unit = 1.0 if fidelity == "physical" else 1.0 / 500
    assert np.abs(images[0] - images[1]).max() < 1.01 * unit + 1e-5 * images[0].max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "comon-test"}, "did you mean 'common-test'"),
        ({"preset": "zebra"}, "allowed: common-test"),
        ({"fidelity": "physicl"}, "did you mean 'physical'"),
        ({"fidelity": "zebra"}, "allowed: physical, published"),
        ({"seed": -1}, "seed=-1"),
        ({"strength": 0.0}, "strength=0.0"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ConfigError, match=message) as raised:
        Simulator(**{"preset": "common-test"} | options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "ask",
    [
        lambda s: s.truth(-1),
        lambda s: s.truth(2.5),
        lambda s: s.noiseless([-1]),
        lambda s: s.images([2.5]),
        lambda s: list(s.stream(0, 2.5)),
        lambda s: list(s.stream(-3, 2)),
        lambda s: simulated_set(s.preset, s.fidelity, 0, 2.5),
        lambda s: simulated_set(s.preset, s.fidelity, 0, 0),
        lambda s: write_set(s, 2.5, "never"),
    ],
)
def test_images_that_cannot_be_are_refused_in_words(ask):
    with pytest.raises(ConfigError, match="whole number"):
        ask(small())


def test_a_faulty_preset_file_names_the_key(monkeypatch, tmp_path):
    text = (presets._folder() / "common-test.toml").read_text()
    (tmp_path / "broken.toml").write_text(text.replace("psf_fwhm = 0.23548", "psf_fwmh = 0.23548"))
    monkeypatch.setattr(presets, "_folder", lambda: tmp_path)
    with pytest.raises(ConfigError, match=r"preset broken: fidelities\.published\.observation\.psf_f"):
        presets.load("broken")
