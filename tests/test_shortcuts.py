"""Shortcuts: what can be told from the classes by numbers that carry no substructure must be next to nothing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deeplense.simulate.stream import simulated_set

NUM = 912
# Many rays or truncated haloes take long to draw.
SETS = {"common-test": NUM, "model-1": 480, "model-2": 480, "model-3": 480, "dark-matter": 480}
CORNER = 20 / 150
NAMES = ("mean", "maximum", "total flux", "ring radius", "noise level")


def sky_of(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Level and noise in the first corner of images (N, H, W), which few arcs reach, shape (N, 1, 1) each."""
    size = round(CORNER * image.shape[-1])
    corner = image[:, :size, :size]
    return np.median(corner, (1, 2), keepdims=True), corner.std((1, 2), keepdims=True)


def features(images: np.ndarray) -> np.ndarray:
    """The five numbers of each image (N, 1, H, W) by which a class must not be told, shape (N, 5)."""
    image = images[:, 0].astype(np.float64)
    sky, noise = sky_of(image)
    y, x = np.indices(image.shape[1:]) - (np.array(image.shape[1:])[:, None, None] - 1) / 2
    light = np.where(image - sky > 5 * noise, image - sky, 0)
    flux = light.sum((1, 2))
    radius = (light * np.hypot(x, y)).sum((1, 2)) / flux
    return np.stack([image.mean((1, 2)), image.max((1, 2)), flux, radius, noise[:, 0, 0]], axis=1)


def shortcut_auc(values: np.ndarray, label: np.ndarray) -> float:
    """AUC of logistic regression, macro one-vs-rest of many classes, trained on one half and scored on the other."""
    half = len(label) // 2
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(values[:half], label[:half])
    score = classifier.predict_proba(values[half:])
    return float(roc_auc_score(label[half:], score if score.shape[1] > 2 else score[:, 1], multi_class="ovr"))


@pytest.fixture(scope="module", params=SETS)
def physical(request):
    images = simulated_set(request.param, "physical", 11, SETS[request.param])
    return features(images.images), images.label, images.params


def test_physical_images_have_no_shortcut(physical, record_property):
    values, label, _ = physical
    auc = shortcut_auc(values, label)
    record_property("auc", auc)
    print(f"shortcut AUC, physical: {auc:.3f}")
    assert np.isfinite(values).all()
    assert auc <= 0.60


@pytest.mark.parametrize("number", range(5), ids=NAMES)
def test_no_single_number_tells_the_classes_apart(physical, number):
    values, label, _ = physical
    for kind in range(3):
        auc = roc_auc_score(label == kind, values[:, number])
        assert max(auc, 1 - auc) <= 0.60


def test_the_features_see_what_they_are_named_for(physical):
    """Otherwise the tests above would pass for numbers that are noise."""
    values, _, params = physical
    theta_E, magnitude = (params[name].to_numpy() for name in ("theta_E", "magnitude"))
    assert np.corrcoef(values[:, 3], theta_E)[0, 1] > 0.7
    assert np.corrcoef(np.log(values[:, 2]), -magnitude)[0, 1] > 0.4
    # The corner of the smallest images has 81 pixels: its noise is known to 8 %, and wings of arcs reach it.
    low, middle, high = np.quantile(values[:, 4], (0.16, 0.5, 0.84))
    assert high - low < 0.3 * middle


def test_a_shortcut_would_be_found(physical):
    """Weighing the ring: mass added to a lens makes it larger, here by 5 % in radius for one class."""
    values, label, _ = physical
    weighed = values.copy()
    weighed[:, 3] *= 1 + 0.3 * (label == 1)
    assert shortcut_auc(weighed, label) > 0.65


def test_shortcut_of_published_images_is_recorded(record_property):
    images = simulated_set("common-test", "published", 11, NUM)
    auc = shortcut_auc(features(images.images), images.label)
    record_property("auc", auc)
    print(f"shortcut AUC, published: {auc:.3f}")
    assert 0 <= auc <= 1


def central_light(images: np.ndarray) -> np.ndarray:
    """Flux, size and colours of what is in the middle of images (N, C, H, W), as measured, shape (N, 1 + 2 C).

    Of each channel the light above the sky within a quarter of the width: its logarithm in the first channel, the
    steps of the logarithm from channel to channel, the mean distance from the centre, and the noise over the light.
    """
    columns, before = [], None
    y, x = np.indices(images.shape[2:]) - (np.array(images.shape[2:])[:, None, None] - 1) / 2
    distance = np.hypot(x, y)
    for image in images.astype(np.float64).transpose(1, 0, 2, 3):
        sky, noise = sky_of(image)
        light = np.where(distance < image.shape[-1] / 4, (image - sky).clip(0), 0)
        flux = np.log(light.sum((1, 2)))
        size = (light * distance).sum((1, 2)) / light.sum((1, 2))
        columns += [flux if before is None else flux - before, size]
        before = flux
    columns.append(np.log(noise[:, 0, 0] + 1e-6) - flux)
    return np.stack(columns, axis=1)


@pytest.fixture(scope="module", params=["hsc-gri", "euclid-vis"])
def survey(request):
    images = simulated_set(request.param, "physical", 11, NUM)
    return central_light(images.images), images.label, images.params


def test_shortcut_of_survey_images_is_recorded(survey, record_property):
    """Lenses are brighter and redder than the rest, here as on the sky: hold a network's score against this."""
    values, label, _ = survey
    auc = shortcut_auc(values, label)
    record_property("auc", auc)
    print(f"shortcut AUC, lens against non-lens: {auc:.3f}")
    assert auc < 0.9


def test_a_shortcut_of_survey_images_would_be_found(survey):
    """Lenses four magnitudes brighter, or larger by half: neither is part of being a lens."""
    values, label, _ = survey
    plain = shortcut_auc(values, label)
    for number, step in ((0, 4 * np.log(10) / 2.5), (1, 0.5 * values[:, 1].mean())):
        changed = values.copy()
        changed[:, number] += step * label
        assert shortcut_auc(changed, label) > max(0.9, plain + 0.05)
