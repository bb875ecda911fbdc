"""Weighted scores against scikit-learn's sample_weight, intervals against closed forms."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from deeplense.evaluate.bootstrap import (
    percentile_interval,
    resample_weights,
    weighted_auc,
    weighted_average_precision,
)


@pytest.mark.parametrize("decimals", [1, 12])
@pytest.mark.parametrize(
    ("ours", "theirs"), [(weighted_auc, roc_auc_score), (weighted_average_precision, average_precision_score)]
)
def test_weighted_scores_equal_scikit_learn(ours, theirs, decimals):
    rng = np.random.default_rng(0)
    positive = rng.random(200) < 0.3
    score = np.round(rng.random(200) + 0.3 * positive, decimals)  # one decimal makes many ties
    weights = rng.integers(0, 4, size=(5, 200)).astype(float)
    expected = [theirs(positive, score, sample_weight=row) for row in weights]
    np.testing.assert_allclose(ours(score, positive, weights), expected, rtol=1e-12)


def test_resamples_keep_the_class_counts():
    strata = np.array([0] * 7 + [1] * 3 + [2])
    weights = np.concatenate(list(resample_weights(strata, 50, seed=3)))
    assert weights.shape == (50, 11)
    for stratum, count in ((0, 7), (1, 3), (2, 1)):
        assert np.all(weights[:, strata == stratum].sum(axis=1) == count)


def test_resamples_come_in_blocks_and_repeat_with_the_seed(monkeypatch):
    monkeypatch.setattr("deeplense.evaluate.bootstrap.BLOCK", 100)
    strata = np.arange(30) % 2
    blocks = list(resample_weights(strata, 10, seed=1))
    assert [len(block) for block in blocks] == [3, 3, 3, 1]
    again = np.concatenate(list(resample_weights(strata, 10, seed=1)))
    np.testing.assert_array_equal(np.concatenate(blocks), again)
    assert not np.array_equal(again, np.concatenate(list(resample_weights(strata, 10, seed=2))))


def test_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(0).normal(size=2000)
    draws = np.concatenate([weights @ values / 2000 for weights in resample_weights(np.zeros(2000), 4000, seed=0)])
    low, high = percentile_interval(draws)
    error = values.std() / np.sqrt(2000)
    np.testing.assert_allclose([low, high], values.mean() + 1.96 * error * np.array([-1, 1]), atol=0.12 * error)
