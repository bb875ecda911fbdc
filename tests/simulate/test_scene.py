"""Scenes: what is drawn, what it depends on, and the mass inside the Einstein radius."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from deeplense.lensing import deflection
from deeplense.simulate import preset, scene
from deeplense.simulate.preset import Preset
from deeplense.simulate.scene import Scenes
from peer import column

COMMON_TEST = preset.load("common-test")
MATCH = 1e-5


def draw(fidelity: str, kind: int, seed: int, strength: float = 1.0, given: Preset = COMMON_TEST):
    return scene.draw(given, given.world(fidelity), kind, strength, scene.generator(1, seed, scene.SCENE))


def round_lenses() -> Preset:
    """The preset with q = 1 in its physical world."""
    values = COMMON_TEST.model_dump(exclude_unset=True)
    values["fidelities"]["physical"]["lens"]["q"] = 1.0
    return Preset.model_validate(values)


def smooth_mass(truth, name: str) -> float:
    """Projected mass of the ellipsoid inside the circle of radius theta_E about its centre, over pi Sigma_crit."""
    radius, size = truth["theta_E"], 1500
    # kappa goes as 1/r, so kappa r is a function of the angle alone.
    angle = torch.arange(size, dtype=torch.float64) * (2 * math.pi / size)
    x, y = truth["center_x"] + radius * torch.cos(angle), truth["center_y"] + radius * torch.sin(angle)
    keys = (name, "e1", "e2", "center_x", "center_y")
    kappa = deflection.converge_sie(x[None], y[None], *(column(truth[k]) for k in keys))
    return 2 * kappa.mean().item() * radius**2


def substructure_mass(truth) -> float:
    """The same of point masses and string, the string cut in many points."""
    part = (np.arange(100_000) + 0.5) / 100_000
    x = np.concatenate([truth["sub_x"], truth["vortex_x1"] + part * (truth["vortex_x2"] - truth["vortex_x1"])])
    y = np.concatenate([truth["sub_y"], truth["vortex_y1"] + part * (truth["vortex_y2"] - truth["vortex_y1"])])
    mass = np.concatenate([truth["sub_theta_E"] ** 2, np.full(100_000, truth["vortex_theta_E"] ** 2 / 100_000)])
    # The ends of no string are NaN, and inside of nothing.
    return mass[np.hypot(x - truth["center_x"], y - truth["center_y"]) < truth["theta_E"]].sum()


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("strength", [1.0, 4.0])
def test_mass_inside_the_einstein_radius_is_that_of_the_smooth_lens(kind, strength):
    given = round_lenses()
    for seed in range(20):
        truth = draw("physical", kind, seed, strength, given)
        total = smooth_mass(truth, "theta_E_macro") + substructure_mass(truth)
        assert total == pytest.approx(truth["theta_E"] ** 2, rel=1e-5)
        assert truth["theta_E_macro"] < truth["theta_E"] or substructure_mass(truth) == 0


@pytest.mark.parametrize("kind", [1, 2])
def test_mass_is_matched_for_flat_lenses(kind):
    for seed in range(20):
        truth = draw("physical", kind, seed)
        smooth = smooth_mass(truth, "theta_E")
        total = smooth_mass(truth, "theta_E_macro") + substructure_mass(truth)
        assert total == pytest.approx(smooth, rel=MATCH)


def test_mean_mass_of_the_classes_is_equal_only_where_it_is_asked_for():
    for seed in range(5):
        for kind in (1, 2):
            truth = draw("published", kind, seed)
            assert truth["theta_E_macro"] == truth["theta_E"]
        assert (truth := draw("physical", 0, seed))["theta_E_macro"] == truth["theta_E"]


def test_priors_arrive_under_the_right_names():
    lens, source = COMMON_TEST.world("physical").lens, COMMON_TEST.world("physical").source
    truths = [draw("physical", 0, seed) for seed in range(400)]

    def values(*names):
        return [np.array([t[n] for t in truths]) for n in names]

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
        k for k in draw(fidelity, 0, 7) if not k.startswith(("sub_", "vortex_", "n_sub", "f_sub", "theta_E_macro"))
    ]
    first, other = draw(fidelity, 0, 7), draw(fidelity, kind, 7, strength=3.0)
    assert len(smooth) >= 16 and {k: first[k] for k in smooth} == {k: other[k] for k in smooth}


def test_generators_are_functions_of_seed_index_and_purpose():
    def first(*key):
        return scene.generator(*key).random()

    assert first(1, 2, scene.SCENE) == first(1, 2, scene.SCENE)
    others = [(1, 2, scene.SCENE), (2, 1, scene.SCENE), (1, 2, scene.NOISE), (1, 3, scene.SCENE), (0, 2, scene.SCENE)]
    assert len({first(*key) for key in others}) == len(others)
    assert first(1, 2**45, scene.SCENE) != first(1, 2**45 + 1, scene.SCENE)


def test_stack_pads_haloes_with_no_mass():
    truths = [draw("physical", 1, seed) for seed in range(4)]
    most = max(t["n_sub"] for t in truths)
    scenes = Scenes.stack(truths, pad_to=most + 3)
    assert len(scenes) == 4 and scenes["theta_E"].shape == (4,) and scenes["theta_E"].dtype == torch.float32
    assert scenes["sub_theta_E"].shape == (4, most + 3)
    for row, truth in zip(scenes["sub_theta_E"], truths, strict=True):
        assert row[: truth["n_sub"]].numpy() == pytest.approx(truth["sub_theta_E"], rel=1e-6)
        assert not row[truth["n_sub"] :].any()
    assert Scenes.stack(truths, pad_to=0)["sub_x"].shape == (4, most)
    assert Scenes.stack(truths, 0, torch.float64)["e1"].dtype == torch.float64
