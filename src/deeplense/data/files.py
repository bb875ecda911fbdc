"""Names as text, and files written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deeplense.errors import RunError


def as_text(path: Path | str) -> str:
    """A path as valid UTF-8, fit for JSON and Parquet: bytes that are none become the replacement character."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@contextmanager
def replacing(path: Path, *, is_durable: bool = True) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; it becomes ``path`` in one step when the block ends well.

    Args:
        path: the file to write or replace.
        is_durable: wait for the disk, so that even a power cut leaves the old file or the new one; slow for many files.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        if is_durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise RunError(f"{path} cannot be written: {reason}; nothing else is lost: mend it and run again") from error
    except BaseException:  # of the block's own, Ctrl-C among them
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def making_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside ``path`` to write to; it becomes ``path``, as yet absent, when the block ends well.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as holder:
            folder = Path(holder) / path.name  # with the permissions of any new folder; the holder's are private
            folder.mkdir()
            yield folder
            folder.rename(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}; mend it and run again") from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text; raises RunError as ``replacing`` does."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, so that equal values give equal bytes; raises RunError as ``replacing`` does."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def check_new_file(path: Path) -> Path:
    """The same path, if a file can be made there without replacing one.

    Raises:
        RunError: the file exists, or its folder does not.
    """
    if path.exists():
        raise RunError(f"{path} exists and is never overwritten: choose another --out")
    if not path.parent.is_dir():
        raise RunError(f"there is no folder {path.parent} for {path.name}: make it, or choose another --out")
    return path
