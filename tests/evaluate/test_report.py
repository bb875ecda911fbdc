"""The whole report of a classifier, on the sets that occur: large, 35 images, a class absent, one class only."""

import json
import re

import numpy as np
import pytest
from sklearn import metrics

from deeplense.errors import DataError
from deeplense.evaluate.calibrate import apply_temperature
from deeplense.evaluate.report import classification_report, confident_mistakes

CLASSES = ("no", "sphere", "vort")
HISTORY = [{"epoch": "0", "train_loss": "1.1", "val_auc": "0.5"}, {"epoch": "1", "train_loss": "0.9", "val_auc": "0.8"}]


def judge(out, label, strength=1.0, **changes):
    rng = np.random.default_rng(0)
    n = len(label)
    given = {
        "title": "Test <1>",
        "logits": 3 * (rng.normal(size=(n, 3)) + strength * np.eye(3)[label]),
        "label": label,
        "classes": CLASSES,
        "images": rng.random((n, 1, 12, 12), dtype=np.float32),
        "names": [f"lens_{i}.npy" for i in range(n)],
        "temperature": 2.5,
        "provenance": {"seed": 4, "data": {"fingerprint": "abc123"}},
        "history": HISTORY,
        "bootstrap": 40,
    }
    return given | changes, classification_report(out, **given | changes)


def test_scores_are_those_of_the_calibrated_probabilities(tmp_path):
    given, result = judge(tmp_path, np.arange(60) % 3)
    for when, temperature in (("before", 1.0), ("after", 2.5)):
        probs = apply_temperature(given["logits"], temperature)
        expected = metrics.log_loss(given["label"], probs)
        assert result["calibration"][when]["log_loss"] == pytest.approx(expected)
    expected = metrics.roc_auc_score(given["label"], probs, multi_class="ovr")
    assert result["auc_macro"]["value"] == pytest.approx(expected)
    assert result["calibration"]["after"]["ece"] == result["ece"]["value"]


def test_files_say_what_was_returned(tmp_path):
    _, result = judge(tmp_path, np.arange(60) % 3)
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    html = (tmp_path / "report.html").read_text()
    figure = result["auc_macro"]
    assert html.index(f"{figure['value']:.3f}") < html.index("Accuracy")
    for text in ("Test &lt;1&gt;", "Class by class", "Calibration", "Training", "Most confident mistakes", "abc123"):
        assert text in html
    assert html.count("<svg") == 5


def test_most_confident_mistakes_come_first(tmp_path):
    label = np.arange(60) % 3
    given, _ = judge(tmp_path, label)
    probs = apply_temperature(given["logits"], 2.5)
    worst = confident_mistakes(probs, label, most=4)
    wrong = sorted((p.max() for p, true in zip(probs, label, strict=True) if p.argmax() != true), reverse=True)
    np.testing.assert_array_equal(probs[worst].max(axis=1), wrong[:4])
    html = (tmp_path / "report.html").read_text()
    assert html.index(f"lens_{worst[0]}.npy") < html.index(f"lens_{worst[1]}.npy")
    assert f"predicted {CLASSES[probs[worst[0]].argmax()]}" in html


@pytest.mark.parametrize("label", [np.arange(35) % 3, np.arange(35) % 2, np.zeros(35, int), np.array([1])])
@pytest.mark.parametrize("strength", [0.5, 50.0])
def test_small_and_lopsided_sets(tmp_path, label, strength):
    _, result = judge(tmp_path, label, strength)
    assert result["n"] == len(label)
    assert (result["auc_macro"] is None) == (len(np.unique(label)) == 1)
    html = (tmp_path / "report.html").read_text()
    text = re.sub(r"<svg.*?</svg>|data:[^\"]+", "", html.partition("<main>")[2], flags=re.DOTALL)
    assert not re.search(r"\b(nan|None|inf)\b", text)
    assert ("There are none" in html) == (strength == 50.0)


def test_bare_minimum(tmp_path):
    bare = {"images": None, "names": None, "provenance": None, "history": None, "temperature": 1.0, "bootstrap": 0}
    judge(tmp_path, np.arange(30) % 3, **bare)
    html = (tmp_path / "report.html").read_text()
    assert "Training" not in html
    assert "Provenance" not in html
    assert "95 %\u00a0CI" not in html
    assert "without temperature scaling" in html
    assert '<th scope="row">image ' in html


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": np.full((6, 3), np.nan)}, "6 of 6 rows .* NaN"),
        ({"names": ["a"]}, "1 names, but 6 labels"),
        ({"images": np.zeros((5, 1, 2, 2), np.float32)}, "5 images, but 6 labels"),
        ({"classes": ("a", "b")}, "2 class names"),
    ],
)
def test_bad_input_writes_nothing(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        judge(tmp_path, np.arange(6) % 3, **changes)
    assert not list(tmp_path.iterdir())
