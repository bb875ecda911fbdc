"""Haloes along the line of sight: lenstronomy's rays through all planes, numbers in closed form, mean mass."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from astropy.cosmology import FlatLambdaCDM
from lenstronomy.Cosmo.lens_cosmo import LensCosmo
from lenstronomy.LensModel.Profiles.nfw import NFW
from lenstronomy.LensModel.Profiles.tnfw import TNFW
from scipy import stats

import peer
from deeplense.errors import ConfigError
from deeplense.lensing import haloes
from deeplense.lensing.cosmology import ARCSEC
from deeplense.simulate import line_of_sight
from deeplense.simulate.generate import Simulator
from deeplense.simulate.render import render
from deeplense.simulate.scene import Scenes

UNIVERSE = FlatLambdaCDM(H0=70, Om0=0.3, Ob0=0.05)
SLOPE, LOW, HIGH = -1.9, 1e8, 1e10


# Coarse pixels, for what does not depend on them.
SMALL = {"num_pix": 16, "pixel_scale": 0.3}


def simulator(seed: int = 4, **more) -> Simulator:
    """Cold and warm dark matter, with haloes everywhere."""
    settings = {"line_of_sight.delta": 1.0} | {f"line_of_sight.{name}": value for name, value in more.items()}
    return Simulator("dark-matter", seed=seed, settings=settings)


def small(**more) -> Simulator:
    settings = SMALL | {f"line_of_sight.{name}": value for name, value in more.items()}
    return Simulator("dark-matter", seed=4, settings=settings)


@pytest.mark.filterwarnings("ignore:Cosmology is provided")
@pytest.mark.parametrize(
    "changes", [{}, {"profile": "nfw", "planes": 4}, {"planes": 1}], ids=["tnfw", "nfw", "1 plane"]
)
def test_images_are_lenstronomys(changes):
    made = simulator(**changes)
    index = [1, 4, 5, 8]
    single, double = (made.noiseless(index, dtype)[:, 0] for dtype in (torch.float32, torch.float64))
    flat = Simulator("dark-matter", seed=4).noiseless(index, torch.float64)[:, 0]
    for place, i in enumerate(index):
        row = made.truth(i)
        theirs = peer.scene(row, made)
        assert row["n_los"] > 0 and len(set(row["los_kappa_z"])) == made.world.line_of_sight.planes
        assert np.abs(double[place] - theirs).max() < 1e-7 * theirs.max()
        assert np.abs(single[place] - theirs).max() < 1e-4 * theirs.max()
        # It is the haloes in the way that make the image what it is.
        assert np.abs(flat[place] - theirs).max() > 1e-3 * theirs.max()


def test_planes_fill_the_way_to_the_source():
    made = simulator()
    where = line_of_sight.planes(made.preset, made.world)
    np.testing.assert_allclose(where.chi, UNIVERSE.comoving_distance(where.z).value, rtol=1e-12)
    assert where.z[where.main] == made.preset.z_lens and len(where.z) == 5
    source = UNIVERSE.comoving_distance(made.preset.z_source).value
    # In front of the lens, the cone as a whole.
    lens = where.chi[where.main]
    half = (lens - where.chi[where.main - 1]) / 2
    cone = math.pi * (2.2 * ARCSEC) ** 2 * (lens - half) ** 3 / 3
    assert where.volume[: where.main].sum() == pytest.approx(cone)
    # The last slab ends at the source: its plane is in the middle of it.
    width = where.chi[-1] - where.chi[-2]
    assert where.chi[-1] + width / 2 == pytest.approx(source)
    assert (np.diff(where.radius) <= 0).all() and where.radius[where.main] == 2.2


@pytest.mark.parametrize("number", [1, 2, 3, 9])
@pytest.mark.parametrize(("z_lens", "z_source"), [(0.1, 2.0), (0.5, 1.0), (0.9, 1.0)])
def test_any_number_of_planes_has_the_lens_among_them(number, z_lens, z_source):
    where = line_of_sight._planes(z_lens, z_source, number, 2.0, 1.0, 1.0)
    assert len(where.z) == number and where.z[where.main] == z_lens
    assert (np.diff(where.chi) > 0).all() and where.chi[-1] < where.chi_source
    thin = math.pi * (2.0 * ARCSEC) ** 2 * where.chi_source**3 / 3
    assert where.volume.sum() <= thin * 1.0001


def test_rays_of_the_image_stay_in_the_cone():
    """Rays of the disc, bent by round lenses of the lightest and of the heaviest mass."""
    where = line_of_sight._planes(0.5, 1.5, 7, 2.2, 0.9, 1.6)
    theta = np.linspace(0, 2.2, 100)
    for theta_E in (0.9, 1.3, 1.6):
        for chi, radius in zip(where.chi, where.radius, strict=True):
            moved = max(0, (1 - where.chi[where.main] / chi)) * where.chi_source
            seen = theta - moved / (where.chi_source - where.chi[where.main]) * theta_E
            assert np.abs(seen).max() <= radius + 1e-9


# m dn/dm per comoving Mpc^3 of Sheth & Tormen's mass function at 1e7, 1e8, 1e9, 1e10 Msun: colossus 1.4.0, model
# "sheth99", mdef "fof", flat, H0 70, Om0 0.3, Ob0 0.05, sigma8 0.81, ns 0.965.
SHETH_TORMEN = {
    0.0: (53.18321, 6.54511, 0.82444, 0.10576),
    0.5: (60.82283, 7.46718, 0.93543, 0.1186),
    1.0: (68.47128, 8.36116, 1.03669, 0.12883),
    1.5: (75.32896, 9.12071, 1.11373, 0.13451),
    2.5: (85.63160, 10.10071, 1.17905, 0.13124),
}


@pytest.mark.parametrize("z", SHETH_TORMEN)
def test_the_number_density_is_that_of_sheth_and_tormen(z):
    mass = np.array([1e7, 1e8, 1e9, 1e10])
    ours = haloes.field_number(z) * (mass / 1e8) ** -0.9
    np.testing.assert_allclose(ours, SHETH_TORMEN[z], rtol=0.06 if z <= 1.5 else 0.22)


def drawn(made: Simulator, kind: int, blocks: int = 25) -> list[dict]:
    """Columns of some blocks of a class."""
    return [made.groups(number)[kind] for number in range(blocks)]


def test_numbers_are_poisson_with_the_mean_of_the_mass_function():
    made = simulator()
    groups, where = drawn(made, 1), line_of_sight.planes(made.preset, made.world)
    k = SLOPE + 1
    per_density = 1e8**-k * (HIGH**k - LOW**k) / k
    mean = haloes.field_number(where.z) * where.volume * per_density
    number = np.concatenate([[(g["los_z"] == z).sum(1) * 1.0 for z in where.z] for g in groups], 1)
    assert number.sum(0).tolist() == np.concatenate([g["n_los"] for g in groups]).tolist()
    size = number.shape[1]
    assert (np.abs(number.mean(1) - mean) < 4 * np.sqrt(mean / size)).all()
    total = number.sum(0)
    assert total.var() == pytest.approx(mean.sum(), rel=4 * math.sqrt(2 / size))
    mass = np.concatenate([g["M_los"][g["M_los"] > 0] for g in groups])
    assert stats.kstest((mass**k - LOW**k) / (HIGH**k - LOW**k), "uniform").pvalue > 0.01


def test_positions_fill_the_disc_of_each_plane():
    made = simulator()
    where = line_of_sight.planes(made.preset, made.world)
    groups = drawn(made, 1)
    for z, radius in zip(where.z, where.radius, strict=True):
        x, y = (np.concatenate([g[k][g["los_z"] == z] for g in groups]) for k in ("los_x", "los_y"))
        assert stats.kstest((x**2 + y**2) / radius**2, "uniform").pvalue > 0.005
        assert stats.kstest(np.arctan2(y, x), stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 0.005


def test_warm_dark_matter_keeps_the_share_of_its_mass_function():
    half_mode = 2e9
    settings = {"line_of_sight.delta": 1.0, "vort.half_mode_mass": half_mode}
    made = Simulator("dark-matter", seed=1, settings=settings)
    m = np.geomspace(LOW, HIGH, 20001)
    spectrum = m**SLOPE
    share = np.trapezoid(spectrum / (1 + (2.3 * half_mode / m) ** 0.8), m) / np.trapezoid(spectrum, m)
    cold, warm = (np.concatenate([g["n_los"] for g in drawn(made, kind)]) for kind in (1, 2))
    error = share * math.sqrt(1 / warm.sum() + 1 / cold.sum())
    assert warm.mean() / cold.mean() == pytest.approx(share, abs=4 * error)


@pytest.mark.parametrize("profile", ["tnfw", "nfw"])
def test_sheets_take_away_what_haloes_add_on_average(profile):
    """Mean convergence in the middle of the image, by lenstronomy's profiles."""
    made = simulator(profile=profile)
    where, groups = line_of_sight.planes(made.preset, made.world), drawn(made, 1, 60)
    lens, truncation = (NFW(), []) if profile == "nfw" else (TNFW(), ["r_trunc"])
    keys = ("Rs", "alpha_Rs", *truncation, "x", "y")
    for plane, z in enumerate(where.z):
        images, added = 0, []
        for g in groups:
            rows, columns = np.nonzero(g["los_z"] == z)
            images += len(g["n_los"])
            halo = [g[f"los_{k}"][rows, columns] for k in keys]
            hessians = [lens.hessian(0.0, 0.0, *numbers) for numbers in zip(*halo, strict=True)]
            added += [(xx + yy) / 2 for xx, _, _, yy in hessians]
        kappa = np.array(added)
        error = math.sqrt((kappa**2).sum()) / images
        sheet = groups[0]["los_kappa"][0, plane]
        assert sheet < 0 and kappa.sum() / images == pytest.approx(-sheet, abs=4 * error)
        assert error < 0.15 * -sheet


def test_sizes_are_those_of_lenstronomys_cosmology():
    made = simulator(concentration_scatter=0.0)
    row = made.truth(1)
    for place in range(row["n_los"]):
        z, mass = row["los_z"][place], row["M_los"][place]
        theirs = LensCosmo(z, row["z_source"], UNIVERSE)
        c = float(haloes.concentration(mass, z))
        Rs, alpha_Rs = theirs.nfw_physical2angle(mass, c)
        assert row["los_Rs"][place] == pytest.approx(Rs, rel=1e-3)
        assert row["los_alpha_Rs"][place] == pytest.approx(alpha_Rs, rel=1e-3)
        assert row["los_r_trunc"][place] == pytest.approx(1.75 * c * row["los_Rs"][place])


def test_classes_without_dark_haloes_have_none_unless_asked_for():
    made, everywhere = small(delta=1.0), small(delta=1.0, is_in_all_classes=True)
    assert not made.groups(0)[0]["n_los"].any() and everywhere.groups(0)[0]["n_los"].all()
    block = made.block(0)
    table = block.params
    assert {"n_los", "M_los", "los_kappa", "los_kappa_z", *line_of_sight.HALO_KEYS} <= set(table.column_names)
    for row, label in zip(table.to_pylist(), block.label, strict=True):
        assert len(row["los_x"]) == len(row["M_los"]) == row["n_los"] and all(m > 0 for m in row["M_los"])
        assert len(row["los_kappa"]) == (5 if label else 0)
    # Without subhaloes there is no half-mode mass: what lies in the way of a smooth lens is cold.
    smooth = np.concatenate([g["n_los"] for g in drawn(everywhere, 0)])
    cold = np.concatenate([g["n_los"] for g in drawn(everywhere, 1)])
    assert smooth.mean() == pytest.approx(cold.mean(), abs=4 * math.sqrt(2 * cold.mean() / len(cold)))


def test_they_change_nothing_else_and_are_off_where_not_asked_for():
    made, without = small(delta=1.0), small()
    assert not [name for name in without.block(0).params.column_names if "los" in name]
    for kind in range(3):
        ours, theirs = made.groups(2)[kind], without.groups(2)[kind]
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    images = made.block(0).images, without.block(0).images
    is_same = (images[0] == images[1]).all((1, 2, 3))
    assert is_same[::3].all() and not is_same[1::3].any()


def test_room_is_the_same_for_nearly_all_groups_and_enough_for_the_others():
    made = simulator()
    groups = drawn(made, 1, 60)
    shapes = [g["los_x"].shape[1] for g in groups]
    usual = sum(line_of_sight.rooms(1, made.preset, made.world))
    assert np.mean([shape == usual for shape in shapes]) > 0.7 and min(shapes) == usual
    for g in groups:
        assert g["los_room"][0].sum() == g["los_x"].shape[1]
        parts = np.split(g["los_z"], np.cumsum(g["los_room"][0])[:-1], axis=1)
        for z, part in zip(g["los_kappa_z"][0], parts, strict=True):
            assert set(np.unique(part)) <= {0.0, z}


def test_more_haloes_than_usual_get_room(monkeypatch):
    made = simulator()
    plain = made.noiseless([1])
    monkeypatch.setattr(line_of_sight, "ONE_IN", 1.5)
    crowded = simulator()
    assert sum(line_of_sight.rooms(1, made.preset, made.world)) < crowded.groups(0)[1]["los_x"].shape[1]
    assert crowded.truth(1)["n_los"] == made.truth(1)["n_los"]
    np.testing.assert_allclose(crowded.noiseless([1]), plain, rtol=1e-4, atol=1e-6 * plain.max())


@pytest.mark.slow
def test_the_compiled_engine_agrees_with_the_eager_one():
    made = simulator()
    columns = made.groups(0)[1]
    setting = (Scenes.of(columns), made.preset, made.world, made.exposure, 1)
    ours, theirs = torch.compile(render, dynamic=False)(*setting), render(*setting)
    assert ((ours - theirs).abs().amax((1, 2, 3)) < 3e-5 * theirs.amax((1, 2, 3))).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"line_of_sight.mass": 1e8}, r"line_of_sight: mass = \{ power_law"),
        ({"line_of_sight.delta": {"normal": [1.0, 0.1]}}, "delta"),
        ({"line_of_sight.delta": {"log_normal": [1.0, 0.1]}}, "delta has no upper end"),
        ({"line_of_sight.planes": 0}, r"line_of_sight\.planes"),
        ({"line_of_sight.radius": -1.0}, r"line_of_sight\.radius"),
        ({"line_of_sight.delta": 1e7}, "haloes in the way of a lens"),
        ({"line_of_sight.delta": 1.0, "line_of_sight.radius": 1e4}, "haloes in the way of a lens"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ConfigError, match=message):
        Simulator("dark-matter", settings=settings)
