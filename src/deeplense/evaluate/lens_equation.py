"""The report of a network that was taught the lens equation: a classifier's, with the parts of its loss."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deeplense.data.module import LensDataset
from deeplense.data.schema import LensSet
from deeplense.evaluate.report import classification_report
from deeplense.tasks.lens_equation import LensEquationTask

logger = logging.getLogger(__name__)
CHUNK = 256  # images at a time


def judge_lens_equation(
    out: Path, task: LensEquationTask, outputs: Tensor, lens_set: LensSet, _: float | None, common: dict[str, Any]
) -> dict[str, Any]:
    """A classifier's report of outputs (N, K + 2), and ``losses``: classification, physics and their total."""
    return classification_report(
        out,
        logits=outputs[:, : len(task.classes)],
        temperature=task.calibration.get("temperature", 1.0),
        losses=mean_losses(task, outputs, lens_set),
        **common,
    )


@torch.inference_mode()
def mean_losses(task: LensEquationTask, outputs: Tensor, lens_set: LensSet) -> dict[str, float | None]:
    """Mean losses as in validation, with the weight that the physics has in the end.

    Physics and total are None where no image has a lens equation: without an arc or a true source position, or with
    another number or size of pixels than the images of training.
    """
    names, known = task.wanted(task.config), [] if lens_set.params is None else lens_set.params.column_names
    dataset = LensDataset(lens_set, names if set(names) <= set(known) else ())
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(dataset), CHUNK):
        rows = range(start, min(start + CHUNK, len(dataset)))
        batch = {name: column.to(task.device) for name, column in dataset.__getitems__(rows).items()}
        parts.append(task.losses(outputs[rows.start : rows.stop].to(task.device), batch))
    total, classification, physics = (
        torch.cat([part[name] for part in parts]).double().nanmean().item()
        for name in ("loss", "class_loss", "physics_loss")
    )
    if math.isnan(physics) or not _suits(task, lens_set):
        return {"classification": classification, "physics": None, "total": None}
    return {"classification": classification, "physics": physics, "total": total}


def _suits(task: LensEquationTask, lens_set: LensSet) -> bool:
    """Whether an angle means the same in these images as in those of training; says so where it does not."""
    scale, size = lens_set.pixel_scale or task.pixel_scale, lens_set.images.shape[2:]
    if size == task.preprocess.input_size and abs(scale / task.pixel_scale - 1) < 0.01:
        return True
    logger.warning(
        'no physics loss: images of %dx%d pixels of %g", and the run learnt from %dx%d of %g"',
        *(*size, scale, *task.preprocess.input_size, task.pixel_scale),
    )
    return False
