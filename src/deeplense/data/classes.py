"""Class names: their order, which sets the class numbers, and the names under which other sets know them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from deeplense.data.schema import LensSet
from deeplense.errors import DataError, did_you_mean

logger = logging.getLogger(__name__)

# Families of classes in the order of their numbers; each entry lists the names that mean the same.
_FAMILIES: tuple[tuple[frozenset[str], ...], ...] = (
    (
        frozenset({"no", "no_sub", "nosub", "none", "no_substructure"}),
        frozenset({"sphere", "cdm", "subhalo"}),
        frozenset({"vort", "vortex", "axion"}),
    ),
    (
        frozenset({"nonlenses", "nonlens", "non_lenses", "non_lens", "nolens", "no_lens"}),
        frozenset({"lenses", "lens"}),
    ),
)


def _rank(name: str) -> tuple[int, int] | None:
    """(family, place in it) of a known class name."""
    plain = name.lower().replace("-", "_").replace(" ", "_")
    for f, family in enumerate(_FAMILIES):
        for place, names in enumerate(family):
            if plain in names:
                return f, place
    return None


def order(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in the order of their numbers: none, sphere, vort and the like; non-lens, lens; else by alphabet."""
    alphabetical = sorted(set(names))
    ranks = [_rank(name) for name in alphabetical]
    known = [rank for rank in ranks if rank is not None]
    if len(set(known)) == len(alphabetical) and len({family for family, _ in known}) == 1:
        return tuple(sorted(alphabetical, key=lambda name: _rank(name) or (0, 0)))
    return tuple(alphabetical)


def align(lens_set: LensSet, classes: Sequence[str]) -> LensSet:
    """The same images with labels numbered as in ``classes`` (a model's, say); `cdm` counts as `sphere`, and so on.

    A set whose classes are mere numbers (0, 1 ... of a table or an archive) keeps them: they number ``classes``.

    Raises:
        DataError: a class of the set has no counterpart in ``classes``.
    """
    if lens_set.label is None or lens_set.classes == tuple(classes):
        return lens_set
    if lens_set.classes == tuple(map(str, range(len(lens_set.classes)))) and len(lens_set.classes) <= len(classes):
        meant = ", ".join(f"{number} = {name}" for number, name in enumerate(classes))
        logger.warning("the labels are numbers without names; taken as %s", meant)
        return replace(lens_set, classes=tuple(classes))
    numbers = np.array([_place(name, classes) for name in lens_set.classes], np.int64)
    return replace(lens_set, label=numbers[lens_set.label], classes=tuple(classes))


def _place(name: str, classes: Sequence[str]) -> int:
    if name in classes:
        return list(classes).index(name)
    for number, other in enumerate(classes):
        if _rank(name) is not None and _rank(name) == _rank(other):
            return number
    raise DataError(f"class {name!r} is not one of {', '.join(classes)}; {did_you_mean(name, classes)}")
