"""Our own format: a folder of Parquet shards, a dataset card, and dataset.json with what is common to all.

Readable by pyarrow, pandas, Hugging Face datasets and Ray Data; `shards` documents the columns.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from deeplense.data import memory, shards
from deeplense.data.schema import LensSet, Parts
from deeplense.data.writer import DATA, FINISHED, UNFINISHED, NpyWriter, ShardWriter, load_record
from deeplense.errors import DataError

__all__ = ["NpyWriter", "ShardWriter", "check_finished", "is_store", "open", "parts", "write", "write_npy"]

Shard = tuple[Path, int]  # and how many images it holds


def is_store(path: Path | str) -> bool:
    """Whether a folder holds a complete set of Parquet shards."""
    record = Path(path) / FINISHED
    return record.exists() and "shards" in load_record(record)


def check_finished(path: Path | str) -> None:
    """Raises DataError if the folder holds a set that is still being written, or was left half-way."""
    if (Path(path) / UNFINISHED).exists() and not (Path(path) / FINISHED).exists():
        raise DataError(f"{path} is an unfinished data set: run the command that makes it again, and it goes on")


def write(lens_set: LensSet, out: Path | str, shard_size: int = 1024) -> None:
    """Write a set as Parquet shards; the same call after a kill goes on where it stopped.

    Raises:
        DataError: the set is empty.
        RunError: ``out`` holds something else, or the disk is full.
    """
    _write_all(ShardWriter(out, len(lens_set), shard_size, {"fingerprint": lens_set.fingerprint()}), lens_set)


def write_npy(lens_set: LensSet, out: Path | str) -> None:
    """Write a set in the DeepLense layout (see NpyWriter): `<class>/<name>.npy`, float32 (C, H, W).

    Raises:
        DataError: the set is empty, or two images of a class have the same name.
        RunError: ``out`` holds something else, or the disk is full.
    """
    _write_all(NpyWriter(out, len(lens_set), len(lens_set), {"fingerprint": lens_set.fingerprint()}), lens_set)


def open(path: Path | str, *, max_memory_gb: float = 8.0) -> LensSet:
    """Read a set that `write` or a ShardWriter made, image for image and bit for bit.

    Args:
        path: the folder.
        max_memory_gb: a larger set is memory-mapped from a temporary file (see ``memory.empty``).

    Raises:
        DataError: not a complete set, or a shard is missing or damaged.
    """
    (whole,) = parts(path, sys.maxsize, max_memory_gb=max_memory_gb)
    return whole


def parts(path: Path | str, size: int, *, max_memory_gb: float = 8.0) -> Parts:
    """Read such a set some shards at a time: as many as hold no more than ``size`` images, one at the least.

    Raises:
        DataError: not a complete set; as its turn comes, a shard is missing or damaged.
    """
    folder = Path(path)
    check_finished(folder)
    if not is_store(folder):
        raise DataError(f"{folder} holds no deeplense data set (no {FINISHED}); read folders of images with read()")
    record = load_record(folder / FINISHED)
    try:
        every = [(_shard(folder, Path(part["file"])), int(part["rows"])) for part in record["shards"]]
        common = {key: record[key] for key in ("pixel_scale", "provenance", "classes")}
        shape = tuple(int(side) for side in record["shape"])
        if not every or len(shape) != 3 or min(shape) < 1 or min(rows for _, rows in every) < 0:
            raise ValueError(f"{len(every)} shards of images {shape}")
        return Parts(sum(rows for _, rows in every), _read_runs(every, shape, size, common, max_memory_gb))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / FINISHED} is damaged: {error!r}; fetch or make the set again") from error


def _shard(folder: Path, file: Path) -> Path:
    """A shard of a record. Only the last part of its name counts: a record cannot point out of its folder."""
    is_beside = file.parent == Path()  # sets of the first version have no folder for their shards
    return folder / file.name if is_beside else folder / DATA / file.name


def _read_runs(
    every: list[Shard], shape: tuple[int, ...], size: int, common: dict[str, Any], max_memory_gb: float
) -> Iterator[LensSet]:
    for run in _runs(every, size):
        images = memory.empty((sum(rows for _, rows in run), *shape), max_memory_gb)
        yield _as_set(images, _read_run(run, images), **common)


def _runs(every: list[Shard], size: int) -> Iterator[list[Shard]]:
    """Neighbours that hold ``size`` images or fewer together."""
    run: list[Shard] = []
    for shard in every:
        if run and sum(rows for _, rows in (*run, shard)) > size:
            yield run
            run = []
        run.append(shard)
    yield run


def _read_run(run: list[Shard], images: np.ndarray) -> pa.Table:
    """Fill ``images`` from the shards one after the other; the other columns of all."""
    rest, start = [], 0
    for path, rows in run:
        rest.append(shards.read_shard(path, images[start : start + rows]))
        start += rows
    return pa.concat_tables(rest, promote_options="permissive")


def _as_set(images: np.ndarray, rest: pa.Table, classes: list[str], **common: Any) -> LensSet:
    """A set from its images (N, C, H, W) and the other columns of its shards."""
    label = rest["label"].to_numpy() if rest["label"].null_count == 0 and classes else None
    params = rest.drop_columns(["name", "label"])
    return LensSet(
        images=images,
        name=rest["name"].to_pylist(),
        label=label,
        classes=tuple(classes) if label is not None else (),
        params=params.replace_schema_metadata(None) if params.column_names else None,
        **common,
    )


def _write_all(writer: ShardWriter | NpyWriter, lens_set: LensSet) -> None:
    for shard in writer.missing():
        rows = writer.rows(shard)
        writer.write(shard, lens_set.select(np.arange(rows.start, rows.stop)))
    writer.finish()
