"""A trained run and images in, a table out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from deeplense import weights
from deeplense.data.files import replacing
from deeplense.data.schema import LensSet
from deeplense.errors import DataError, RunError
from deeplense.tasks import LensTask

logger = logging.getLogger(__name__)


class Predictor:
    """A trained task that reads LensSets.

    Attributes:
        task: the network with its preparation and calibration.
        card: what ``model.json`` says of it.
    """

    def __init__(self, task: LensTask, card: dict[str, Any]) -> None:
        self.task, self.card = task, card

    @classmethod
    def load(cls, run: Path | str, device: str = "auto") -> Predictor:
        """The predictor of a finished run, from its ``model.json`` and ``model.safetensors``.

        Args:
            device: "auto", "cpu", "cuda", "cuda:1", "mps".

        Raises:
            RunError: there is no such run, or it is not finished.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(weights.load_task(Path(run)).to(device), weights.load_card(Path(run)))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their numbers."""
        return self.task.classes

    def outputs(self, lens_set: LensSet, batch_size: int = 128) -> Tensor:
        """What the network says of each image, before calibration: float32 (N, ...), for a classifier the logits.

        Raises:
            DataError: the images do not suit the network.
        """
        self._check(lens_set)
        parts = list(self.task.outputs(lens_set.images, batch_size))
        return torch.cat(parts) if parts else torch.empty(0, len(self.classes))

    def predict(self, lens_set: LensSet, batch_size: int = 128) -> pa.Table:
        """A table with one row an image: ``name``, then what the task predicts (``p_<class>``, ``label_pred``).

        Raises:
            DataError: the images do not suit the network.
        """
        columns = {
            name: column.numpy() for name, column in self.task.columns(self.outputs(lens_set, batch_size)).items()
        }
        return pa.table({"name": pa.array(lens_set.name, pa.string()), **columns})

    def _check(self, lens_set: LensSet) -> None:
        channels, height, width = lens_set.images.shape[1:]
        if channels != self.task.in_channels:
            raise DataError(f"the images have {channels} channels; this network was trained on {self.task.in_channels}")
        wanted = self.task.preprocess.input_size
        if (height, width) != wanted:
            logger.warning("images of %dx%d pixels are resized to the %dx%d of training", height, width, *wanted)


def write_table(table: pa.Table, path: Path | str) -> None:
    """Write predictions as ``.csv`` or ``.parquet``.

    Raises:
        RunError: another ending, or the file exists.
    """
    import pyarrow.csv
    import pyarrow.parquet

    path = Path(path)
    writers = {".csv": pyarrow.csv.write_csv, ".parquet": pyarrow.parquet.write_table}
    if path.suffix not in writers:
        raise RunError(f"{path}: tables are written as {' or '.join(writers)}")
    if path.exists():
        raise RunError(f"{path} exists and is never overwritten: choose another --out")
    with replacing(path) as temporary:
        writers[path.suffix](table, temporary)
