"""Pictures of measured lenses show what they are given."""

from __future__ import annotations

import numpy as np
import pytest

from deeplense.evaluate.lens_pictures import MOST, gallery, measured_lens

RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(20, 30))
CURVE = np.array([[0.0, 0.1], [0.4, -0.2], [0.1, 0.3]])


def drawn(**changes):
    """The panels of a lens of 20 x 30 pixels of 0.1 arcsec, whose five left columns do not count."""
    parts = {
        "data": DATA,
        "model": DATA / 2,
        "residual": np.where(np.arange(30) < 5, np.nan, 9 * DATA),
        "source": RNG.random((9, 9)),
        "kappa": RNG.random((20, 30)),
        "pixel_scale": 0.1,
        "source_extent": (-0.4, 0.4, -0.2, 0.6),
        "critical": [CURVE],
        "caustics": [CURVE / 2, CURVE / 4],
        "title": "a lens",
    }
    figure = measured_lens(**(parts | changes))
    return figure, [axes for axes in figure.axes if axes.images]


def test_a_lens_in_five_panels():
    _, axes = drawn()
    assert [a.get_title().split()[0] for a in axes] == ["data", "model", "residual", "source", "convergence"]
    assert all(a.images[0].origin == "lower" for a in axes)
    data, model, residual, source, kappa = (a.images[0] for a in axes)
    assert np.asarray(data.get_array()) == pytest.approx(DATA) and np.asarray(model.get_array()) == pytest.approx(
        DATA / 2
    )
    assert data.get_clim() == model.get_clim() and residual.get_clim() == (-MOST, MOST)
    assert residual.get_array().mask[:, :5].all() and not residual.get_array().mask[:, 5:].any()
    # 30 columns of 0.1 arcsec about the middle; a source of 9 values 0.1 arcsec apart has pixels beyond the outermost.
    for image in (data, model, residual, kappa):
        assert image.get_extent() == pytest.approx([-1.5, 1.5, -1.0, 1.0])
    assert source.get_extent() == pytest.approx([-0.45, 0.45, -0.25, 0.65])


def test_critical_curves_lie_over_the_mass_and_caustics_over_the_source():
    _, axes = drawn()
    assert [line.get_xydata().tolist() for line in axes[4].lines] == [CURVE.tolist()]
    assert [line.get_xydata().tolist() for line in axes[3].lines] == [(CURVE / 2).tolist(), (CURVE / 4).tolist()]
    # A caustic that reaches beyond the source does not shrink it.
    assert axes[3].get_xlim() == pytest.approx((-0.45, 0.45))


def test_what_does_not_count_does_not_set_the_colours():
    model = np.where(np.arange(30) < 5, 1e6, DATA / 2)
    _, axes = drawn(data=model, model=model)
    assert axes[0].images[0].get_clim()[1] < 10


def test_flat_and_empty_images_are_drawn(tmp_path):
    flat = np.zeros((20, 30))
    figure, _ = drawn(data=flat, model=flat, residual=flat, source=flat[:9, :9], kappa=flat, critical=[], caustics=[])
    figure.savefig(tmp_path / "flat.png")
    figure, _ = drawn(residual=np.full((20, 30), np.nan))
    figure.savefig(tmp_path / "all-masked.png")


def test_gallery_has_a_column_of_three_for_each(tmp_path):
    images = RNG.random((4, 12, 12))
    figure = gallery(images, images + 1, images - 1, [f"lens {i}" for i in range(4)], 0.5, "four")
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 12
    for row, maps in enumerate((images, images + 1, images - 1)):
        for column in range(4):
            assert np.asarray(shown[4 * row + column].images[0].get_array()) == pytest.approx(maps[column])
    assert shown[8].images[0].get_clim() == (-MOST, MOST) and shown[0].get_title() == "lens 0"
    assert shown[0].images[0].get_extent() == pytest.approx([-3, 3, -3, 3])
    figure.savefig(tmp_path / "gallery.png")
