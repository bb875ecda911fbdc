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
CORNER = 20
NAMES = ("mean", "maximum", "total flux", "ring radius", "noise level")


def features(images: np.ndarray) -> np.ndarray:
    """The five numbers of each image (N, 1, H, W) by which a class must not be told, shape (N, 5)."""
    image = images[:, 0].astype(np.float64)
    corner = image[:, :CORNER, :CORNER]
    noise = corner.std((1, 2))
    y, x = np.indices(image.shape[1:]) - (np.array(image.shape[1:])[:, None, None] - 1) / 2
    above = image - np.median(corner, (1, 2))[:, None, None]
    light = np.where(above > 5 * noise[:, None, None], above, 0)
    flux = light.sum((1, 2))
    radius = (light * np.hypot(x, y)).sum((1, 2)) / flux
    return np.stack([image.mean((1, 2)), image.max((1, 2)), flux, radius, noise], axis=1)


def shortcut_auc(values: np.ndarray, label: np.ndarray) -> float:
    """Macro one-vs-rest AUC of logistic regression, trained on one half and scored on the other."""
    half = len(label) // 2
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(values[:half], label[:half])
    return float(roc_auc_score(label[half:], classifier.predict_proba(values[half:]), multi_class="ovr"))


@pytest.fixture(scope="module")
def physical():
    images = simulated_set("common-test", "physical", 11, NUM)
    return features(images.images), images.label, images.params


def test_physical_images_have_no_shortcut(physical, record_property):
    values, label, _ = physical
    auc = shortcut_auc(values, label)
    record_property("auc", auc)
    print(f"shortcut AUC, physical: {auc:.3f}")
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
    assert values[:, 4] == pytest.approx(np.median(values[:, 4]), rel=0.2)


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
