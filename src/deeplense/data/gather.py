"""From many single images, some of them broken, to one contiguous array; what was left out is named and counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from deeplense.data import memory
from deeplense.data.npy import BadImage
from deeplense.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

T = TypeVar("T")
# Images that are read before the first of them is used: enough to keep all threads busy.
_WINDOW = 256
# Makes an uninitialised float32 array of a shape.
Room = Callable[[tuple[int, ...]], np.ndarray]
# Reads one image, real numbers (C, H, W), with the axion mass where there is one; raises BadImage.
Load = Callable[[], tuple[np.ndarray, float | None]]


@dataclass(frozen=True)
class Reading:
    """How images are read; ``read.read`` documents the settings."""

    max_bad_fraction: float = 0.01
    max_nan_fraction: float = 0.5
    max_memory_gb: float = 8.0
    mask_value: float | None = None
    bands: tuple[str, ...] | None = None
    file_column: str | None = None
    label_column: str | None = None
    progress: bool = False
    cache: bool = False

    def __post_init__(self) -> None:
        for name in ("max_bad_fraction", "max_nan_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name}={getattr(self, name):g} is out of range; allowed: 0 to 1")
        if self.bands is not None and not self.bands:
            raise DataError("bands is empty: name one band or more, or leave it out")


@dataclass(frozen=True)
class Gathered:
    """The usable images (M, C, H, W), their places among all on offer (M,), their masses, and the bad names."""

    images: np.ndarray
    kept: np.ndarray
    masses: list[float | None]
    bad: list[str]
    nan: Counter[str] = field(default_factory=Counter)  # how many images have missing pixels, and how many pixels

    def report(self) -> dict[str, Any]:
        """For the provenance: names of the images that were left out, numbers of images and pixels with NaN."""
        return {"bad": self.bad, "nan": {"images": self.nan["images"], "pixels": self.nan["pixels"]}}

    def params(self) -> pa.Table | None:
        """The axion masses as the column ``m_axion``, null where an image has none; None if none has."""
        if all(mass is None for mass in self.masses):
            return None
        import pyarrow as pa

        return pa.table({"m_axion": pa.array(self.masses, pa.float64())})


class _Offers:
    """What is on offer, and what turned out to be bad: place -> reason."""

    def __init__(self, source: object, names: Sequence[str], reading: Reading) -> None:
        self.source, self.names, self.reading = source, names, reading
        self.bad: dict[int, str] = {}

    def reject(self, place: int, reason: str) -> None:
        self.bad[place] = reason

    def check(self) -> None:
        """Raises DataError if more are bad than allowed."""
        if len(self.bad) > self.reading.max_bad_fraction * len(self.names):
            raise DataError(
                f"at least {len(self.bad)} of {len(self.names)} images in {self.source} cannot be used, more than "
                f"max_bad_fraction={self.reading.max_bad_fraction:g} allows: {self.some()}; "
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
    reading: Reading,
) -> Gathered:
    """Read every image, leave out the bad ones and say which; arguments and errors as of :func:`gather_parts`."""
    (whole,) = gather_parts(source, names, shapes, loads, reading, max(len(names), 1))
    return whole


def gather_parts(
    source: object,
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...] | BadImage],
    loads: Iterable[Load],
    reading: Reading,
    size: int,
    room: Room | None = None,
    threads: int = 1,
) -> Iterator[Gathered]:
    """Read every image, ``size`` at a time, leave out the bad ones and say which; a part of bad ones only is left out.

    The usual shape and the share of bad images are those of the whole.

    Args:
        source: where the images come from, for the messages.
        names: name of each image, length N.
        shapes: (C, H, W) of each image, or the BadImage that says why there is none, length N.
        loads: reads one image each, length N.
        reading: see Reading.
        room: makes the array to fill; ``memory.empty`` if not given.
        threads: that read at the same time.

    Raises:
        DataError: more than ``reading.max_bad_fraction`` are bad, or no image is left.
    """
    offers = _Offers(source, names, reading)
    usual = _usual_shape(shapes)
    for place, shape in enumerate(shapes):
        if isinstance(shape, BadImage):
            offers.reject(place, str(shape))
        elif shape != usual:
            offers.reject(place, f"shape {shape} where most are {usual}")
    offers.check()
    wanted = ((place, load) for place, load in enumerate(loads) if place not in offers.bad)
    rest = iter(_with_progress(_loaded(wanted, reading, threads, size), len(names) - len(offers.bad), reading))
    num, nan = 0, Counter[str]()
    for start in range(0, len(names), size):
        places = range(start, min(start + size, len(names)))
        shape = (sum(place not in offers.bad for place in places), *(usual or (1, 1, 1)))
        images = room(shape) if room else memory.empty(shape, reading.max_memory_gb)
        part = _fill(images, offers, islice(rest, len(images)), places)
        num, nan = num + len(part.kept), nan + part.nan
        if len(part.kept):
            yield part
    next(rest, None)  # the end of the bar
    if not num:
        raise DataError(f"none of the {len(names)} images in {source} can be used: {offers.some()}")
    if nan["images"]:
        logger.info("%s: %d of %d images have NaN, %d pixels in all", source, nan["images"], num, nan["pixels"])


def gather_one(image: np.ndarray, mass: float | None, reading: Reading) -> Gathered:
    """A single image (C, H, W) as a set; raises BadImage if it cannot be used."""
    image, missing = usable(image, reading)
    return Gathered(image[None], np.zeros(1, np.int64), [mass], [], _count(missing))


def usable(image: np.ndarray, reading: Reading) -> tuple[np.ndarray, int]:
    """The image as float32, same shape, and how many of its pixels are missing: masked (they become NaN), NaN or inf.

    Raises:
        BadImage: more of its pixels are NaN or infinite (also after rounding to float32) than allowed, or all others
            have the same value.
    """
    masked = image == reading.mask_value if reading.mask_value is not None else None
    with np.errstate(over="ignore"):
        image = image.astype(np.float32)
    if masked is not None:
        image[masked] = np.nan
    good = np.isfinite(image)
    missing = image.size - int(np.count_nonzero(good))
    if missing > reading.max_nan_fraction * image.size or missing == image.size:
        raise BadImage(f"full of NaN or infinite values: {missing / image.size:.0%} of its pixels")
    known = image[good] if missing else image
    if known.min() == known.max():
        raise BadImage(f"constant: every pixel is {known.flat[0]:g}")
    return image, missing


def _count(missing: int) -> Counter[str]:
    return Counter(images=int(missing > 0), pixels=missing)


_Loaded = tuple[np.ndarray, int, float | None]


def _fill(
    images: np.ndarray, offers: _Offers, loaded: Iterable[tuple[int, _Loaded | BadImage]], places: range
) -> Gathered:
    """Put what was loaded from some places into the rows of ``images``, in order; log what is left out."""
    kept: list[int] = []
    masses: list[float | None] = []
    nan: Counter[str] = Counter()
    for place, found in loaded:
        if isinstance(found, BadImage):
            offers.reject(place, str(found))
            offers.check()
            continue
        images[len(kept)], missing, mass = found
        nan.update(_count(missing))
        kept.append(place)
        masses.append(mass)
    bad = [place for place in places if place in offers.bad]
    for place in bad:
        logger.warning("left out %s: %s", offers.names[place], offers.bad[place])
    return Gathered(images[: len(kept)], np.array(kept, np.int64), masses, [offers.names[i] for i in bad], nan)


def _loaded(
    wanted: Iterable[tuple[int, Load]], reading: Reading, threads: int, size: int
) -> Iterator[tuple[int, _Loaded | BadImage]]:
    """Places with image, number of missing pixels and mass, or the reason why there is none; a few ahead of the use."""

    def read(item: tuple[int, Load]) -> tuple[int, _Loaded | BadImage]:
        place, load = item
        try:
            image, mass = load()
            return place, (*usable(image, reading), mass)
        except BadImage as reason:
            return place, reason

    if threads == 1:
        yield from map(read, wanted)
        return
    wanted = iter(wanted)
    with ThreadPoolExecutor(threads) as pool:
        while window := list(islice(wanted, min(size, _WINDOW))):
            yield from pool.map(read, window)


def _usual_shape(shapes: Iterable[tuple[int, ...] | BadImage]) -> tuple[int, ...] | None:
    counts = Counter(shape for shape in shapes if isinstance(shape, tuple))
    return counts.most_common(1)[0][0] if counts else None


def _with_progress(found: Iterable[T], total: int, reading: Reading) -> Iterator[T]:
    if not reading.progress:
        yield from found
        return
    from rich.progress import track

    yield from track(found, description="reading images", total=total, transient=True)
