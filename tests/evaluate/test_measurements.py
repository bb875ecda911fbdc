"""Bias, scatter and coverage against numpy, SciPy, scikit-learn and the theory of the Gaussian."""

import json

import numpy as np
import pytest
from scipy import stats
from sklearn.dummy import DummyRegressor
from sklearn.metrics import root_mean_squared_error

from deeplense.errors import DataError
from deeplense.evaluate.measurements import STATISTICS, coverage, gather, intervals, measurement_scores

CLASSES = ("no", "sphere", "vort")


def measured(num=600):
    """Truths, fits and sigmas that are right, of theta_E (relative) and gamma1 (absolute)."""
    rng, spread = np.random.default_rng(0), 0.02
    label = np.arange(num) % 3
    truth = {"theta_E": rng.uniform(0.6, 1.6, num), "gamma1": rng.normal(0, 0.05, num), "snr": rng.uniform(5, 50, num)}
    sigma = {"theta_E": spread * truth["theta_E"], "gamma1": np.full(num, spread)}
    estimate = {name: truth[name] + sigma[name] * rng.normal(size=num) for name in sigma}
    return {"truth": truth, "estimate": estimate, "sigma": sigma, "label": label, "classes": CLASSES}


def changed(part, name, values):
    return {**part, name: values}


def test_values_are_those_of_numpy_scipy_and_scikit_learn():
    given = measured()
    found = measurement_scores(**given, bootstrap=0)
    assert list(found["parameters"]) == ["theta_E", "gamma1"]  # snr was not estimated
    errors = {
        "theta_E": 100 * (given["estimate"]["theta_E"] / given["truth"]["theta_E"] - 1),
        "gamma1": given["estimate"]["gamma1"] - given["truth"]["gamma1"],
    }
    for name, error in errors.items():
        row = found["parameters"][name]
        for scores, part in [(row["all"], error)] + [
            (row["by_class"][c], error[given["label"] == k]) for k, c in enumerate(CLASSES)
        ]:
            expected = {
                "bias": np.mean(part),
                "scatter": np.std(part),
                "median": np.median(part),
                "robust_scatter": 1.482602218505602 * np.median(np.abs(part - np.median(part))),
                "rmse": root_mean_squared_error(np.zeros(len(part)), part),
            }
            assert {key: scores[key]["value"] for key in expected} == pytest.approx(expected)
            assert scores["rmse"]["value"] ** 2 == pytest.approx(
                scores["bias"]["value"] ** 2 + scores["scatter"]["value"] ** 2
            )
            assert scores["n"] == len(part)
    assert [found["parameters"][name]["unit"] for name in errors] == ["%", ""]


def test_naive_baseline_says_the_mean_of_the_set():
    given = measured()
    given["truth"]["gamma1"] = given["truth"]["gamma1"] + given["label"]  # classes that differ
    found = measurement_scores(**given, bootstrap=0)["parameters"]
    for name, scale in (("gamma1", 1.0), ("theta_E", 100 / given["truth"]["theta_E"])):
        truth = given["truth"][name]
        said = DummyRegressor(strategy="mean").fit(truth[:, None], truth).predict(truth[:, None])
        error = scale * (said - truth)
        assert found[name]["all"]["naive"] == pytest.approx(
            {"scatter": np.std(error), "rmse": np.sqrt(np.mean(error**2))}
        )
        of_class = error[given["label"] == 2]
        assert found[name]["by_class"]["vort"]["naive"]["rmse"] == pytest.approx(np.sqrt(np.mean(of_class**2)))


def test_intervals_are_those_of_the_gaussian():
    """Standard errors of n Gaussian errors: s/sqrt(n) of the mean, s/sqrt(2n), sqrt(pi/2) and 1.1664 s/sqrt(n)."""
    n, s = 3001, 2.0
    found = intervals(np.random.default_rng(0).normal(0.1, s, n), STATISTICS, np.zeros(n))
    # Of 1.4826 MAD: 1 / (4 z phi(z)) with z the third quartile, Rousseeuw & Croux (1993), efficiency 37 %.
    z = stats.norm.ppf(0.75)
    of_mad = 1 / (4 * z * stats.norm.pdf(z))
    errors = {"bias": 1, "scatter": 1 / np.sqrt(2), "median": np.sqrt(np.pi / 2), "robust_scatter": of_mad}
    assert of_mad == pytest.approx(1.1664, abs=1e-3)
    for name, error in errors.items():
        half = (found[name]["high"] - found[name]["low"]) / 2
        assert half == pytest.approx(1.96 * error * s / np.sqrt(n), rel=0.15), name
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]


def test_interval_equals_that_of_scipy():
    values = np.random.default_rng(0).gamma(2.0, size=200)
    ours = intervals(values, {"scatter": np.std}, np.zeros(200), bootstrap=4000)["scatter"]
    theirs = stats.bootstrap((values,), np.std, n_resamples=4000, method="percentile", rng=1).confidence_interval
    width = theirs.high - theirs.low
    assert [ours["low"], ours["high"]] == pytest.approx([theirs.low, theirs.high], abs=0.06 * width)


def test_coverage_of_the_gaussian_and_of_the_overconfident():
    pull = stats.norm.ppf((np.arange(10000) + 0.5) / 10000)
    levels = np.array([0.1, 0.5, 0.68, 0.95])
    np.testing.assert_allclose(coverage(pull, levels), levels, atol=2e-4)
    # Errors twice as large as stated.
    expected = 2 * stats.norm.cdf(stats.norm.ppf((1 + levels) / 2) / 2) - 1
    np.testing.assert_allclose(coverage(2 * pull, levels), expected, atol=2e-4)


def test_coverage_has_wilson_intervals_and_the_pull_its_moments():
    given = measured()
    found = measurement_scores(**given, bootstrap=0)["parameters"]["gamma1"]
    pull = (given["estimate"]["gamma1"] - given["truth"]["gamma1"]) / given["sigma"]["gamma1"]
    for name, chosen in (("all", slice(None)), ("sphere", given["label"] == 1)):
        scores, part = found["all"] if name == "all" else found["by_class"][name], pull[chosen]
        for level in (0.68, 0.95):
            inside = int(np.sum(np.abs(part) <= stats.norm.interval(level)[1]))
            bound = stats.binomtest(inside, len(part)).proportion_ci(method="wilson")
            expected = {"value": inside / len(part), "low": bound.low, "high": bound.high}
            assert scores["coverage"][str(level)] == pytest.approx(expected)
        assert scores["pull"] == pytest.approx({"mean": part.mean(), "scatter": part.std()})


def test_catastrophic_failures_are_those_above_ten_per_cent():
    given = measured()
    given["estimate"]["theta_E"] = given["truth"]["theta_E"] * np.where(np.arange(600) % 50 == 0, 0.85, 1.09)
    found = measurement_scores(**given, bootstrap=0)["parameters"]
    assert found["theta_E"]["all"]["catastrophic"]["value"] == pytest.approx(12 / 600)
    assert found["gamma1"]["all"]["catastrophic"] is None


def test_chi2_by_class():
    given = measured(900)
    chi2 = stats.chi2.rvs(1000, size=900, random_state=0) / 1000 + 0.1 * (given["label"] == 1)
    found = measurement_scores(**given, chi2=chi2, bootstrap=1000)["chi2"]
    assert found["all"]["mean"]["value"] == pytest.approx(chi2.mean())
    for k, name in enumerate(CLASSES):
        row, part = found["by_class"][name], chi2[given["label"] == k]
        assert row["n"] == 300
        assert row["median"]["value"] == pytest.approx(np.median(part))
        low, high = stats.t.interval(0.95, 299, part.mean(), stats.sem(part))
        assert [row["mean"]["low"], row["mean"]["high"]] == pytest.approx([low, high], abs=0.12 * (high - low))
    assert measurement_scores(**given, bootstrap=0)["chi2"] is None


def test_unknown_truths_are_left_out_and_infinite_sigmas_cover():
    given = measured(30)
    given["truth"]["gamma1"][:10] = np.nan
    given["sigma"]["gamma1"][:20] = np.inf
    found = measurement_scores(**given, bootstrap=20)
    row = found["parameters"]["gamma1"]["all"]
    error = (given["estimate"]["gamma1"] - given["truth"]["gamma1"])[10:]
    assert row["n"] == 20
    assert row["bias"]["value"] == pytest.approx(error.mean())
    covered = 10 + np.sum(np.abs(error[10:]) <= 0.02 * stats.norm.interval(0.68)[1])
    assert row["coverage"]["0.68"]["value"] == pytest.approx(covered / 20)
    notes = " ".join(found["notes"])
    assert "truth of 10 of 30 lenses is not known" in notes
    assert "10 lenses have an infinite uncertainty" in notes


def test_same_seed_same_json_and_absent_classes_are_left_out():
    given = measured(40)
    given["label"] = np.minimum(given["label"], 1)
    texts = [json.dumps(measurement_scores(**given, chi2=np.ones(40), bootstrap=30), allow_nan=False) for _ in range(2)]
    assert texts[0] == texts[1]
    found = json.loads(texts[0])
    assert list(found["parameters"]["theta_E"]["by_class"]) == ["no", "sphere"]


def test_a_single_lens():
    found = measurement_scores(**measured(1), bootstrap=10)
    assert found["parameters"]["theta_E"]["all"]["scatter"] == {"value": 0, "low": 0, "high": 0}
    assert "Fewer than 10 images are of class no" in found["notes"][0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda g: {"truth": {"theta_e": g["truth"]["theta_E"]}}, "no truth; did you mean 'theta_e'"),
        (lambda g: {"sigma": {"gamma1": g["sigma"]["gamma1"]}}, "'theta_E' is estimated, but has no sigma"),
        (lambda g: {"estimate": changed(g["estimate"], "gamma1", np.full(12, np.nan))}, "12 estimates of 'gamma1'"),
        (lambda g: {"estimate": changed(g["estimate"], "gamma1", np.zeros(5))}, "5 estimates of gamma1, but 12 labels"),
        (lambda g: {"sigma": changed(g["sigma"], "gamma1", np.zeros(12))}, "must be above 0"),
        (lambda g: {"sigma": changed(g["sigma"], "gamma1", np.full(12, np.nan))}, "must be above 0"),
        (lambda g: {"truth": changed(g["truth"], "theta_E", np.zeros(12))}, "truths above 0"),
        (lambda g: {"truth": changed(g["truth"], "gamma1", np.full(12, np.nan))}, "not known of a single lens"),
        (lambda g: {"estimate": {}}, "nothing was estimated"),
        (lambda g: {"chi2": np.full(12, np.inf)}, "12 values of chi2"),
        (lambda g: {"chi2": np.ones(3)}, "3 values of chi2, but 12 labels"),
        (lambda g: {"label": np.full(12, 3)}, "whole numbers from 0 to 2"),
    ],
)
def test_bad_input(changes, message):
    given = measured(12)
    with pytest.raises(DataError, match=message):
        measurement_scores(**given | changes(given), bootstrap=0)


def test_parameters_without_a_title_go_by_their_name():
    ones = {"kappa_0": np.ones(3)}
    part = gather(ones, ones, ones, np.zeros(3))["kappa_0"]
    assert (part.title, part.unit, part.is_relative) == ("kappa_0", "", False)
