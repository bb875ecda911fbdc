"""Completeness and false positives by population, against counting and scipy."""

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binomtest

from deeplense.evaluate.population import (
    completeness_bins,
    kind_of,
    population_scores,
    threshold_at,
    wilson,
)
from deeplense.simulate.generate import Simulator


@pytest.mark.parametrize(("found", "number"), [(0, 12), (5, 12), (12, 12), (1, 1)])
def test_wilson_equals_scipy(found, number):
    expected = binomtest(found, number).proportion_ci(method="wilson")
    np.testing.assert_allclose(wilson(found, number), (expected.low, expected.high), atol=1e-12)


def test_threshold_leaves_ties_out():
    score, label = np.array([5, 4, 4, 3, 3, 2, 1.0]), np.array([1, 1, 0, 1, 0, 0, 0])
    # Of four non-lenses, a rate of 1/4 allows the one at 4, and not the one at 3 nor the lens beside it.
    assert threshold_at(score, label, 0.25) == 4
    assert threshold_at(score, label, 0.2) == 5
    assert threshold_at(score, label, 1.0) == 1
    assert threshold_at(np.zeros(4), np.array([0, 0, 1, 1]), 0.5) == np.inf
    for rate in (0.1, 0.3, 0.5, 0.8):
        chosen = score >= threshold_at(score, label, rate)
        assert chosen[label == 0].mean() <= rate


def survey(n=2000):
    """Lenses that are found above an Einstein radius of 1, rings that are taken for them, and ellipticals."""
    label = np.arange(n) % 2
    theta_E = np.where(label == 1, np.linspace(0.5, 2.5, n), 0.0)
    kind = np.where(label == 1, "lens", np.where(np.arange(n) % 20 == 0, "ring", "elliptical"))
    score = np.where(theta_E > 1, 10.0, 0.0) + np.where((kind == "ring") & (np.arange(n) < 100), 20.0, 0.0)
    score += np.random.default_rng(0).random(n)
    artefact = np.where(np.arange(n) < 20, "bleed", "")
    columns = {"kind": kind, "artefact": artefact, "theta_E": theta_E, "snr": pa.nulls(n, pa.float64())}
    return score, label, pa.table(columns)


def test_completeness_follows_the_einstein_radius():
    score, label, params = survey()
    rows = {(row["fpr"], row["quantity"]): row for row in population_scores(score, label, params)["completeness"]}
    assert list(rows) == [(0.01, "theta_E"), (0.001, "theta_E")]  # nothing is known of the S/N
    bins = rows[0.01, "theta_E"]["bins"]
    assert len(bins) == 8
    assert {row["n"] for row in bins} == {125}
    for row in bins:
        inside = (params["theta_E"].to_numpy() > row["from"]) & (params["theta_E"].to_numpy() < row["to"])
        if row["to"] < 1 or row["from"] > 1:
            # Five of 895 ellipticals are let in: of the lenses that look like them, as many.
            assert row["completeness"] == pytest.approx(float(row["from"] > 1), abs=0.03)
        assert row["from"] < row["median"] < row["to"]
        assert inside.sum() == pytest.approx(125, abs=1)
    # At 1e-3 one of 1,000 is allowed; the rings stand above all lenses, so none is found.
    assert not any(row["found"] for row in rows[0.001, "theta_E"]["bins"])


def test_false_positives_by_kind_are_counted():
    score, label, params = survey()
    (at_1e2, at_1e3) = population_scores(score, label, params)["false_positives"]
    rows = {row["kind"]: row for row in at_1e2["kind"]}
    assert at_1e2["number"] == 10  # 1 % of 1,000: the five rings at the top and the next five
    assert (rows["ring"]["chosen"], rows["ring"]["n"], rows["ring"]["rate"]) == (5, 100, 0.05)
    assert rows["elliptical"]["chosen"] == 5
    assert sum(row["share"] for row in at_1e2["kind"]) == pytest.approx(1)
    faults = {row["kind"]: row for row in at_1e2["artefact"]}
    assert faults["bleed"]["chosen"] == 1  # image 0, a ring
    assert at_1e3["number"] == 1


def test_small_sets_have_fewer_bins_and_no_table_none():
    assert completeness_bins(np.array([1.0, 2.0, np.nan]), np.array([True, False, True]))[0]["n"] == 2
    assert len(completeness_bins(np.arange(65.0), np.ones(65, bool))) == 3
    assert completeness_bins(np.empty(0), np.empty(0, bool)) == []
    assert completeness_bins(np.ones(50), np.ones(50, bool)) == []
    nothing = {"completeness": [], "false_positives": []}
    assert population_scores([1, 2], [0, 1], None) == nothing
    score, label, params = survey()
    assert population_scores(score[::2], label[::2], params.take(np.arange(0, 2000, 2))) == nothing
    few = population_scores(score[:60], label[:60], params.slice(0, 60))
    assert few == nothing  # thirty non-lenses measure no rate of 0.01


def test_a_catalogues_columns_may_hold_anything():
    score, label, _ = survey(600)
    columns = {"kind": [None, 3] * 300, "artefact": [False, True, None] * 200, "theta_E": ["n/a"] * 600}
    params = pa.table({**columns, "snr": [[1.0]] * 600})
    (found,) = population_scores(score, label, params)["false_positives"]
    assert {row["kind"]: row["n"] for row in found["artefact"]} == {"none": 200, "True": 100}
    assert population_scores(score, label, params)["completeness"] == []
    assert kind_of(params, ("nonlens", "lens"), label)[:4] == ["nonlens", "3, True", "nonlens", "3"]


def test_the_simulators_truth_table_is_understood():
    images = Simulator("hsc-gri", seed=3).images(range(96))
    rows = population_scores(images.label + np.random.default_rng(0).normal(size=96) / 9, images.label, images.params)
    assert rows["completeness"] == []  # about fifty non-lenses
    words = kind_of(images.params, images.classes, images.label)
    assert {word.partition(",")[0] for word, k in zip(words, images.label, strict=True) if k} == {"lens"}
    assert "elliptical" in words
    assert kind_of(None, ("a", "b"), np.array([0, 1])) == ["a", "b"]
