"""Some images of an array in another order, without a copy of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


class Rows:
    """``array[index]`` that copies what is asked for when it is asked for.

    It stands where an array of images stands: a split of a set that is mapped from disk, or that fills half of the
    memory, costs nothing. numpy has views of slices only.
    """

    def __init__(self, array: np.ndarray | Rows, index: np.ndarray) -> None:
        rows = np.asarray(index, np.int64)
        self.array: np.ndarray = array.array if isinstance(array, Rows) else array
        self.index: np.ndarray = array.index[rows] if isinstance(array, Rows) else rows

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.index), *self.array.shape[1:]

    @property
    def ndim(self) -> int:
        return self.array.ndim

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def size(self) -> int:
        return len(self.index) * self.array[0].size

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Any) -> np.ndarray:
        first, *rest = key if isinstance(key, tuple) else (key,)
        if first is Ellipsis or first is None:
            return np.asarray(self)[key]
        rows = self.array[self.index[first]]
        return rows[(slice(None), *rest) if np.ndim(self.index[first]) else tuple(rest)] if rest else rows

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.array[i] for i in self.index)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.array[self.index], dtype)


def is_mapped(images: np.ndarray | Rows) -> bool:
    """Whether images lie in a file rather than in memory."""
    array: Any = images.array if isinstance(images, Rows) else images
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None
