"""Scenes: what is drawn, what it depends on, and the mass inside the Einstein radius."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from deeplense.lensing import deflection
from deeplense.simulate import preset, scene, substructure, truth
from deeplense.simulate.preset import Preset
from deeplense.simulate.scene import Scenes
from peer import column

COMMON_TEST = preset.load("common-test")
MATCH = 1e-5


def draw(fidelity: str, kind: int, seed: int, strength: float = 1.0, given: Preset = COMMON_TEST, num: int = 20):
    """Columns of ``num`` images."""
    world = given.world(fidelity)
    exposure = world.observation.exposure(given.pixel_scale)
    return scene.draw(given, world, exposure, kind, num, strength, scene.generator(1, seed, scene.SCENE))


def rows(columns) -> list[dict]:
    return [truth.row(columns, place) for place in range(len(columns["theta_E"]))]


def round_lenses() -> Preset:
    """The preset with q = 1 in its physical world."""
    values = COMMON_TEST.model_dump(exclude_unset=True)
    values["fidelities"]["physical"]["lens"]["q"] = 1.0
    return Preset.model_validate(values)


def smooth_mass(row, name: str) -> float:
    """Projected mass of the ellipsoid inside the circle of radius theta_E about its centre, over pi Sigma_crit."""
    radius, size = row["theta_E"], 1500
    # kappa goes as 1/r, so kappa r is a function of the angle alone.
    angle = torch.arange(size, dtype=torch.float64) * (2 * math.pi / size)
    x, y = row["center_x"] + radius * torch.cos(angle), row["center_y"] + radius * torch.sin(angle)
    keys = (name, "e1", "e2", "center_x", "center_y")
    kappa = deflection.converge_sie(x[None], y[None], *(column(row[k]) for k in keys))
    return 2 * kappa.mean().item() * radius**2


def substructure_mass(row) -> float:
    """The same of point masses and string, the string cut in many points."""
    part = (np.arange(100_000) + 0.5) / 100_000
    x = np.concatenate([row["sub_x"], row["vortex_x1"] + part * (row["vortex_x2"] - row["vortex_x1"])])
    y = np.concatenate([row["sub_y"], row["vortex_y1"] + part * (row["vortex_y2"] - row["vortex_y1"])])
    mass = np.concatenate([row["sub_theta_E"] ** 2, np.full(100_000, row["vortex_theta_E"] ** 2 / 100_000)])
    # The ends of no string are NaN, and inside of nothing.
    return mass[np.hypot(x - row["center_x"], y - row["center_y"]) < row["theta_E"]].sum()


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("strength", [1.0, 4.0])
def test_mass_inside_the_einstein_radius_is_that_of_the_smooth_lens(kind, strength):
    given = round_lenses()
    for row in rows(draw("physical", kind, 0, strength, given)):
        total = smooth_mass(row, "theta_E_macro") + substructure_mass(row)
        assert total == pytest.approx(row["theta_E"] ** 2, rel=1e-5)
        assert row["theta_E_macro"] < row["theta_E"] or substructure_mass(row) == 0


@pytest.mark.parametrize("kind", [1, 2])
def test_mass_is_matched_for_flat_lenses(kind):
    for row in rows(draw("physical", kind, 1)):
        smooth = smooth_mass(row, "theta_E")
        total = smooth_mass(row, "theta_E_macro") + substructure_mass(row)
        assert total == pytest.approx(smooth, rel=MATCH)


def test_mean_mass_of_the_classes_is_equal_only_where_it_is_asked_for():
    for fidelity, kind in (("published", 1), ("published", 2), ("physical", 0)):
        columns = draw(fidelity, kind, 2)
        np.testing.assert_array_equal(columns["theta_E_macro"], columns["theta_E"])
    columns = draw("physical", 1, 2)
    assert (columns["theta_E_macro"] < columns["theta_E"]).mean() > 0.9


def test_priors_arrive_under_the_right_names():
    lens, source = COMMON_TEST.world("physical").lens, COMMON_TEST.world("physical").source
    columns = draw("physical", 0, 4, num=400)

    def values(*names):
        return [columns[n] for n in names]

    def is_uniform(drawn, limits):
        return stats.kstest(drawn, stats.uniform(limits[0], limits[1] - limits[0]).cdf).pvalue > 0.01

    for name, prior in (("theta_E", lens.theta_E), ("magnitude", source.magnitude), ("R_sersic", source.R_sersic)):
        assert is_uniform(*values(name), prior.uniform)
    for (a, b), q_prior in ((("e1", "e2"), lens.q), (("source_e1", "source_e2"), source.q)):
        q, phi = deflection.ellipticity_to_axis_ratio(*(torch.tensor(v) for v in values(a, b)))
        assert is_uniform(q.numpy(), q_prior.uniform) and is_uniform(phi.numpy() % math.pi, (0, math.pi))
    gamma1, gamma2 = values("gamma1", "gamma2")
    assert is_uniform(np.hypot(gamma1, gamma2), lens.gamma.uniform)
    assert is_uniform(np.arctan2(gamma2, gamma1) / 2 % math.pi, (0, math.pi))
    x, y = values("source_x", "source_y")
    assert is_uniform((x**2 + y**2) / source.offset.disc[1] ** 2, (0, 1))


@pytest.mark.parametrize("fidelity", ["published", "physical"])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_the_smooth_scene_does_not_depend_on_class_or_strength(fidelity, kind):
    smooth = [
        k
        for k in draw(fidelity, 0, 7)
        if not k.startswith(("sub_", "vortex_", "n_sub", "f_sub", "theta_E_macro", "log10_m", "half_mode"))
    ]
    first, other = draw(fidelity, 0, 7), draw(fidelity, kind, 7, strength=3.0)
    assert len(smooth) >= 16
    for name in smooth:
        np.testing.assert_array_equal(first[name], other[name], err_msg=name)


def test_generators_are_functions_of_seed_index_and_purpose():
    def first(*key):
        return scene.generator(*key).random()

    assert first(1, 2, scene.SCENE) == first(1, 2, scene.SCENE)
    others = [(1, 2, scene.SCENE), (2, 1, scene.SCENE), (1, 2, scene.NOISE), (1, 3, scene.SCENE), (0, 2, scene.SCENE)]
    assert len({first(*key) for key in others}) == len(others)
    assert first(1, 2**45, scene.SCENE) != first(1, 2**45 + 1, scene.SCENE)


def test_haloes_are_padded_with_no_mass():
    columns = draw("physical", 1, 4)
    number = columns["n_sub"]
    assert columns["sub_theta_E"].shape == (20, substructure.padded(number.max(), False)) == columns["sub_x"].shape
    for masses, count in zip(columns["sub_theta_E"], number, strict=True):
        assert (masses[:count] > 0).all() and not masses[count:].any()
    assert all(len(row["sub_x"]) == row["n_sub"] for row in rows(columns))


def test_scenes_hold_the_numbers_of_the_columns():
    columns = draw("physical", 1, 4) | {"kind": np.array(["text"] * 20)}
    scenes = Scenes.of(columns)
    assert len(scenes) == 20 and scenes["theta_E"].dtype == torch.float32 and "kind" not in scenes.values
    for name in ("e1", "sub_x", "psf_fwhm"):
        np.testing.assert_allclose(scenes[name].numpy(), columns[name], rtol=1e-6)
    assert Scenes.of(columns, torch.float64)["sub_theta_E"].numpy().tolist() == columns["sub_theta_E"].tolist()
    some = scene.select(columns, slice(3, 5))
    assert some["theta_E"].tolist() == columns["theta_E"][3:5].tolist() and some["sub_x"].shape[0] == 2
