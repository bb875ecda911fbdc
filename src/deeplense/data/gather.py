"""From many single images, some of them broken, to one contiguous array; what was left out is named and counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deeplense.data import memory
from deeplense.data.npy import BadImage
from deeplense.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

# Reads one image, float32 (C, H, W), with the axion mass where there is one; raises BadImage.
Load = Callable[[], tuple[np.ndarray, float | None]]


@dataclass(frozen=True)
class Limits:
    """How much may be wrong, how much may lie in memory (1e9 bytes), and whether a bar shows the progress."""

    max_bad_fraction: float = 0.01
    max_memory_gb: float = 8.0
    progress: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_fraction <= 1:
            raise DataError(f"max_bad_fraction={self.max_bad_fraction:g} is out of range; allowed: 0 to 1")


@dataclass(frozen=True)
class Gathered:
    """The usable images (M, C, H, W), their places among all on offer (M,), their masses, and the bad names."""

    images: np.ndarray
    kept: np.ndarray
    masses: list[float | None]
    bad: list[str]

    def params(self) -> pa.Table | None:
        """The axion masses as the column ``m_axion``, null where an image has none; None if none has."""
        if all(mass is None for mass in self.masses):
            return None
        import pyarrow as pa

        return pa.table({"m_axion": pa.array(self.masses, pa.float64())})


class _Offers:
    """What is on offer, and what turned out to be bad: place -> reason."""

    def __init__(self, source: object, names: Sequence[str], limits: Limits) -> None:
        self.source, self.names, self.limits = source, names, limits
        self.bad: dict[int, str] = {}

    def reject(self, place: int, reason: str) -> None:
        self.bad[place] = reason

    def check(self) -> None:
        """Raises DataError if more are bad than the limits allow."""
        if len(self.bad) > self.limits.max_bad_fraction * len(self.names):
            raise DataError(
                f"at least {len(self.bad)} of {len(self.names)} images in {self.source} cannot be used, more than "
                f"max_bad_fraction={self.limits.max_bad_fraction:g} allows: {self.some()}; "
                "mend or remove them, or raise max_bad_fraction to leave them out"
            )

    def some(self, most: int = 3) -> str:
        shown = [f"{self.names[place]} ({reason})" for place, reason in list(self.bad.items())[:most]]
        return ", ".join(shown) + (" ..." if len(self.bad) > most else "")


def gather(
    source: object,
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...] | BadImage],
    loads: Iterable[Load],
    limits: Limits,
) -> Gathered:
    """Read every image, leave out the bad ones and say which.

    Args:
        source: where the images come from, for the messages.
        names: name of each image, length N.
        shapes: (C, H, W) of each image, or the BadImage that says why there is none, length N.
        loads: reads one image each, length N.
        limits: see Limits.

    Raises:
        DataError: more than ``limits.max_bad_fraction`` are bad, or no image is left.
    """
    offers = _Offers(source, names, limits)
    usual = _usual_shape(shapes)
    for place, shape in enumerate(shapes):
        if isinstance(shape, BadImage):
            offers.reject(place, str(shape))
        elif shape != usual:
            offers.reject(place, f"shape {shape} where most are {usual}")
    offers.check()
    images = memory.empty((len(names) - len(offers.bad), *(usual or (1, 1, 1))), limits.max_memory_gb)
    kept, masses = _fill(images, offers, loads)
    if not kept:
        raise DataError(f"none of the {len(names)} images in {source} can be used: {offers.some()}")
    for place, reason in sorted(offers.bad.items()):
        logger.warning("left out %s: %s", names[place], reason)
    bad = [names[place] for place in sorted(offers.bad)]
    return Gathered(images[: len(kept)], np.array(kept, np.int64), masses, bad)


def _fill(images: np.ndarray, offers: _Offers, loads: Iterable[Load]) -> tuple[list[int], list[float | None]]:
    """Load into the rows of ``images`` one after the other; the places of the good ones, and their masses."""
    kept: list[int] = []
    masses: list[float | None] = []
    for place, load in enumerate(_with_progress(loads, len(offers.names), offers.limits)):
        if place in offers.bad:
            continue
        try:
            images[len(kept)], mass = load()
        except BadImage as reason:
            offers.reject(place, str(reason))
            offers.check()
            continue
        kept.append(place)
        masses.append(mass)
    return kept, masses


def _usual_shape(shapes: Iterable[tuple[int, ...] | BadImage]) -> tuple[int, ...] | None:
    counts = Counter(shape for shape in shapes if isinstance(shape, tuple))
    return counts.most_common(1)[0][0] if counts else None


def _with_progress(loads: Iterable[Load], total: int, limits: Limits) -> Iterator[Load]:
    if not limits.progress:
        yield from loads
        return
    from rich.progress import track

    yield from track(loads, description="reading images", total=total, transient=True)
