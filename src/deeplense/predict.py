"""A trained run and images in, a table out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from torch import Tensor

from deeplense import engines, weights
from deeplense.data.files import check_new_file, replacing
from deeplense.data.schema import LensSet
from deeplense.data.transform import SYMMETRIES
from deeplense.errors import ConfigError, DataError, RunError, did_you_mean
from deeplense.tasks import Classifier, Reader


class Predictor:
    """A trained task that reads LensSets.

    Attributes:
        task: the network with its preparation and calibration.
        card: what ``model.json`` says of it.
    """

    def __init__(self, task: Reader, card: dict[str, Any]) -> None:
        self.task, self.card = task, card

    @classmethod
    def load(
        cls, run: Path | str, device: str = "auto", engine: str = "torch", average: str | None = None
    ) -> Predictor:
        """The predictor of a finished run, from its ``model.json`` and ``model.safetensors``.

        Args:
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            engine: what runs the network of a classifier: "torch", "compile" (torch.compile; torch where there is no
                compiler) or "onnx" (ONNX Runtime on the CPU).
            average: what predictions are averaged over, "none", "flips" or "d4", in place of the run's
                ``model.average``; the calibration stays that of the run.

        Raises:
            RunError: there is no such run, or it is not finished.
            ConfigError: no such engine or average, or none for this task or device.
            ModelError: the packages for "onnx" are not installed.
        """
        task = weights.load_task(Path(run), Reader)
        engines.check(task, engine, device)
        if average is not None:
            _set_average(task, average)
        task.to("cpu" if engine == "onnx" else weights.find_device(device))
        engines.start(task, engine)
        return cls(task, weights.load_card(Path(run)))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their numbers."""
        return self.task.classes

    def outputs(self, lens_set: LensSet, batch_size: int = 128) -> Tensor:
        """What the network says of each image, before calibration: float32 (N, ...), for a classifier the logits.

        Raises:
            DataError: the images do not suit the network.
        """
        parts = list(self.task.outputs(lens_set.images, batch_size))
        return torch.cat(parts) if parts else torch.empty(0, len(self.classes))

    def predict(self, lens_set: LensSet, batch_size: int = 128) -> pa.Table:
        """A table with one row an image: ``name``, what the task predicts (``p_<class>`` ...), ``nan_fraction``.

        The last is the share of an image's pixels that are NaN or infinite: where it is large, the rest says little.

        Raises:
            DataError: the images do not suit the network.
        """
        columns = self.task.columns(self.outputs(lens_set, batch_size))
        named = {name: column.numpy() for name, column in columns.items()}
        missing = {"nan_fraction": lens_set.nan_fraction()}
        return pa.table({"name": pa.array(lens_set.name, pa.string()), **named, **missing})

    def predict_parts(self, parts: Iterable[LensSet], batch_size: int = 128) -> Iterator[pa.Table]:
        """The table of :meth:`predict` part by part, of an image set of any size (``data.read.parts``).

        Raises:
            DataError: the images of a part do not suit the network.
        """
        for part in parts:
            yield self.predict(part, batch_size)

    def retarget(self, prevalence: float) -> Predictor:
        """This predictor, for images of which another share are lenses than among those of validation.

        Raises:
            ConfigError: the task has no prevalence, or it does not lie between 0 and 1.
        """
        self.task.retarget(prevalence)
        return self

    def quantise(self, first: Sequence[LensSet]) -> str:
        """Have ONNX Runtime work in 8 bits from now on; says in a line what that costs and brings on these images.

        Args:
            first: sets like those to predict; the ranges of 8 bits are found on the first of them.

        Raises:
            ConfigError: the engine is another one.
        """
        return engines.quantise(self.task, first)


def _set_average(task: Reader, average: str) -> None:
    if not isinstance(task, Classifier):
        raise ConfigError(f"a {task.config.task} run has no average over symmetries: leave it out")
    if average not in SYMMETRIES:
        raise ConfigError(f"average={average}; {did_you_mean(average, SYMMETRIES)}")
    task.average = average


def check_table(path: Path | str) -> Path:
    """A file that a table may be written to.

    Raises:
        RunError: another ending than ``.csv`` or ``.parquet``, the file exists, or its folder does not.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise RunError(f"{path}: tables are written as .csv or .parquet")
    return check_new_file(path)


def write_tables(
    tables: Iterable[pa.Table], path: Path | str, num: int | None = None, *, progress: bool = False
) -> int:
    """Write the parts of a table as ``.csv`` or ``.parquet`` as they come; the file is there when all are written.

    Args:
        num: rows that are expected, for the bar.
        progress: show a bar.

    Returns:
        The number of rows.

    Raises:
        RunError: another ending, or the file exists.
        DataError: there are no tables.
    """
    path, rest = check_table(path), iter(tables)
    if (first := next(rest, None)) is None:
        raise DataError("there are no images, so there is no table")
    rows = 0
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    shown = Progress(*columns, console=Console(stderr=True), disable=not progress)
    with shown as bar, replacing(path) as temporary, _writer(path.suffix)(temporary, first.schema) as writer:
        task = bar.add_task("predicting", total=num)
        for table in chain([first], rest):
            writer.write(table)
            rows += table.num_rows
            bar.update(task, completed=rows)
    return rows


def _writer(ending: str) -> Any:
    """What writes tables to a file part by part."""
    import pyarrow.csv
    import pyarrow.parquet

    return pyarrow.csv.CSVWriter if ending == ".csv" else pyarrow.parquet.ParquetWriter
