"""Every score against scikit-learn; what is missing among the labels; bad input."""

import json
import time

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn import metrics

from deeplense.errors import DataError
from deeplense.evaluate.scores import classification_scores

CLASSES = ("no", "sphere", "vort")


def draw(n, seed=0, strength=1.0):
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 3
    return softmax(rng.normal(size=(n, 3)) + strength * np.eye(3)[label], axis=1), label


def test_values_equal_scikit_learn():
    probs, label = draw(300)
    scores, chosen = classification_scores(probs, label, CLASSES, bootstrap=0), probs.argmax(axis=1)
    truth = np.eye(3)[label]
    expected = {
        "accuracy": metrics.accuracy_score(label, chosen),
        "auc_macro": metrics.roc_auc_score(label, probs, multi_class="ovr"),
        "auc_micro": metrics.roc_auc_score(truth, probs, average="micro"),
        "average_precision_macro": metrics.average_precision_score(truth, probs, average="macro"),
        "f1_macro": metrics.f1_score(label, chosen, average="macro"),
        "log_loss": metrics.log_loss(label, probs),
        "brier": metrics.brier_score_loss(label, probs, scale_by_half=False),
    }
    assert {name: scores[name]["value"] for name in expected} == pytest.approx(expected)
    assert scores["confusion"] == metrics.confusion_matrix(label, chosen).tolist()
    table = metrics.classification_report(label, chosen, target_names=CLASSES, output_dict=True)
    for name, row in scores["per_class"].items():
        expected_row = [table[name][key] for key in ("precision", "recall", "f1-score", "support")]
        assert [row["precision"], row["recall"], row["f1"]["value"], row["n"]] == pytest.approx(expected_row)


def test_intervals_equal_a_plain_loop_of_scikit_learn():
    """Slow but independent: the same quantiles, within the noise of 2,000 resamples each."""
    probs, label = draw(150)
    scores = classification_scores(probs, label, CLASSES, bootstrap=2000)
    rng = np.random.default_rng(7)
    members = [np.flatnonzero(label == k) for k in range(3)]
    picks = [np.concatenate([rng.choice(index, len(index)) for index in members]) for _ in range(500)]
    loops = {
        "auc_macro": lambda y, p: metrics.roc_auc_score(y, p, multi_class="ovr"),
        "f1_macro": lambda y, p: metrics.f1_score(y, p.argmax(axis=1), average="macro"),
        "log_loss": metrics.log_loss,
    }
    for name, score in loops.items():
        low, high = np.quantile([score(label[pick], probs[pick]) for pick in picks], [0.025, 0.975])
        width = high - low
        assert scores[name]["low"] == pytest.approx(low, abs=0.15 * width)
        assert scores[name]["high"] == pytest.approx(high, abs=0.15 * width)


def test_accuracy_interval_is_the_binomial_one():
    probs, label = draw(6000)
    figure = classification_scores(probs, label, CLASSES)["accuracy"]
    half = 1.96 * np.sqrt(figure["value"] * (1 - figure["value"]) / 6000)
    assert (figure["high"] - figure["low"]) / 2 == pytest.approx(half, rel=0.1)


def test_a_test_set_of_7500_takes_seconds():
    probs, label = draw(7500)
    start = time.perf_counter()
    classification_scores(probs, label, CLASSES)
    assert time.perf_counter() - start < 30  # 2.6 s on one idle core


def test_same_seed_same_json_without_nan():
    probs, label = draw(40)
    texts = [json.dumps(classification_scores(probs, label, CLASSES, 50), allow_nan=False) for _ in range(2)]
    assert texts[0] == texts[1]


def test_tensors_of_half_precision_are_welcome():
    probs, label = draw(60)
    half = torch.tensor(probs).bfloat16().requires_grad_()
    scores = classification_scores(half, torch.tensor(label), CLASSES, bootstrap=0)
    expected = metrics.roc_auc_score(label, probs, multi_class="ovr")
    assert scores["auc_macro"]["value"] == pytest.approx(expected, abs=0.01)


def test_absent_class_is_none_and_left_out_of_the_mean():
    probs, _ = draw(35)
    label = np.arange(35) % 2
    scores = classification_scores(probs, label, CLASSES, bootstrap=50)
    assert [scores["per_class"]["vort"][name] for name in ("auc", "average_precision", "f1", "recall")] == [None] * 4
    expected = np.mean([metrics.roc_auc_score(label == k, probs[:, k]) for k in (0, 1)])
    assert scores["auc_macro"]["value"] == pytest.approx(expected)
    assert any("vort" in note for note in scores["notes"])
    json.dumps(scores, allow_nan=False)


def test_one_class_only_has_an_accuracy_but_no_auc():
    probs, _ = draw(20)
    scores = classification_scores(probs, np.ones(20), CLASSES, bootstrap=50)
    assert scores["auc_macro"] is None
    assert scores["accuracy"]["value"] == pytest.approx(np.mean(probs.argmax(axis=1) == 1))
    assert any("All images are of class sphere" in note for note in scores["notes"])
    json.dumps(scores, allow_nan=False)


def test_too_few_images_are_pointed_out():
    label = np.arange(12) % 3
    notes = " ".join(classification_scores(np.eye(3)[label], label, CLASSES, bootstrap=20)["notes"])
    assert "Fewer than 10 images are of class no" in notes
    assert "Every resample has the same accuracy" in notes


GOOD = [[0.5, 0.3, 0.2]] * 3


@pytest.mark.parametrize(
    ("probs", "label", "classes", "message"),
    [
        ([*GOOD[:2], [np.nan, 0.5, 0.5]], [0, 1, 2], CLASSES, r"1 of 3 rows .* NaN or infinite \(first: row 2\)"),
        ([[2.0, -1.0, 0.0]] * 3, [0, 1, 2], CLASSES, "softmax"),
        (GOOD, [0, 1], CLASSES, "3 rows .* 2 labels"),
        (GOOD, [0, 1, 3], CLASSES, "from 0 to 2"),
        (GOOD, [0, 1, 0.5], CLASSES, "whole numbers"),
        (GOOD, [0, 1, 2], CLASSES[:2], "2 class names"),
        ([[1.0]] * 3, [0, 0, 0], ("no",), "K >= 2"),
        (np.zeros((0, 3)), [], CLASSES, "at least one image"),
    ],
)
def test_bad_input_is_one_clear_line(probs, label, classes, message):
    with pytest.raises(DataError, match=message) as caught:
        classification_scores(probs, label, classes)
    assert "\n" not in str(caught.value)
