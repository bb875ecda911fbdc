"""Differences of AUC against scikit-learn, a plain loop of it, and DeLong's variance."""

import json

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import norm
from sklearn.metrics import accuracy_score, roc_auc_score

from deeplense.errors import DataError
from deeplense.evaluate.paired import auc_difference, macro_auc, side_by_side


def draw(num, strengths, classes=3, seed=0):
    """Labels and classifiers that share most of their errors."""
    rng = np.random.default_rng(seed)
    label, shared = np.arange(num) % classes, rng.normal(size=(num, classes))
    return label, [
        softmax(shared + 0.5 * rng.normal(size=(num, classes)) + strength * np.eye(classes)[label], axis=1)
        for strength in strengths
    ]


def sklearn_auc(label, probs, weights=None):
    truth = np.eye(probs.shape[1])[label]
    return roc_auc_score(truth, probs, average="macro", sample_weight=weights)


def test_values_are_those_of_scikit_learn():
    label, (a, b) = draw(300, (1.0, 0.7))
    found = auc_difference(a, b, label, bootstrap=0)
    expected = [sklearn_auc(label, probs) for probs in (a, b)]
    assert [found[name]["value"] for name in "ab"] == pytest.approx(expected)
    assert found["difference"]["value"] == pytest.approx(expected[0] - expected[1])
    assert found["difference"]["low"] is None
    weights = np.random.default_rng(1).integers(0, 4, size=(3, 300)).astype(float)
    assert macro_auc(a, label, weights) == pytest.approx([sklearn_auc(label, a, row) for row in weights])


def test_interval_equals_a_plain_loop():
    """Slow but independent: both classifiers see the same picks."""
    label, (a, b) = draw(150, (1.0, 0.7))
    found = auc_difference(a, b, label, bootstrap=2000)["difference"]
    rng = np.random.default_rng(7)
    members = [np.flatnonzero(label == k) for k in range(3)]
    picks = [np.concatenate([rng.choice(index, len(index)) for index in members]) for _ in range(250)]
    draws = [sklearn_auc(label[pick], a[pick]) - sklearn_auc(label[pick], b[pick]) for pick in picks]
    low, high = np.quantile(draws, [0.025, 0.975])
    assert [found["low"], found["high"]] == pytest.approx([low, high], abs=0.2 * (high - low))


def test_interval_of_two_classes_is_that_of_delong():
    """DeLong et al. (1988): the variance of a difference of correlated AUCs, from the placements of each image."""
    label, (a, b) = draw(1200, (0.8, 0.6), classes=2)
    found = auc_difference(a, b, label, bootstrap=2000)["difference"]
    placements = []
    for score in (a[:, 1], b[:, 1]):
        wins = score[label == 1][:, None] > score[label == 0]
        placements.append((wins.mean(axis=1), wins.mean(axis=0)))
    variance = sum(np.var(one - other, ddof=1) / 600 for one, other in zip(*placements, strict=True))
    half = norm.ppf(0.975) * np.sqrt(variance)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(half, rel=0.08)
    # Taken apart, the two would be far less certain: the classifiers share their errors.
    apart = sum(np.var(part, ddof=1) / 600 for pair in placements for part in pair)
    assert half < 0.7 * norm.ppf(0.975) * np.sqrt(apart)


def test_a_classifier_does_not_differ_from_itself():
    label, (a,) = draw(90, (1.0,))
    assert auc_difference(a, a, label, bootstrap=50)["difference"] == {"value": 0, "low": 0, "high": 0}


def test_seeds_are_averaged():
    label, runs = draw(120, (1.0, 1.1, 0.9, 0.5))
    found = side_by_side({"physics": np.stack(runs[:3]), "plain": runs[3]}, label, "plain", bootstrap=100)
    physics, plain = found["rows"]
    scores = [sklearn_auc(label, probs) for probs in runs]
    assert physics["seeds"] == 3
    assert physics["auc_of_seeds"] == pytest.approx(scores[:3])
    assert physics["auc_macro"]["value"] == pytest.approx(np.mean(scores[:3]))
    assert physics["seed_scatter"] == pytest.approx(np.std(scores[:3], ddof=1))
    assert physics["difference"]["value"] == pytest.approx(np.mean(scores[:3]) - scores[3])
    assert physics["difference"]["low"] < physics["difference"]["value"] < physics["difference"]["high"]
    right = [accuracy_score(label, probs.argmax(axis=1)) for probs in runs]
    assert physics["accuracy"]["value"] == pytest.approx(np.mean(right[:3]))
    assert plain["accuracy"]["value"] == pytest.approx(right[3])
    assert [plain[key] for key in ("seeds", "difference", "seed_scatter")] == [1, None, None]
    assert found["reference"] == "plain"


def test_same_seed_same_json_and_the_first_is_the_reference():
    label, (a, b) = draw(60, (1.0, 0.7))
    one, two = (side_by_side({"x": a, "y": [b]}, label, bootstrap=30) for _ in range(2))
    assert json.dumps(one, allow_nan=False) == json.dumps(two, allow_nan=False)
    assert one["reference"] == "x"
    expected = sklearn_auc(label, b) - sklearn_auc(label, a)
    assert one["rows"][1]["difference"]["value"] == pytest.approx(expected)


def test_absent_class_is_left_out_of_the_mean():
    label, (a,) = draw(90, (1.0,))
    chosen = label != 2
    found = side_by_side({"a": a[chosen]}, label[chosen], bootstrap=0)["rows"][0]["auc_macro"]["value"]
    assert found == pytest.approx(np.mean([roc_auc_score(label[chosen] == k, a[chosen][:, k]) for k in (0, 1)]))


@pytest.mark.parametrize(
    ("outputs", "reference", "message"),
    [
        ({}, None, "no classifier ''"),
        ({"plain": np.full((6, 3), 1 / 3)}, "plane", "did you mean 'plain'"),
        ({"plain": np.full((5, 3), 1 / 3)}, None, "5 rows of model output, but 6 labels"),
        ({"plain": np.full((2, 6, 3), 0.9)}, None, "sum to 1"),
        ({"plain": np.empty((0, 6, 3))}, None, "'plain' has no probabilities"),
    ],
)
def test_bad_input(outputs, reference, message):
    with pytest.raises(DataError, match=message):
        side_by_side(outputs, np.arange(6) % 3, reference, bootstrap=0)


def test_one_class_cannot_be_ranked():
    with pytest.raises(DataError, match="all of one class"):
        auc_difference(np.full((4, 2), 0.5), np.full((4, 2), 0.5), np.zeros(4))
