"""Read the pickle inside a DeepLense object array without running anything that the file asks for.

`np.save` stores an object array as a pickle, and a pickle is a program that may call any function it can name. Here it
can name only the few that numpy's own arrays need (names of numpy 1 and 2, Python 2 and 3), and even these are
stand-ins that collect plain data: neither foreign code nor numpy's C routines, which trust what they get, act on it.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
from collections.abc import Callable
from typing import IO, Any, ClassVar

import numpy as np


class RefusedPickle(Exception):
    """The pickle names something that is neither a number nor a numpy array."""


class _Word:
    """A name that a pickle may use: it can be called, but neither changed nor looked into."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("the pickle tries to change a function")


class _Dtype:
    """Stand-in for numpy.dtype: plain numbers, or object."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"[biuf]\d{1,2}|O\d?", code):
            raise pickle.UnpicklingError(f"values of type {code!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = "=" if state[1] == "|" else state[1]

    @property
    def is_object(self) -> bool:
        return self.code.startswith("O")

    def numbers(self) -> np.dtype:
        if self.is_object:
            raise pickle.UnpicklingError("objects where numbers belong")
        return np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]


class _Array:
    """Stand-in for numpy.ndarray: ``value`` becomes a numeric array, or the list of an object array's elements."""

    def __init__(self, *_: object) -> None:
        self.value: np.ndarray | list[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        if dtype.is_object:
            self.value = list(data)
        else:
            self.value = _numbers(data, dtype, shape, "F" if is_fortran else "C")


def _as_bytes(data: object) -> bytes:
    # Pickles of Python 2, and of protocol 2, carry bytes as text in which each character is one byte.
    if isinstance(data, str):
        return data.encode("latin1")
    if isinstance(data, bytes):
        return data
    raise pickle.UnpicklingError("array data that are not bytes")


def _numbers(data: object, dtype: _Dtype, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    raw, kind = _as_bytes(data), dtype.numbers()
    if len(raw) != math.prod(shape) * kind.itemsize:
        raise pickle.UnpicklingError(f"{len(raw)} bytes of data for the shape {shape}")
    return np.frombuffer(raw, kind).reshape(shape, order=order)  # type: ignore[call-overload]


def _scalar(dtype: _Dtype, data: object) -> float:
    return float(_numbers(data, dtype, ()))


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


_WORDS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    **{f"numpy.{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
}


# Instructions of protocol 5, which np.save never writes: they reserve as much memory as the file asks for.
_BUFFERS = {pickle.BYTEARRAY8[0], pickle.NEXT_BUFFER[0], pickle.READONLY_BUFFER[0]}


class _PlainUnpickler(pickle._Unpickler):
    """Python's unpickler written in Python: in the one written in C a single forged number can claim all memory."""

    dispatch: ClassVar[dict[int, Callable[..., Any]]] = {
        code: act for code, act in pickle._Unpickler.dispatch.items() if code not in _BUFFERS
    }

    def find_class(self, module: str, name: str) -> _Word:
        if (make := _WORDS.get(f"{module}.{name}")) is None:
            raise RefusedPickle(f"{module}.{name}".encode("unicode_escape").decode()[:80])  # one line, whatever it is
        return _Word(make)


# All that the instructions of a damaged pickle raise: they take from empty stacks, call numbers, add to text ...
_BROKEN = (
    pickle.UnpicklingError, struct.error, ArithmeticError, AssertionError, AttributeError, EOFError, ImportError,
    LookupError, MemoryError, RecursionError, TypeError, ValueError,
)  # fmt: skip


def load_objects(stream: IO[bytes]) -> list[Any]:
    """The elements of the object array pickled in ``stream``: numeric arrays, numbers, None or text.

    Raises:
        RefusedPickle: the pickle names a function or class other than numpy's own; its text is that name.
        ValueError: the pickle is broken, or holds something else than an array.
    """
    try:
        whole = _PlainUnpickler(stream, encoding="latin1").load()
    except _BROKEN as error:
        raise ValueError(f"broken object array: {error!r}") from error
    if not isinstance(whole, _Array) or not isinstance(whole.value, list):
        raise ValueError("the pickle does not hold an object array")
    return [item.value if isinstance(item, _Array) else item for item in whole.value]
