"""Image files that were read once lie as one array in a folder of ours: the next run maps it and begins at once.

The folder is ``$DEEPLENSE_CACHE``, or ``deeplense`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. An entry is named by a
fingerprint of the files (name, size, time of change) and of how they were read, so that it is never wrong, only unused.
Everything in it may be deleted at any time; beyond ``$DEEPLENSE_CACHE_GB`` (20) what was not used for longest is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from deeplense.data import memory
from deeplense.data.files import as_text
from deeplense.data.gather import Gathered, Reading, Room
from deeplense.errors import DataError

logger = logging.getLogger(__name__)
LAYOUT = 1  # raised with every change of what an entry holds, or of how pixels are read
IMAGES, REST = "images.npy", "gathered.json"
# Fewer files are read in a second or two.
MANY = 2000


def folder() -> Path:
    """Where entries lie."""
    given = os.environ.get("DEEPLENSE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "deeplense"


def remembered(files: Iterable[Path], reading: Reading, gather: Callable[[Room | None], Gathered]) -> Gathered:
    """What ``gather`` makes of the files, from the cache if it was there, and otherwise left in it.

    Args:
        gather: reads the images into an array that the argument makes, or into memory if there is none.
    """
    place = folder() / _key(files, reading)
    if (found := _open(place)) is not None:
        logger.info("read before: mapped from %s", place)
        return found
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=".making-", dir=place.parent))
    except OSError as error:
        logger.info("images are not cached: %s cannot be written (%s)", place.parent, error.strerror)
        return gather(None)
    try:
        found = gather(_room(holder))
        return _keep(found, holder, place) if (holder / IMAGES).is_file() else found
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _key(files: Iterable[Path], reading: Reading) -> str:
    """Changes with any file, and with each setting that images depend on."""
    how = asdict(reading)
    digest = hashlib.sha256(repr([LAYOUT, *(how[k] for k in ("max_bad_fraction", "max_nan_fraction"))]).encode())
    digest.update(repr([how[k] for k in ("mask_value", "bands")]).encode())
    digest.update(os.fsencode(Path.cwd()))
    for file in files:
        try:
            facts = file.stat()
            digest.update(os.fsencode(f"{file}\0{facts.st_size}\0{facts.st_mtime_ns}\n"))
        except OSError:
            digest.update(os.fsencode(f"{file}\0absent\n"))
    return digest.hexdigest()[:32]


def _open(place: Path) -> Gathered | None:
    """An entry; None if there is none, or a damaged one."""
    try:
        rest = json.loads((place / REST).read_text())
        images = np.load(place / IMAGES, mmap_mode="c")[: len(rest["kept"])]
        os.utime(place)  # used now
        kept = np.array(rest["kept"], np.int64)
        return Gathered(images, kept, rest["masses"], rest["bad"], Counter(rest["nan"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _room(holder: Path) -> Room:
    """Makes an array on disk, below ``holder``; in memory where the disk has no room."""

    def make(shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape, dtype=np.int64)) * 4
        _make_room(holder.parent, size)
        try:
            # A margin, so that a cache does not fill a disk that others write to.
            if shutil.disk_usage(holder).free > 1.5 * size and size <= _limit():
                return memory.mapped_npy(holder / IMAGES, shape)
        except OSError:
            (holder / IMAGES).unlink(missing_ok=True)
        logger.info("images are not cached: %s has no room for %.1f GB", holder.parent, size / 1e9)
        return np.empty(shape, np.float32)

    return make


def _keep(found: Gathered, holder: Path, place: Path) -> Gathered:
    rest: dict[str, Any] = {"kept": found.kept.tolist(), "masses": found.masses, "nan": dict(found.nan)}
    rest["bad"] = [as_text(name) for name in found.bad]
    try:
        (holder / REST).write_text(json.dumps(rest))
        holder.chmod(0o755)
        holder.rename(place)
    except OSError:  # another process was faster, or the disk is full: these images are usable all the same
        return found
    logger.info("the next run maps these images from %s (%.1f GB)", place, found.images.nbytes / 1e9)
    return _open(place) or found


def _limit() -> float:
    """Bytes that all entries may take."""
    text = os.environ.get("DEEPLENSE_CACHE_GB", "20")
    try:
        return float(text) * 1e9
    except ValueError as error:
        raise DataError(f"DEEPLENSE_CACHE_GB={text}: give a number of gigabytes, such as 20; 0 = no cache") from error


def _make_room(base: Path, size: int) -> None:
    """Delete entries that were not used for longest until ``size`` bytes more are within the limit."""
    entries = sorted((p for p in base.iterdir() if (p / REST).is_file()), key=lambda p: p.stat().st_mtime)
    sizes = {entry: (entry / IMAGES).stat().st_size for entry in entries if (entry / IMAGES).is_file()}
    for entry in entries:
        if sum(sizes.values()) + size <= _limit():
            return
        logger.info("the cache is full: %s is deleted", entry)
        sizes.pop(entry, None)
        shutil.rmtree(entry, ignore_errors=True)
