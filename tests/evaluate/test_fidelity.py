"""Generated sets that are like the held-out ones, blurred, of another class mixture, or copied: what the scores say."""

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from deeplense.errors import DataError
from deeplense.evaluate.fidelity import fidelity_scores
from deeplense.evaluate.fidelity_parts import in_band
from deeplense.evaluate.fidelity_sets import equal_splits, measure
from deeplense.evaluate.morphology import morphology, power_spectrum

SIZE = 32
CLASSES = ("no", "sphere", "vort")


def lenses(n, seed=0, mean_radius=7.0, noise=0.05, label=None):
    """Rings whose brightness goes with their class."""
    rng = np.random.default_rng(seed)
    row, column = np.indices((SIZE, SIZE)) - (SIZE - 1) / 2
    label = np.arange(n) % 3 if label is None else label
    radius = rng.normal(mean_radius, 1, n)[:, None, None]
    image = (1 + label)[:, None, None] * np.exp(-0.5 * ((np.hypot(row, column) - radius) / 1.5) ** 2)
    images = image + rng.normal(0, noise, image.shape)
    return images[:, None].astype(np.float32), label


def judge(images):
    """A classifier that sees the classes: features are coarse pixels, the class goes by the brightest pixel."""
    coarse = images[:, 0].reshape(len(images), 8, 4, 8, 4).mean((2, 4)).reshape(len(images), -1)
    peak = np.percentile(images, 99, axis=(1, 2, 3))
    logits = -np.square(peak[:, None] - 0.9 * np.arange(1, 4)) / 0.02
    probs = np.exp(logits - logits.max(1, keepdims=True))
    return coarse, probs / probs.sum(1, keepdims=True)


def compare(generated, held_out, **changes):
    given = {"label": generated[1], "held_label": held_out[1], "classes": CLASSES, "features": judge}
    return fidelity_scores(generated[0], held_out[0], **given | changes)


@pytest.fixture(scope="module")
def like():
    return compare(lenses(150, 1), lenses(360, 2), train=lenses(200, 3)[0])


def test_draws_of_the_same_distribution_are_at_the_floor(like):
    assert like["n"] == 150
    for name, score in like["scores"].items():
        assert score["low"] <= score["value"] <= score["high"], name
        assert score["floor_low"] <= score["floor"] <= score["floor_high"], name
    assert like["scores"]["two_sample_auc"]["value"] == pytest.approx(0.5, abs=0.08)
    assert like["memorisation"]["value"] == pytest.approx(1, abs=0.1)
    assert like["memorisation"]["floor"] == pytest.approx(1, abs=0.1)
    assert like["notes"] == ["No network was trained to tell the pixels apart."]


def test_values_and_floors_are_equal_on_average():
    pairs = [(lenses(60, 2 * k + 1), lenses(150, 2 * k + 2)) for k in range(40)]
    found = [compare(*pair, features=None, splits=2)["scores"] for pair in pairs]
    for name in ("ring_radius", "noise", "pixels", "power_deviation", "profile_deviation"):
        values, floors = (np.array([scores[name][key] for scores in found]) for key in ("value", "floor"))
        error = np.std(values - floors) / np.sqrt(40)
        assert values.mean() == pytest.approx(floors.mean(), abs=3.5 * error), name


def test_classes_asked_for_are_recovered(like):
    for part, number in (("generated", 150), ("held_out", 360)):
        assert like["recovered"][part]["accuracy"] > 0.95
        assert like["recovered"][part]["confusion"].sum() == number
    asked_wrongly = lenses(90, 1)[0], (np.arange(90) - 1) % 3
    found = compare(asked_wrongly, lenses(200, 2))["recovered"]["generated"]
    assert found["accuracy"] < 0.05
    np.testing.assert_array_equal(
        np.argmax(found["confusion"], axis=1), [1, 2, 0]
    )  # the images show the class after that asked for


def test_larger_rings_are_seen_in_the_radius_alone():
    found = compare(lenses(150, 1, mean_radius=8.0), lenses(360, 2), pixel_scale=0.1)["scores"]
    assert found["ring_radius"]["value"] == pytest.approx(0.1, abs=0.03)  # arcsec
    assert found["ring_radius_relative"]["value"] == pytest.approx(1 / 7, abs=0.03)
    assert found["ring_radius"]["ratio"] > 2.5
    assert found["noise"]["ratio"] < 2
    assert found["frechet"]["ratio"] > 2
    assert found["two_sample_auc"]["value"] > 0.6


def test_smooth_images_are_seen_in_noise_and_power():
    found = compare(lenses(150, 1, noise=0.03), lenses(360, 2, noise=0.05))
    assert found["scores"]["noise"]["value"] == pytest.approx(0.02, abs=0.003)
    # Beyond the frequencies of the rings there is noise only.
    assert found["power"]["ratio"][-3:] == pytest.approx(0.36, abs=0.05)
    assert ((found["power"]["floor_low"] < 1.1) & (found["power"]["floor_high"] > 0.9)).all()


def test_scores_are_those_of_scipy_and_of_the_curves():
    generated, held_out = lenses(60, 1, mean_radius=8), lenses(120, 2)
    found = compare(generated, held_out, splits=1, seed=3)["scores"]
    (split,) = equal_splits(*(measure(*part) for part in (generated, held_out)), 1, 3)
    assert sorted(np.concatenate([split.first, split.second])) == list(range(120))
    first = held_out[0][split.first]
    radii = [morphology(images)["ring_radius"] for images in (generated[0], first)]
    assert found["ring_radius"]["value"] == pytest.approx(wasserstein_distance(*radii))
    flat = [images.ravel() for images in (generated[0], first)]
    # A sample of the pixels stands for all of them.
    assert found["pixels"]["value"] == pytest.approx(wasserstein_distance(*flat) / np.std(flat[1]), rel=0.2)
    power = power_spectrum(generated[0]).mean / power_spectrum(first).mean
    used = in_band(np.arange(1, 17))
    assert used.tolist() == [False] + [True] * 15
    assert found["power_deviation"]["value"] == pytest.approx(np.abs(power[1:] - 1).max())


def test_copies_of_training_images():
    train, held_out = lenses(200, 3), lenses(320, 2)
    found = compare((train[0][:150], train[1][:150]), held_out, train=train[0])["memorisation"]
    assert found["value"] < 0.5
    assert found["high"] < found["floor_low"]
    assert found["near_copies"] == 150


def test_class_mixtures_are_made_equal():
    label = np.repeat([0, 1, 2], [60, 20, 5])
    generated, held_out = lenses(85, 1, label=label), lenses(180, 2)
    found = compare(generated, held_out)
    # Of the first class there are 60 held-out images, so that 30 can be compared.
    assert found["n"] == 30 + 20 + 5
    assert "55 of the 85" in found["notes"][0]
    sets = measure(*generated), measure(*held_out)
    for split in equal_splits(*sets, 3, 0):
        assert not np.intersect1d(split.first, split.second).size
        for part, index in ((generated, split.generated), (held_out, split.first), (held_out, split.second)):
            np.testing.assert_array_equal(np.bincount(part[1][index]), [30, 20, 5])


def test_too_few_held_out_images_cut_the_number():
    found = compare(lenses(100, 1), lenses(90, 2), label=None)
    assert found["n"] == 45
    assert found["recovered"] is None
    assert any("class mixtures" in note for note in found["notes"])


def test_without_a_classifier_its_parts_are_left_out():
    found = compare(lenses(30, 1), lenses(60, 2), features=None)
    assert "frechet" not in found["scores"]
    assert found["recovered"] is None
    assert found["memorisation"] is None
    assert any("--features" in note for note in found["notes"])


def test_a_network_for_pixels_is_asked_once_each_way():
    calls = []

    def pixel_auc(a, b, seed):
        calls.append((a, b))
        return float(a.mean() > b.mean())

    found = compare(lenses(30, 1, mean_radius=9), lenses(60, 2), pixel_auc=pixel_auc, train=lenses(20, 3)[0])
    assert len(calls) == 2
    assert calls[0][1] is calls[1][1]
    assert found["scores"]["pixel_auc"]["value"] == 1
    assert not found["notes"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": np.zeros((9, 1, 8, 8), np.float32)}, "training ones"),
        ({"label": np.arange(29) % 3}, "30 images, but 29 labels"),
        ({"classes": ("a", "b")}, "from 0 to 1"),
        ({"label": np.ones(30, int), "held_label": np.zeros(60, int)}, "leave 0 to compare"),
    ],
)
def test_parts_that_do_not_fit(changes, message):
    with pytest.raises(DataError, match=message):
        compare(lenses(30, 1), lenses(60, 2), **changes)


def test_images_that_diverged():
    images, label = lenses(30, 1)
    images[4, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match=r"1 of 30 images hold NaN .*image 4"):
        compare((images, label), lenses(60, 2))
    with pytest.raises(DataError, match=r"needs \(N, C, H, W\)"):
        compare((images[:, 0], label), lenses(60, 2))
