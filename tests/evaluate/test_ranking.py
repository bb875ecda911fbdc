"""A finder's scores against scikit-learn, against counting by hand, and against closed forms."""

import json
import time
import tracemalloc

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm
from sklearn import metrics

from deeplense.errors import DataError
from deeplense.evaluate.bootstrap import cumulative
from deeplense.evaluate.ranking import COMPLETENESS, compare, ranking_scores
from deeplense.evaluate.thresholds import (
    false_positives,
    tpr_at_fpr,
    tpr_before,
)


def draw(n, share=0.3, seed=0, strength=2.0, decimals=12):
    rng = np.random.default_rng(seed)
    label = (np.arange(n) < share * n).astype(int)
    return np.round(rng.normal(size=n) + strength * label, decimals), label


def value(figure):
    return figure["value"]


@pytest.mark.parametrize("decimals", [0, 1, 12])  # few decimals make many ties
def test_values_equal_scikit_learn(decimals):
    score, label = draw(2000, decimals=decimals)
    result = ranking_scores(score, label, bootstrap=0)
    fpr, tpr, _ = metrics.roc_curve(label, score, drop_intermediate=False)
    assert value(result["auc"]) == pytest.approx(metrics.roc_auc_score(label, score))
    assert value(result["average_precision"]) == pytest.approx(metrics.average_precision_score(label, score))
    for rate in (0.01, 0.001):
        assert value(result["tpr_at_fpr"][str(rate)]) == pytest.approx(tpr[fpr <= rate].max())
    for name, limit in (("tpr_0", 1), ("tpr_10", 10)):
        assert value(result[name]) == pytest.approx(tpr[fpr * np.sum(label == 0) < limit - 1e-6].max())
    for c in COMPLETENESS:
        found, expected = result["at_completeness"][str(c)], fpr[tpr >= c - 1e-12].min()
        assert value(found["fpr"]) == pytest.approx(expected)
        assert value(found["false_positives"]) == pytest.approx(expected * np.sum(label == 0))


def test_other_prevalences_equal_scikit_learn_with_weights():
    score, label = draw(1500, decimals=1)
    for row in ranking_scores(score, label, bootstrap=0)["at_prevalence"]:
        prevalence = row["prevalence"]
        weights = np.where(label == 1, prevalence / np.sum(label == 1), (1 - prevalence) / np.sum(label == 0))
        expected = metrics.average_precision_score(label, score, sample_weight=weights)
        assert value(row["average_precision"]) == pytest.approx(expected)
        precision, recall, _ = metrics.precision_recall_curve(label, score, sample_weight=weights)
        for point in row["purity"]:
            reached = recall >= point["completeness"] - 1e-12
            assert point["value"] == pytest.approx(precision[reached][-1])  # scikit-learn's go up in threshold


def count(score, label, threshold):
    return sum((s >= threshold) and y for s, y in zip(score, label, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_small_sets_by_counting(seed):
    rng = np.random.default_rng(seed)
    score, label = rng.integers(0, 6, 25), np.arange(25) % 3 == 0
    curves = cumulative(score, label, np.ones((1, 25)))
    lenses, thresholds = label.sum(), [*range(7)]
    outcome = [(count(score, label, t) / lenses, count(score, ~label, t)) for t in thresholds]
    assert tpr_before(*curves, 1)[0] == max(tpr for tpr, false in outcome if false == 0)
    assert tpr_before(*curves, 10)[0] == max(tpr for tpr, false in outcome if false < 10)
    assert tpr_at_fpr(*curves, 0.25)[0] == max(tpr for tpr, false in outcome if false <= 0.25 * 16)
    assert false_positives(*curves, 0.8)[0] == min(false for tpr, false in outcome if tpr >= 0.8)


def test_a_tie_does_not_count_in_our_favour():
    # Nine lenses share the best score with one non-lens; the tenth lens and ten non-lenses come after.
    score, label = np.array([1.0] * 10 + [0.0] * 11), np.array([0] + [1] * 9 + [1] + [0] * 10)
    result = ranking_scores(score, label, bootstrap=0)
    assert value(result["tpr_0"]) == 0
    assert value(result["tpr_10"]) == 0.9
    assert value(result["at_completeness"]["0.5"]["false_positives"]) == 1
    assert value(result["top"][0]["purity"]) == 0.9
    assert value(result["auc"]) == pytest.approx(metrics.roc_auc_score(label, score))
    assert value(ranking_scores(np.where(score == 1, np.inf, score), label, bootstrap=0)["tpr_0"]) == 0
    flat = ranking_scores(np.zeros(40), np.arange(40) % 2, bootstrap=20)
    assert [value(flat[name]) for name in ("auc", "tpr_0", "average_precision")] == [0.5, 0, 0.5]
    assert value(flat["top"][0]["purity"]) == 0  # the twenty non-lenses may all stand first


def test_top_of_the_list_by_counting():
    score, label = draw(300, share=0.1, strength=1.5)
    best = label[np.argsort(-score)]
    for row in ranking_scores(score, label, bootstrap=0)["top"]:
        assert value(row["purity"]) == pytest.approx(best[: row["n"]].mean())
        assert value(row["completeness"]) == pytest.approx(best[: row["n"]].sum() / 30)
    assert row["n"] == 200


def test_two_gaussians_have_the_closed_form():
    score, label = draw(200_000, share=0.5, strength=2.0)
    result = ranking_scores(score, label, bootstrap=0)
    assert value(result["auc"]) == pytest.approx(norm.cdf(2 / np.sqrt(2)), abs=0.002)
    for rate in ("0.01", "0.001"):
        assert value(result["tpr_at_fpr"][rate]) == pytest.approx(norm.sf(norm.isf(float(rate)) - 2), abs=0.012)
    fpr = norm.sf(norm.isf(0.8) + 2)
    assert value(result["at_completeness"]["0.8"]["fpr"]) == pytest.approx(fpr, abs=0.004)
    expected = 0.8 * 0.01 / (0.8 * 0.01 + fpr * 0.99)
    purity = {row["completeness"]: row["value"] for row in result["at_prevalence"][1]["purity"]}
    assert purity[0.8] == pytest.approx(expected, rel=0.03)


def test_intervals_equal_a_plain_loop():
    """Slow but independent: images are drawn, not weighted, and scikit-learn does the counting."""
    score, label = draw(400)
    result = ranking_scores(score, label, bootstrap=2000)
    rng = np.random.default_rng(7)
    members = [np.flatnonzero(label == k) for k in (0, 1)]
    picks = [np.concatenate([rng.choice(index, len(index)) for index in members]) for _ in range(600)]

    def false(y, s):
        fpr, tpr, _ = metrics.roc_curve(y, s, drop_intermediate=False)
        return fpr[tpr >= 0.8 - 1e-12].min() * np.sum(y == 0)

    loops = {
        "auc": (metrics.roc_auc_score, result["auc"]),
        "false": (false, result["at_completeness"]["0.8"]["false_positives"]),
        "top": (lambda y, s: y[np.lexsort((y, -s))][:50].mean(), result["top"][2]["purity"]),
    }
    for name, (loop, figure) in loops.items():
        low, high = np.quantile([loop(label[pick], score[pick]) for pick in picks], [0.025, 0.975])
        width = max(high - low, 0.02)
        assert figure["low"] == pytest.approx(low, abs=0.2 * width), name
        assert figure["high"] == pytest.approx(high, abs=0.2 * width), name


def test_a_survey_sized_set_takes_seconds_and_little_memory():
    score, label = draw(20_000, share=1 / 17)
    tracemalloc.start()
    start = time.perf_counter()
    result = ranking_scores(score, label, expit(score), bootstrap=1000)
    elapsed, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert elapsed < 60  # 6 s on one core
    assert peak < 300e6
    json.dumps(result, allow_nan=False)


def test_what_cannot_be_measured_is_none_and_said():
    score, label = draw(400)  # 280 non-lenses
    result = ranking_scores(score, label, bootstrap=20)
    assert result["tpr_at_fpr"]["0.01"] is not None
    assert [result["tpr_at_fpr"][rate] for rate in ("0.001", "0.0001")] == [None, None]
    assert any("0.001" in note and "1,000 non-lenses" in note for note in result["notes"])
    perfect = ranking_scores(label, label, bootstrap=20)
    assert value(perfect["at_completeness"]["0.8"]["false_positives"]) == 0
    assert any("0.011" in note for note in perfect["notes"])  # 3 / 280: the rule of three
    for same in (0, 1):
        only = ranking_scores(score, np.full(400, same), expit(score), bootstrap=20)
        assert only["auc"] is None
        assert "nothing can be ranked" in only["notes"][0]
        json.dumps(only, allow_nan=False)


def test_comparison_by_counting_and_its_symmetry():
    score_a, label = draw(600, strength=2.5)
    score_b = score_a + np.random.default_rng(1).normal(size=600)
    found, back = compare(score_a, score_b, label), compare(score_b, score_a, label)
    false = []
    for score in (score_a, score_b):
        fpr, tpr, _ = metrics.roc_curve(label, score, drop_intermediate=False)
        false.append(fpr[tpr >= 0.8 - 1e-12].min() * np.sum(label == 0))
    assert [value(found["false_positives"][name]) for name in "ab"] == pytest.approx(false)
    assert value(found["ratio"]) == pytest.approx(false[0] / false[1])
    assert found["ratio"]["low"] < value(found["ratio"]) < found["ratio"]["high"] < 1
    assert back["ratio"]["low"] == pytest.approx(1 / found["ratio"]["high"], rel=0.05)
    difference = metrics.roc_auc_score(label, score_a) - metrics.roc_auc_score(label, score_b)
    assert value(found["auc_difference"]) == pytest.approx(difference)


def test_comparison_is_paired():
    """A finder against itself, and against a copy of itself that ranks alike, is no better in any resample."""
    score, label = draw(500)
    assert compare(score, np.exp(score), label)["ratio"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_a_comparison_without_false_positives_has_no_bound():
    score, label = draw(200)
    worse = compare(score, label, label, bootstrap=50)["ratio"]
    assert worse["value"] is None
    assert worse["high"] is None
    assert compare(label, label, label, bootstrap=50)["ratio"] == {"value": 1.0, "low": 1.0, "high": 1.0}


@pytest.mark.parametrize(
    ("score", "label", "options", "message"),
    [
        ([0.1, np.nan], [0, 1], {}, r"1 of 2 scores are NaN \(first: row 1\)"),
        ([0.1], [0, 1], {}, "one number for each image"),
        ([0.1, 0.2], [0, 2], {}, "from 0 to 1"),
        ([0.1, 0.2], [0, 1], {"prevalences": [0]}, "prevalence is 0"),
        ([0.1, 0.2], [0, 1], {"probability": [0.1, 1.2]}, "must lie in 0..1"),
        ([0.1, 0.2], [0, 1], {"probability": [0.1]}, "one for each image"),
    ],
)
def test_bad_input_is_one_clear_line(score, label, options, message):
    with pytest.raises(DataError, match=message):
        ranking_scores(score, label, **options)
