"""Discs, rings, knots and stars against their closed forms: flux, contrast, centre."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special

from deeplense.lensing import discs, light, raytrace
from peer import column

# R_sersic, n_sersic, e1, e2, center_x, center_y of three galaxies.
GALAXIES = (
    column(0.6, 1.1, 0.9),
    column(1.0, 0.7, 1.8),
    column(0.2, -0.35, 0.0),
    column(-0.1, 0.3, 0.5),
    column(0.13, -0.4, 0.02),
    column(-0.2, 0.3, 0.01),
)
ONE, ZERO = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
SMOOTH = discs.Arms(2 * ONE, 0.3 * ONE, ZERO, ZERO, ONE)
SPIRAL = discs.Arms(
    column(2, 3, 1), column(0.25, -0.4, 0.6), column(0.3, 1.0, 4.0), column(0.9, 0.5, 1.0), column(3, 1, 6)
)
NO_RING = discs.Ring(ZERO, ONE, 0.2 * ONE)
RING = discs.Ring(column(0.5, 1.0, 0.3), column(1.2, 0.8, 0.3), column(0.1, 0.15, 0.4))


def total(image: torch.Tensor, scale: float) -> list[float]:
    return (image.sum((1, 2)) * scale**2).tolist()


def test_a_disc_without_arms_is_a_sersic_profile():
    x, y = raytrace.make_grid(80, 0.07, dtype=torch.float64)
    amplitude = 1 / light.sersic_flux(ONE, GALAXIES[0], GALAXIES[1])
    expected = light.sersic(x, y, amplitude, *GALAXIES)
    torch.testing.assert_close(discs.disc(x, y, *GALAXIES, SMOOTH, NO_RING), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("ring", [NO_RING, RING], ids=["disc", "ring"])
@pytest.mark.parametrize("arms", [SMOOTH, SPIRAL], ids=["smooth", "arms"])
def test_flux_is_one_whatever_goes_round(arms, ring):
    scale = 0.03
    x, y = raytrace.make_grid(900, scale, dtype=torch.float64)
    assert total(discs.disc(x, y, *GALAXIES, arms, ring), scale) == pytest.approx([1, 1, 1], rel=5e-3)


def test_flux_of_a_ring_is_its_integral():
    for radius, width in ((1.2, 0.1), (0.3, 0.4), (2.0, 0.5)):
        expected = integrate.quad(
            lambda r, a=radius, w=width: 2 * math.pi * r * math.exp(-((r - a) ** 2) / (2 * w**2)), 0, 9
        )
        assert discs.ring_flux(column(radius), column(width)).item() == pytest.approx(expected[0], rel=1e-9)


def test_brightness_round_a_circle():
    """The crest, the trough, the mean, and how often: of a disc that is seen from above."""
    angle = torch.arange(3600, dtype=torch.float64) * (2 * math.pi / 3600)
    radius = 0.7
    x, y = radius * torch.cos(angle)[None], radius * torch.sin(angle)[None]
    galaxies = (*GALAXIES[:2], ZERO, ZERO, ZERO, ZERO)
    around = discs.disc(x, y, *galaxies, SPIRAL, NO_RING)[:, 0] / discs.disc(x, y, *galaxies, SMOOTH, NO_RING)[:, 0]
    contrast, kappa = SPIRAL.contrast.numpy(), SPIRAL.sharpness.numpy()
    crest = contrast * np.exp(kappa) / special.i0(kappa) + 1 - contrast
    trough = contrast * np.exp(-kappa) / special.i0(kappa) + 1 - contrast
    np.testing.assert_allclose(around.amax(1), crest, rtol=1e-4)
    np.testing.assert_allclose(around.amin(1), trough, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(around.mean(1), 1, rtol=1e-9)
    peaks = (around > around.roll(1, 1)) & (around >= around.roll(-1, 1))
    assert peaks.sum(1).tolist() == SPIRAL.number.tolist()


def test_an_arm_follows_its_pitch():
    """Far from the core, an arm that moves by dln R turns by dln R / tan(pitch)."""
    angle = torch.arange(7200, dtype=torch.float64) * (2 * math.pi / 7200)
    galaxies = (0.3 * ONE, *GALAXIES[1:2], ZERO, ZERO, ZERO, ZERO)
    arms = SPIRAL._replace(number=ONE)
    crests = []
    for radius in (1.5, 1.6):
        ring = discs.disc(radius * torch.cos(angle)[None], radius * torch.sin(angle)[None], *galaxies, arms, NO_RING)
        crests.append(angle[ring[:, 0].argmax(1)])
    turned = (crests[1] - crests[0] + math.pi) % (2 * math.pi) - math.pi
    np.testing.assert_allclose(turned, math.log(1.6 / 1.5) / np.tan(SPIRAL.pitch), atol=4e-3)


def test_the_phase_is_the_direction_of_an_arm_at_the_half_light_radius():
    x, y = torch.cos(SPIRAL.phase)[:, None, None], torch.sin(SPIRAL.phase)[:, None, None]
    galaxies = (ONE, ONE, ZERO, ZERO, ZERO, ZERO)
    ratio = discs.disc(x, y, *galaxies, SPIRAL, NO_RING) / discs.disc(x, y, *galaxies, SMOOTH, NO_RING)
    crest = SPIRAL.contrast * torch.exp(SPIRAL.sharpness) / torch.special.i0(SPIRAL.sharpness) + 1 - SPIRAL.contrast
    torch.testing.assert_close(ratio.flatten(), crest, rtol=1e-9, atol=0)


@pytest.mark.parametrize("n_sersic", [0.8, 1.0, 2.5])
def test_a_soft_profile_is_the_sharp_one_outside_of_its_core(n_sersic):
    x, y = raytrace.make_grid(60, 0.1, dtype=torch.float64)
    galaxies = (GALAXIES[0], n_sersic * ONE, *GALAXIES[2:])
    soft = discs.soft_sersic(x, y, *galaxies, core=1e-6)
    torch.testing.assert_close(soft, discs.disc(x, y, *galaxies, SMOOTH, NO_RING), rtol=1e-4, atol=0)


def test_knots_are_gaussians_that_share_the_flux():
    share, radius = torch.tensor([[0.7, 0.3, 0.0]]).double(), torch.tensor([[0.2, 0.1, 0.5]]).double()
    center_x, center_y = torch.tensor([[0.3, -0.4, 0.0]]).double(), torch.tensor([[0.1, 0.2, 0.0]]).double()
    x, y = raytrace.make_grid(200, 0.02, dtype=torch.float64)
    image = discs.clumps(x, y, share, radius, center_x, center_y)
    assert total(image, 0.02) == pytest.approx([1.0], rel=1e-6)
    moment = (image * x).sum() / image.sum()
    assert moment.item() == pytest.approx(0.7 * 0.3 - 0.3 * 0.4, abs=1e-6)
    at_first = discs.clumps(
        center_x[:, :1, None],
        center_y[:, :1, None],
        share[:, :1],
        radius[:, :1],
        *([column(0.3)[:, None], column(0.1)[:, None]]),
    )
    assert at_first.item() == pytest.approx(0.7 / (2 * math.pi * 0.04))


@pytest.mark.parametrize("rays", [1, 2, 3])
def test_a_star_keeps_flux_and_place_wherever_it_stands(rays):
    place = torch.rand(20, 2, generator=torch.Generator().manual_seed(0)).double() - 0.5
    x, y = raytrace.make_grid(12, 0.17, rays, dtype=torch.float64)
    image = discs.point(x, y, 0.17, place[:, 0], place[:, 1]) * (0.17 / rays) ** 2
    for value, expected in ((image, 1), (image * x, place[:, 0]), (image * y, place[:, 1])):
        np.testing.assert_allclose(value.sum((1, 2)), expected, rtol=0, atol=1e-12)


def test_gradients_are_right_and_finite_at_the_centre():
    x, y = torch.tensor([[0.0, 0.3, -0.7]]).double(), torch.tensor([[0.0, 0.5, 0.1]]).double()
    parameters = [p[:1].clone().requires_grad_() for p in (*GALAXIES, *SPIRAL, *RING)]

    def brightness(*p):
        return discs.disc(x[:, 1:], y[:, 1:], *p[:6], discs.Arms(*p[6:11]), discs.Ring(*p[11:]))

    assert torch.autograd.gradcheck(brightness, parameters)
    center = discs.disc(
        x[:, :1] + parameters[4],
        y[:, :1] + parameters[5],
        *parameters[:6],
        discs.Arms(*parameters[6:11]),
        discs.Ring(*parameters[11:]),
    )
    center.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in parameters)
