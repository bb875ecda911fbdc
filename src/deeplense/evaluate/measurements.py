"""How well lenses are measured: bias, scatter, and whether the uncertainties can be taken at their word."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import median_abs_deviation, norm

from deeplense.errors import DataError, did_you_mean
from deeplense.evaluate.arrays import as_float, check_labels, check_lengths
from deeplense.evaluate.bootstrap import resample_weights
from deeplense.evaluate.population import wilson
from deeplense.evaluate.scores import FEW, with_intervals

RELATIVE = ("theta_E", "theta_E_macro")  # their errors are in per cent of the truth, all others in their own unit
LEVELS = (0.68, 0.95)
CATASTROPHIC = 10.0  # per cent of the truth
# Titles and units; a parameter that is not here goes by its name.
ABOUT = {
    "theta_E": ("Einstein radius", "arcsec"),
    "theta_E_macro": ("Einstein radius, smooth part", "arcsec"),
    "e1": ("Ellipticity e₁", ""),
    "e2": ("Ellipticity e₂", ""),
    "gamma1": ("Shear γ₁", ""),
    "gamma2": ("Shear γ₂", ""),
    "gamma": ("Density slope γ", ""),
    "center_x": ("Lens centre x", "arcsec"),
    "center_y": ("Lens centre y", "arcsec"),
    "source_x": ("Source centre x", "arcsec"),
    "source_y": ("Source centre y", "arcsec"),
    "R_sersic": ("Sersic radius", "arcsec"),
    "n_sersic": ("Sersic index", ""),
    "source_e1": ("Source ellipticity e₁", ""),
    "source_e2": ("Source ellipticity e₂", ""),
    "psf_fwhm": ("FWHM of the PSF", "arcsec"),
}

Statistic = Callable[..., Any]


def root_mean_square(values: np.ndarray, axis: int = -1) -> Any:
    """The root of the mean square along an axis."""
    return np.sqrt(np.mean(np.square(values), axis=axis))


# rmse^2 = bias^2 + scatter^2; the robust pair does not care for a few per cent of failures.
STATISTICS: dict[str, Statistic] = {
    "bias": np.mean,
    "scatter": np.std,
    "median": np.median,
    "robust_scatter": partial(median_abs_deviation, scale="normal"),
    "rmse": root_mean_square,
}


@dataclass(frozen=True)
class Measured:
    """One parameter of the lenses of which the truth is known.

    Attributes:
        name: as in the truth table.
        truth, estimate, sigma: in the parameter's unit, float64, shape (N,).
        label: class numbers, shape (N,).
        wide: half of the 95 % interval where it is another one than that of a Gaussian, shape (N,).
    """

    name: str
    truth: np.ndarray
    estimate: np.ndarray
    sigma: np.ndarray
    label: np.ndarray
    wide: np.ndarray | None = None

    @property
    def is_relative(self) -> bool:
        return self.name in RELATIVE

    @property
    def title(self) -> str:
        return ABOUT.get(self.name, (self.name, ""))[0]

    @property
    def unit(self) -> str:
        """Of the parameter."""
        return ABOUT.get(self.name, ("", ""))[1]

    @property
    def error_unit(self) -> str:
        return "%" if self.is_relative else self.unit

    @property
    def error(self) -> np.ndarray:
        """Estimate minus truth, in per cent of the truth where `is_relative`, shape (N,)."""
        return self._relative(self.estimate - self.truth)

    def is_inside(self, level: float) -> np.ndarray:
        """Whether the truth lies in the stated interval, bool, shape (N,)."""
        if level == LEVELS[1] and self.wide is not None:
            return np.abs(self.estimate - self.truth) <= self.wide
        return np.abs(self.pull) <= norm.ppf((1 + level) / 2)

    @property
    def naive_error(self) -> np.ndarray:
        """The same of the naive baseline: whoever says the mean of the whole set for each of its lenses."""
        return self._relative(self.truth.mean() - self.truth)

    @property
    def pull(self) -> np.ndarray:
        """(estimate - truth) / sigma, shape (N,): of unit Gaussian scatter where the uncertainties are right."""
        return (self.estimate - self.truth) / self.sigma

    def _relative(self, error: np.ndarray) -> np.ndarray:
        return 100 * error / self.truth if self.is_relative else error


def gather(
    truth: Mapping[str, Any],
    estimate: Mapping[str, Any],
    sigma: Mapping[str, Any],
    label: Any,
    wide: Mapping[str, Any] | None = None,
) -> dict[str, Measured]:
    """Each estimated parameter with its truth; lenses of which the truth is NaN (null in a table) are left out.

    Args:
        truth, estimate, sigma: by name, shape (N,) each; truths that are not estimated are passed over. A sigma may be
            infinite where nothing was learned.
        label: class numbers, shape (N,).
        wide: half of the 95 % interval by name, where it is not 1.96 sigma.

    Raises:
        DataError: a parameter without truth or sigma, another length, an estimate that is not finite, a sigma that is
            not above 0, or a truth that is not above 0 where errors are relative.
    """
    label = as_float(label).astype(np.int64)
    return {name: _one(name, truth, estimate, sigma, label, wide) for name in estimate}


def _one(
    name: str,
    truth: Mapping[str, Any],
    estimate: Mapping[str, Any],
    sigma: Mapping[str, Any],
    label: np.ndarray,
    wide: Mapping[str, Any] | None,
) -> Measured:
    for what, part in (("truth", truth), ("sigma", sigma)):
        if name not in part:
            raise DataError(f"{name!r} is estimated, but has no {what}; {did_you_mean(name, part)}")
    true, fit, error = (as_float(part[name]) for part in (truth, estimate, sigma))
    check_lengths(label, **{f"true_{name}": true, f"estimates_of_{name}": fit, f"sigmas_of_{name}": error})
    is_known = np.isfinite(true)
    if not is_known.any():
        raise DataError(f"{name!r} is estimated, but its truth is not known of a single lens; leave it out")
    half = None if wide is None else as_float(wide[name])[is_known]
    known = [values[is_known] for values in (true, fit, error, label)]
    measured = Measured(name, known[0], known[1], known[2], known[3], half)
    _check(measured)
    return measured


def _check(measured: Measured) -> None:
    name, bad = measured.name, int(np.sum(~np.isfinite(measured.estimate)))
    if bad:
        raise DataError(f"{bad} estimates of {name!r} are NaN or infinite; look for fits that diverged")
    if not np.all(measured.sigma > 0):  # nor is NaN
        raise DataError(f"the uncertainty of {name!r} must be above 0; the least is {measured.sigma.min():.3g}")
    if measured.is_relative and measured.truth.min() <= 0:
        raise DataError(f"{name!r} reaches down to {measured.truth.min():.3g}; relative errors need truths above 0")


def measurement_scores(
    truth: Mapping[str, Any],
    estimate: Mapping[str, Any],
    sigma: Mapping[str, Any],
    label: Any,
    classes: Sequence[str],
    chi2: Any = None,
    bootstrap: int = 1000,
    seed: int = 0,
    wide: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Every score of a measurement, in plain JSON values.

    Each parameter has its `unit` of errors, scores of `all` lenses, and `by_class` those of each class: bias and
    scatter (mean and standard deviation of the error), `median` and `robust_scatter` (1.4826 MAD), `rmse`, each
    as `{"value", "low", "high"}` with a stratified bootstrap 95 % percentile interval; `naive`, scatter and rmse of
    whoever says the mean of the set for every lens; `coverage` of the central 68 and 95 % of a Gaussian, with Wilson's
    intervals; mean and scatter of the `pull`; and where errors are relative, the `catastrophic` share of errors above
    10 %. `chi2` has mean and median chi^2 per pixel, or is None.

    Args:
        truth, estimate, sigma: by name, shape (N,) each; see `gather`.
        label: class numbers, shape (N,).
        classes: K names.
        chi2: chi^2 over the number of pixels, shape (N,).
        bootstrap: number of resamples; 0 leaves the intervals out.
        wide: half of the 95 % interval by name, where it is not 1.96 sigma.

    Raises:
        DataError: parts that do not fit together, or values that make no sense.
    """
    label = check_labels(label, len(classes))
    measured = gather(truth, estimate, sigma, label, wide)
    if not measured:
        raise DataError("nothing was estimated; give at least one parameter")
    parameters = {
        name: {"title": part.title, "unit": part.error_unit}
        | _by_class(_scores_of(part, bootstrap, seed), part.label, classes)
        for name, part in measured.items()
    }
    return {
        "n": len(label),
        "classes": list(classes),
        "parameters": parameters,
        "chi2": None if chi2 is None else chi2_scores(chi2, label, classes, bootstrap, seed),
        "bootstrap": {"resamples": bootstrap, "seed": seed, "level": 0.95, "strata": "class"},
        "notes": _notes(measured, label, classes),
    }


def _by_class(
    scores: Callable[[np.ndarray], dict[str, Any]], label: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """Scores of all lenses, and of each class that has some; bool, shape (N,), says which."""
    present = {name: label == k for k, name in enumerate(classes) if np.any(label == k)}
    everything = np.ones(len(label), bool)
    return {"all": scores(everything), "by_class": {name: scores(chosen) for name, chosen in present.items()}}


def _scores_of(part: Measured, bootstrap: int, seed: int) -> Callable[[np.ndarray], dict[str, Any]]:
    """Of one parameter, which lenses -> their scores."""
    error, naive, pull = part.error, part.naive_error, part.pull

    def scores(chosen: np.ndarray) -> dict[str, Any]:
        result: dict[str, Any] = {"n": int(chosen.sum())}
        result |= intervals(error[chosen], STATISTICS, part.label[chosen], bootstrap, seed)
        result["naive"] = {name: float(STATISTICS[name](naive[chosen])) for name in ("scatter", "rmse")}
        result["coverage"] = {str(level): _share(part.is_inside(level)[chosen]) for level in LEVELS}
        result["pull"] = {"mean": float(pull[chosen].mean()), "scatter": float(pull[chosen].std())}
        result["catastrophic"] = _share(np.abs(error[chosen]) > CATASTROPHIC) if part.is_relative else None
        return result

    return scores


def intervals(
    values: np.ndarray, statistics: Mapping[str, Statistic], strata: np.ndarray, bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Statistics of values, shape (N,), each as {"value", "low", "high"} with its bootstrap 95 % interval.

    Args:
        statistics: by name, functions of values and axis.
        strata: class numbers, whose counts every resample keeps, shape (N,).
    """
    blocks = [
        {name: statistic(_drawn(values, weights), axis=-1) for name, statistic in statistics.items()}
        for weights in resample_weights(strata, bootstrap, seed)
    ]
    draws = {name: np.concatenate([block[name] for block in blocks]) for name in statistics} if blocks else None
    return with_intervals({name: statistic(values, axis=-1) for name, statistic in statistics.items()}, draws)


def _drawn(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Each value as often as its weight says, (b, N): a row of weights sums to N, so rows stay rows."""
    return np.repeat(np.tile(values, len(weights)), weights.ravel().astype(np.int64)).reshape(weights.shape)


def coverage(pull: np.ndarray, levels: Any) -> np.ndarray:
    """Share of pulls, shape (N,), inside the central interval of a unit Gaussian that holds each level, shape (L,)."""
    reach = norm.ppf((1 + np.asarray(levels, np.float64)) / 2)
    return np.searchsorted(np.sort(np.abs(pull)), reach, side="right") / len(pull)


def _share(is_so: np.ndarray) -> dict[str, float]:
    """A share with Wilson's 95 % interval."""
    low, high = wilson(is_so.sum(), len(is_so))
    return {"value": float(is_so.mean()), "low": float(low), "high": float(high)}


def chi2_scores(
    chi2: Any, label: np.ndarray, classes: Sequence[str], bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Mean and median of chi^2 per pixel, of `all` images and `by_class`: 1 where the model explains all but noise.

    Raises:
        DataError: NaN, or another number than there are labels.
    """
    values = as_float(chi2)
    check_lengths(label, values_of_chi2=values)
    if not np.isfinite(values).all():
        raise DataError(f"{np.sum(~np.isfinite(values))} values of chi2 are NaN or infinite; look for failed fits")
    wanted: dict[str, Statistic] = {"mean": np.mean, "median": np.median}

    def scores(chosen: np.ndarray) -> dict[str, Any]:
        return {"n": int(chosen.sum())} | intervals(values[chosen], wanted, label[chosen], bootstrap, seed)

    return _by_class(scores, label, classes)


def _notes(measured: Mapping[str, Measured], label: np.ndarray, classes: Sequence[str]) -> list[str]:
    """What a reader has to know before trusting the figures."""
    counts = np.bincount(label, minlength=len(classes))
    notes = [
        f"Fewer than {FEW} images are of class {name}: the intervals are rough and rather too narrow."
        for name, count in zip(classes, counts, strict=True)
        if 0 < count < FEW
    ]
    for part in measured.values():
        if len(part.truth) < len(label):
            missing = len(label) - len(part.truth)
            notes.append(f"{part.title}: the truth of {missing:,} of {len(label):,} lenses is not known.")
        if np.isinf(part.sigma).any():
            unsure = int(np.isinf(part.sigma).sum())
            notes.append(f"{part.title}: {unsure:,} lenses have an infinite uncertainty, which covers any truth.")
    return notes
