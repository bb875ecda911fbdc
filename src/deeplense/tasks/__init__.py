"""One LightningModule for each purpose, found by name."""

from __future__ import annotations

from deeplense.errors import ConfigError, did_you_mean
from deeplense.tasks.base import LensTask
from deeplense.tasks.classifier import Classifier
from deeplense.tasks.diffusion import DiffusionTask
from deeplense.tasks.finder import FinderTask
from deeplense.tasks.lens_equation import LensEquationTask
from deeplense.tasks.substructure import SubstructureTask

__all__ = ["TASKS", "Classifier", "DiffusionTask", "LensTask", "get"]

TASKS: dict[str, type[LensTask]] = {
    "substructure": SubstructureTask,
    "finder": FinderTask,
    "lens-equation": LensEquationTask,
    "diffusion": DiffusionTask,
}


def get(name: str) -> type[LensTask]:
    """The task of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TASKS:
        raise ConfigError(f"there is no task {name!r}; {did_you_mean(name, TASKS)}")
    return TASKS[name]
