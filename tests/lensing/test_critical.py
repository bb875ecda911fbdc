"""Critical curves and caustics against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deeplense.lensing.critical import critical_curves
from deeplense.lensing.deflection import converge_sie
from deeplense.lensing.smooth import NAMES, Camera, SmoothLens
from peer import column

LENS = SmoothLens(Camera((50, 50), 0.1))


def curves(reach: float = 1.8, num: int = 400, **values: float):
    p = torch.tensor([{"R_sersic": 0.2, "n_sersic": 1.0, "flux": 1.0, **values}.get(name, 0.0) for name in NAMES])
    return critical_curves(LENS, p, reach, num)


def test_a_round_lens_has_the_einstein_ring_and_a_point():
    (ring,), (caustic,) = curves(theta_E=0.8, center_x=0.1, center_y=-0.05)
    radius, angle = np.hypot(*(ring - (0.1, -0.05)).T), np.arctan2(*(ring - (0.1, -0.05)).T)
    assert radius == pytest.approx(0.8, abs=2e-3) and np.ptp(angle) > 6.2
    assert caustic == pytest.approx(np.broadcast_to((0.1, -0.05), caustic.shape), abs=3e-3)


def test_the_critical_curve_of_an_ellipsoid_is_where_kappa_is_a_half():
    (line,), _ = curves(theta_E=1.0, e1=0.15, e2=0.1)
    x, y = (torch.from_numpy(v.copy())[None] for v in line.T)
    kappa = converge_sie(x, y, *(column(v) for v in (1.0, 0.15, 0.1, 0.0, 0.0)))
    assert kappa.numpy() == pytest.approx(0.5, abs=3e-3)


@pytest.mark.parametrize("gamma1", [0.1, -0.07])
def test_cusps_of_a_round_lens_in_shear(gamma1):
    (line,), (caustic,) = curves(num=600, theta_E=1.2, gamma1=gamma1)
    assert np.abs(line).max(0) == pytest.approx((1.2 / (1 + gamma1), 1.2 / (1 - gamma1)), abs=5e-3)
    # On an axis beta = theta (1 - gamma) - theta_E at theta = theta_E / (1 + gamma).
    expected = 2 * 1.2 * abs(gamma1) / np.array([1 + gamma1, 1 - gamma1])
    assert np.abs(caustic).max(0) == pytest.approx(expected, rel=0.01)


def test_a_lens_beyond_the_field_has_no_curve():
    assert curves(reach=0.3, theta_E=1.2) == ([], [])
