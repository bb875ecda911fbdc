"""Single files that hold one image or a stack of them: `.npy`, and the arrays inside a `.npz`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from deeplense.data import npy
from deeplense.data.files import as_text
from deeplense.data.gather import Gathered, Load, Reading, gather, gather_one
from deeplense.data.schema import LensSet
from deeplense.errors import DataError


def read_single(path: Path, reading: Reading) -> LensSet:
    """A `.npy` file: one image, or a stack (N, H, W), (N, C, H, W) or (N, H, W, C).

    Raises:
        DataError: the file cannot be used, or more of its images than allowed.
    """
    try:
        with path.open("rb") as stream:
            header = npy.read_header(stream)
            if not header.dtype.hasobject and is_stack(header.shape):
                available = os.fstat(stream.fileno()).st_size - stream.tell()
                names = [f"{as_text(path.stem)}/{i:06d}" for i in range(header.shape[0])]
                found = gather_stack(path, stream, header, available, names, reading)
                return _as_set(path, found, names)
        image, mass = npy.read_file(path)
        found = gather_one(image, mass, reading)
    except npy.BadImage as reason:
        raise DataError(f"{path} cannot be used: {reason}") from reason
    return _as_set(path, found, [as_text(path.name)])


def is_stack(shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape is many images rather than one."""
    if len(shape) == 4:
        return shape[0] != 1
    return len(shape) == 3 and min(shape[0], shape[2]) > npy.MAX_CHANNELS


def gather_stack(
    source: object, stream: IO[bytes], header: npy.Header, available: int, names: Sequence[str], reading: Reading
) -> Gathered:
    """The good images of the stack that follows its header in ``stream``; raises BadImage and DataError."""
    if available < header.num_bytes:
        raise npy.BadImage(f"truncated: {available} of {header.num_bytes} bytes")
    shape = npy.image_shape(header.shape[1:])
    return gather(source, names, [shape] * len(names), _loads(npy.read_stack(stream, header)), reading)


def _loads(arrays: Iterator[np.ndarray]) -> Iterator[Load]:
    for array in arrays:
        yield partial(_load, array)


def _load(array: np.ndarray) -> tuple[np.ndarray, None]:
    return npy.as_image(array), None


def _as_set(path: Path, found: Gathered, names: Sequence[str]) -> LensSet:
    return LensSet(
        images=found.images,
        name=[names[i] for i in found.kept],
        params=found.params(),
        provenance={"source": as_text(path), "format": "npy", **found.report()},
    )
