"""Distributions over scene parameters, as they are written in a preset."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

Range = tuple[float, float]


class Prior(BaseModel):
    """One distribution: exactly one of the fields is given. A bare number in a preset means ``value``.

    Attributes:
        value: a constant.
        uniform: lowest and highest value.
        log_uniform: lowest and highest value, uniform in the logarithm.
        normal: mean and standard deviation.
        disc: inner and outer radius, uniform over the area of the ring between them.
        power_law: slope s and range of p(x) ~ x^s.
        poisson: mean of a whole number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float | None = None
    uniform: Range | None = None
    log_uniform: Range | None = None
    normal: Range | None = None
    disc: Range | None = None
    power_law: tuple[float, float, float] | None = None
    poisson: float | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Prior:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"a prior is one of {', '.join(type(self).model_fields)}; given {self.model_fields_set}")
        return self

    def sample(self, rng: np.random.Generator, size: int | None = None) -> Any:
        """One draw (float) or ``size`` of them (float64, shape (size,)).

        Every kind but a constant takes its draws from the generator in the same order, whatever came before.
        """
        ((kind, given),) = self.model_dump(exclude_unset=True).items()
        if kind == "value":
            return given if size is None else np.full(size, given)
        if kind == "normal":
            mean, deviation = given
            return rng.normal(mean, deviation, size)
        if kind == "poisson":
            return rng.poisson(given, size=size)
        return _QUANTILES[kind](rng.uniform(size=size), *given)

    @property
    def mean(self) -> float:
        """The expected value of a constant, uniform, normal or Poisson prior."""
        ((kind, given),) = self.model_dump(exclude_unset=True).items()
        if kind in ("value", "poisson"):
            return float(given)
        if kind in ("uniform", "normal"):
            return given[0] if kind == "normal" else (given[0] + given[1]) / 2
        raise ValueError(f"no mean is defined for a {kind} prior")


def _power_law(u: Any, slope: float, low: float, high: float) -> Any:
    k = slope + 1
    if k == 0:
        return low * (high / low) ** u
    return (low**k + u * (high**k - low**k)) ** (1 / k)


_QUANTILES: dict[str, Any] = {
    "uniform": lambda u, low, high: low + u * (high - low),
    "log_uniform": lambda u, low, high: np.exp(math.log(low) + u * math.log(high / low)),
    "disc": lambda u, inner, outer: np.sqrt(inner**2 + u * (outer**2 - inner**2)),
    "power_law": _power_law,
}


def _as_prior(given: Any) -> Any:
    return {"value": given} if isinstance(given, int | float) else given


PriorField = Annotated[Prior, BeforeValidator(_as_prior)]
