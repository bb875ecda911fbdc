"""Distributions over scene parameters, as they are written in a preset."""

from __future__ import annotations

import math
from functools import cached_property
from numbers import Real
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator
from scipy.special import ndtr, ndtri

Range = tuple[float, float]


class Prior(BaseModel):
    """One distribution: exactly one of the fields is given, and ``within`` beside it where a normal one is cut off.

    A bare number in a preset means ``value``.

    Attributes:
        value: a constant.
        uniform: lowest and highest value.
        log_uniform: lowest and highest value, uniform in the logarithm.
        normal: mean and standard deviation.
        log_normal: median and the standard deviation of the natural logarithm.
        disc: inner and outer radius, uniform over the area of the ring between them.
        power_law: slope s and range of p(x) ~ x^s.
        number_counts: slope s and range of magnitudes, p(m) ~ 10^(s m).
        poisson: mean of a whole number.
        within: lowest and highest value of a normal or log_normal prior; the rest of the distribution is left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float | None = None
    uniform: Range | None = None
    log_uniform: Range | None = None
    normal: Range | None = None
    log_normal: Range | None = None
    disc: Range | None = None
    power_law: tuple[float, float, float] | None = None
    number_counts: tuple[float, float, float] | None = None
    poisson: float | None = None
    within: Range | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Prior:
        kinds = self.model_fields_set - {"within"}
        if len(kinds) != 1:
            allowed = ", ".join(name for name in type(self).model_fields if name != "within")
            raise ValueError(f"give a number, or one of {allowed}; given {sorted(self.model_fields_set)}")
        self._check_numbers(*self._kind)
        if self.within is not None:
            self._check_range(kinds.pop(), self.within)
        return self

    def _check_numbers(self, kind: str, given: Any) -> None:
        numbers = np.atleast_1d(given)
        if not np.isfinite(numbers).all():
            raise ValueError(f"{kind} = {given}: give finite numbers")
        if kind in _RANGES and not numbers[-2] <= numbers[-1]:
            raise ValueError(f"{kind} = {given}: give the lowest, then the highest value")
        if (kind in _NORMALS and numbers[1] <= 0) or (kind in _ABOVE_0 and numbers[_ABOVE_0[kind]] <= 0):
            raise ValueError(f"{kind} = {given}: widths, medians and what has a logarithm or a power are above 0")
        if kind == "poisson" and not 0 <= numbers[0] <= 1e6:
            raise ValueError(f"poisson = {given}: give a mean from 0 to 1e6")

    def _check_range(self, kind: str, within: Range) -> None:
        if kind not in _NORMALS:
            raise ValueError(f"within cuts off a {' or '.join(_NORMALS)} prior; give a {kind} prior a range of its own")
        if not within[0] < within[1] or (kind == "log_normal" and within[0] < 0):
            raise ValueError(f"within={within}: give the lowest, then the highest value; log_normal ones are 0 or more")
        low, high = _shares(kind, getattr(self, kind), within)
        if high - low < 1e-6:
            raise ValueError(f"within={within} leaves nothing of {kind} = {getattr(self, kind)}: widen the range")

    def sample(self, rng: np.random.Generator, size: int | tuple[int, ...] | None = None) -> Any:
        """One draw (float) or an array of ``size`` of them (float64).

        Every kind but a constant takes its draws from the generator in the same order, whatever came before.
        """
        kind, given = self._kind
        if kind == "value":
            return given if size is None else np.full(size, given)
        if self.within is not None:
            return self._cut_off(rng.uniform(size=size))
        if kind == "normal":
            return rng.normal(given[0], given[1], size)
        if kind == "log_normal":
            return rng.lognormal(math.log(given[0]), given[1], size)
        if kind == "poisson":
            return rng.poisson(given, size=size)
        return _QUANTILES[kind](rng.uniform(size=size), *given)

    @cached_property
    def _kind(self) -> tuple[str, Any]:
        """The kind of the prior and its numbers. Looked up once: a scene takes many draws from the same few priors."""
        (kind,) = self.model_fields_set - {"within"}
        return kind, getattr(self, kind)

    @cached_property
    def _range(self) -> tuple[float, float]:
        """The shares of a normal or log_normal prior below the edges of ``within``."""
        assert self.within is not None
        return _shares(*self._kind, self.within)

    def _cut_off(self, u: Any) -> Any:
        kind, (center, deviation) = self._kind
        low, high = self._range
        deviate = ndtri(low + u * (high - low)) * deviation
        value = center * np.exp(deviate) if kind == "log_normal" else center + deviate
        # Rounding could step over an edge.
        return np.minimum(np.maximum(value, self.within[0]), self.within[1]) if self.within else value

    @property
    def low(self) -> float:
        """What no draw is below; minus infinity for a whole normal prior."""
        kind, given = self._kind
        if self.within is not None:
            return self.within[0]
        ends = {"value": given, "normal": -math.inf, "log_normal": 0.0, "poisson": 0.0}
        if kind in ends:
            return float(ends[kind])
        return float(given[-2])

    @property
    def high(self) -> float:
        """What no draw is above; infinity where there is no bound."""
        kind, given = self._kind
        if self.within is not None:
            return self.within[1]
        if kind in ("normal", "log_normal", "poisson"):
            return math.inf
        return float(given if kind == "value" else given[-1])

    @property
    def mean(self) -> float:
        """The expected value of a constant, uniform, Poisson, or whole normal prior."""
        kind, given = self._kind
        if kind in ("value", "poisson"):
            return float(given)
        if kind in ("uniform", "normal") and self.within is None:
            return float(given[0] if kind == "normal" else (given[0] + given[1]) / 2)
        raise ValueError(f"no mean is defined for a {kind} prior{' that is cut off' if self.within else ''}")


def _power_law(u: Any, slope: float, low: float, high: float) -> Any:
    k = slope + 1
    if k == 0:
        return low * (high / low) ** u
    return (low**k + u * (high**k - low**k)) ** (1 / k)


def _number_counts(u: Any, slope: float, low: float, high: float) -> Any:
    if slope == 0:
        return low + u * (high - low)
    k = slope * math.log(10)
    return low + np.log1p(u * np.expm1(k * (high - low))) / k


def _shares(kind: str, given: Range, within: Range) -> Range:
    """How much of a normal distribution, of the value or of its logarithm, lies below each of two edges."""
    if kind == "normal":
        low, high = ((edge - given[0]) / given[1] for edge in within)
    else:
        low, high = ((math.log(edge / given[0]) if edge else -math.inf) / given[1] for edge in within)
    return float(ndtr(low)), float(ndtr(high))


_RANGES = ("uniform", "log_uniform", "disc", "power_law", "number_counts")
# Of these, the number at this place has to be above zero.
_ABOVE_0 = {"log_uniform": 0, "log_normal": 0, "power_law": 1}
_NORMALS = ("normal", "log_normal")
_QUANTILES: dict[str, Any] = {
    "uniform": lambda u, low, high: low + u * (high - low),
    "log_uniform": lambda u, low, high: np.exp(math.log(low) + u * math.log(high / low)),
    "disc": lambda u, inner, outer: np.sqrt(inner**2 + u * (outer**2 - inner**2)),
    "power_law": _power_law,
    "number_counts": _number_counts,
}


def _as_prior(given: Any) -> Any:
    is_number = isinstance(given, Real) and not isinstance(given, bool)
    if not is_number and not isinstance(given, dict | Prior):
        raise ValueError(f"{given!r} is neither a number nor a distribution like {{ uniform = [0.0, 1.0] }}")
    return {"value": float(given)} if is_number else given


def _positive(prior: Prior) -> Prior:
    if prior.low < 0 or prior.value == 0:
        raise ValueError(f"{prior.model_dump(exclude_unset=True)}: all draws are above 0; cut a normal off by within")
    return prior


def _not_negative(prior: Prior) -> Prior:
    if prior.low < 0:
        raise ValueError(f"{prior.model_dump(exclude_unset=True)}: all draws are 0 or more; cut a normal off by within")
    return prior


def _share(prior: Prior) -> Prior:
    if prior.low < 0 or prior.high > 1:
        raise ValueError(f"{prior.model_dump(exclude_unset=True)}: all draws are from 0 to 1")
    return prior


PriorField = Annotated[Prior, BeforeValidator(_as_prior)]
PositivePrior = Annotated[PriorField, AfterValidator(_positive)]
NotNegativePrior = Annotated[PriorField, AfterValidator(_not_negative)]
SharePrior = Annotated[PriorField, AfterValidator(_share)]
