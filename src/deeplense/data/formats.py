"""One image from one file or from one file for each band, whatever the format; a list of them becomes an array."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from deeplense.data import cache, fits, hdf5, npy, pictures
from deeplense.data.files import as_text
from deeplense.data.gather import Gathered, Reading, Room, gather_one, gather_parts
from deeplense.data.npy import BadImage
from deeplense.errors import DataError

logger = logging.getLogger(__name__)

Bands = Sequence[str] | None
_THREADS = 8  # more than cores, for they wait for the disk
_MOST_SCALES = 9  # files of a set that are asked for their pixel scale


@dataclass(frozen=True)
class Format:
    """How files with some endings are read; ``peek`` gives the shape (C, H, W) and ``load`` the image, or BadImage."""

    name: str
    endings: tuple[str, ...]
    peek: Callable[[Path, Bands], tuple[int, ...]]
    load: Callable[[Path, Bands], tuple[np.ndarray, float | None]]
    pixel_scale: Callable[[Path], float | None]
    is_parallel: bool = False  # several files are read at the same time


@dataclass(frozen=True)
class Item:
    """An image on offer: its name, and its file or its files, one for each band in the order of the channels.

    ``bands`` are those to take out of a single file, as its format names them; None for its first or only image.
    """

    name: str
    files: tuple[Path, ...]
    bands: Bands = None


def _without_mass(read: Callable[[Path, Bands], np.ndarray]) -> Callable[[Path, Bands], tuple[np.ndarray, None]]:
    return lambda path, bands: (read(path, bands), None)


def _peek_npy(path: Path, bands: Bands) -> tuple[int, ...]:
    if bands is not None:
        raise BadImage("bands cannot be chosen in .npy files: they do not name them")
    return npy.peek_shape(path)


# In this order where a folder holds as many files of one as of another: pictures beside data are previews.
FORMATS = (
    Format("npy", (".npy",), _peek_npy, lambda path, _: npy.read_file(path), lambda _: None, is_parallel=True),
    Format("FITS", fits.ENDINGS, fits.peek, _without_mass(fits.read), fits.pixel_scale),
    Format("HDF5", hdf5.ENDINGS, hdf5.peek, _without_mass(hdf5.read), hdf5.pixel_scale),
    Format("picture", pictures.ENDINGS, pictures.peek, _without_mass(pictures.read), pictures.pixel_scale),
)
ENDINGS = tuple(ending for form in FORMATS for ending in form.endings)


def format_of(name: str) -> Format | None:
    """The format that a file name's ending says, in upper or lower case; None for other files."""
    lower = name.lower()
    return next((form for form in FORMATS if lower.endswith(form.endings)), None)


def stem(name: str) -> str:
    """A file name without its ending, also where that has two parts."""
    ending = next((end for end in sorted(ENDINGS, key=len, reverse=True) if name.lower().endswith(end)), "")
    return name[: len(name) - len(ending)]


def gather_items(source: object, items: Sequence[Item], reading: Reading) -> Gathered:
    """The good images of ``items``, from the cache where they are many; raises DataError as ``gather`` does."""

    def read(room: Room | None = None) -> Gathered:
        (whole,) = _read_items(source, items, reading, max(len(items), 1), room)
        return whole

    if not reading.cache or len(items) < cache.MANY:
        return read()
    return cache.remembered((file for item in items for file in item.files), reading, read)


def gather_item_parts(source: object, items: Sequence[Item], reading: Reading, size: int) -> Iterator[Gathered]:
    """The good images of ``items``, ``size`` on offer at a time; raises DataError as ``gather_parts`` does."""
    if size < len(items):
        yield from _read_items(source, items, reading, size)
    else:
        yield gather_items(source, items, reading)


def _read_items(
    source: object, items: Sequence[Item], reading: Reading, size: int, room: Room | None = None
) -> Iterator[Gathered]:
    _warn_of_more_images(items[0])
    form = format_of(items[0].files[0].name)
    threads = _THREADS if form is not None and form.is_parallel else 1
    with ThreadPoolExecutor(threads) as pool:
        shapes = list(pool.map(_peek, items, chunksize=64) if threads > 1 else map(_peek, items))
    names = [as_text(item.name) for item in items]
    yield from gather_parts(source, names, shapes, (partial(_load, i) for i in items), reading, size, room, threads)


def gather_file(file: Path, reading: Reading) -> Gathered:
    """The one image of a file.

    Raises:
        DataError: it cannot be used.
    """
    item = Item(file.name, (file,), reading.bands)
    _warn_of_more_images(item)
    try:
        return gather_one(*_load(item), reading)
    except BadImage as reason:
        raise DataError(f"{file} cannot be used: {reason}") from reason


def pixel_scale(items: Sequence[Item]) -> float | None:
    """Arcsec per pixel where some files say so and agree to 1 %: a few of them are asked."""
    asked = [items[i].files[0] for i in np.unique(np.linspace(0, len(items) - 1, _MOST_SCALES).astype(int))]
    scales = [scale for file in asked if (form := format_of(file.name)) and (scale := form.pixel_scale(file))]
    if not scales:
        return None
    if max(scales) > 1.01 * min(scales):
        logger.warning("pixels measure from %.4g to %.4g arcsec: the set has no pixel scale", min(scales), max(scales))
        return None
    return float(np.median(scales))


def _peek(item: Item) -> tuple[int, ...] | BadImage:
    try:
        if len(item.files) == 1:
            return _format(item.files[0]).peek(item.files[0], item.bands)
        return npy.joined_shape([_format(file).peek(file, None) for file in item.files])
    except BadImage as reason:
        return reason


def _load(item: Item) -> tuple[np.ndarray, float | None]:
    if len(item.files) == 1:
        return _format(item.files[0]).load(item.files[0], item.bands)
    return npy.join([_format(file).load(file, None)[0] for file in item.files]), None


def _format(file: Path) -> Format:
    if (form := format_of(file.name)) is None:
        raise BadImage(f"not an image file; allowed: {', '.join(ENDINGS)}" if file.exists() else "no such file")
    return form


def _warn_of_more_images(item: Item) -> None:
    """One line if its first file holds more images than the one that is read."""
    first = item.files[0]
    if item.bands is not None or not first.name.lower().endswith(fits.ENDINGS):
        return
    try:
        names = fits.image_names(first)
    except BadImage:
        return
    if len(names) > 1:
        logger.warning(
            "%s holds %d images (%s): only the first is read; bands=[...] names others, which become channels",
            *(first.name, len(names), ", ".join(names)),
        )
