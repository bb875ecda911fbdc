"""Measured lenses of labelled or simulated images: from a run to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from deeplense.data.module import param_values
from deeplense.data.schema import LensSet
from deeplense.errors import DataError
from deeplense.evaluate.measurement_report import measurement_report
from deeplense.tasks import InversionTask
from deeplense.tasks.inversion import PARAMS
from deeplense.tasks.telescope import is_known, telescope_of

MEASUREMENT = "measurement"  # folder of the second report of a physics run


def has_truth(lens_set: LensSet) -> bool:
    """Whether a set says of each image which lens it shows."""
    return lens_set.params is not None and set(PARAMS) <= set(lens_set.params.column_names)


def judge_inversion(out: Path, task: InversionTask, lens_set: LensSet, common: dict[str, Any]) -> dict[str, Any]:
    """Measure the lenses of a set, compare them with the truth, and write ``metrics.json`` and ``report.html``.

    Args:
        common: title, names, provenance and history, as ``judge`` gives them.

    Raises:
        DataError: the set has no truth table.
    """
    if not has_truth(lens_set):
        raise DataError("a measurement is judged by the truth of simulated images, and these have no such table")
    if is_known(lens_set):
        task.telescope = telescope_of(lens_set, task.config.physics)
    found = task.measure(lens_set.images, task.config.physics.steps)
    columns = {name: column.numpy() for name, column in task.columns(task.told(found)).items()}
    names = task.lens((1, 1)).names[:-2]
    truth = dict(zip(names, param_values(lens_set, names).T.astype(np.float64), strict=True))
    out.mkdir(parents=True, exist_ok=True)
    return measurement_report(
        out,
        title=common["title"],
        truth=truth,
        estimate={name: columns[name] for name in names},
        sigma={name: columns[f"{name}_std"] for name in names},
        wide={name: columns[f"{name}_95"] for name in names},
        label=np.zeros(len(lens_set), np.int64) if lens_set.label is None else lens_set.label,
        classes=lens_set.classes or ("lenses",),
        names=lens_set.name,
        chi2=found.chi2.numpy(),
        images=task.framed(torch.from_numpy(lens_set.images)).numpy(),
        model=found.model.numpy(),
        residual=found.residual.numpy(),
        pixel_scale=task.scope.pixel_scale,
        provenance=common["provenance"],
        history=common["history"],
        bootstrap=common["bootstrap"],
    )
