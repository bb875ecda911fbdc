"""Image files that were read once lie as one array in a folder of ours: the next run maps it and begins at once.

The folder is ``$DEEPLENSE_CACHE``, or ``deeplense`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. An entry is named by a
fingerprint of the files (name, size, times, number) and of how they were read, so that it is never wrong, only unused.
Everything in it may be deleted at any time; beyond ``$DEEPLENSE_CACHE_GB`` (20) what was not used for longest is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
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
MAKING = ".making-"
ABANDONED = 24 * 3600.0  # seconds after which an entry in the making is nobody's


def folder() -> Path | None:
    """Where entries lie; None where there is no home folder."""
    given = os.environ.get("DEEPLENSE_CACHE")
    if given:
        return Path(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deeplense"
    except RuntimeError:
        return None


def remembered(files: Iterable[Path], reading: Reading, gather: Callable[[Room | None], Gathered]) -> Gathered:
    """What ``gather`` makes of the files, from the cache if it was there, and otherwise left in it.

    Args:
        gather: reads the images into an array that the argument makes, or into memory if there is none.
    """
    base = folder()
    if base is None or _limit() <= 0:
        return gather(None)
    place = base / _key(files, reading)
    if (found := _open(place)) is not None:
        logger.info("read before: mapped from %s", place)
        return found
    try:
        base.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=MAKING, dir=base))
    except OSError as error:
        logger.info("images are not cached: %s cannot be written (%s)", base, error.strerror)
        return gather(None)
    try:
        found = gather(_room(holder, reading))
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
            # Times of change are kept by cp -p, tar and mv; the number of the file and the time of its entry are not.
            about = (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)
            digest.update(os.fsencode(f"{file}\0{about}\n"))
        except OSError:
            digest.update(os.fsencode(f"{file}\0absent\n"))
    return digest.hexdigest()[:32]


def _open(place: Path) -> Gathered | None:
    """An entry; None if there is none, or a damaged one."""
    try:
        rest = json.loads((place / REST).read_text())
        images = np.load(place / IMAGES, mmap_mode="c")[: len(rest["kept"])]
        with contextlib.suppress(OSError):  # of another user
            os.utime(place)  # used now
        kept = np.array(rest["kept"], np.int64)
        return Gathered(images, kept, rest["masses"], rest["bad"], Counter(rest["nan"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _room(holder: Path, reading: Reading) -> Room:
    """Makes an array on disk, below ``holder``; where it would go without a cache if the disk has no room."""

    def make(shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape, dtype=np.int64)) * 4
        try:
            if size <= _limit():
                _make_room(holder, size)
                # A margin, so that a cache does not fill a disk that others write to.
                if shutil.disk_usage(holder).free > 1.5 * size:
                    return memory.mapped_npy(holder / IMAGES, shape)
        except OSError:
            (holder / IMAGES).unlink(missing_ok=True)
        logger.info("images are not cached: %s has no room for %.1f GB", holder.parent, size / 1e9)
        return memory.empty(shape, reading.max_memory_gb)

    return make


def _keep(found: Gathered, holder: Path, place: Path) -> Gathered:
    rest: dict[str, Any] = {"kept": found.kept.tolist(), "masses": found.masses, "nan": dict(found.nan)}
    rest["bad"] = [as_text(name) for name in found.bad]
    try:
        with (holder / IMAGES).open("rb") as file:
            os.fsync(file.fileno())  # an entry that a power cut filled with zeros would look whole
        (holder / REST).write_text(json.dumps(rest))
        holder.chmod(0o755)
        if _open(place) is None:
            shutil.rmtree(place, ignore_errors=True)  # damaged, or it would have been found
        holder.rename(place)
    except OSError as error:  # another process was faster, or the disk is full: these images are usable all the same
        logger.info("images are not cached in %s: %s", place, error.strerror)
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


def _make_room(holder: Path, size: int) -> None:
    """Delete what a killed process left, then entries that were not used for longest, until ``size`` bytes more fit."""
    entries = {}
    for entry in holder.parent.iterdir():
        with contextlib.suppress(OSError):  # another process deletes, too
            used = entry.stat().st_mtime
            if entry.name.startswith(MAKING) and entry != holder and time.time() - used > ABANDONED:
                shutil.rmtree(entry, ignore_errors=True)
            elif (entry / REST).is_file():
                entries[entry] = used, (entry / IMAGES).stat().st_size
    taken = sum(of for _, of in entries.values())
    for entry, (_, of) in sorted(entries.items(), key=lambda item: item[1]):
        if taken + size <= _limit():
            return
        logger.info("the cache is full: %s is deleted", entry)
        shutil.rmtree(entry, ignore_errors=True)
        taken -= of
