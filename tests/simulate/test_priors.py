"""Priors against scipy's distributions, and what a preset may not say."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from deeplense.simulate.priors import Prior

NUM = 20_000


def power_law_cdf(slope: float, low: float, high: float):
    k = slope + 1
    return lambda x: (x**k - low**k) / (high**k - low**k)


def cut_log_normal_cdf(median: float, sigma: float, low: float, high: float):
    whole = stats.lognorm(sigma, scale=median).cdf
    return lambda x: (whole(x) - whole(low)) / (whole(high) - whole(low))


def number_counts_cdf(slope: float, low: float, high: float):
    return lambda m: (10 ** (slope * m) - 10 ** (slope * low)) / (10 ** (slope * high) - 10 ** (slope * low))


KINDS = {
    "uniform": (Prior(uniform=(-0.3, 1.7)), stats.uniform(-0.3, 2.0).cdf),
    "log_uniform": (Prior(log_uniform=(1e6, 1e10)), stats.loguniform(1e6, 1e10).cdf),
    "normal": (Prior(normal=(0.5, 0.1)), stats.norm(0.5, 0.1).cdf),
    "disc": (Prior(disc=(0.0, 2.2)), lambda r: (r / 2.2) ** 2),
    "ring": (Prior(disc=(0.5, 2.0)), lambda r: (r**2 - 0.25) / (4 - 0.25)),
    "halo masses": (Prior(power_law=(-1.9, 1e6, 1e10)), power_law_cdf(-1.9, 1e6, 1e10)),
    "rising power": (Prior(power_law=(2.0, 1.0, 3.0)), power_law_cdf(2.0, 1.0, 3.0)),
    "cut off": (Prior(normal=(0.5, 0.2), within=(0.1, 0.6)), stats.truncnorm(-2, 0.5, 0.5, 0.2).cdf),
    "one side": (Prior(normal=(0.0, 1.0), within=(1.0, 9.0)), stats.truncnorm(1, 9).cdf),
    "log_normal": (Prior(log_normal=(1.2, 0.4)), stats.lognorm(0.4, scale=1.2).cdf),
    "cut log_normal": (Prior(log_normal=(1.2, 0.4), within=(0.5, 3.0)), cut_log_normal_cdf(1.2, 0.4, 0.5, 3.0)),
    "from zero": (Prior(log_normal=(0.05, 0.6), within=(0.0, 0.1)), cut_log_normal_cdf(0.05, 0.6, 0.0, 0.1)),
    "number counts": (Prior(number_counts=(0.3, 19.0, 26.0)), number_counts_cdf(0.3, 19.0, 26.0)),
    "flat counts": (Prior(number_counts=(0.0, 19.0, 26.0)), stats.uniform(19.0, 7.0).cdf),
    "slope -1": (Prior(power_law=(-1.0, 0.1, 10.0)), stats.loguniform(0.1, 10.0).cdf),
}


@pytest.mark.parametrize("kind", KINDS)
def test_draws_follow_the_distribution(kind):
    prior, cdf = KINDS[kind]
    draws = prior.sample(np.random.default_rng(1), NUM)
    assert draws.shape == (NUM,) and draws.dtype == np.float64
    assert stats.kstest(draws, cdf).pvalue > 0.01


def test_poisson_draws():
    draws = Prior(poisson=25.0).sample(np.random.default_rng(1), NUM)
    counts = np.bincount(draws, minlength=60)[10:45]
    expected = stats.poisson(25.0).pmf(np.arange(10, 45))
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 0.01


def test_a_constant_takes_no_random_numbers():
    rng = np.random.default_rng(0)
    assert Prior(value=2.5).sample(rng) == 2.5
    assert Prior(value=2.5).sample(rng, 3).tolist() == [2.5, 2.5, 2.5]
    assert rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize("kind", KINDS)
def test_draws_one_by_one_are_the_draws_of_an_array(kind):
    prior = KINDS[kind][0]
    rng = np.random.default_rng(5)
    singles = [prior.sample(rng) for _ in range(4)]
    assert all(np.ndim(s) == 0 for s in singles)
    assert singles == pytest.approx(prior.sample(np.random.default_rng(5), 4).tolist(), rel=1e-14)


@pytest.mark.parametrize(
    ("prior", "mean"),
    [(Prior(value=3.0), 3.0), (Prior(uniform=(1, 4)), 2.5), (Prior(normal=(7, 1)), 7.0), (Prior(poisson=25), 25.0)],
)
def test_mean(prior, mean):
    assert prior.mean == mean


@pytest.mark.parametrize("kind", ["cut off", "one side", "cut log_normal", "from zero"])
def test_nothing_is_drawn_outside_of_a_range(kind):
    prior = KINDS[kind][0]
    draws = prior.sample(np.random.default_rng(2), NUM)
    assert draws.min() >= prior.within[0] and draws.max() <= prior.within[1]


@pytest.mark.parametrize(
    ("prior", "low"),
    [
        (Prior(value=3.0), 3.0),
        (Prior(normal=(0, 1)), -np.inf),
        (Prior(poisson=4), 0.0),
        (Prior(power_law=(-2, 1.5, 9)), 1.5),
        *(
            (KINDS[kind][0], low)
            for kind, low in (("uniform", -0.3), ("ring", 0.5), ("cut off", 0.1), ("log_normal", 0))
        ),
        (KINDS["number counts"][0], 19.0),
    ],
)
def test_lowest_value(prior, low):
    assert prior.low == low
    assert prior.sample(np.random.default_rng(3), 1000).min() >= low


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"uniform": (0, 1), "within": (0, 0.5)}, "range of its own"),
        ({"normal": (0, 1), "within": (1, 1)}, "lowest"),
        ({"log_normal": (1, 1), "within": (-1, 1)}, "0 or more"),
        ({"normal": (0, 1), "within": (9, 10)}, "leaves nothing"),
        ({"within": (0, 1)}, "give a number, or one of"),
    ],
)
def test_a_range_must_fit_its_prior(given, reason):
    with pytest.raises(ValidationError, match=reason):
        Prior(**given)


def test_mean_of_a_prior_that_is_cut_off_is_not_guessed():
    with pytest.raises(ValueError, match="cut off"):
        _ = KINDS["cut off"][0].mean


def test_mean_of_other_kinds_is_not_guessed():
    with pytest.raises(ValueError, match="power_law"):
        _ = KINDS["halo masses"][0].mean


@pytest.mark.parametrize("given", [{}, {"value": 1.0, "uniform": (0, 1)}, {"gaussian": (0, 1)}, {"uniform": (0, 1, 2)}])
def test_a_prior_is_exactly_one_known_kind(given):
    with pytest.raises(ValidationError):
        Prior(**given)
