"""FITS files: the images in them, their names and their pixel scale."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deeplense.data import npy
from deeplense.data.npy import BadImage

ENDINGS = (".fits", ".fit", ".fits.gz", ".fits.fz")


def first_image(path: Path) -> tuple[np.ndarray, float | None]:
    """The first image as stored, and its pixel scale in arcsec if the header has world coordinates; or BadImage."""
    with _opened(path) as units:
        unit = _chosen(units, None)[0]
        return unit.data, _scale(unit.header)


def read(path: Path, bands: Sequence[str] | None = None) -> np.ndarray:
    """One image as stored, shape (C, H, W): the first of the file, or those of the extensions that ``bands`` names.

    Raises:
        BadImage: the file cannot be read, holds no image or not these, or they differ in size.
    """
    with _opened(path) as units:
        return npy.join([npy.as_image(unit.data) for unit in _chosen(units, bands)])


def peek(path: Path, bands: Sequence[str] | None = None) -> tuple[int, ...]:
    """(C, H, W) of what :func:`read` would return, from the headers alone."""
    with _opened(path) as units:
        return npy.joined_shape([npy.image_shape(unit.shape) for unit in _chosen(units, bands)])


def pixel_scale(path: Path) -> float | None:
    """Arcsec per pixel of the first image; None without world coordinates."""
    try:
        with _opened(path) as units:
            return _scale(_chosen(units, None)[0].header)
    except BadImage:
        return None


def image_names(path: Path) -> list[str]:
    """The names of the images in a file, or their numbers where they have none."""
    with _opened(path) as units:
        return [unit.name or str(number) for number, unit in enumerate(units) if _is_image(unit)]


def is_table(path: Path) -> bool:
    """Whether a file holds a table and no image."""
    from astropy.io import fits

    try:
        with _opened(path) as units:
            kinds = list(units)
    except BadImage:
        return False
    return not any(map(_is_image, kinds)) and any(isinstance(unit, fits.BinTableHDU | fits.TableHDU) for unit in kinds)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from astropy.io import fits

    try:
        # Warnings are of odd keywords in old headers.
        with warnings.catch_warnings(action="ignore"), fits.open(path, memmap=False) as units:
            yield units
    except (OSError, EOFError, ValueError, TypeError, LookupError, zlib.error, fits.VerifyError) as error:
        raise BadImage(f"cannot be read: {str(error).splitlines()[0] if str(error) else 'broken FITS'}") from error


def _is_image(unit: Any) -> bool:
    # An image may be compressed; a table is none, and the first unit is often empty.
    return getattr(unit, "is_image", False) and len(unit.shape) >= 2


def _chosen(units: Any, bands: Sequence[str] | None) -> list[Any]:
    if bands is None:
        first = next((unit for unit in units if _is_image(unit)), None)
        if first is None:
            raise BadImage("no image in this FITS file")
        return [first]
    by_name: dict[str, Any] = {}
    for number, unit in enumerate(units):
        if _is_image(unit):
            by_name |= {str(number): unit, unit.name.upper(): unit}
    if missing := [band for band in bands if band.upper() not in by_name]:
        names = ", ".join(name for name in by_name if name and not name.isdigit()) or "images without names"
        raise BadImage(f"no extension {missing[0]!r} in this FITS file; it holds {names}")
    return [by_name[band.upper()] for band in bands]


def _scale(header: Any) -> float | None:
    from astropy.wcs import WCS
    from astropy.wcs.utils import proj_plane_pixel_scales

    wcs = WCS(header)
    if not wcs.has_celestial:
        return None
    degrees = proj_plane_pixel_scales(wcs.celestial)
    return float(np.sqrt(degrees[0] * degrees[1]) * 3600)
