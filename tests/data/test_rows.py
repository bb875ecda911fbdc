"""Rows stand where an array stands."""

import numpy as np
import pytest

from deeplense.data.rows import Rows, is_mapped

ARRAY = np.arange(5 * 2 * 3 * 3, dtype=np.float32).reshape(5, 2, 3, 3)
INDEX = np.array([4, 0, 0, 2])


@pytest.mark.parametrize(
    "key",
    [
        0,
        -1,
        slice(1, 3),
        slice(None),
        np.array([3, 0, 1]),
        [1, 2],
        np.array([True, False, False, True]),
        (slice(None), 0),
        (slice(0, 2), slice(None), slice(0, 2)),
        (1, 0),
        (0, 1, 2, 2),
        (np.array([0, 3]), 1),
        Ellipsis,
        (Ellipsis, 0),
    ],
    ids=str,
)
def test_indexing_is_that_of_the_copied_array(key):
    np.testing.assert_array_equal(Rows(ARRAY, INDEX)[key], ARRAY[INDEX][key])


def test_shape_and_the_like_are_those_of_the_copied_array():
    rows, copied = Rows(ARRAY, INDEX), ARRAY[INDEX]
    assert (rows.shape, rows.ndim, rows.dtype, rows.size, rows.nbytes, len(rows)) == (
        *(copied.shape, copied.ndim, copied.dtype, copied.size, copied.nbytes, len(copied)),
    )
    np.testing.assert_array_equal(np.asarray(rows), copied)
    np.testing.assert_array_equal(np.array(rows, dtype=np.float64), copied.astype(np.float64))
    np.testing.assert_array_equal(np.stack(list(rows)), copied)


def test_rows_of_rows_are_rows_of_the_array():
    rows = Rows(Rows(ARRAY, INDEX), np.array([3, 1]))
    assert rows.array is ARRAY
    np.testing.assert_array_equal(np.asarray(rows), ARRAY[[2, 0]])


def test_it_copies_nothing_until_asked():
    array = ARRAY.copy()
    rows = Rows(array, INDEX)
    array[4] = -1
    assert (rows[0] == -1).all()


def test_what_lies_in_a_file_is_told_from_what_lies_in_memory(tmp_path):
    np.save(tmp_path / "a.npy", ARRAY)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="c")
    assert is_mapped(mapped) and is_mapped(mapped[1:]) and is_mapped(Rows(mapped, INDEX))
    assert not is_mapped(ARRAY) and not is_mapped(Rows(ARRAY, INDEX)) and not is_mapped(np.array(mapped))
