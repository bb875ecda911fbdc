"""Read images from wherever they lie into a LensSet: folders of files, single files, tables, our Parquet."""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deeplense.data import classes, listing, store
from deeplense.data.files import as_text
from deeplense.data.formats import ENDINGS, Item, format_of, gather_file, gather_item_parts, pixel_scale
from deeplense.data.gather import Gathered, Reading
from deeplense.data.npz import read_npz
from deeplense.data.schema import LensSet, Parts
from deeplense.data.stack import read_single
from deeplense.data.table import TABLES, is_table, read_table
from deeplense.data.writer import FINISHED
from deeplense.errors import DataError, did_you_mean

logger = logging.getLogger(__name__)

_SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_SPLIT_PREFIX = re.compile(rf"({'|'.join(_SPLITS)})[_-](.+)", re.IGNORECASE)


def read(
    path: str | os.PathLike[str],
    *,
    split: str | None = None,
    max_bad_fraction: float = 0.01,
    max_nan_fraction: float = 0.5,
    max_memory_gb: float = 8.0,
    mask_value: float | None = None,
    bands: Sequence[str] | None = None,
    file_column: str | None = None,
    label_column: str | None = None,
    progress: bool = False,
    cache: bool = False,
) -> LensSet:
    """Read an image set; values stay as stored, only their type becomes float32.

    ==================================  ================================================================
    ``path``                            becomes
    ==================================  ================================================================
    folder of a `deeplense` data set    what was written (Parquet shards and dataset.json)
    folder of class folders             one class each, numbered as ``classes.order`` says
    folder of images                    images without labels
    folder of folders of FITS bands     one image each: ``OBJECT/OBJECT_g.fits`` ..., or ``Band1/7.fits`` ...
    .csv, .parquet, .ecsv, FITS table   the images that a column names, with labels; other columns: params
    .npy                                one image (H, W), (C, H, W), (H, W, C), C <= 6; or a stack of them
    .npz                                ``images``, perhaps ``label``, ``classes``, ``name``, ``pixel_scale``
    .fits, .fit, .fits.gz, .fits.fz     one image: the first, or the extensions that ``bands`` names
    .png, .jpg                          one image in [0, 1], R, G, B or grey, turned over: row 0 is the lowest
    .h5, .hdf5                          one image: lenstronomy's ``image_data`` (needs h5py)
    ==================================  ================================================================

    A folder holds files of one format: .npy, FITS, HDF5 or pictures; if there are others, the most frequent is read.
    FITS files ``NAME_g.fits``, ``NAME_r.fits`` ... in a folder are the channels of one image, in order of wavelength.
    A .npy file may also be DeepLense's object array ``[image, axion_mass]``; the mass becomes the column ``m_axion`` of
    ``params``. No code in a file is ever run. Images that are unreadable, of another shape than most, constant, or full
    of NaN are logged by name and reason, listed in ``provenance["bad"]`` and left out. Fewer NaN stay in the images
    (``provenance["nan"]`` counts them): a model's ``Preprocess`` fills them.

    Args:
        path: file or folder.
        split: "train", "val" or "test", where the folder holds several (see ``find_splits``).
        max_bad_fraction: share of images that may be left out before it is an error.
        max_nan_fraction: share of an image's pixels that may be NaN or infinite before the image is bad.
        max_memory_gb: a larger set is memory-mapped from a temporary file (see ``memory.empty``).
        mask_value: pixels of this value (100 in the Bologna challenge) were not measured and become NaN.
        bands: which bands become the channels, in this order: FITS extensions by name or number, the endings of FITS
            files (``["g", "r", "i"]``), band folders, or the colours of pictures (``["B", "G", "R"]``).
        file_column: of a table: the column of file names; if not given, the first of ``table.FILE_COLUMNS``.
        label_column: of a table: the column of classes; if not given, the first of ``table.LABEL_COLUMNS``; "": none.
        progress: show a bar.
        cache: keep what thousands of files hold as one array for the next time (see ``data.cache``).

    Raises:
        DataError: nothing there, no images, too many bad ones, or a pickle that would run code.
    """
    source = Path(path).expanduser()
    reading = Reading(
        max_bad_fraction=max_bad_fraction,
        max_nan_fraction=max_nan_fraction,
        max_memory_gb=max_memory_gb,
        mask_value=mask_value,
        bands=None if bands is None else tuple(bands),
        file_column=file_column,
        label_column=label_column,
        progress=progress,
        cache=cache,
    )
    with _told(source):
        if not source.is_dir():
            return _read_file(source, split, reading)
        (whole,) = _read_folder(source, split, reading, sys.maxsize)
        return whole


def parts(path: str | os.PathLike[str], *, split: str | None = None, size: int = 1024, **reading: Any) -> Parts:
    """Read an image set part by part, so that sets of any size fit in memory: the same images in the same order.

    Of a `deeplense` data set some shards at a time are read, of folders some files. Single files and tables are read
    whole (above ``max_memory_gb`` memory-mapped) and handed out in parts.

    Args:
        path: as of :func:`read`, as are ``split`` and the errors, which may come with any part.
        size: most images of a part; a shard is never divided.
        reading: further settings of :func:`read`: bands, mask_value, max_bad_fraction (of the whole set) ...
    """
    source, bands = Path(path).expanduser(), reading.pop("bands", None)
    settings = Reading(**reading, bands=None if bands is None else tuple(bands))
    with _told(source):
        if source.is_dir():
            found = _read_folder(source, split, settings, size)
        else:
            whole = _read_file(source, split, settings)
            found = Parts(len(whole), whole.parts(size))
    return replace(found, sets=_told_each(source, found.sets))


def find_splits(path: str | os.PathLike[str]) -> dict[str, Path]:
    """The splits that a folder holds: "train", "val", "test" -> where; empty if it holds none.

    Either as sub-folders (`train/`, `val/` or `validation/` ...), or as class folders with a prefix (`train_lenses/`,
    `test_lenses/` ...), in which case each split lies in ``path`` itself; ``read(path, split=...)`` knows both.

    Raises:
        DataError: some class folders have such a prefix and others do not, so that test images could become classes.
    """
    source = Path(path).expanduser()
    folders = listing.sub_folders(source) if source.is_dir() else {}
    whole = {_SPLITS[name.lower()]: folder for name, folder in folders.items() if name.lower() in _SPLITS}
    if whole:
        return {name: whole[name] for name in ("train", "val", "test") if name in whole}
    parts = {name: _SPLITS[match[1].lower()] for name in folders if (match := _SPLIT_PREFIX.fullmatch(name))}
    others = [name for name in folders if name not in parts and listing.items(folders[name], source)] if parts else []
    if others and len(set(parts.values())) > 1:
        raise DataError(
            f"{source} holds {', '.join(sorted(parts))}, which look like splits, beside {', '.join(others)}: "
            "move or rename one or the other"
        )
    return {} if others else {name: source for name in ("train", "val", "test") if name in parts.values()}


def _read_file(source: Path, split: str | None, reading: Reading) -> LensSet:
    if not source.exists():
        raise DataError(f"no such file or folder: {source}{_near(source)}")
    if split is not None:
        raise DataError(f"{source} is a file; split={split!r} needs a folder that holds train/ and val/")
    if is_table(source):
        return read_table(source, reading)
    _refuse_columns(source, reading)
    if source.suffix.lower() in (".npy", ".npz"):
        return read_single(source, reading) if source.suffix.lower() == ".npy" else read_npz(source, reading)
    if format_of(source.name) is None:
        allowed = ", ".join((*ENDINGS, ".npz", *TABLES))
        raise DataError(f"{source} is not an image file or a table; allowed: {allowed}, or a folder of images")
    item = Item(source.name, (source,))
    return _as_set(source, gather_file(source, reading), [item], pixel_scale([item]))


def _read_folder(source: Path, split: str | None, reading: Reading, size: int) -> Parts:
    _refuse_columns(source, reading)
    if split is None and store.is_store(source):
        found = store.parts(source, size, max_memory_gb=reading.max_memory_gb)
        return replace(found, sets=(_masked(part, reading.mask_value) for part in found))
    store.check_finished(source)
    splits = find_splits(source)
    if split is None and len(splits) > 1:
        raise DataError(f"{source} holds the splits {', '.join(splits)}: say which, for example split='train'")
    if split is None and not splits:
        return _read_images(source, None, reading, size)
    if split is None:
        split = next(iter(splits))
        logger.warning("%s holds the split %r only: reading that", source, split)
    if split not in splits:
        holds = did_you_mean(split, splits) if splits else "it holds no splits: leave split= out"
        raise DataError(f"{source} has no split {split!r}; {holds}")
    if splits[split] != source:
        return _read_folder(splits[split], None, reading, size)
    return _read_images(source, split, reading, size)


def _read_images(source: Path, split: str | None, reading: Reading, size: int) -> Parts:
    """A folder of class folders (those of a split, if they have its prefix), or of images if there are none."""
    if split is None and (objects := listing.joined(source, source, reading.bands)):
        return Parts(len(objects), _as_sets(source, objects, reading, size))
    items, label, names = _list_classes(source, _class_folders(source, split), reading)
    beside = listing.items(source, source, reading.bands)
    if items and beside and not (source / FINISHED).exists():  # a set of ours may hold a picture of itself
        logger.warning("%s: the %d images beside the class folders are not read", source, len(beside))
    if tables := sorted(file.name for file in source.iterdir() if file.name.lower().endswith((".csv", ".ecsv"))):
        logger.info("%s: to read the table %s with its images, name the file itself", source, tables[0])
    if not items and not beside:
        raise DataError(
            f"no images in {source}: expected files ({', '.join(ENDINGS)}), class folders of them, or a deeplense data "
            f"set{f'; or read its table, {source / tables[0]}' if tables else ''}"
        )
    found = _as_sets(source, items or beside, reading, size, label, names)
    if split is not None:
        found = (replace(part, provenance={**part.provenance, "split": split}) for part in found)
    return Parts(len(items or beside), found)


def _as_sets(
    source: Path,
    items: Sequence[Item],
    reading: Reading,
    size: int,
    label: Sequence[int] = (),
    names: tuple[str, ...] = (),
) -> Iterator[LensSet]:
    scale, numbers = pixel_scale(items), np.array(label, np.int64) if label else None
    for found in gather_item_parts(source, items, reading, size):
        yield _as_set(source, found, items, scale, numbers, names)


def _as_set(
    source: Path,
    found: Gathered,
    items: Sequence[Item],
    scale: float | None,
    label: np.ndarray | None = None,
    names: tuple[str, ...] = (),
) -> LensSet:
    form = format_of(items[0].files[0].name)
    assert form is not None
    return LensSet(
        images=found.images,
        name=[as_text(items[i].name) for i in found.kept],
        label=None if label is None else label[found.kept],
        classes=names,
        params=found.params(),
        pixel_scale=scale,
        provenance={
            "source": as_text(source),
            "format": f"{form.name} folder" if source.is_dir() else form.name,
            **found.report(),
        },
    )


def _list_classes(
    source: Path, folders: Mapping[str, Path], reading: Reading
) -> tuple[list[Item], list[int], tuple[str, ...]]:
    """All images of the class folders, their class numbers, and the class names."""
    contents = {name: listing.items(folder, source, reading.bands) for name, folder in folders.items()}
    if any(contents.values()):
        for name in (name for name, items in contents.items() if not items):
            logger.warning("%s holds no images: there is no class %r", folders[name], name)
    names = classes.order(name for name, items in contents.items() if items)
    formats = {name: form.name for name in names if (form := format_of(contents[name][0].files[0].name))}
    if len(set(formats.values())) > 1:
        logger.warning("%s: classes differ in their file format (%s): a network may learn that", source, formats)
    items = [item for name in names for item in contents[name]]
    label = [number for number, name in enumerate(names) for _ in contents[name]]
    return items, label, tuple(as_text(name) for name in names)


def _class_folders(source: Path, split: str | None) -> dict[str, Path]:
    """The class folders by class name; of a split, those with its prefix."""
    folders = listing.sub_folders(source)
    if split is None:
        return folders
    matches = {name: _SPLIT_PREFIX.fullmatch(name) for name in folders}
    return {match[2]: folders[name] for name, match in matches.items() if match and _SPLITS[match[1].lower()] == split}


def _refuse_columns(source: Path, reading: Reading) -> None:
    if reading.file_column or reading.label_column:
        raise DataError(f"{source} is no table, so data.file_column and data.label_column mean nothing: name the table")


def _masked(lens_set: LensSet, value: float | None) -> LensSet:
    """The set, the pixels of that value made NaN in its own array."""
    for image in lens_set.images if value is not None else ():
        image[image == value] = np.nan
    return lens_set


@contextmanager
def _told(source: Path) -> Iterator[None]:
    """What the system refuses becomes a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or source} cannot be read: {error.strerror or error}") from error


def _told_each(source: Path, sets: Iterator[LensSet]) -> Iterator[LensSet]:
    with _told(source):
        yield from sets


def _near(path: Path) -> str:
    """The end of a message: the name beside ``path`` that was perhaps meant."""
    if not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
