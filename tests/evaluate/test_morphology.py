"""Sizes and shapes of drawn rings and galaxies, spectra of noise and waves: what was put in comes out."""

import numpy as np
import pytest
from astropy.modeling.models import Gaussian2D

from deeplense.evaluate.morphology import (
    Curves,
    largest_deviation,
    morphology,
    pixel_sample,
    power_spectrum,
    radial_profile,
)
from deeplense.simulate.stream import simulated_set

SIZE = 64
ROW, COLUMN = np.indices((SIZE, SIZE)) - (SIZE - 1) / 2


def ring(radius, width=1.5, brightness=1.0):
    return brightness * np.exp(-0.5 * ((np.hypot(ROW, COLUMN) - radius) / width) ** 2)


def noisy(image, number=20, sky=5.0, noise=0.05, seed=0):
    return image + sky + np.random.default_rng(seed).normal(0, noise, (number, 1, SIZE, SIZE))


@pytest.mark.parametrize("radius", [8, 14, 22])
@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_ring_radius_is_that_of_the_ring_drawn(radius, noise):
    images = noisy(ring(radius), noise=noise)
    np.testing.assert_allclose(morphology(images)["ring_radius"], radius, rtol=0.03)
    np.testing.assert_allclose(morphology(images, pixel_scale=0.05)["ring_radius"], 0.05 * radius, rtol=0.03)


def test_ring_radius_follows_the_einstein_radius_of_simulated_lenses():
    lenses = simulated_set("common-test", "published", seed=5, num=96)
    theta_E = np.asarray(lenses.params["theta_E"])
    radius = morphology(lenses.images, lenses.pixel_scale)["ring_radius"]
    # Images of a source lie about the Einstein radius, on one side of it or on both.
    assert np.corrcoef(radius, theta_E)[0, 1] > 0.8
    assert np.median(radius / theta_E) == pytest.approx(1, abs=0.15)


def test_one_hot_pixel_does_not_change_the_ring():
    images = noisy(ring(14), noise=0.02)
    images[:, 0, 40, 3] += 3  # three times the peak of the ring
    np.testing.assert_allclose(morphology(images)["ring_radius"], 14, rtol=0.03)


@pytest.mark.parametrize("q", [0.4, 0.7, 0.9])
@pytest.mark.parametrize("angle", [0.0, 1.0])
def test_ellipticity_is_that_of_the_axis_ratio(q, angle):
    galaxy = Gaussian2D(1, 3, -2, 9, 9 * q, theta=angle)(COLUMN, ROW)
    found = morphology(noisy(galaxy, noise=0.005))["ellipticity"]
    np.testing.assert_allclose(found, (1 - q**2) / (1 + q**2), atol=0.02)


def test_flux_and_noise_are_those_put_in():
    galaxy = Gaussian2D(1, 0, 0, 4, 4)(COLUMN, ROW)
    found = morphology(noisy(galaxy, number=400, noise=0.05))
    error = 0.05 * SIZE / np.sqrt(400)  # of the mean of 400 sums over all pixels
    # The sky's own error counts once for every pixel: about 500 of them in the frame.
    assert found["flux"].mean() == pytest.approx(2 * np.pi * 16, abs=5 * error * 4)
    assert found["noise"].mean() == pytest.approx(0.05, rel=0.01)


def test_images_without_light_and_of_several_bands():
    found = morphology(np.full((3, 2, 20, 20), 7.0))
    assert all((values == 0).all() for values in found.values())
    bands = np.concatenate([noisy(ring(10), noise=0.01)] * 3, axis=1) * np.array([1, 2, 3])[:, None, None]
    np.testing.assert_allclose(morphology(bands)["ring_radius"], 10, rtol=0.03)


def test_white_noise_has_its_variance_at_every_frequency():
    images = np.random.default_rng(0).normal(3, 0.5, (2000, 1, 32, 32))
    power = power_spectrum(images)
    np.testing.assert_array_equal(power.x, np.arange(1, 17))
    # The lowest bin loses what the mean takes away.
    np.testing.assert_allclose(power.mean[1:], 0.25, rtol=0.02)


@pytest.mark.parametrize("cycles", [3, 10, 25])
def test_a_wave_has_its_power_at_its_frequency(cycles):
    wave = np.sin(2 * np.pi * cycles * np.arange(SIZE) / SIZE + 0.7)
    power = power_spectrum(np.broadcast_to(wave, (2, SIZE, SIZE)))
    assert power.x[power.mean.argmax()] == cycles
    # A Hann window leaks into the next two places and no further.
    assert power.mean[np.abs(power.x - cycles) > 3].max() < 1e-3 * power.mean.max()


def test_power_does_not_depend_on_the_chunks(monkeypatch):
    images = np.random.default_rng(0).normal(size=(7, 2, 16, 16))
    whole = power_spectrum(images).values
    monkeypatch.setattr("deeplense.evaluate.morphology.CHUNK", 3)
    np.testing.assert_allclose(power_spectrum(images).values, whole)


@pytest.mark.parametrize("size", [24, 25])
def test_radial_profile_of_a_cone(size):
    row, column = np.indices((size, size)) - (size - 1) / 2
    profile = radial_profile(np.hypot(row, column)[None, None])
    assert len(profile.x) == size // 2
    np.testing.assert_allclose(profile.values[0], profile.x)
    np.testing.assert_allclose(profile.x[2:], np.arange(2, size // 2) + 0.5, atol=0.3)


def test_curves_of_a_set():
    curves = Curves(np.arange(2.0), np.arange(202.0).reshape(101, 2))
    np.testing.assert_array_equal(curves.mean, [100, 101])
    np.testing.assert_allclose(curves.scatter, [[32, 33], [168, 169]])
    np.testing.assert_array_equal(curves.of(np.array([1])).values, [[2, 3]])
    np.testing.assert_allclose(curves.of(np.array([1])).shape.values, [[0.4, 0.6]])


def test_shapes_of_power_spectra_do_not_know_the_brightness():
    images = noisy(ring(14), number=6, noise=0)
    images[:3] *= 10
    power = power_spectrum(images)
    assert power.values[0] == pytest.approx(100 * power.values[3])
    np.testing.assert_allclose(power.shape.values, np.broadcast_to(power.shape.values[0], (6, 32)))


def test_largest_deviation_looks_where_it_is_told():
    curve, reference = np.array([9.0, 1.1, 0.8]), np.array([1.0, 1.0, 1.0])
    assert largest_deviation(curve, reference, np.array([False, True, True])) == pytest.approx(0.2)


def test_pixel_sample_takes_the_same_places_of_every_image():
    images = np.broadcast_to(np.arange(1024).reshape(1, 32, 32), (3, 1, 32, 32))
    values = pixel_sample(images, 100).reshape(3, 100)
    assert len(np.unique(values[0])) == 100
    np.testing.assert_array_equal(values, np.broadcast_to(values[0], (3, 100)))
