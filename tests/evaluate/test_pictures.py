"""Colours of images: which band is red, what is bright, where a heat map lies."""

import matplotlib
import numpy as np
import pytest

from deeplense.evaluate import pictures
from deeplense.evaluate.pictures import Display, beside, display_of, overlay, to_rgb
from deeplense.simulate.generate import Simulator


def test_gallery_puts_row_zero_at_the_bottom():
    figure = pictures.gallery(np.zeros((5, 1, 8, 8)), list("abcde"), columns=3)
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c", "d", "e", ""]
    assert figure.axes[0].images[0].origin == "lower"


def test_rgb_spans_the_colour_map_and_survives_a_constant_image():
    rgb = pictures.to_rgb(np.arange(100.0).reshape(1, 10, 10))
    ends = np.array([matplotlib.colormaps["inferno"](value)[:3] for value in (0.0, 1.0)])
    np.testing.assert_array_equal(rgb[[0, -1], [0, -1]], np.round(255 * ends))
    for dull in (np.nan, 1.0):
        np.testing.assert_array_equal(pictures.to_rgb(np.full((4, 4), dull)), np.broadcast_to(rgb[0, 0], (4, 4, 3)))
    bands = np.stack([np.eye(4), np.eye(4)[::-1], np.zeros((4, 4))])
    np.testing.assert_array_equal(pictures.to_rgb(bands)[..., 0], 255 * np.eye(4))


def spot(channel, channels=3, size=24):
    """Noise, and in one channel a bright spot at row 6, column 17."""
    image = np.random.default_rng(0).normal(0, 0.01, (channels, size, size))
    y, x = np.mgrid[:size, :size]
    image[channel] += np.exp(-((y - 6) ** 2 + (x - 17) ** 2) / 8)
    return image


@pytest.mark.parametrize("stretch", ["linear", "asinh"])
@pytest.mark.parametrize(("red", "order"), [("first", [0, 1, 2]), ("last", [2, 1, 0])])
def test_the_reddest_band_is_red(stretch, red, order):
    for channel, colour in enumerate(order):
        rgb = to_rgb(spot(channel), display=Display(red, stretch))
        assert rgb.dtype == np.uint8
        assert rgb[6, 17].argmax() == colour
        assert rgb[6, 17, colour] > 2 * np.delete(rgb[6, 17], colour).max()


def test_of_more_bands_the_three_reddest_are_shown():
    """u, g, r, i: the last is red, and u is not shown."""
    assert to_rgb(spot(3, 4), display=Display("last", "asinh"))[6, 17].argmax() == 0
    u = to_rgb(spot(0, 4), display=Display("last", "linear"))
    assert np.ptp(u[6, 17].astype(int)) < 200


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_asinh_shows_faint_arcs_beside_a_bright_galaxy(channels):
    image = 10 * np.repeat(spot(0, 1), channels, axis=0)
    image[:, 15:18, 4:9] += 0.4  # 4 % of the peak, 4 sigma of the noise
    shown = {stretch: to_rgb(image, display=Display("last", stretch)) for stretch in ("linear", "asinh")}
    faint = {stretch: rgb[16, 6].astype(int).sum() for stretch, rgb in shown.items()}
    assert faint["asinh"] > 2 * faint["linear"] or channels < 3
    assert faint["asinh"] > 150
    image[:, 2, 2] = np.nan
    image[0, 3, :] = np.inf
    assert to_rgb(image, display=Display("last", "asinh")).shape == (24, 24, 3)
    assert to_rgb(np.full((channels, 8, 8), np.nan), display=Display("last", "asinh")).max() < 20  # dark sky


@pytest.mark.parametrize(
    ("names", "provenance", "expected"),
    [
        (["a"], {"bands": ["g", "r", "i"]}, Display("last", "asinh")),
        (["a"], {"bands": ["i", "r", "g"]}, Display("first", "asinh")),
        (["a"], {"bands": ["VIS"]}, Display("last", "asinh")),
        (["a"], {"bands": ["HSC-I", "HSC-R", "HSC-G"]}, Display("first", "asinh")),
        (["a"], {"bands": ["F814W", "F606W"]}, Display("last", "asinh")),  # unknown: as it is most often
        (["lens/a.npy"], {}, Display("last", "asinh")),
        (["lens/a.PNG"], {}, Display("first", "linear")),
        ([], None, Display("last", "asinh")),
    ],
)
def test_how_a_set_is_shown(names, provenance, expected):
    assert display_of(names, provenance) == expected


def test_the_simulators_survey_is_shown_with_i_as_red():
    """Elliptical galaxies are red: of all images, the sum of light is largest in the red channel."""
    simulator = Simulator("hsc-gri", seed=1)
    images = simulator.images(range(48))
    display = display_of(images.name, simulator.provenance())
    kind = np.array(images.params["kind"].to_pylist())
    centres = [
        to_rgb(image, display=display)[30:34, 30:34].mean((0, 1)) for image in images.images[kind == "elliptical"]
    ]
    assert np.mean([centre[0] > centre[2] for centre in centres]) > 0.8


def test_a_heat_map_lies_over_the_picture():
    rgb, heat = to_rgb(spot(0)), np.zeros((24, 24))
    heat[20, 3] = 1
    shown = overlay(rgb, heat)
    assert shown.dtype == np.uint8
    grey = np.delete(shown.reshape(-1, 3), 20 * 24 + 3, axis=0)
    assert (grey == grey[:, :1]).all()
    assert np.ptp(shown[20, 3].astype(int)) > 40
    pair = beside(rgb, shown)
    assert pair.shape == (24, 49, 3)
    np.testing.assert_array_equal(pair[:, :24], rgb)
    np.testing.assert_array_equal(pair[:, 25:], shown)
    np.testing.assert_array_equal(to_rgb(pair), pair)
