"""Read images from wherever they lie into a LensSet: DeepLense folders of `.npy`, single files, `.npz`, our Parquet."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from deeplense.data import classes, npy, store
from deeplense.data.files import as_text
from deeplense.data.gather import Reading, gather
from deeplense.data.npz import read_npz
from deeplense.data.schema import LensSet
from deeplense.data.stack import read_single
from deeplense.errors import DataError, did_you_mean

logger = logging.getLogger(__name__)

_SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_SPLIT_PREFIX = re.compile(r"(train|val|test)_(.+)")


def read(
    path: str | os.PathLike[str],
    *,
    split: str | None = None,
    max_bad_fraction: float = 0.01,
    max_nan_fraction: float = 0.5,
    max_memory_gb: float = 8.0,
    mask_value: float | None = None,
    progress: bool = False,
) -> LensSet:
    """Read an image set; values stay as stored, only their type becomes float32.

    ==================================  ================================================================
    ``path``                            becomes
    ==================================  ================================================================
    folder of a `deeplense` data set    what was written (Parquet shards and dataset.json)
    folder of class folders of .npy     one class each, numbered as ``classes.order`` says
    folder of .npy                      images without labels
    .npy                                one image (H, W), (C, H, W), (H, W, C), C <= 6; or a stack of them
    .npz                                ``images``, perhaps ``label``, ``classes``, ``name``, ``pixel_scale``
    ==================================  ================================================================

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
        progress: show a bar.

    Raises:
        DataError: nothing there, no images, too many bad ones, or a pickle that would run code.
    """
    source = Path(path).expanduser()
    reading = Reading(max_bad_fraction, max_nan_fraction, max_memory_gb, mask_value, progress)
    try:
        return _read_folder(source, split, reading) if source.is_dir() else _read_file(source, split, reading)
    except OSError as error:
        raise DataError(f"{error.filename or source} cannot be read: {error.strerror or error}") from error


def find_splits(path: str | os.PathLike[str]) -> dict[str, Path]:
    """The splits that a folder holds: "train", "val", "test" -> where; empty if it holds none.

    Either as sub-folders (`train/`, `val/` or `validation/` ...), or as class folders with a prefix (`train_lenses/`,
    `test_lenses/` ...), in which case each split lies in ``path`` itself; ``read(path, split=...)`` knows both.
    """
    source = Path(path).expanduser()
    folders = _sub_folders(source) if source.is_dir() else {}
    whole = {_SPLITS[name.lower()]: folder for name, folder in folders.items() if name.lower() in _SPLITS}
    if whole:
        return {name: whole[name] for name in ("train", "val", "test") if name in whole}
    prefixes = [match[1] for name in folders if (match := _SPLIT_PREFIX.fullmatch(name))]
    if len(prefixes) < len(folders):
        return {}
    return {name: source for name in ("train", "val", "test") if name in prefixes}


def _read_file(source: Path, split: str | None, reading: Reading) -> LensSet:
    if not source.exists():
        raise DataError(f"no such file or folder: {source}{_near(source)}")
    if split is not None:
        raise DataError(f"{source} is a file; split={split!r} needs a folder that holds train/ and val/")
    readers = {".npy": read_single, ".npz": read_npz}
    if (reader := readers.get(source.suffix.lower())) is None:
        raise DataError(f"{source} is not an image file that can be read; allowed: .npy, .npz, or a folder of them")
    return reader(source, reading)


def _read_folder(source: Path, split: str | None, reading: Reading) -> LensSet:
    if split is None and store.is_store(source):
        return _masked(store.open(source, max_memory_gb=reading.max_memory_gb), reading.mask_value)
    store.check_finished(source)
    splits = find_splits(source)
    if split is None and len(splits) > 1:
        raise DataError(f"{source} holds the splits {', '.join(splits)}: say which, for example split='train'")
    if split is None and not splits:
        return _read_npy_folder(source, _class_folders(source), reading)
    if split is None:
        split = next(iter(splits))
        logger.warning("%s holds the split %r only: reading that", source, split)
    if split not in splits:
        holds = did_you_mean(split, splits) if splits else "it holds no splits: leave split= out"
        raise DataError(f"{source} has no split {split!r}; {holds}")
    if splits[split] != source:
        return _read_folder(splits[split], None, reading)
    return _read_npy_folder(source, _class_folders(source, prefix=f"{split}_"), reading)


def _read_npy_folder(source: Path, folders: Mapping[str, Path], reading: Reading) -> LensSet:
    """A folder of class folders, or of .npy files if there are none."""
    files, label, names = _list_classes(folders)
    beside = _list_npy(source)
    if files and beside:
        logger.warning("%s: the %d .npy files beside the class folders are not read", source, len(beside))
    files = files or beside
    if not files:
        raise DataError(f"no images in {source}: expected .npy files, class folders of them, or a deeplense data set")
    titles = [as_text(file.relative_to(source).as_posix()) for file in files]
    shapes = [_peek(file) for file in files]
    found = gather(source, titles, shapes, (partial(npy.read_file, file) for file in files), reading)
    return LensSet(
        images=found.images,
        name=[titles[i] for i in found.kept],
        label=np.array(label, np.int64)[found.kept] if label else None,
        classes=names,
        params=found.params(),
        provenance={"source": as_text(source), "format": "npy folder", **found.report()},
    )


def _list_classes(folders: Mapping[str, Path]) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """All files of the class folders, their class numbers, and the class names."""
    contents = {name: _list_npy(folder) for name, folder in folders.items()}
    if any(contents.values()):
        for name in (name for name, files in contents.items() if not files):
            logger.warning("%s holds no .npy files: there is no class %r", folders[name], name)
    names = classes.order(name for name, files in contents.items() if files)
    files = [file for name in names for file in contents[name]]
    label = [number for number, name in enumerate(names) for _ in contents[name]]
    return files, label, tuple(as_text(name) for name in names)


def _class_folders(source: Path, prefix: str = "") -> dict[str, Path]:
    folders = _sub_folders(source).items()
    return {name.removeprefix(prefix): folder for name, folder in folders if name.startswith(prefix)}


def _sub_folders(folder: Path) -> dict[str, Path]:
    # Names with a dot or underscores in front are other programs' own (.git, .ipynb_checkpoints, __MACOSX).
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith((".", "__")) and entry.is_dir())
    return {name: folder / name for name in names}


def _list_npy(folder: Path) -> list[Path]:
    names = sorted(entry.name for entry in folder.iterdir())
    return [folder / name for name in names if name.lower().endswith(".npy") and not name.startswith(".")]


def _peek(file: Path) -> tuple[int, ...] | npy.BadImage:
    try:
        return npy.peek_shape(file)
    except npy.BadImage as reason:
        return reason


def _masked(lens_set: LensSet, value: float | None) -> LensSet:
    """The set, the pixels of that value made NaN in its own array."""
    for image in lens_set.images if value is not None else ():
        image[image == value] = np.nan
    return lens_set


def _near(path: Path) -> str:
    """The end of a message: the name beside ``path`` that was perhaps meant."""
    if not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
