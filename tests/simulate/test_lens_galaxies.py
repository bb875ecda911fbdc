"""Observed galaxies as the light of lenses: their flux, size and direction, and that they betray no class."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lenstronomy.Util.data_util import magnitude2cps

from deeplense.config import parse
from deeplense.data.galaxies import GalaxyBank, ellipticity, half_light_radius, part_of
from deeplense.errors import ConfigError
from deeplense.simulate import scene, sources, survey
from deeplense.simulate.generate import Simulator
from deeplense.simulate.scene import Scenes
from deeplense.simulate.sources import EARLY, _added_up
from deeplense.simulate.stream import StreamDataModule
from deeplense.train import load

NUM_PIX = 81
WIDE = 121


def blob(q: float, phi: float, sigma: float = 5.0) -> np.ndarray:
    """An elliptical Gaussian of axis ratio q along phi, pixels, shape (NUM_PIX, NUM_PIX)."""
    y, x = np.indices((NUM_PIX, NUM_PIX)) - (NUM_PIX - 1) / 2
    along, across = x * math.cos(phi) + y * math.sin(phi), y * math.cos(phi) - x * math.sin(phi)
    return np.exp(-(along**2 * q + across**2 / q) / (2 * sigma**2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty galaxies of several shapes; some of them are for validation."""
    path, rng = tmp_path_factory.mktemp("galaxies"), np.random.default_rng(0)
    assert {part_of(f"g{number}") for number in range(20, 60)} == {"train", "val", "test"}
    for number in range(20, 60):
        # A bright core of a few pixels is what sparse rays miss.
        image = blob(rng.uniform(0.5, 1), rng.uniform(0, math.pi), rng.uniform(3, 7)) + 10 * blob(1.0, 0.0, 1.0)
        np.save(path / f"g{number}.npy", image + rng.normal(0, 0.002, image.shape))
    return path


def simulator(folder, preset: str = "hsc-gri", **options) -> Simulator:
    return Simulator(preset, seed=2, lens_galaxies=folder, **options)


@pytest.mark.parametrize(("q", "phi"), [(0.5, 0.3), (0.8, 2.0), (0.6, -1.2), (1.0, 0.0)])
def test_ellipticity_of_a_gaussian(q, phi):
    e1, e2 = ellipticity(np.stack([blob(q, phi)] * 2).astype(np.float32))
    e = (1 - q) / (1 + q)
    assert e1 == pytest.approx(e * math.cos(2 * phi), abs=1e-4) and e2 == pytest.approx(e * math.sin(2 * phi), abs=1e-4)


@pytest.fixture(scope="module", params=["hsc-gri", "euclid-vis"])
def alone(request, folder) -> tuple[Simulator, dict, np.ndarray]:
    """Columns, and noiseless images of nothing but the galaxies in the middle, before the PSF and on a wide frame."""
    made = simulator(folder, request.param)
    columns = scene.select(made.groups(0)[0], np.flatnonzero(made.groups(0)[0]["lens_number"] >= 0))
    num = len(columns["label"])
    assert num > 20
    for part in ("source", "clump", "neighbour", "star"):
        columns[f"{part}_magnitude"] = np.full_like(columns[f"{part}_magnitude"], np.inf)
    columns["center_x"], columns["center_y"] = np.zeros(num), np.zeros(num)
    wide = made.preset.model_copy(update={"num_pix": WIDE})
    images = survey.render(made._scenes(columns), wide, made.exposure).numpy()
    return made, columns, images.astype(float)


def test_galaxies_have_the_flux_size_and_shape_of_the_truth(alone):
    made, columns, images = alone
    scale = made.preset.pixel_scale
    # What leaves the frame is no fault.
    rows = np.flatnonzero((columns["lens_R_sersic"] > 2 * scale) & (columns["lens_R_sersic"] < 12 * scale))
    assert len(rows) > 10
    y, x = (np.indices(images.shape[2:]) - WIDE // 2) * scale
    for row in rows:
        flux = magnitude2cps(columns["lens_magnitude"][row], np.array(made.exposure.zero_point))
        np.testing.assert_allclose(images[row].sum((1, 2)), flux, rtol=0.02)
        image = images[row, -1] / images[row, -1].sum()
        assert half_light_radius(image) * scale == pytest.approx(columns["lens_R_sersic"][row], rel=0.08)
        xx, yy, xy = (image * x * x).sum(), (image * y * y).sum(), (image * x * y).sum()
        e = xx + yy + 2 * math.sqrt(xx * yy - xy**2)
        assert (xx - yy) / e == pytest.approx(columns["lens_e1"][row], abs=0.03)
        assert 2 * xy / e == pytest.approx(columns["lens_e2"][row], abs=0.03)


def test_small_galaxies_lose_no_light_between_rays(alone):
    made, columns, images = alone
    is_small = columns["lens_R_sersic"] < 2 * made.preset.pixel_scale
    flux = magnitude2cps(columns["lens_magnitude"], np.array(made.exposure.zero_point))
    np.testing.assert_allclose(images.sum((2, 3))[is_small], flux[is_small], rtol=0.03)


def test_a_galaxy_much_smaller_than_a_pixel_has_its_flux(folder):
    """Rays are 0.084" apart, the pixels of these galaxies less than a third of that."""
    made = simulator(folder, settings={"early.R_kpc": 0.2, "early.R_slope": 0.0})
    columns = made.groups(0)[0]
    rows = np.flatnonzero(columns["lens_number"] >= 0)[:12]
    columns = scene.select(columns, rows) | {"center_x": np.full(12, 0.03), "center_y": np.full(12, -0.05)}
    for part in ("source", "clump", "neighbour", "star"):
        columns[f"{part}_magnitude"] = np.full_like(columns[f"{part}_magnitude"], np.inf)
    assert columns["lens_pixel_scale"].max() < 0.03
    flux = magnitude2cps(columns["lens_magnitude"], np.array(made.exposure.zero_point))
    images = survey.render(made._scenes(columns), made.preset, made.exposure).numpy()
    np.testing.assert_allclose(images.sum((2, 3)), flux, rtol=0.08)
    # A core smaller than the steps between rays would be hit or missed.
    bare = sources.add_images(Scenes.of(columns), made.lens_bank, columns, "lens")
    assert np.abs(survey.render(bare, made.preset, made.exposure).numpy().sum((2, 3)) / flux - 1).max() > 0.15


@pytest.mark.parametrize("times", [1, 3, 5, 9])
def test_pixels_that_are_added_up_keep_flux_and_middle(times):
    image = blob(0.7, 0.4).astype(np.float32)
    image /= image.sum()
    coarse = _added_up(image, times)
    assert coarse.shape == image.shape and coarse.sum() == pytest.approx(1, abs=1e-5)
    axis = (np.arange(NUM_PIX) - 40) * times
    fine = np.arange(NUM_PIX) - 40
    assert coarse.sum(0) @ axis == pytest.approx(0, abs=1e-3) and coarse.sum(1) @ axis == pytest.approx(0, abs=1e-3)
    # The second moment of a box of n pixels is (n^2 - 1) / 12.
    assert coarse.sum(0) @ axis**2 == pytest.approx(image.sum(0) @ fine**2 + (times**2 - 1) / 12, rel=1e-2)


def test_all_early_types_have_one_and_no_others(folder):
    groups = [simulator(folder).groups(number)[0] for number in range(6)]
    kind, name, number = (np.concatenate([g[k] for g in groups]) for k in ("kind", "lens_galaxy", "lens_number"))
    is_early = np.isin(kind, EARLY)
    assert {"lens", "elliptical"} <= set(EARLY) and is_early.any() and not is_early.all()
    assert ((name != "") == is_early).all() and ((number >= 0) == is_early).all()
    # Any of them alike, in lenses and in others.
    for part in ("lens", "elliptical"):
        counts = np.bincount(number[kind == part], minlength=40)
        assert len(counts) == 40 and (counts > 0).sum() > 20


def test_mass_follows_the_light_it_has(folder):
    made, sersic = simulator(folder), Simulator("hsc-gri", seed=2)
    ours, theirs = (
        {k: np.concatenate([s.groups(n)[0][k] for n in range(10)]) for k in ("label", "e1", "e2", "lens_e1", "lens_e2")}
        for s in (made, sersic)
    )
    is_lens = ours["label"] == 1
    for axis in ("e1", "e2"):
        inside = is_lens & (np.abs(ours[axis]) < 0.449) & (np.abs(theirs[axis]) < 0.449)
        scatter = (c[axis] - c[f"lens_{axis}"] for c in (ours, theirs))
        np.testing.assert_allclose(*(s[inside] for s in scatter), atol=1e-12)
        assert np.abs(ours[axis]).max() <= 0.45 and not ours[axis][~is_lens].any()
        assert np.corrcoef(ours[axis][is_lens], ours[f"lens_{axis}"][is_lens])[0, 1] > 0.8


def test_nothing_else_changes(folder):
    ours, theirs = simulator(folder).groups(1)[0], Simulator("hsc-gri", seed=2).groups(1)[0]
    changed = {"e1", "e2", "lens_e1", "lens_e2"}
    assert set(ours) - set(theirs) == {f"lens_{k}" for k in ("galaxy", "number", "angle", "pixel_scale")}
    for name in set(theirs) - changed:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    images = [Simulator("hsc-gri", seed=2, lens_galaxies=f).block(1).images for f in (folder, None)]
    is_other = (images[0] != images[1]).any((1, 2, 3))
    assert is_other.tolist() == (ours["lens_number"] >= 0).tolist()


def test_truth_names_the_galaxy_and_images_come_again(folder):
    made = simulator(folder, part="train")
    block = made.block(0)
    rows = block.params.to_pylist()
    names = {row["lens_galaxy"] for row in rows} - {""}
    assert names and {part_of(name) for name in names} == {"train"}
    assert all((row["lens_n_sersic"] is None) == (row["lens_number"] >= 0) for row in rows)
    again = Simulator(**made.recipe())
    np.testing.assert_array_equal(again.images([5, 30]).images, block.images[[5, 30]])
    assert again.provenance() == made.provenance() and made.provenance()["lens_galaxies"]["part"] == "train"


def test_sources_and_lenses_may_both_be_observed(folder):
    made = Simulator("hsc-gri", seed=2, galaxies=folder, lens_galaxies=folder, part="test")
    row = made.block(0).params.to_pylist()[0]
    assert part_of(row["source_galaxy"]) == "test" and np.isfinite(made.block(0).images).all()
    columns = made.groups(0)[0]
    assert (columns["lens_number"] != columns["source_number"]).any()


def test_training_and_validation_have_other_galaxies(folder):
    data = {"path": "preset:hsc-gri", "num": 96, "num_val": 48, "batch_size": 48, "lens_galaxies": str(folder)}
    module = StreamDataModule(parse({"task": "substructure", "data": data}))
    banks = [set(s.lens_bank.name) for s in module.simulators]
    assert all({part_of(n) for n in names} == {"train"} for names in banks)
    assert {part_of(n) for n in module.val.params["lens_galaxy"].to_pylist() if n} == {"val"}


def test_presets_without_light_of_lenses_and_parts_of_nothing(folder):
    with pytest.raises(ConfigError, match="model-1 has no light of lenses"):
        Simulator("model-1", lens_galaxies=folder)
    with pytest.raises(ConfigError, match="part='val'"):
        Simulator("hsc-gri", part="val")


def test_a_bank_knows_its_shapes():
    images = np.stack([blob(0.5, 0.0), blob(0.5, math.pi / 2)]).astype(np.float32)
    bank = GalaxyBank(images, ["a", "b"], np.ones(2), np.ones(2))
    assert bank.ellipticity[0] == pytest.approx([1 / 3, -1 / 3], abs=1e-4)


def test_a_set_is_split_by_the_galaxy_that_tells_most(folder):
    lens = Simulator("euclid-vis", seed=2, lens_galaxies=folder, settings={"num_pix": 24})
    both = Simulator("euclid-vis", seed=2, lens_galaxies=folder, galaxies=folder, settings={"num_pix": 24})
    for made, column in ((lens, "lens_galaxy"), (both, "source_galaxy")):
        block = made.block(0)
        groups, names = load._groups(block), block.params[column].to_pylist()
        assert groups == [name or own for name, own in zip(names, block.name, strict=True)]
        assert len(set(groups)) > 10 and any(name in groups for name in made.lens_bank.name)
