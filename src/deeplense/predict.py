"""A trained run and images in, a table out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from deeplense import weights
from deeplense.data.files import check_new_file, replacing
from deeplense.data.schema import LensSet
from deeplense.errors import RunError
from deeplense.tasks import Reader


class Predictor:
    """A trained task that reads LensSets.

    Attributes:
        task: the network with its preparation and calibration.
        card: what ``model.json`` says of it.
    """

    def __init__(self, task: Reader, card: dict[str, Any]) -> None:
        self.task, self.card = task, card

    @classmethod
    def load(cls, run: Path | str, device: str = "auto") -> Predictor:
        """The predictor of a finished run, from its ``model.json`` and ``model.safetensors``.

        Args:
            device: "auto", "cpu", "cuda", "cuda:1", "mps".

        Raises:
            RunError: there is no such run, or it is not finished.
        """
        task = weights.load_task(Path(run), Reader).to(weights.find_device(device))
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

    def retarget(self, prevalence: float) -> Predictor:
        """This predictor, for images of which another share are lenses than among those of validation.

        Raises:
            ConfigError: the task has no prevalence, or it does not lie between 0 and 1.
        """
        self.task.retarget(prevalence)
        return self


def check_table(path: Path | str) -> Path:
    """A file that a table may be written to.

    Raises:
        RunError: another ending than ``.csv`` or ``.parquet``, the file exists, or its folder does not.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise RunError(f"{path}: tables are written as .csv or .parquet")
    return check_new_file(path)


def write_table(table: pa.Table, path: Path | str) -> None:
    """Write predictions as ``.csv`` or ``.parquet``.

    Raises:
        RunError: another ending, or the file exists.
    """
    import pyarrow.csv
    import pyarrow.parquet

    path = check_table(path)
    write = pyarrow.csv.write_csv if path.suffix == ".csv" else pyarrow.parquet.write_table
    with replacing(path) as temporary:
        write(table, temporary)
