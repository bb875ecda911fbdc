"""A table with a row for each image: its file, perhaps its label, and whatever else is known about it."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from deeplense.data import classes, fits, listing, shards
from deeplense.data.files import as_text
from deeplense.data.formats import ENDINGS, Bands, Item, format_of, gather_items, pixel_scale, stem
from deeplense.data.gather import Gathered, Reading
from deeplense.data.schema import LensSet
from deeplense.errors import DataError, did_you_mean

logger = logging.getLogger(__name__)

TABLES = (".csv", ".parquet", ".ecsv")  # and FITS files that hold a table
# Columns that are looked for, in this order, in upper or lower case.
FILE_COLUMNS = ("path", "file_path", "filepath", "file", "file_name", "filename", "image", "name", "object_id", "id")
LABEL_COLUMNS = ("label", "class", "is_lens", "target")
_MOST_CLASSES = 100  # more different values are no classes


def is_table(path: Path) -> bool:
    """Whether a file is a table: by its ending, or a FITS file without an image."""
    lower = path.name.lower()
    return lower.endswith(TABLES) or (lower.endswith(fits.ENDINGS) and fits.is_table(path))


def read_table(path: Path, reading: Reading) -> LensSet:
    """The images that a table names, relative to its folder, with their labels; other columns become ``params``.

    A file name may lack its ending, be the folder of an object with a FITS file for each band, or be the number in
    which the name of an image beside the table ends (``100002`` for ``imageSDSS_R-100002.fits``).

    Raises:
        DataError: not a table, no column of file names, labels that are none, or too many images that cannot be used.
    """
    table = _open(path)
    file = _column(path, table, "file_column", reading.file_column, FILE_COLUMNS)
    if file is None:
        raise DataError(
            f"{path} has no column of file names (looked for {', '.join(FILE_COLUMNS)}): name it with "
            f"data.file_column; the columns are {', '.join(table.column_names)}"
        )
    wished = reading.label_column
    label = None if wished == "" else _column(path, table, "label_column", wished, LABEL_COLUMNS)
    names = [str(name) for name in table[file].to_pylist()]
    if not names:
        raise DataError(f"{path} has no rows")
    numbers, class_names = _labels(path, label, table[label]) if label is not None else (None, ())
    _check_repeated(path, names, numbers)
    items = _items(path.parent, names, reading.bands)
    found = gather_items(path, items, reading)
    return LensSet(
        images=found.images,
        name=[as_text(names[i]) for i in found.kept],
        label=None if numbers is None else numbers[found.kept],
        classes=class_names,
        params=_params(table.drop_columns(list({file, label} - {None})), found),
        pixel_scale=pixel_scale(items),
        provenance={
            "source": as_text(path),
            "format": "table",
            "columns": {"file": file, "label": label},
            **found.report(),
        },
    )


def _open(path: Path) -> pa.Table:
    table = _parsed(path)
    if twice := [name for name, count in Counter(table.column_names).items() if count > 1]:
        raise DataError(f"{path} has two columns of the name {twice[0]!r}: rename or remove one of them")
    return table


def _parsed(path: Path) -> pa.Table:
    try:
        if path.name.lower().endswith(".csv"):
            return _open_csv(path)
        if path.name.lower().endswith(".parquet"):
            if shards.KEY in (pq.read_schema(path).metadata or {}):
                raise DataError(f"{path} is one shard of a deeplense data set: read the folder that holds dataset.json")
            return pq.read_table(path)
        return _open_astropy(path)
    except (pa.ArrowException, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read as a table: {str(error).splitlines()[0]}") from error


def _open_csv(path: Path) -> pa.Table:
    """With the types that its values have, but file names as text: 0042 is not 42."""
    with pa.csv.open_csv(path) as head:
        columns = head.schema.names
    as_texts = {name: pa.string() for name in columns if name.lower() in FILE_COLUMNS}
    return pa.csv.read_csv(path, convert_options=pa.csv.ConvertOptions(column_types=as_texts))


def _open_astropy(path: Path) -> pa.Table:
    from astropy.table import MaskedColumn, Table

    table = Table.read(path, format="ascii.ecsv" if path.name.lower().endswith(".ecsv") else "fits")
    columns = {}
    for name in table.colnames:
        column = MaskedColumn(table[name])
        if column.ndim > 1:
            logger.info("%s: the column %s holds arrays and is left out", path, name)
            continue
        values = np.asarray(column.data.data)
        values = np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
        native = values.astype(values.dtype.newbyteorder("="))
        columns[name] = pa.array(
            native.tolist() if native.dtype.kind in "UO" else native, mask=np.ma.getmaskarray(column)
        )
    return pa.table(columns)


def _column(path: Path, table: pa.Table, setting: str, given: str | None, known: Sequence[str]) -> str | None:
    """The column that was named, or the first one of the known names that is there."""
    if given:
        if given not in table.column_names:
            raise DataError(
                f"{path} has no column {given!r} (data.{setting}); {did_you_mean(given, table.column_names)}"
            )
        return given
    by_lower = {name.lower(): name for name in reversed(table.column_names)}
    return next((by_lower[name] for name in known if name in by_lower), None)


def _items(folder: Path, names: Sequence[str], bands: Bands) -> list[Item]:
    """The image of each row."""
    known: dict[str, Item] | None = None
    found = []
    for name in names:
        item = _item(folder / name, name, bands)
        if item is None:
            known = _by_number(folder, bands) if known is None else known
            item = known.get(name, Item(name, (folder / name,)))
        found.append(replace(item, name=name))
    return found


def _item(path: Path, name: str, bands: Bands) -> Item | None:
    """The file itself, or with an ending, or the files of an object's folder; None if there are none of these."""
    if format_of(name) is not None:
        return Item(name, (path,), bands)
    if path.is_dir():
        found = listing.items(path, path, bands)
        return found[0] if len(found) == 1 else None
    with_ending = (path.with_name(path.name + end) for end in ENDINGS)
    return next((Item(name, (file,), bands) for file in with_ending if file.is_file()), None)


def _by_number(folder: Path, bands: Bands) -> dict[str, Item]:
    """The images beside a table by the number that their names end in, where no two share it."""
    items = listing.items(folder, folder, bands)
    numbers = [found[0] if (found := re.search(r"\d+$", stem(item.name))) else "" for item in items]
    counts = Counter(numbers)
    return {number: item for number, item in zip(numbers, items, strict=True) if number and counts[number] == 1}


def _labels(path: Path, name: str, column: pa.ChunkedArray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class numbers (N,) and class names, from 0 and 1, from other numbers, or from names."""
    values = column.to_pylist()
    if empty := sum(value is None or value == "" for value in values):
        raise DataError(
            f"{path}: {empty} of {len(values)} rows have no {name}: remove them, or read without labels "
            '(data.label_column="")'
        )
    if all(isinstance(value, str) for value in values):
        names = classes.order(values)
        numbers = np.array([dict(zip(names, range(len(names)), strict=True))[value] for value in values], np.int64)
    else:
        numbers = _numbers(path, name, values)
        is_lens = name.lower() == "is_lens"
        if numbers.max(initial=0) >= _MOST_CLASSES:
            raise DataError(f"{path}: {name} reaches {numbers.max()}, so it is no label: data.label_column names it")
        names = ("nonlenses", "lenses") if is_lens else tuple(map(str, range(int(numbers.max(initial=0)) + 1)))
        if is_lens and numbers.max(initial=0) > 1:
            raise DataError(f"{path}: {name} reaches {numbers.max()}; it is 1 for a lens and 0 for none")
    if len(names) > _MOST_CLASSES:
        raise DataError(
            f"{path}: {name} has {len(names)} different values, so it is no label: data.label_column names it"
        )
    return numbers, tuple(as_text(text) for text in names)


def _check_repeated(path: Path, names: Sequence[str], numbers: np.ndarray | None) -> None:
    """Tell of files that stand in several rows: they could be learnt from and judged by at once.

    Raises:
        DataError: such rows differ in their label.
    """
    counts = Counter(names)
    repeated = [name for name in counts if counts[name] > 1]
    if not repeated:
        return
    if numbers is not None and len(labelled := set(zip(names, numbers.tolist(), strict=True))) > len(counts):
        differing = next(name for name, count in Counter(name for name, _ in labelled).items() if count > 1)
        raise DataError(f"{path}: the rows of {differing} differ in their label: keep the right one")
    logger.warning(
        "%s: %d files stand in several rows (first: %s): copies may fall on both sides of a split",
        *(path, len(repeated), repeated[0]),
    )


def _numbers(path: Path, name: str, values: Sequence[object]) -> np.ndarray:
    wrong = [v for v in values if not isinstance(v, int | float) or not 0 <= v < 2**53 or int(v) != v]
    if wrong:
        raise DataError(f"{path}: {name} holds {wrong[0]!r}; labels are names, or whole numbers from 0 on")
    return np.array([int(v) for v in values], np.int64)  # type: ignore[call-overload]


def _params(others: pa.Table, found: Gathered) -> pa.Table | None:
    """The other columns of the images that were kept, and the axion masses that lay in their files."""
    taken = [f"catalogue_{name}" if name in shards.OWN_COLUMNS else name for name in others.column_names]
    params = others.rename_columns(taken).take(found.kept)
    if (masses := found.params()) is not None and "m_axion" not in params.column_names:
        params = params.append_column("m_axion", masses["m_axion"])
    return params if params.column_names else None
