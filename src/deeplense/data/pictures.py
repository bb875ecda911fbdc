"""PNG and JPEG: pictures for the eye, whose values are brightness on a screen and no longer flux."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deeplense.data.npy import BadImage

ENDINGS = (".png", ".jpg", ".jpeg")
_WIDE = ("I;16", "I;16B", "I;16L", "I")  # grey with 16 bits
_GREY = ("1", "L", "LA", *_WIDE)


def read(path: Path, bands: Sequence[str] | None = None) -> np.ndarray:
    """A picture as float32 in [0, 1], shape (3, H, W) in the order R, G, B, or (1, H, W) if it is grey.

    Pictures are stored from the top row; ours start at the bottom, as FITS images do, so rows are turned over.

    Args:
        path: the file.
        bands: colours in the wished order, such as ["B", "G", "R"], which of a gri composite makes g, r, i.

    Raises:
        BadImage: not a picture, a damaged one, or without these colours.
    """
    with _opened(path) as picture:
        if picture.mode in _WIDE:
            values, peak = np.asarray(picture, np.float32), 65535
        else:
            values, peak = np.asarray(picture.convert("L" if picture.mode in _GREY else "RGB"), np.float32), 255
    image = values[None] if values.ndim == 2 else np.moveaxis(values, 2, 0)
    return image[_places(len(image), bands), ::-1] / np.float32(peak)


def peek(path: Path, bands: Sequence[str] | None = None) -> tuple[int, ...]:
    """(C, H, W) of what :func:`read` would return, from the header alone."""
    with _opened(path) as picture:
        channels = _places(1 if picture.mode in _GREY else 3, bands)
        return len(channels), picture.height, picture.width


def pixel_scale(_: Path) -> None:
    """Pictures do not know it."""
    return


def _places(channels: int, bands: Sequence[str] | None) -> list[int]:
    if bands is None:
        return list(range(channels))
    places = {"R": 0, "G": 1, "B": 2}
    if channels != 3 or (unknown := [band for band in bands if band.upper() not in places]):
        raise BadImage(f"no band {unknown[0]!r}; it has R, G and B" if channels == 3 else "a grey picture, no bands")
    return [places[band.upper()] for band in bands]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
            yield picture
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise BadImage(f"cannot be read: {error}") from error
