"""HDF5 in lenstronomy's layout: one file for each lens and band, with the array ``image_data``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deeplense.data import npy
from deeplense.data.npy import BadImage
from deeplense.errors import DataError

ENDINGS = (".h5", ".hdf5")


def read(path: Path, bands: Sequence[str] | None = None) -> np.ndarray:
    """The image as stored, shape (C, H, W); raises BadImage if there is none, or bands are asked for by name."""
    with _opened(path, bands) as image:
        return npy.as_image(image[()])


def peek(path: Path, bands: Sequence[str] | None = None) -> tuple[int, ...]:
    """(C, H, W) of what :func:`read` would return."""
    with _opened(path, bands) as image:
        return npy.image_shape(image.shape)


def pixel_scale(path: Path) -> float | None:
    """Arcsec per pixel, from the matrix ``transform_pix2angle``; None without it."""
    try:
        with _opened(path, None) as image:
            matrix = np.asarray(image.file["transform_pix2angle"], np.float64)
        return float(np.sqrt(abs(np.linalg.det(matrix))))
    except (BadImage, KeyError, ValueError, np.linalg.LinAlgError):
        return None


@contextmanager
def _opened(path: Path, bands: Sequence[str] | None) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"{path} is HDF5, which needs h5py: pip install h5py") from error
    if bands is not None:
        raise BadImage("bands cannot be chosen in HDF5 files: each holds one")
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(image := file.get("image_data"), h5py.Dataset) or image.dtype.kind not in "biuf":
                raise BadImage(f"no array 'image_data' (lenstronomy's layout); it holds {', '.join(file) or 'nothing'}")
            yield image
    except OSError as error:
        raise BadImage(f"cannot be read: {error}") from error
