"""Survey scenes: pictures against lenstronomy, populations against their priors and against the genuine set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lenstronomy.Data.pixel_grid import PixelGrid
from lenstronomy.Data.psf import PSF
from lenstronomy.ImSim.image_model import ImageModel
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel
from lenstronomy.LightModel.Profiles.sersic import Sersic
from lenstronomy.Util.data_util import magnitude2cps
from pydantic import ValidationError
from scipy import stats

from deeplense.simulate import preset as presets
from deeplense.simulate import scene, survey
from deeplense.simulate.galaxies import angular_distance, distance_modulus, velocity_dispersion
from deeplense.simulate.generate import Simulator
from deeplense.simulate.scene import Scenes
from deeplense.simulate.survey import CLUMPS, KINDS, NEIGHBOURS, SurveyWorld

PRESETS = ("hsc-gri", "euclid-vis")
HSC = presets.load("hsc-gri")
EXPOSURE = HSC.world("physical").observation.exposure(HSC.pixel_scale)
BANDS = ("g", "r", "i")
SHAPE = ("R_sersic", "n_sersic", "e1", "e2")


def world(name: str = "hsc-gri", **changes) -> SurveyWorld:
    preset = presets.load(name)
    return preset.fidelities["physical"].model_copy(update=changes)


def draw(num: int, seed: int = 0, name: str = "hsc-gri", **changes):
    return survey.draw(world(name, **changes), num, np.random.default_rng(seed))


def picture(columns, dtype=torch.float64, preset=HSC) -> np.ndarray:
    return survey.render(Scenes.of(columns, dtype), preset, exposure_of(preset)).numpy()


def exposure_of(preset):
    return preset.world("physical").observation.exposure(preset.pixel_scale)


def without(columns, *parts: str):
    """The same images with some parts switched off."""
    dark = {f"{part}_magnitude": np.full_like(columns[f"{part}_magnitude"], np.inf) for part in parts}
    return columns | dark


def lenstronomy_scene(c, row: int, band: int, preset=HSC) -> np.ndarray:
    """One band of a lens, its source with knots, and its light, electrons per second and pixel."""
    lens, exposure = LensModel(["SIE", "SHEAR"]), exposure_of(preset)
    kwargs = [{k: c[k][row] for k in ("theta_E", "e1", "e2", "center_x", "center_y")}]
    kwargs.append({k: c[k][row] for k in ("gamma1", "gamma2")})

    def galaxy(prefix, x, y):
        shape = {name: c[f"{prefix}_{name}"][row] for name in SHAPE}
        flux = magnitude2cps(c[f"{prefix}_magnitude"][row, band], exposure.zero_point[band])
        return shape | {"amp": flux / Sersic().total_flux(amp=1.0, **shape), "center_x": x, "center_y": y}

    light = galaxy("lens", c["center_x"][row], c["center_y"][row])
    source = [galaxy("source", c["source_x"][row], c["source_y"][row])]
    knots = magnitude2cps(c["clump_magnitude"][row, band], exposure.zero_point[band]) * c["clump_share"][row]
    place = zip(knots, c["clump_radius"][row], c["clump_x"][row], c["clump_y"][row], strict=True)
    source += [{"amp": f, "sigma": s, "center_x": x, "center_y": y} for f, s, x, y in place]
    corner = -(preset.num_pix - 1) / 2 * preset.pixel_scale
    grid = PixelGrid(preset.num_pix, preset.num_pix, np.eye(2) * preset.pixel_scale, corner, corner)
    models = LightModel(["SERSIC_ELLIPSE"] + ["GAUSSIAN"] * CLUMPS), LightModel(["SERSIC_ELLIPSE"])
    numerics = {"supersampling_factor": exposure.supersampling}
    return ImageModel(grid, PSF("NONE"), lens, *models, kwargs_numerics=numerics).image(kwargs, source, [light])


def smooth_lenses(num: int, name: str = "hsc-gri"):
    """Lenses whose sources have no arms, since lenstronomy has none; nothing else in the field."""
    columns = without(draw(num, 3, name, positive_fraction=1.0), "neighbour", "star")
    return columns | {"arms_contrast": np.zeros(num)}


@pytest.mark.parametrize("num", [24, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["hsc-gri", "euclid-vis"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_lenses_are_lenstronomys(dtype, tolerance, name, num):
    columns, preset = smooth_lenses(num, name), presets.load(name)
    ours = np.concatenate([picture(scene.select(columns, slice(i, i + 8)), dtype, preset) for i in range(0, num, 8)])
    assert np.isfinite(columns["clump_magnitude"]).any()
    for row in range(num):
        for band in range(ours.shape[1]):
            theirs = lenstronomy_scene(columns, row, band, preset)
            assert np.abs(ours[row, band] - theirs).max() < tolerance * theirs.max()


def test_a_lens_that_is_off_centre_is_the_same_picture_elsewhere():
    columns = smooth_lenses(8)
    step = 5 * HSC.pixel_scale
    moved = columns | {"center_x": columns["center_x"] + step}
    # Shear about the origin deflects the new place by gamma times step: what lies behind it lies there.
    for axis, move in (("x", step * (1 - columns["gamma1"])), ("y", -step * columns["gamma2"])):
        for part in ("source", "clump"):
            value = columns[f"{part}_{axis}"]
            moved[f"{part}_{axis}"] = value + move.reshape(-1, *[1] * (value.ndim - 1))
    np.testing.assert_allclose(picture(moved)[..., 5:], picture(columns)[..., :-5], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", PRESETS)
def test_sources_lie_behind_their_lenses_as_the_prior_says(name):
    c = draw(1500, 1, name, positive_fraction=1.0)
    x, y, gamma1, gamma2 = (c[k] for k in ("center_x", "center_y", "gamma1", "gamma2"))
    behind = x - gamma1 * x - gamma2 * y, y - gamma2 * x + gamma1 * y
    offset = np.hypot(c["source_x"] - behind[0], c["source_y"] - behind[1]) / c["theta_E"]
    low, high = world(name).source.offset.disc
    assert offset.min() >= low and offset.max() <= high + 1e-9
    shear = world(name).lens.gamma.within
    assert shear[0] <= np.hypot(gamma1, gamma2).min() and np.hypot(gamma1, gamma2).max() <= shear[1] + 1e-12


def test_neighbours_and_stars_have_their_magnitudes():
    num = 12
    rng = np.random.default_rng(0)
    columns = without(draw(num, 5), "lens", "source", "clump", "star", "neighbour")
    columns["neighbour_magnitude"][:, 2] = columns["star_magnitude"][:] = 20.0
    columns["neighbour_n_sersic"][:, 2] = rng.uniform(0.7, 4.0, num)
    columns["neighbour_R_sersic"][:, 2] = rng.uniform(0.25, 0.8, num)
    for name in ("neighbour_x", "neighbour_y"):
        columns[name][:, 2] = rng.uniform(-0.5, 0.5, num)
    columns["star_x"][:], columns["star_y"][:] = rng.uniform(-1, 1, (2, num))
    flux = magnitude2cps(20.0, np.array(EXPOSURE.zero_point))
    wide = HSC.model_copy(update={"num_pix": 160})
    for part, tolerance in (("star", 1e-9), ("neighbour", 0.05)):
        other = "neighbour" if part == "star" else "star"
        total = picture(without(columns, other), preset=wide).sum((2, 3))
        np.testing.assert_allclose(total, np.broadcast_to(flux, total.shape), rtol=tolerance)


def test_what_is_not_there_is_dark():
    columns = without(draw(10), "lens", "source", "clump", "neighbour", "star")
    assert np.array_equal(picture(columns), np.zeros((10, 3, 64, 64)))


def test_kinds_and_lenses_are_as_frequent_as_asked_for():
    given = world()
    columns = draw(20_000, 2)
    lenses = int(columns["label"].sum())
    assert stats.binomtest(lenses, 20_000, given.positive_fraction).pvalue > 0.01
    assert ((columns["kind"] == "lens") == (columns["label"] == 1)).all()
    expected = np.array([given.kinds[kind] for kind in KINDS])
    counts = [(columns["kind"] == kind).sum() for kind in KINDS]
    assert stats.chisquare(counts, expected / expected.sum() * (20_000 - lenses)).pvalue > 0.01


def test_positive_fraction_can_be_changed():
    assert draw(200, positive_fraction=0.0)["label"].sum() == 0
    assert stats.binomtest(int(draw(5000, positive_fraction=0.1)["label"].sum()), 5000, 0.1).pvalue > 0.01


def test_a_kind_can_be_left_out():
    columns = draw(300, kinds={"spiral": 1.0, "star": 0.0}, positive_fraction=0.0)
    assert set(columns["kind"]) == {"spiral"}


# What shines in an image of each kind, apart from chance neighbours and stars.
PARTS = {
    "lens": {"lens", "source"},
    "elliptical": {"lens"},
    "spiral": {"lens", "source"},
    "ring": {"lens", "source"},
    "merger": {"lens", "source", "neighbour"},
    "group": {"lens", "neighbour"},
    "star": {"star"},
    "edge_on": {"lens", "source"},
    "artefact": {"lens"},
}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kind", PARTS)
def test_each_kind_has_its_parts(name, kind):
    given = world(name)
    quiet = {
        "neighbours": given.neighbours.model_copy(update={"number": type(given.neighbours.number)(value=0)}),
        "star": given.star.model_copy(update={"field_fraction": 0.0}),
    }
    is_lens = float(kind == "lens")
    columns = draw(24, 4, name, positive_fraction=is_lens, kinds={kind if kind != "lens" else "star": 1.0}, **quiet)
    assert set(columns["kind"]) == {kind}
    lit = {part for part in ("lens", "source", "neighbour", "star") if np.isfinite(columns[f"{part}_magnitude"]).any()}
    assert lit == PARTS[kind]
    assert (columns["theta_E"] > 0).all() == (kind == "lens") and (columns["theta_E"] == 0).all() != (kind == "lens")
    assert (columns["artefact"] != "").all() or kind != "artefact"
    image = picture(columns)
    assert np.isfinite(image).all() and (image.sum((2, 3)) > 0).all()


@pytest.mark.parametrize("name", PRESETS)
def test_columns_are_complete_and_of_fixed_width(name):
    given = world(name)
    columns, bands = draw(300, 6, name), len(given.bands)
    widths = {"clump": (CLUMPS,), "neighbour": (NEIGHBOURS,)}
    for key, value in columns.items():
        part = key.split("_")[0]
        shape = (300, *widths.get(part, ())) if key != "clump_magnitude" else (300,)
        assert value.shape == (shape if not key.endswith("magnitude") else (*shape, bands)), key
        if value.dtype.kind == "f" and not key.endswith("magnitude") and key not in ("z_lens", "z_source", "sigma_v"):
            assert np.isfinite(value).all(), key
    is_lens = columns["label"] == 1
    for key in ("z_source", "sigma_v"):
        assert np.isfinite(columns[key][is_lens]).all() and np.isnan(columns[key][~is_lens]).all()
    assert np.isnan(columns["z_lens"]).any() and set(columns["kind"][np.isnan(columns["z_lens"])]) == {"star"}
    table = survey.truth_columns(columns, given.bands)
    wanted = {f"{part}_magnitude_{band}" for part in ("lens", "source", "star") for band in given.bands}
    assert wanted < set(table) and not any(np.isinf(v).any() for v in table.values() if v.dtype.kind == "f")
    other = draw(48, 7, name)
    assert {k: (v.shape[1:], v.dtype.kind) for k, v in other.items()} == {
        k: (v.shape[1:], v.dtype.kind) for k, v in columns.items()
    }


def test_lenses_are_such_as_a_survey_finds():
    given = world()
    c = draw(3000, 8, positive_fraction=1.0)
    low, high = given.lens.theta_E.within
    assert low <= c["theta_E"].min() and c["theta_E"].max() <= high
    counts = np.histogram(c["theta_E"], [0.5, 1.0, 1.5, 2.0, 3.0, 4.0])[0] / [0.5, 0.5, 0.5, 1, 1]
    assert (np.diff(counts) < 0)[1:].all()
    assert (c["z_source"] > c["z_lens"]).mean() > 0.99
    # The sources are bluer than the lenses, with room for one in fifty.
    colour = {part: c[f"{part}_magnitude"][:, 0] - c[f"{part}_magnitude"][:, 2] for part in ("lens", "source")}
    assert (colour["source"] < colour["lens"]).mean() > 0.98
    found = c["sigma_v"] < given.visibility.sigma_v
    assert found.mean() > 0.95


def test_velocity_dispersion_and_distances_are_astropys():
    from astropy import constants
    from astropy.cosmology import FlatLambdaCDM

    universe = FlatLambdaCDM(H0=70, Om0=0.3, Ob0=0.05)
    lens, source, theta_E = np.array([0.2, 0.5, 0.9]), np.array([0.9, 1.5, 3.4]), np.array([0.6, 1.2, 2.9])
    share = 1 - universe.comoving_distance(lens) / universe.comoving_distance(source)
    speed = constants.c.to_value("km/s") * np.sqrt(np.radians(theta_E / 3600) / (4 * np.pi * share.value))
    np.testing.assert_allclose(velocity_dispersion(theta_E, lens, source), speed, rtol=1e-5)
    assert np.isnan(velocity_dispersion(1.0, np.array([0.5]), np.array([0.4]))).all()
    np.testing.assert_allclose(distance_modulus(lens), universe.distmod(lens).value, atol=1e-4)
    np.testing.assert_allclose(angular_distance(lens), universe.angular_diameter_distance(lens).value, rtol=1e-5)


def test_only_images_with_a_fault_are_spoilt():
    given = world()
    quiet = given.star.model_copy(update={"field_fraction": 0.0})
    columns = draw(200, 9, star=quiet, kinds={"elliptical": 0.7, "artefact": 0.3})
    before = np.random.default_rng(0).normal(100, 10, (200, 3, 64, 64))
    after = before.copy()
    survey.spoil(after, columns, 0.168, np.random.default_rng(1))
    changed = (after != before).any((1, 2, 3))
    assert np.array_equal(changed, columns["artefact"] != "")
    assert np.isfinite(after).all() and (np.ptp(after, axis=(2, 3)) > 0).all()
    assert set(columns["artefact"]) - {""} == set(given.nuisances.artefacts)
    again = before.copy()
    survey.spoil(again, columns, 0.168, np.random.default_rng(1))
    assert np.array_equal(again, after)


def test_only_the_brightest_stars_have_a_cross():
    columns = without(draw(2, 0), "star") | {
        "artefact": np.array(["", ""]),
        "star_x": np.zeros(2),
        "star_y": np.zeros(2),
    }
    columns["star_magnitude"][:] = 18.0
    image = np.random.default_rng(0).normal(0, 1, (2, 3, 65, 65))
    image[1, :, 32, 32] = 1e5
    image[0, :, 32, 32] = 100
    before = image.copy()
    survey.spoil(image, columns, 0.168, np.random.default_rng(1))
    assert np.array_equal(image[0], before[0])
    added = image[1] - before[1]
    assert added[:, 22, 22].min() > 20 and np.abs(added[:, 32, 18]).max() < 1


# Mean and scatter of the channel means of the genuine set; SIMULATORS.md.
GENUINE = {
    1: ((0.146, 0.083, 0.048), (0.126, 0.101, 0.088)),
    0: ((0.281, 0.200, 0.110), (0.172, 0.156, 0.112)),
}


def test_levels_are_those_of_the_genuine_set():
    """360 images of each class leave 5 % of chance in the means, and more in scatters that few faulty images decide."""
    simulated = Simulator("hsc-gri", "physical", seed=2).images(np.arange(720))
    for label, (mean, scatter) in GENUINE.items():
        level = simulated.images[simulated.label == label].mean((2, 3))
        np.testing.assert_allclose(level.mean(0), mean, rtol=0.22)
        np.testing.assert_allclose(level.std(0), scatter, rtol=0.4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"positive_fraction": 1.5}, "share from 0 to 1"),
        ({"kinds": {"quasar": 1.0}}, "unknown: quasar"),
        ({"kinds": {"star": 0.0}}, "one above 0"),
        ({"kinds": {"star": -1.0, "ring": 2.0}}, "0 or more"),
        ({"nuisances": {"artefacts": {"ghost": 1.0}}}, "unknown: ghost"),
        ({"observation": {"bands": ("g", "z")}}, "a colour for each"),
        ({"red": {"z": [0.2, 0.1]}}, "as many colours"),
        ({"neighbours": {"number": 7}}, "room for 6"),
        ({"neighbours": {"number": {"poisson": 4.1}}}, "room for 6"),
        ({"group": {"number": {"uniform": [1, 6.5]}}}, "room for 6"),
        ({"source": {"clumps": {"number": 5, "share": 0.1, "radius": 0.2}}}, "room for 4"),
    ],
)
def test_faulty_worlds(changes, reason):
    values = world().model_dump(exclude_unset=True)
    for key, value in changes.items():
        replace = key in ("kinds",) or not isinstance(value, dict)
        values[key] = value if replace else values[key] | value
    with pytest.raises(ValidationError, match=reason):
        SurveyWorld.model_validate(values)
