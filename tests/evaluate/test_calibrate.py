"""Calibration against scikit-learn, torchmetrics and closed forms."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from torchmetrics.functional.classification import multiclass_calibration_error

from deeplense.errors import DataError
from deeplense.evaluate.calibrate import (
    TEMPERATURES,
    apply_temperature,
    chance_calibration_error,
    expected_calibration_error,
    fit_intervals,
    fit_temperature,
    interval_factors,
    prior_shift,
    reliability_curve,
)


def draw(n=20_000, temperature=1.0, seed=0):
    """Logits and labels for which softmax(logits / temperature) is the truth."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(n, 3))
    cumulative = softmax(logits, axis=1).cumsum(axis=1)
    return temperature * logits, (rng.random((n, 1)) > cumulative).sum(axis=1).clip(max=2)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_that_made_the_logits_is_found(temperature):
    logits, label = draw(temperature=temperature)
    assert fit_temperature(logits, label) == pytest.approx(temperature, rel=0.04)


def test_two_classes_are_logistic_regression_without_intercept():
    rng = np.random.default_rng(1)
    label = rng.integers(2, size=400)
    logits = rng.normal(size=(400, 2)) + 1.5 * np.eye(2)[label]
    slope = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(logits @ [[-1], [1]], label).coef_.item()
    assert fit_temperature(torch.tensor(logits), torch.tensor(label)) == pytest.approx(1 / slope, rel=1e-4)


def test_separable_and_flat_logits_keep_a_finite_temperature():
    label = np.arange(30) % 3
    assert fit_temperature(np.eye(3)[label], label) == pytest.approx(TEMPERATURES[0], rel=1e-3)
    assert fit_temperature(np.zeros((30, 3)), label) == 1.0


@pytest.mark.parametrize("bins", [5, 15])
def test_ece_equals_torchmetrics(bins):
    logits, label = draw(1000, temperature=2.0)
    probs = apply_temperature(logits, 1.0)
    expected = multiclass_calibration_error(torch.tensor(probs), torch.tensor(label), num_classes=3, n_bins=bins)
    assert expected_calibration_error(probs, label, bins) == pytest.approx(float(expected), abs=1e-6)


def test_certain_predictions_stay_in_the_last_bin():
    assert expected_calibration_error([[1, 0], [1, 0]], [0, 1]) == pytest.approx(0.5)


def test_chance_error_of_one_bin_is_the_half_normal_quantile():
    # All confidences p in one bin: ECE = |mean - p|, a folded normal of width sqrt(p (1 - p) / N).
    probs = np.tile([0.7, 0.3], (5000, 1))
    expected = norm.ppf(0.975) * np.sqrt(0.7 * 0.3 / 5000)
    assert chance_calibration_error(probs, bins=1, draws=4000) == pytest.approx(expected, rel=0.05)


def test_reliability_curve_by_hand():
    probs = np.array([[0.9, 0.1], [0.7, 0.3], [0.68, 0.32], [0.95, 0.05]])
    curve = reliability_curve(probs, [0, 1, 0, 0], bins=5)
    np.testing.assert_allclose(curve.confidence, [0.69, 0.925])
    np.testing.assert_allclose(curve.accuracy, [0.5, 1.0])
    np.testing.assert_array_equal(curve.count, [2, 2])
    z2 = norm.ppf(0.975) ** 2  # Wilson's bounds for 1 of 2 and 2 of 2
    np.testing.assert_allclose(curve.low, [0.5 - np.sqrt(z2 / (2 + z2)) / 2, 2 / (2 + z2)])
    np.testing.assert_allclose(curve.high, [0.5 + np.sqrt(z2 / (2 + z2)) / 2, 1.0])


def test_prior_shift_is_bayes_rule():
    """Two unit Gaussians: the shifted posterior equals the one computed from the new prior directly."""
    x = np.linspace(-3, 3, 50)
    likelihood = np.stack([norm.pdf(x, -1), norm.pdf(x, 1)], axis=1)

    def posterior(prior):
        joint = likelihood * prior
        return joint / joint.sum(axis=1, keepdims=True)

    np.testing.assert_allclose(prior_shift(posterior([0.8, 0.2]), [4, 1], [999, 1]), posterior([0.999, 0.001]))


@pytest.mark.parametrize("priors", [([1, 1, 1], [1, 1]), ([1, 0], [1, 1]), ([1, 1], [-1, 2])])
def test_impossible_priors_are_refused(priors):
    with pytest.raises(DataError, match="priors"):
        prior_shift([[0.5, 0.5]], *priors)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_impossible_temperature_is_refused(temperature):
    with pytest.raises(DataError, match="temperature"):
        apply_temperature([[0.0, 1.0]], temperature)


def errors(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """chi^2 of fits and errors of two parameters over their standard deviations: Student's t, wider with chi^2."""
    rng = np.random.default_rng(seed)
    chi2 = 1 + rng.exponential(0.5, num)
    width = np.stack([chi2**2, 0.3 * chi2], 1)
    return chi2, np.abs(rng.standard_t(2.5, (num, 2))) * width


def test_intervals_cover_what_they_say_where_standard_deviations_do_not():
    intervals = fit_intervals(*errors(4000, 0))
    chi2, error = errors(20_000, 1)
    factors = interval_factors(chi2, intervals)
    assert factors.shape == (2, 20_000, 2)
    # Each of the 8 bins rests on 500 errors, which tell its share of 68 % to 2 %, that of 95 % to 1 %.
    wide = chi2 > intervals["edges"][5]
    for level, sigmas, factor in zip((0.68, 0.95), (1.0, 1.96), factors, strict=True):
        for part in (slice(None), wide, ~wide):
            np.testing.assert_allclose((error <= factor)[part].mean(0), level, atol=0.045 if level < 0.9 else 0.02)
        plain = (error <= sigmas).mean(0)
        assert plain[0] < level - 0.25  # too narrow for the first parameter
    # One factor for all images covers those of large chi^2 too rarely.
    flat = fit_intervals(*(column[:150] for column in errors(4000, 0)))
    assert len(flat["edges"]) == 0
    assert (error <= interval_factors(chi2, flat)[0])[wide, 0].mean() < 0.5


@pytest.mark.parametrize("num", [9, 40])
def test_few_errors_give_intervals_that_are_rather_too_wide(num):
    """The (n + 1) of conformal prediction: on average over calibration sets, at least the level is covered."""
    covered = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        intervals = fit_intervals(np.ones(num), np.abs(rng.standard_t(3, (num, 1))))
        fresh = np.abs(rng.standard_t(3, (200, 1)))
        covered.append((fresh <= interval_factors(np.ones(200), intervals)[0]).mean())
    exact = np.ceil((num + 1) * 0.68) / (num + 1)  # the expected share below that order statistic
    assert np.mean(covered) == pytest.approx(exact, abs=4 * np.std(covered) / 20)


def test_intervals_are_plain_and_survive_infinite_errors():
    import json

    chi2, error = errors(300, 2)
    error[::3] = np.inf
    intervals = fit_intervals(chi2, error)
    assert json.loads(json.dumps(intervals, allow_nan=False)) == intervals
    assert np.isfinite(interval_factors(np.array([0.0, 1.3, 1e9]), intervals)).all()
    # Where no image was like it, nothing is known.
    same = fit_intervals(np.ones(300), error)
    assert (interval_factors(np.array([2.0]), same) > 1e30).all()
