"""Room for an image set: in memory, or on disk where it would not fit."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import platform
import tempfile
from pathlib import Path

import numpy as np

from deeplense.errors import DataError

logger = logging.getLogger(__name__)


def empty(shape: tuple[int, ...], max_memory_gb: float) -> np.ndarray:
    """An uninitialised float32 array; above ``max_memory_gb`` (1e9 bytes) it is a memory-mapped temporary file.

    The file lies in the system's temporary folder (set TMPDIR to move it) and has no name: its space is free again as
    soon as the array, or the process, is gone, whatever ended it.

    Raises:
        DataError: the temporary folder has not enough room.
    """
    num_bytes = math.prod(shape) * 4
    if num_bytes <= max_memory_gb * 1e9:
        return np.empty(shape, np.float32)
    logger.info("%.1f GB of images exceed max_memory_gb=%g: mapped from disk", num_bytes / 1e9, max_memory_gb)
    with tempfile.TemporaryFile(prefix="deeplense-") as file:
        try:
            _reserve(file.fileno(), num_bytes)
        except OSError as error:
            raise DataError(
                f"{num_bytes / 1e9:.3g} GB of images fit neither in max_memory_gb={max_memory_gb:g} nor in "
                f"{tempfile.gettempdir()} ({error.strerror}); set TMPDIR to a larger disk or raise max_memory_gb"
            ) from error
        return np.memmap(file, np.float32, mode="r+", shape=shape)  # keeps its own handle of the file


def keep_freed() -> None:
    """Have glibc keep the memory of freed tensors for the next ones, instead of giving it back at every step.

    Large blocks come from the system page by page otherwise, each with a fault: a third of the time of a block of
    simulated images, a quarter of the data path, a tenth of a step of the compact network. Elsewhere it does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(-3, 2**28)  # M_MMAP_THRESHOLD: blocks above 256 MiB still come and go
        library.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD: so much may be kept at the end of the heap


def mapped_npy(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A new .npy file of float32 numbers, mapped for writing; its room on the disk is taken at once.

    Raises:
        OSError: there is not enough room.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    with path.open("r+b") as file:
        _reserve(file.fileno(), path.stat().st_size)
    return array


def _reserve(descriptor: int, num_bytes: int) -> None:
    # Without the reservation a full disk would kill the process (SIGBUS) in the middle of a write to the array.
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, num_bytes)
    else:
        os.ftruncate(descriptor, num_bytes)
