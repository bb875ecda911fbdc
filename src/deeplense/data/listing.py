"""Which images a folder holds: files of one format, and bands of an object in files or folders of their own."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from deeplense.data.formats import FORMATS, Bands, Format, Item, format_of, stem
from deeplense.errors import DataError

logger = logging.getLogger(__name__)

_BANDS = tuple("ugrizyjhk")  # from short to long wavelengths
_BAND_FOLDER = re.compile(r"band[ _-]?(\w+)", re.IGNORECASE)


def sub_folders(folder: Path) -> dict[str, Path]:
    """The folders in a folder by name, without those of other programs (.git, .ipynb_checkpoints, __MACOSX)."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith((".", "__")) and entry.is_dir())
    return {name: folder / name for name in names}


def items(folder: Path, root: Path, bands: Bands = None) -> list[Item]:
    """The images of a folder, named by their place below ``root``; those in its sub-folders only if these are bands
    (``Band1/``, ``Band2/`` ...) or objects (one each, in a file for each band)."""
    if files := _files(folder, warn=True):
        place = _below(folder, root)
        prefix = "" if place == "." else f"{place}/"
        return _by_suffix(files, root, bands) or [Item(prefix + file.name, (file,), bands) for file in files]
    return joined(folder, root, bands)


def joined(folder: Path, root: Path, bands: Bands = None) -> list[Item]:
    """The images whose bands lie in sub-folders: a folder for each band, or a folder for each object."""
    folders = sub_folders(folder)
    if folders and all(map(_BAND_FOLDER.fullmatch, folders)):
        return _by_folder({name: _files(path) for name, path in folders.items()}, root, bands)
    contents = [contents for path in folders.values() if (contents := _files(path))]
    # Many classes have more than a few files: do not look at all of them for nothing.
    if not contents or any(len(files) > len(_BANDS) for files in contents):
        return []
    if any(len(objects) != 1 for objects in (_objects(files, bands) for files in contents)):
        return []
    found = _by_suffix([file for files in contents for file in files], root, bands)
    return [Item(_below(item.files[0].parent, root), item.files) for item in found]


def _files(folder: Path, warn: bool = False) -> list[Path]:
    """The image files of a folder by name, of the format that most of them have; a warning tells of the others."""
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    formats = {name: form for name in names if (form := format_of(name)) and not _is_psf(name, form)}
    counts = Counter(form.name for form in formats.values())
    if not counts:
        return []
    best = max(FORMATS, key=lambda form: counts[form.name])  # the first one of equals
    if warn and len(counts) > 1:
        other = ", ".join(f"{count} {name}" for name, count in counts.items() if name != best.name)
        logger.warning("%s: %d %s files are read, others are not: %s", folder, counts[best.name], best.name, other)
    return [folder / name for name, form in formats.items() if form is best]


def _is_psf(name: str, form: Format) -> bool:
    return form.name == "HDF5" and name.startswith("psf_")  # lenstronomy's name for what lies beside an image


def _by_suffix(files: Sequence[Path], root: Path, bands: Bands) -> list[Item]:
    """Files ``NAME_g.fits``, ``NAME_r.fits`` ... as one image for each NAME; none if these are no such files."""
    objects = _objects(files, bands)
    if not objects or (max(map(len, objects.values())) < 2 and bands is None):
        return []
    present = {band for of in objects.values() for band in of}
    # Bands that are none of the endings are extensions inside the files.
    return [] if bands and not present & {band.lower() for band in bands} else _items(objects, root, bands)


def _objects(files: Sequence[Path], bands: Bands) -> dict[Path, dict[str, Path]]:
    """Files by object and band, both from their names; empty unless all are FITS files and named so."""
    known = {*_BANDS, *(band.lower() for band in bands or ())}
    found: dict[Path, dict[str, Path]] = {}
    for file in files:
        name = re.fullmatch(r"(.+)[_.-]([^_.-]+)", stem(file.name))
        form = format_of(file.name)
        if name is None or name[2].lower() not in known or form is None or form.name != "FITS":
            return {}
        found.setdefault(file.with_name(name[1]), {})[name[2].lower()] = file
    return found


def _by_folder(folders: Mapping[str, Sequence[Path]], root: Path, bands: Bands) -> list[Item]:
    """Files of one object in ``Band1/``, ``Band2/`` ...: their names end in the same number, or are the same."""
    objects: dict[Path, dict[str, Path]] = {}
    for folder, files in folders.items():
        for file in files:
            number = re.search(r"\d+$", stem(file.name))
            name = number[0] if number else stem(file.name)
            objects.setdefault(file.parent.with_name(name), {})[folder.lower()] = file
    return _items(objects, root, bands)


def _items(objects: Mapping[Path, Mapping[str, Path]], root: Path, bands: Bands) -> list[Item]:
    present = {band for of in objects.values() for band in of}
    if bands is not None:
        wanted = [band.lower() for band in bands]
        if unknown := set(wanted) - present:
            raise DataError(f"{root} has no images of the band {min(unknown)!r}; it has {', '.join(sorted(present))}")
    else:
        wanted = sorted(present, key=lambda band: (_BANDS.index(band) if band in _BANDS else -1, len(band), band))
    # A band that an object lacks is a file that does not exist, and the image is left out for it.
    return [
        Item(_below(name, root), tuple(of.get(band, name.with_name(f"{name.name}_{band}.fits")) for band in wanted))
        for name, of in objects.items()
    ]


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
