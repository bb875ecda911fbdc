"""Errors that a user can cause and mend; the command line prints them in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DeepLenseError(Exception):
    """Something the user can put right: says what was given, what is allowed, what to do next."""


class ConfigError(DeepLenseError):
    """A setting that does not exist or is out of range."""


class DataError(DeepLenseError):
    """Images, labels or files that cannot be used."""


class ModelError(DeepLenseError):
    """An architecture or weights that cannot be built or loaded."""


class RunError(DeepLenseError):
    """A run folder that is missing, unfinished, or in the way."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """The end of an error message: the nearest allowed word, or all of them."""
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(names)}"
