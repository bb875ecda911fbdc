"""From one layout to another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deeplense.data import store
from deeplense.data.read import find_splits, read
from deeplense.data.writer import FINISHED, read_settings
from deeplense.errors import ConfigError, RunError, did_you_mean

_WRITE = {"parquet": store.write, "npy": store.write_npy}


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    to: str = "parquet",
    max_bad_fraction: float = 0.01,
    max_memory_gb: float = 8.0,
    progress: bool = False,
    **reading: Any,
) -> dict[str, dict[str, int]]:
    """Read SRC in any layout that `read` knows and write it to DST; splits become sub-folders of the same names.

    Args:
        src: file or folder to read.
        dst: folder to write; made if it does not exist. A conversion that was killed goes on where it stopped.
        to: "parquet" (our store) or "npy" (the DeepLense folders).
        max_bad_fraction: share of images that may be left out before it is an error.
        max_memory_gb: a larger set is memory-mapped.
        progress: show a bar.
        reading: further settings of ``read``: mask_value, bands, file_column ...

    Returns:
        split ("" if there are none) -> class -> number of images; without labels the class is "".

    Raises:
        ConfigError: ``to`` is another word.
        DataError: SRC cannot be read.
        RunError: DST is not empty, or cannot be written.
    """
    if to not in _WRITE:
        raise ConfigError(f"format {to!r} cannot be written; {did_you_mean(to, _WRITE)}")
    target = Path(dst).expanduser()
    splits = find_splits(src) if Path(src).expanduser().is_dir() else {}
    _check_target(target, [target / split for split in splits] or [target])
    counts = {}
    for split in splits or [""]:
        reading |= {"max_bad_fraction": max_bad_fraction, "max_memory_gb": max_memory_gb, "progress": progress}
        lens_set = read(src, split=split or None, **reading)
        _WRITE[to](lens_set, target / split)
        counts[split] = lens_set.class_counts() or {"": len(lens_set)}
    return counts


def _check_target(dst: Path, targets: Sequence[Path]) -> None:
    """Refuse, before a long read, a folder that holds anything but a part of such a conversion."""
    if not dst.is_dir() or not any(dst.iterdir()):
        return
    begun = [target for target in targets if read_settings(target) is not None]
    if not begun or all((target / FINISHED).exists() for target in targets):
        raise RunError(f"{dst} is not empty and is never overwritten: choose another folder or empty it")
