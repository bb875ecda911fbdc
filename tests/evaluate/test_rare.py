"""Calibration of a rare class: against scikit-learn, against closed forms, and on finders that are calibrated."""

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.calibration import calibration_curve

from deeplense.evaluate.rare import (
    calibration_error,
    calibration_scores,
    class_weights,
    mass_bins,
    reliability,
    retarget,
    width_bins,
)


def gaussians(n, prevalence, share, seed=0):
    """Two unit Gaussians at 0 and 3: exact posterior at `prevalence`, labels with another share of lenses."""
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < share).astype(int)
    x = rng.normal(size=n) + 3 * label
    return expit(norm.logpdf(x, 3) - norm.logpdf(x) + logit(prevalence)), label


@pytest.mark.parametrize(("strategy", "bins"), [("uniform", 15), ("quantile", 8)])
def test_error_equals_scikit_learns_bins(strategy, bins):
    rng = np.random.default_rng(0)
    probability = rng.beta(0.5, 2, 4000)
    label = (rng.random(4000) < probability**1.5).astype(int)
    observed, stated = calibration_curve(label, probability, n_bins=bins, strategy=strategy)
    edges = np.linspace(0, 1, bins + 1) if strategy == "uniform" else np.quantile(probability, np.linspace(0, 1, 9))
    count = np.histogram(probability, edges)[0]
    expected = (np.abs(observed - stated) * count[count > 0]).sum() / 4000
    ones = np.ones(4000)
    which = width_bins(probability, bins) if strategy == "uniform" else mass_bins(probability, ones, bins)
    assert calibration_error(probability, label, ones, which) == pytest.approx(expected, rel=1e-3)


def test_equal_probabilities_share_a_bin():
    which = mass_bins(np.array([0.5] * 6 + [0.1, 0.9]), np.ones(8), bins=4)
    assert len(set(which[:6])) == 1
    assert which[6] <= which[0] < which[7]


def test_retargeting_is_bayes_rule():
    x = np.linspace(-3, 6, 40)

    def posterior(prevalence):
        lens, other = prevalence * norm.pdf(x, 3), (1 - prevalence) * norm.pdf(x)
        return lens / (lens + other)

    np.testing.assert_allclose(retarget(posterior(0.5), 0.5, 0.001), posterior(0.001))
    assert np.isfinite(retarget([0.0, 1.0], 0.5, 0.001)).all()


@pytest.mark.parametrize("share", [0.5, 1 / 17])
def test_a_calibrated_finder_stays_at_the_level_of_chance(share):
    """Also in the weighted world: probabilities for one lens in a hundred, a set with many more."""
    for prevalence in (None, 0.01):
        probability, label = gaussians(20_000, prevalence or share, share)
        result = calibration_scores(probability, label, prevalence, (0.01, 0.001), bootstrap=0)
        for figure in (result["ece"], result["ece_mass"], *(row["ece"] for row in result["top"])):
            assert figure["value"] < 1.3 * figure["chance_95"]
            assert figure["chance_95"] < 0.12


def test_a_finder_that_ignores_the_prevalence_is_found_out():
    probability, label = gaussians(20_000, 0.5, 1 / 17)
    result = calibration_scores(probability, label, None, (0.001,), bootstrap=0)
    assert result["ece"]["value"] > 5 * result["ece"]["chance_95"]
    mended = calibration_scores(retarget(probability, 0.5, label.mean()), label, bootstrap=0)
    assert mended["ece"]["value"] < 1.3 * mended["ece"]["chance_95"]
    assert mended["log_loss"]["value"] < result["log_loss"]["value"]


def test_chance_level_of_one_bin_is_the_half_normal_quantile():
    label = (np.random.default_rng(0).random(5000) < 0.1).astype(int)
    result = calibration_scores(np.full(5000, 0.1), label, bootstrap=0)
    expected = norm.ppf(0.975) * np.sqrt(0.1 * 0.9 / 5000)
    assert result["ece"]["chance_95"] == pytest.approx(expected, rel=0.06)
    assert result["ece"]["value"] == pytest.approx(abs(label.mean() - 0.1))


def test_the_top_is_one_percent_of_the_sky():
    probability, label = gaussians(30_000, 1 / 17, 0.5)
    weights = class_weights(label, 0.001)
    assert np.average(label, weights=weights) == pytest.approx(0.001)
    (row,) = calibration_scores(probability, label, 1 / 17, (0.001,), bootstrap=0)["top"]
    best = np.argsort(-probability)[: row["n"]]
    assert weights[best].sum() / weights.sum() == pytest.approx(0.01, abs=1e-4)
    assert row["n_lenses"] == label[best].sum()
    assert row["observed"] == pytest.approx(np.average(label[best], weights=weights[best]))


def test_losses_equal_scikit_learn():
    from sklearn.metrics import brier_score_loss, log_loss

    probability, label = gaussians(500, 0.3, 0.3)
    result = calibration_scores(probability, label, bootstrap=200)
    for name, score in (("brier", brier_score_loss), ("log_loss", log_loss)):
        assert result[name]["value"] == pytest.approx(score(label, probability))
        assert result[name]["low"] < result[name]["value"] < result[name]["high"]
    weights = class_weights(label, 0.01)
    expected = log_loss(label, probability, sample_weight=weights)
    assert calibration_scores(probability, label, 0.01, bootstrap=0)["log_loss"]["value"] == pytest.approx(expected)


def test_reliability_by_hand_and_at_another_prevalence():
    probability = np.array([0.02, 0.02, 0.02, 0.02, 0.9, 0.9, 0.9])
    curve = reliability(probability, [0, 0, 0, 1, 1, 1, 0])
    np.testing.assert_allclose(curve.confidence, [0.02, 0.9])
    np.testing.assert_allclose(curve.accuracy, [1 / 4, 2 / 3])
    np.testing.assert_array_equal(curve.count, [4, 3])
    label = np.array([0, 0, 0, 1, 1, 1, 0])
    moved = reliability(probability, label, prevalence=0.1)
    weights = class_weights(label, 0.1)
    expected = [np.average(label[part], weights=weights[part]) for part in (slice(0, 4), slice(4, 7))]
    np.testing.assert_allclose(moved.accuracy, expected)
    assert np.all((moved.low < moved.accuracy) & (moved.accuracy < moved.high))
