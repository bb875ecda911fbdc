"""Read a `.npz` archive: images with, perhaps, labels, class names, image names and the pixel scale."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.lib import format as npy_format

from deeplense.data import classes, npy
from deeplense.data.files import as_text
from deeplense.data.gather import Gathered, Reading
from deeplense.data.schema import LensSet
from deeplense.data.stack import gather_stack, is_stack
from deeplense.errors import DataError

# What an archive may hold, and the names under which others keep it.
_IMAGES = ("images", "image", "X", "x", "data", "arr_0")
_EXTRAS = {
    "label": ("label", "labels", "Y", "y"),
    "name": ("name", "names"),
    "classes": ("classes",),
    "pixel_scale": ("pixel_scale",),
}
_MOST_CLASSES = 10_000  # class numbers beyond this are a mistake, not classes
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, MemoryError, NotImplementedError, RuntimeError, ValueError)


def read_npz(path: Path, reading: Reading) -> LensSet:
    """Images (N, H, W) or (N, C, H, W), with ``label``, ``classes``, ``name`` and ``pixel_scale`` (arcsec) if there.

    The images are the array ``images`` (or image, X, x, data, arr_0), or the only array; labels are numbers or names.

    Raises:
        DataError: a broken archive, arrays that do not fit together, Python objects, or too many bad images.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive, reading)
    except npy.BadImage as reason:
        raise DataError(f"{path} cannot be used: {reason}") from reason
    except _BROKEN as error:
        # RuntimeError is how zipfile reports an encrypted member, NotImplementedError an unknown compression.
        raise DataError(f"{path} cannot be used: broken archive ({error})") from error


def _read(path: Path, archive: zipfile.ZipFile, reading: Reading) -> LensSet:
    members = {Path(name).stem: name for name in archive.namelist() if name.endswith(".npy")}
    extras = {key: _small(archive, members, names) for key, names in _EXTRAS.items()}
    found, names = _images(path, archive, members, extras["name"], reading)
    label, class_names = _labels(path, extras["label"], extras["classes"], len(names))
    return LensSet(
        images=found.images,
        name=[names[i] for i in found.kept],
        label=None if label is None else label[found.kept],
        classes=class_names,
        pixel_scale=_number(path, extras["pixel_scale"]),
        provenance={"source": as_text(path), "format": "npz", **found.report()},
    )


def _images(
    path: Path, archive: zipfile.ZipFile, members: Mapping[str, str], names: np.ndarray | None, reading: Reading
) -> tuple[Gathered, list[str]]:
    """The good images, and the names of all."""
    member = _find(members, _IMAGES) or (next(iter(members.values())) if len(members) == 1 else None)
    if member is None:
        raise DataError(f"{path} holds {', '.join(members) or 'no arrays'}; the images belong under the name 'images'")
    with archive.open(member) as stream:
        header = npy.read_header(stream)
        if header.dtype.hasobject:
            raise npy.BadImage(f"{member} holds Python objects, which are not read: save it as an array of numbers")
        header = header if is_stack(header.shape) else replace(header, shape=(1, *header.shape))
        total = header.shape[0]
        titles = [f"{as_text(path.stem)}/{i:06d}" for i in range(total)] if names is None else _texts(names)
        if len(titles) != total:
            raise DataError(f"{path}: {len(titles)} names for {total} images")
        available = archive.getinfo(member).file_size - stream.tell()
        return gather_stack(path, stream, header, available, titles, reading), titles


def _labels(
    path: Path, label: np.ndarray | None, names: np.ndarray | None, total: int
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Class numbers (N,) and class names, from numbers or from names."""
    if label is None:
        return None, ()
    if label.shape != (total,) or label.dtype.kind not in "biuU":
        raise DataError(f"{path}: labels are {label.dtype} {label.shape}; expected numbers or names, shape ({total},)")
    if label.dtype.kind == "U":
        order = classes.order(label.tolist()) if names is None else tuple(_texts(names))
        if unknown := set(label.tolist()) - set(order):
            raise DataError(f"{path}: labels {sorted(unknown)} are not among the classes {order}")
        return np.array([order.index(name) for name in label.tolist()], np.int64), order
    numbers = label.astype(np.int64)
    if names is None and numbers.max(initial=0) >= _MOST_CLASSES:
        raise DataError(f"{path}: labels reach {numbers.max()}; name that many classes in an array 'classes'")
    return numbers, tuple(map(str, range(numbers.max() + 1)) if names is None else _texts(names))


def _texts(array: np.ndarray) -> list[str]:
    return [str(value) for value in array.reshape(-1).tolist()]


def _number(path: Path, array: np.ndarray | None) -> float | None:
    if array is None:
        return None
    if array.size != 1 or array.dtype.kind not in "iuf":
        raise DataError(f"{path}: pixel_scale is {array.dtype} {array.shape}; expected one number, in arcsec")
    return float(array.reshape(()))


def _small(archive: zipfile.ZipFile, members: Mapping[str, str], names: tuple[str, ...]) -> np.ndarray | None:
    """An array beside the images, numbers or text; None if the archive has none of these names."""
    if (member := _find(members, names)) is None:
        return None
    with archive.open(member) as stream:
        return npy_format.read_array(stream, allow_pickle=False)


def _find(members: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((members[name] for name in names if name in members), None)
