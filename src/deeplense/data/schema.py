"""LensSet: the only way images travel between the parts of the package."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplense.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK = 512  # images looked at at a time


@dataclass(frozen=True)
class LensSet:
    """Images with what is known about them. Values are as read: normalisation belongs to the model.

    Attributes:
        images: float32, shape (N, C, H, W); an ordinary or a memory-mapped array. NaN where nothing was measured.
        name: file name or object id of each image, length N.
        label: int64 class numbers, shape (N,), or None where the truth is not known.
        classes: class names in the order of their numbers; empty without labels.
        params: the simulation truth, one row an image, or None.
        pixel_scale: arcsec per pixel, or None where it is not known.
        provenance: where the images come from, in plain JSON values.

    Raises:
        DataError: the parts do not fit together (lengths, shape, label outside the classes).
    """

    images: np.ndarray
    name: Sequence[str]
    label: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    params: pa.Table | None = None
    pixel_scale: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.ndim != 4 or self.images.dtype != np.float32:
            raise DataError(f"images are {self.images.dtype} {self.images.shape}; a LensSet holds float32 (N, C, H, W)")
        if len(self.name) != n or (self.label is not None and len(self.label) != n):
            raise DataError(f"{n} images, but names or labels of another number")
        if self.params is not None and self.params.num_rows != n:
            raise DataError(f"{n} images, but {self.params.num_rows} rows of parameters")
        if self.label is not None and n and not 0 <= self.label.min() <= self.label.max() < len(self.classes):
            raise DataError(f"labels reach from {self.label.min()} to {self.label.max()}, classes are {self.classes}")

    def __len__(self) -> int:
        return len(self.images)

    def select(self, index: np.ndarray) -> LensSet:
        """The images at ``index`` (int64, shape (M,)), in that order, with everything known about them."""
        return replace(
            self,
            images=self.images[index],
            name=[self.name[i] for i in index],
            label=None if self.label is None else self.label[index],
            params=None if self.params is None else self.params.take(index),
        )

    def parts(self, size: int) -> Iterator[LensSet]:
        """The same images, up to ``size`` at a time, in order."""
        for start in range(0, len(self), size):
            yield self.select(np.arange(start, min(start + size, len(self))))

    def class_counts(self) -> dict[str, int]:
        """How many images each class has; empty without labels."""
        if self.label is None:
            return {}
        counts = np.bincount(self.label, minlength=len(self.classes))
        return {name: int(count) for name, count in zip(self.classes, counts, strict=True)}

    def nan_fraction(self) -> np.ndarray:
        """Share of each image's pixels that are NaN or infinite, float64, shape (N,); a few images at a time."""
        chunks = [self.images[start : start + _CHUNK] for start in range(0, len(self), _CHUNK)]
        shares = [1 - np.isfinite(chunk).mean(axis=(1, 2, 3)) for chunk in chunks]
        return np.concatenate(shares) if shares else np.zeros(0)

    def fingerprint(self) -> str:
        """A hash of shape, labels, names and up to 256 evenly spaced images: names the data a model was trained on."""
        digest = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        if self.label is not None:
            digest.update(np.ascontiguousarray(self.label, dtype=np.int64).tobytes())
        digest.update("\n".join(self.name).encode())
        for i in np.unique(np.linspace(0, max(len(self) - 1, 0), 256, dtype=np.int64)) if len(self) else ():
            digest.update(np.ascontiguousarray(self.images[i]).tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Parts:
    """An image set, some images at a time: a part is read when it is its turn, so that they come once.

    Attributes:
        num: images on offer, with those that turn out to be bad.
        sets: the parts, in order, none of them empty.
    """

    num: int
    sets: Iterator[LensSet]

    def __iter__(self) -> Iterator[LensSet]:
        return self.sets

    def head(self, num: int) -> tuple[list[LensSet], Parts]:
        """The first parts, of ``num`` images together if there are as many; and all parts, with these."""
        first: list[LensSet] = []
        while sum(map(len, first)) < num and (part := next(self.sets, None)) is not None:
            first.append(part)
        return first, replace(self, sets=chain(first, self.sets))
