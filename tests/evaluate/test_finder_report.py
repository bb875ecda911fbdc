"""The whole report of a finder: what stands in it, on the sets that occur, and from a run folder."""

import base64
import io
import json
import re

import matplotlib.image
import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn import metrics
from test_population import survey

from deeplense.errors import DataError
from deeplense.evaluate.finder_report import finder_report

CLASSES = ("nonlens", "lens")
HISTORY = [{"epoch": "0", "train_loss": "1.1", "val_score": "0.5"}, {"epoch": "1", "train_loss": "0.9"}]


def bright_corner(images):
    """A heat map that is one in the first corner."""
    heat = np.zeros((len(images), *images.shape[2:]), np.float32)
    heat[:, :3, :3] = 1
    return heat


def judge(out, num=800, **changes):
    _, label, params = survey(num)
    rng = np.random.default_rng(0)
    log_odds = rng.normal(size=num) + 4 * label - 2
    given = {
        "title": "Test <1>",
        "score": log_odds,
        "probability": expit(log_odds),
        "label": label,
        "classes": CLASSES,
        "images": rng.random((num, 3, 12, 12), dtype=np.float32),
        "names": [f"cutout_{i}.npy" for i in range(num)],
        "params": params,
        "as_validated": (expit(log_odds + logit(0.1)), 0.1),
        "provenance": {"seed": 4, "data": {"fingerprint": "abc123"}},
        "history": HISTORY,
        "bootstrap": 40,
        "explain": bright_corner,
    }
    return given | changes, finder_report(out, **given | changes)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """(what was given, what was returned, the folder, images for which heat maps were asked)."""
    out, seen = tmp_path_factory.mktemp("report"), []

    def explain(images):
        seen.append(images)
        return bright_corner(images)

    return *judge(out, explain=explain), out, seen


def page(out):
    """The text of the report, without pictures."""
    html = (out / "report.html").read_text()
    return re.sub(r"<svg.*?</svg>|data:[^\"]+", "", html.partition("<main>")[2], flags=re.DOTALL)


def test_files_say_what_was_returned(report):
    given, result, tmp_path, _ = report
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    assert result["auc"]["value"] == pytest.approx(metrics.roc_auc_score(given["label"], given["score"]))
    losses = [metrics.log_loss(given["label"], p) for p in (given["probability"], given["as_validated"][0])]
    calibration = result["calibration"]
    assert calibration["log_loss"]["value"] == pytest.approx(losses[0])
    assert calibration["as_validated"]["log_loss"] == pytest.approx(losses[1])
    assert calibration["as_validated"]["prevalence"] == 0.1
    text = page(tmp_path)
    present = ["What a survey gets", "Which lenses are found", "What is taken for a lens", "Calibration", "Training"]
    present += ["Top candidates", "Most lens-like non-lenses", "Least lens-like lenses", "abc123", "1 in 1,000"]
    present += ["the share of lenses is 0.5 (the share of lenses among these images)", "speaks for a lens"]
    for words in present:
        assert words in text
    false = result["at_completeness"]["0.8"]["false_positives"]["value"]
    assert text.index(f"<b>{false:,.0f}</b>") < text.index("AUC")


def test_galleries_hold_the_extremes_with_their_kind(report):
    given, _, tmp_path, _ = report
    score, label, kind = given["score"], given["label"], given["params"]["kind"].to_pylist()
    text = page(tmp_path)
    top, false, missed = (
        text[text.index(title) :] for title in ("Top candidates", "Most lens-like non", "Least lens-like")
    )
    best = np.argsort(-score)[0]
    worst = np.flatnonzero(label == 0)[score[label == 0].argmax()]
    lost = np.flatnonzero(label == 1)[score[label == 1].argmin()]
    for part, i in ((top, best), (false, worst), (missed, lost)):
        first = part[part.index("<figure") : part.index("</figure>")]
        assert f"cutout_{i}.npy" in first
        assert kind[i] in first
        assert f"probability {expit(score[i]):.3g}" in first or "1 − " in first


def test_heat_maps_are_asked_for_the_images_that_are_shown(report):
    given, _, tmp_path, seen = report
    assert [images.shape for images in seen] == [(12, 3, 12, 12)] * 3
    np.testing.assert_array_equal(seen[0], given["images"][np.argsort(-given["score"], kind="stable")[:12]])
    html = (tmp_path / "report.html").read_text()
    picture = html[html.index("Top candidates") :].partition("data:image/png;base64,")[2].partition('"')[0]
    pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(picture)))
    assert pixels.shape[:2] == (12, 25)  # two pictures and a line
    assert np.ptp(pixels[-1, 13, :3]) > 0.2  # the corner of the heat map, at the bottom, in colour
    assert np.ptp(pixels[0, -1, :3]) < 0.01  # the rest is grey


def test_probabilities_for_another_sky(tmp_path):
    """Log-odds that are right where half are lenses, brought to one in a hundred: calibrated there, by weights."""
    _, label, _ = survey(800)
    x = np.random.default_rng(1).normal(size=len(label)) + 3 * label
    log_odds = 3 * x - 4.5 + logit(0.01)
    _, result = judge(tmp_path, score=log_odds, probability=expit(log_odds), prevalence=0.01)
    ece = result["calibration"]["ece"]
    assert result["calibration"]["prevalence"] == 0.01
    assert ece["value"] < 1.5 * ece["chance_95"]
    assert "the share of lenses is 0.01 (as asked for)" in page(tmp_path)


@pytest.mark.parametrize(
    "label", [np.zeros(30, int), np.ones(30, int), np.arange(30) % 2, np.array([1]), np.array([0, 1])]
)
def test_small_and_lopsided_sets(tmp_path, label):
    num = len(label)
    changes = {"label": label, "params": None, "as_validated": None}
    score = np.random.default_rng(0).normal(size=num)
    _, result = judge(tmp_path, num, score=score, probability=expit(score), **changes)
    assert result["n"] == num
    assert (result["auc"] is None) == (len(np.unique(label)) == 1)
    assert not re.search(r"\b(nan|None|inf)\b", page(tmp_path))


def test_bare_minimum(tmp_path):
    names = ("images", "names", "params", "provenance", "history", "explain", "as_validated")
    judge(tmp_path, **dict.fromkeys(names), bootstrap=0)
    text = page(tmp_path)
    for words in (
        "Training",
        "Provenance",
        "95 %\u00a0CI",
        "Which lenses are found",
        "What is taken",
        "speaks for a lens",
    ):
        assert words not in text
    assert '<th scope="row">image ' in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": np.full(800, np.nan)}, "800 of 800 scores are NaN"),
        ({"names": ["a"]}, "1 names, but 800 labels"),
        ({"images": np.zeros((5, 1, 2, 2), np.float32)}, "5 images, but 800 labels"),
        ({"classes": ("a", "b", "c")}, "two classes"),
        ({"prevalence": 1.5}, "prevalence is 1.5"),
    ],
)
def test_bad_input_writes_nothing(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        judge(tmp_path, **changes)
    assert not list(tmp_path.iterdir())
