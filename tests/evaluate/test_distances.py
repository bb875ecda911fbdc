"""Distances between sets of points: closed forms, direct sums, torchmetrics, and sets whose answer is known."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.metrics import roc_auc_score
from torchmetrics.image.kid import poly_mmd

from deeplense.evaluate.distances import (
    frechet_distance,
    kernel_distance,
    memorisation_ratio,
    near_copies,
    nearest,
    precision_recall_coverage,
    two_sample_auc,
)


def normal(n, d, seed=0, scale=1.0, shift=0.0):
    return np.random.default_rng(seed).normal(shift, scale, (n, d))


def test_frechet_distance_of_known_gaussians():
    # Whitened exactly, so that the samples have the moments of the closed form themselves.
    x = normal(500, 6)
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    scale_a, scale_b, shift = np.arange(1, 7), np.array([2, 2, 1, 4, 0.5, 0]), np.array([1, 0, 2, 0, 0, 1])
    expected = np.sum((scale_a - scale_b) ** 2) + np.sum(shift**2)
    assert frechet_distance(x * scale_a, x * scale_b + shift) == pytest.approx(expected)


def test_frechet_distance_is_that_of_the_matrix_root():
    rng = np.random.default_rng(0)
    a, b = normal(300, 8) @ rng.normal(size=(8, 8)), normal(200, 8, seed=1) @ rng.normal(size=(8, 8)) + 0.3
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    expected = shift + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_frechet_distance_of_fewer_points_than_dimensions():
    a = normal(12, 40)
    assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 3) == pytest.approx(40 * 9)
    constant = np.concatenate([a, np.zeros((12, 5))], axis=1)
    assert frechet_distance(constant, 2 * constant) == pytest.approx(np.sum(a.mean(0) ** 2) + np.trace(np.cov(a.T)))


def test_kernel_distance_equals_torchmetrics_and_the_double_sum():
    a, b = normal(40, 5), normal(40, 5, seed=1, shift=0.4)
    theirs = poly_mmd(torch.from_numpy(a), torch.from_numpy(b), degree=3, gamma=None, coef=1.0)
    assert kernel_distance(a, b) == pytest.approx(float(theirs))
    b = b[:30]
    kernel = lambda x, y: (x @ y / 5 + 1) ** 3  # noqa: E731
    within = [np.mean([kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (a, b)]
    across = np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(sum(within) - 2 * across)


def test_kernel_distance_is_unbiased():
    draws = [kernel_distance(normal(30, 4, seed=2 * k), normal(30, 4, seed=2 * k + 1)) for k in range(200)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / np.sqrt(200)


def test_identical_and_disjoint_sets():
    a = 2.0 ** np.arange(12)[:, None]  # no two distances are equal, and all of them are exact
    same = precision_recall_coverage(a, a)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    # A ball holds its own centre and the five neighbours that define it.
    assert same["density"] == pytest.approx(6 / 5)
    assert set(precision_recall_coverage(a, a + 1e5).values()) == {0}


def test_a_generator_that_knows_one_of_two_modes():
    two_modes = np.concatenate([normal(200, 3), normal(200, 3, seed=1, shift=50)])
    found = precision_recall_coverage(two_modes, normal(400, 3, seed=2))
    assert found["precision"] > 0.9
    assert found["recall"] == pytest.approx(0.5, abs=0.05)
    assert found["coverage"] == pytest.approx(0.5, abs=0.05)


def test_balls_on_a_line():
    real, generated = np.arange(4.0)[:, None], np.array([[0.4], [10.0], [10.2]])
    # With k = 1 real balls have radius 1: those about 0 and 1 hold 0.4. The generated ball about 0.4 reaches to 10.
    found = precision_recall_coverage(real, generated, k=1)
    assert found == pytest.approx({"precision": 1 / 3, "recall": 1, "density": 2 / 3, "coverage": 1 / 2})


def test_distances_do_not_depend_on_the_chunks(monkeypatch):
    a, b = normal(90, 3), normal(70, 3, seed=1)
    whole = precision_recall_coverage(a, b)
    monkeypatch.setattr("deeplense.evaluate.distances.CHUNK", 20)
    assert precision_recall_coverage(a, b) == whole


def test_nearest_is_the_nearest():
    queries, keys = normal(9, 4).reshape(9, 1, 2, 2), normal(30, 4, seed=1).reshape(30, 1, 2, 2)
    all_distances = np.sqrt(np.square(queries[:, None] - keys[None]).sum((2, 3, 4)))
    distance, index = nearest(queries, keys)
    np.testing.assert_allclose(distance, all_distances.min(1))
    np.testing.assert_array_equal(index, all_distances.argmin(1))


def test_copies_are_recognised_and_fresh_draws_are_not():
    train, held_out = normal(400, 12), normal(400, 12, seed=1)
    copied = memorisation_ratio(train[:150], train, held_out)
    assert copied["value"] == pytest.approx(0, abs=1e-3)
    fresh = memorisation_ratio(normal(400, 12, seed=2), train, held_out)
    assert fresh["value"] == pytest.approx(1, abs=0.05)
    assert fresh["low"] < 1 < fresh["high"]
    half = memorisation_ratio(np.concatenate([train[:100], normal(100, 12, seed=2)]), train, held_out)
    assert half["value"] == pytest.approx(0.5, abs=0.05)


def test_more_training_images_are_no_memorisation():
    train, held_out = normal(4000, 6), normal(200, 6, seed=1)
    assert memorisation_ratio(normal(300, 6, seed=2), train, held_out)["value"] == pytest.approx(1, abs=0.05)


def test_a_few_copies_of_many_training_images_are_counted():
    train, held_out, others = normal(5000, 12), normal(200, 12, seed=1), normal(200, 12, seed=2)
    fresh = normal(200, 12, seed=3)
    assert near_copies(fresh, others, train, held_out) <= 5
    fresh[:20] = train[1000:1020] + 0.01 * normal(20, 12, seed=4)
    assert 20 <= near_copies(fresh, others, train, held_out) <= 25


def test_near_copies_of_like_sets_are_one_on_average():
    draws = [
        near_copies(
            *(normal(20, 3, seed=10 * k + j) for j in range(2)), normal(60, 3, k + 5000), normal(20, 3, k + 7000)
        )
        for k in range(300)
    ]
    # Of 20 + 20 alike values, those of one half below the least of the other: 20 / 21 on average.
    assert np.mean(draws) == pytest.approx(20 / 21, abs=3 * np.std(draws) / np.sqrt(300))


def test_two_sample_auc():
    a = normal(500, 10)
    assert two_sample_auc(a, normal(500, 10, seed=1)) == pytest.approx(0.5, abs=0.05)
    assert two_sample_auc(a, normal(500, 10, seed=1, shift=3)) > 0.999
    shifted = normal(500, 10, seed=1)
    shifted[:, 0] += 1
    # The best possible: the one feature that differs.
    best = roc_auc_score(np.repeat([0, 1], 500), np.concatenate([a[:, 0], shifted[:, 0]]))
    assert two_sample_auc(shifted, a) == pytest.approx(best, abs=0.02)
