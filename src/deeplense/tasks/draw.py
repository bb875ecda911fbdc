"""Images drawn by a diffusion model, as a LensSet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from deeplense.data.schema import LensSet
from deeplense.errors import ConfigError, did_you_mean
from deeplense.models.pipeline import UnknownName
from deeplense.tasks.diffusion import DiffusionTask


@dataclass(frozen=True)
class Request:
    """What images are asked for, and how they are drawn.

    Attributes:
        label: their class; None for each class in turn, image by image, where the model knows classes.
        given: values of parameters in their own units; others are left to chance.
        sampler, steps: None for those of the model's settings.
        guidance: 1 draws from what was learnt; above, images are more typical of their class and less diverse.
        seed: names the sequence of images.
    """

    label: str | None = None
    given: Mapping[str, float] = field(default_factory=dict)
    sampler: str | None = None
    steps: int | None = None
    guidance: float = 1.0
    seed: int = 0

    def facts(self) -> dict[str, Any]:
        """All of it in plain JSON values."""
        how = {"sampler": self.sampler, "steps": self.steps, "guidance": self.guidance, "seed": self.seed}
        return {"class": self.label, "given": dict(self.given), **how}


def settled(task: DiffusionTask, request: Request, num: int = 1, batch_size: int = 64) -> Request:
    """The request with sampler and steps filled in, if the model can draw it; cheap, nothing is drawn.

    Raises:
        ConfigError: an unknown class, parameter or sampler, a number out of range, or guidance that was not learnt.
    """
    diffusion = task.config.diffusion
    sampler, steps = request.sampler or diffusion.sampler, request.steps
    request = replace(request, sampler=sampler, steps=diffusion.sample_steps if steps is None else steps)
    if wrong := [name for name, value in request.given.items() if not _is_number(value)]:
        raise ConfigError(f"{wrong[0]}={request.given[wrong[0]]!r}: give a finite number")
    if request.guidance != 1 and diffusion.drop == 0:
        raise ConfigError(f"guidance={request.guidance}: nothing guides a model of diffusion.drop=0")
    try:
        task.pipeline().check(num, batch_size=batch_size, **_words(request, request.label))
    except UnknownName as error:
        known = did_you_mean(str(error.name), error.allowed) if error.allowed else "it was trained without"
        raise ConfigError(f"the model knows no {error.what} {error.name!r}; {known}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return request


def draw(
    task: DiffusionTask,
    num: int,
    request: Request | None = None,
    *,
    first: int = 0,
    batch_size: int = 64,
    on_step: Callable[[int], object] | None = None,
) -> LensSet:
    """Draw images ``first`` to ``first + num - 1`` of the sequence that the request names, in the values as read.

    An image does not depend on how many are drawn with it, up to rounding. The columns of ``params`` are the class
    that the network was told and the values given to it.

    Args:
        task: trained, on the device that draws.
        on_step: called with the number of images after each step of a batch.

    Raises:
        ConfigError: as :func:`settled`.
    """
    request = settled(task, request or Request(), num, batch_size)
    classes = task.known_classes
    asked = [request.label or classes[i % len(classes)] for i in range(first, first + num)] if classes else None
    words = _words(request, asked)
    images = task.pipeline()(num, first=first, batch_size=batch_size, on_step=on_step or silent, **words)
    columns: dict[str, Any] = {"class": asked} if asked else {}
    columns |= {name: np.full(num, value, np.float64) for name, value in request.given.items()}
    return LensSet(
        images=images,
        name=[f"sample-{request.seed}-{i:08d}" for i in range(first, first + num)],
        label=np.array([classes.index(name) for name in asked], np.int64) if asked else None,
        classes=classes,
        params=pa.table(columns) if columns else None,
        pixel_scale=task.calibration.get("pixel_scale"),
        provenance=request.facts(),
    )


def _words(request: Request, label: Any) -> dict[str, Any]:
    """Of a call of the pipeline."""
    how = {"sampler": request.sampler, "steps": request.steps, "guidance": request.guidance, "seed": request.seed}
    return {"label": label, "given": request.given, **how}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def silent(_: int) -> None:
    """In place of the pipeline's own progress bar."""
