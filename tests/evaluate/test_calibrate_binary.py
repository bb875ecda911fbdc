"""Prior shift, temperature and bias of a binary classifier, against closed forms and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from deeplense.errors import DataError
from deeplense.evaluate.calibrate import binary_log_odds, fit_binary


def two_gaussians(prevalence, num, seed=0, distance=2.0):
    """Log-likelihood ratios of N(+d/2, 1) against N(-d/2, 1), which are d x exactly, and the labels."""
    rng = np.random.default_rng(seed)
    label = (np.arange(num) < prevalence * num).astype(np.int64)
    x = rng.normal(size=num) + distance * (label - 0.5)
    return distance * x, label


@pytest.mark.parametrize(("train", "val"), [(0.5, 0.02), (0.02, 0.02), (0.9, 0.3)])
def test_a_network_that_is_right_on_its_own_mixture_needs_neither_temperature_nor_bias(train, val):
    ratio, label = two_gaussians(val, 200_000)
    found = fit_binary(ratio + logit(train), label, train)
    assert found["temperature"] == pytest.approx(1, abs=0.03)
    assert found["bias"] == pytest.approx(0, abs=0.06)
    assert (found["train_prevalence"], found["val_prevalence"]) == (train, val)


def test_prior_shift_alone_undoes_balanced_training():
    """Probabilities at a thousandth of the prevalence are Bayes's, from a network that saw as many of either kind."""
    ratio, _ = two_gaussians(0.5, 1000)
    calibration = {"temperature": 1.0, "bias": 0.0, "train_prevalence": 0.5, "val_prevalence": 0.1}
    for prevalence in (None, 1e-3):
        pi = 0.1 if prevalence is None else prevalence
        bayes = pi * np.exp(ratio) / (pi * np.exp(ratio) + 1 - pi)
        np.testing.assert_allclose(expit(binary_log_odds(ratio, calibration, prevalence)), bayes, rtol=1e-10)


def test_temperature_and_bias_of_an_overconfident_network_are_found():
    ratio, label = two_gaussians(0.05, 400_000, seed=1)
    logits = 3.0 * (ratio - 0.7) + logit(0.5)
    found = fit_binary(logits, label, 0.5)
    assert found["temperature"] == pytest.approx(3, rel=0.03)
    assert found["bias"] == pytest.approx(0.7, abs=0.06)
    np.testing.assert_allclose(binary_log_odds(logits, found), ratio + logit(0.05), atol=0.15)


def test_many_images_give_the_maximum_likelihood_of_logistic_regression():
    ratio, label = two_gaussians(0.1, 50_000, seed=2)
    logits = 1.7 * ratio + 0.3
    platt = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, None], label)
    found = fit_binary(logits, label, 0.3)
    np.testing.assert_allclose(binary_log_odds(logits, found), platt.decision_function(logits[:, None]), atol=0.01)


def test_probabilities_match_frequencies_at_a_prevalence_that_was_never_seen():
    ratio, label = two_gaussians(0.5, 20_000, seed=3)
    found = fit_binary(2 * ratio, label, 0.5)
    ratio, label = two_gaussians(0.01, 500_000, seed=4)
    p = expit(binary_log_odds(2 * ratio, found, 0.01))
    assert p.sum() == pytest.approx(label.sum(), rel=0.05)
    for low, high in ((0.001, 0.01), (0.01, 0.1), (0.1, 0.5), (0.5, 1)):
        rows = (p >= low) & (p < high)
        assert label[rows].mean() == pytest.approx(p[rows].mean(), rel=0.15)


@pytest.mark.parametrize("num", [2, 40, 4000])
def test_perfectly_separated_images_give_finite_numbers(num):
    label = np.arange(num) % 2
    found = fit_binary(1000.0 * (2 * label - 1), label, 0.5)
    assert np.isfinite(list(found.values())).all()
    assert found["temperature"] > 0
    assert np.isfinite(binary_log_odds(1000.0, found, 1e-3))


@pytest.mark.parametrize("value", [0, 1])
def test_images_of_one_kind_give_finite_numbers_and_do_not_fix_the_prevalence_at_the_edge(value):
    found = fit_binary(np.linspace(-1, 1, 18), np.full(18, value), 0.5)
    assert found["val_prevalence"] == pytest.approx((18 * value + 1) / 20)
    assert np.isfinite(list(found.values())).all()


def test_few_lenses_leave_the_fit_near_the_network():
    """Three lenses among thirty images do not make a temperature of ten, whatever the chance."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        label = (np.arange(30) < 3).astype(np.int64)
        found = fit_binary(rng.normal(size=30), label, 0.5)
        assert 0.2 < found["temperature"] <= 20
        assert abs(found["bias"]) < 2


def test_tensors_stay_tensors_and_order_is_kept():
    logits = torch.tensor([-30.0, 0.0, 25.0, 26.0])
    found = binary_log_odds(logits, {"temperature": 2.0, "bias": 1.0, "train_prevalence": 0.5, "val_prevalence": 0.5})
    torch.testing.assert_close(found, logits / 2 + 1)
    assert (binary_log_odds(logits, {}) == logits).all()


@pytest.mark.parametrize("prevalence", [0, 1, -0.1, float("nan")])
def test_a_prevalence_is_a_share(prevalence):
    with pytest.raises(DataError, match="between 0 and 1"):
        binary_log_odds(np.zeros(2), {}, prevalence)
    with pytest.raises(DataError, match="between 0 and 1"):
        fit_binary(np.zeros(2), [0, 1], prevalence)


def test_bad_logits_are_refused():
    with pytest.raises(DataError, match="NaN or infinite"):
        fit_binary([0.0, np.nan], [0, 1], 0.5)
    with pytest.raises(DataError, match="labels"):
        fit_binary([0.0, 1.0, 2.0], [0, 1], 0.5)
