"""Critical lines and caustics against closed forms; figures show what they are given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deeplense.evaluate.lens_pictures import MOST, Curves, Panels, fit_gallery, lens_figure, trace_curves
from deeplense.lensing.deflection import converge_sie, deflect_shear, deflect_sie
from peer import column


def lens(theta_E=1.0, e1=0.0, e2=0.0, gamma1=0.0, center_x=0.0, center_y=0.0):
    def deflect(x, y):
        ellipsoid = deflect_sie(x, y, *(column(v) for v in (theta_E, e1, e2, center_x, center_y)))
        shear = deflect_shear(x, y, column(gamma1), column(0.0))
        return ellipsoid[0] + shear[0], ellipsoid[1] + shear[1]

    return deflect


def test_a_round_lens_has_the_einstein_ring_and_a_point():
    curves = trace_curves(lens(0.8, center_x=0.1, center_y=-0.05), 1.5)
    (ring,), (caustic,) = curves.critical, curves.caustics
    assert np.hypot(*(ring - (0.1, -0.05)).T) == pytest.approx(0.8, abs=2e-3)
    assert caustic == pytest.approx(np.broadcast_to((0.1, -0.05), caustic.shape), abs=3e-3)
    # All the way round.
    assert np.ptp(np.arctan2(*(ring - (0.1, -0.05)).T)) > 6.2


def test_the_critical_line_of_an_ellipsoid_is_where_kappa_is_a_half():
    (line,) = trace_curves(lens(1.0, 0.15, 0.1), 1.6).critical
    x, y = (torch.from_numpy(v)[None] for v in line.T)
    kappa = converge_sie(x, y, *(column(v) for v in (1.0, 0.15, 0.1, 0.0, 0.0)))
    assert kappa.numpy() == pytest.approx(0.5, abs=3e-3)


@pytest.mark.parametrize("gamma1", [0.1, -0.07])
def test_cusps_of_a_round_lens_in_shear(gamma1):
    curves = trace_curves(lens(1.2, gamma1=gamma1), 1.8, num_pix=600)
    (line,), (caustic,) = curves.critical, curves.caustics
    assert np.abs(line[:, 0]).max() == pytest.approx(1.2 / (1 + gamma1), abs=5e-3)
    assert np.abs(line[:, 1]).max() == pytest.approx(1.2 / (1 - gamma1), abs=5e-3)
    # On an axis beta = theta (1 - gamma) - theta_E at theta = theta_E / (1 + gamma).
    assert np.abs(caustic[:, 0]).max() == pytest.approx(2 * 1.2 * abs(gamma1) / (1 + gamma1), rel=0.01)
    assert np.abs(caustic[:, 1]).max() == pytest.approx(2 * 1.2 * abs(gamma1) / (1 - gamma1), rel=0.01)


def panels(**changes):
    rng = np.random.default_rng(0)
    data = rng.normal(size=(20, 30))
    curves = Curves([np.array([[0.0, 0.0], [0.5, 0.2]])], [np.array([[0.0, 0.1], [0.1, 0.0]])])
    parts = {
        "data": data,
        "model": 0 * data,
        "residual": 9 * data,
        "mask": np.arange(30) < 5 + 0 * data,
        "pixel_scale": 0.1,
        "source": rng.random((8, 8)),
        "source_extent": (-0.3, 0.5, -0.4, 0.4),
        "kappa": rng.random((40, 60)),
        "curves": curves,
    }
    return Panels(**(parts | changes))


def drawn(figure):
    return [axes for axes in figure.axes if axes.images]


def test_a_lens_in_five_panels():
    shown = panels()
    axes = drawn(lens_figure(shown, "a lens"))
    assert [a.get_title() for a in axes] == ["Data", "Model", "Residual", "Source", "Convergence"]
    images = [a.images[0] for a in axes]
    assert images[0].get_array().mask.sum() == images[2].get_array().mask.sum() == shown.mask.sum() > 0
    assert images[2].get_clim() == (-MOST, MOST) and images[0].get_clim() == images[1].get_clim()
    # Three pixels of 0.1 arcsec from the middle of 30 columns.
    assert images[0].get_extent() == pytest.approx([-1.5, 1.5, -1.0, 1.0]) == list(images[4].get_extent())
    assert images[3].get_extent() == pytest.approx(list(shown.source_extent))
    assert all(image.origin == "lower" for image in images)
    assert axes[3].lines[0].get_xydata() == pytest.approx(shown.curves.caustics[0])
    assert axes[4].lines[0].get_xydata() == pytest.approx(shown.curves.critical[0])


def test_what_is_masked_does_not_set_the_colours():
    shown = panels()
    bright = np.where(shown.mask, 1e6, shown.data)
    assert drawn(lens_figure(panels(data=bright)))[0].images[0].get_clim()[1] < 10


def test_a_figure_of_nothing_and_of_no_mass_is_drawn(tmp_path):
    flat = panels(data=np.zeros((20, 30)), kappa=np.zeros((4, 6)), mask=np.ones((20, 30), bool), curves=Curves([], []))
    lens_figure(flat).savefig(tmp_path / "flat.png")
    assert (tmp_path / "flat.png").stat().st_size > 1000


@pytest.mark.parametrize("number", [1, 5])
def test_gallery_has_three_pictures_of_each(number, tmp_path):
    data = np.random.default_rng(1).normal(size=(number, 12, 12))
    data[0, 0, 0] = np.nan
    figure = fit_gallery(data, data + 1, data - 1, [f"lens {i}" for i in range(number)], columns=2)
    axes = drawn(figure)
    assert len(axes) == 3 * number
    first = [a.images[0].get_array() for a in axes if a.get_title() == "lens 0" or a in axes]
    assert first[0].mask.sum() == 1
    figure.savefig(tmp_path / "gallery.png")
