"""One `.npy` file, in any of the layouts that DeepLense data come in, to one float32 image."""

from __future__ import annotations

import io
import math
import os
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

from deeplense.data.unpickle import RefusedPickle, load_objects
from deeplense.errors import DataError

# An array of three axes with at most this many entries on the first (or last) is one image with channels; with more
# it is a stack of images. Six is the number of bands of the widest survey camera, Rubin's ugrizy.
MAX_CHANNELS = 6


class BadImage(Exception):
    """An image that cannot be used; the text is the reason."""


@dataclass(frozen=True)
class Header:
    """What the head of a .npy file promises about the array that follows."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(stream: IO[bytes]) -> Header:
    """Read up to the first byte of data.

    Raises:
        BadImage: not a .npy file, or its values are not real numbers (object arrays pass).
    """
    try:
        version = npy_format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise BadImage(f"npy format {version[0]}.{version[1]}, which no array of plain numbers has")
        length = stream.read(2 if version == (1, 0) else 4)
        header = _parse_header(version, length, stream.read(int.from_bytes(length, "little")))
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError, MemoryError, RecursionError) as error:
        raise BadImage("not a .npy file, or its header is broken") from error
    if header.dtype.kind not in "biufO" or header.dtype.subdtype or min(header.shape, default=0) < 0:
        raise BadImage(f"values of type {header.dtype} in the shape {header.shape}, not real numbers")
    return header


@lru_cache(maxsize=64)
def _parse_header(version: tuple[int, int], length: bytes, text: bytes) -> Header:
    """The files of a set mostly have the same header, and numpy takes longer to parse it than to read the pixels."""
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    return Header(*read(io.BytesIO(length + text)))


def read_values(stream: IO[bytes], header: Header, available: int) -> np.ndarray:
    """The array after the header, at most ``available`` bytes long; its type as stored.

    Raises:
        BadImage: the file ends too early.
    """
    if available < header.num_bytes:
        raise BadImage(f"truncated: {available} of {header.num_bytes} bytes")
    values = np.frombuffer(stream.read(header.num_bytes), header.dtype)
    return values.reshape(header.shape, order="F" if header.is_fortran else "C")


def as_image(array: np.ndarray) -> np.ndarray:
    """The array as one image, shape (C, H, W), from (H, W), (C, H, W), (H, W, C) or any of them with a leading 1.

    Raises:
        BadImage: the shape is none of these; see ``MAX_CHANNELS``.
    """
    shape = array.shape
    if len(shape) == 4 and shape[0] == 1:
        return as_image(array[0])
    if math.prod(shape) == 0:
        raise BadImage(f"shape {shape} without a pixel")
    if len(shape) == 2:
        return array[None]
    if len(shape) == 3 and shape[0] <= MAX_CHANNELS:
        return array
    if len(shape) == 3 and shape[2] <= MAX_CHANNELS:
        return np.moveaxis(array, 2, 0)
    raise BadImage(f"shape {shape}; one image is (H, W), (C, H, W) or (H, W, C) with C <= {MAX_CHANNELS}")


def image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(C, H, W) of the image that an array of this shape holds; raises BadImage as ``as_image`` does."""
    try:
        stand_in = np.broadcast_to(np.float32(0), shape)  # takes no memory, whatever the header promises
    except ValueError as error:
        raise BadImage(f"shape {shape} is impossible") from error
    return as_image(stand_in).shape


def joined_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """(C, H, W) of images of these shapes, one after the other along the channels; BadImage if they differ in size."""
    if len({shape[1:] for shape in shapes}) > 1:
        raise BadImage(f"bands of different sizes: {', '.join(map(str, shapes))}")
    return sum(shape[0] for shape in shapes), *shapes[0][1:]


def join(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images (C, H, W) one after the other along the channels; raises BadImage if they differ in size."""
    joined_shape([image.shape for image in images])
    return np.concatenate(images) if len(images) > 1 else images[0]


def read_file(path: Path) -> tuple[np.ndarray, float | None]:
    """One image as stored, shape (C, H, W), and the axion mass (unit as stored) where the file is `[image, mass]`.

    Raises:
        BadImage: the file cannot be read or used.
        DataError: the file is a pickle that would run code.
    """
    try:
        with path.open("rb") as stream:
            header = read_header(stream)
            if header.dtype.hasobject:
                image, mass = _split_object(_objects(stream, path))
            else:
                image, mass = read_values(stream, header, os.fstat(stream.fileno()).st_size - stream.tell()), None
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror or error}") from error
    return as_image(image), mass


def peek_shape(path: Path) -> tuple[int, ...]:
    """(C, H, W) of the image in a file, from its header alone where that tells; raises as ``read_file``."""
    try:
        with path.open("rb") as stream:
            header = read_header(stream)
            if header.dtype.hasobject:
                return as_image(_split_object(_objects(stream, path))[0]).shape
            return image_shape(header.shape)
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror or error}") from error


def read_stack(stream: IO[bytes], header: Header) -> Iterator[np.ndarray]:
    """The arrays along the first axis, one after the other, so that memory holds one of them at a time."""
    one = Header(header.shape[1:], False, header.dtype)
    if header.is_fortran:  # the first axis runs fastest: no image is whole before the last byte
        yield from read_values(stream, header, header.num_bytes)
        return
    for _ in range(header.shape[0]):
        yield read_values(stream, one, one.num_bytes)


def _objects(stream: IO[bytes], path: Path) -> list[Any]:
    try:
        return load_objects(stream)
    except RefusedPickle as name:
        raise DataError(
            f"refused {path}: it is a pickle that asks for {name}, which would run code; "
            "save the plain array again with np.save(..., allow_pickle=False)"
        ) from None
    except ValueError as error:
        raise BadImage(str(error)) from error


def _split_object(items: list[Any]) -> tuple[np.ndarray, float | None]:
    """An object array's elements as DeepLense writes them: the image, then perhaps one number."""
    image, *rest = items if items else [None]
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "biuf" or len(rest) > 1:
        raise BadImage("an object array that is not [image, axion_mass]")
    if not rest or rest[0] is None:
        return image, None
    mass = np.asarray(rest[0])
    if mass.size != 1 or mass.dtype.kind not in "biuf":
        raise BadImage("an object array that is not [image, axion_mass]")
    return image, float(mass.reshape(()))
