"""One LightningModule for each purpose, found by name."""

from __future__ import annotations

from deeplense.errors import ConfigError, did_you_mean
from deeplense.tasks.base import LensTask, Reader
from deeplense.tasks.classifier import Classifier
from deeplense.tasks.diffusion import DiffusionTask
from deeplense.tasks.finder import FinderTask
from deeplense.tasks.inversion import InversionTask
from deeplense.tasks.lens_equation import LensEquationTask
from deeplense.tasks.physics import PhysicsTask
from deeplense.tasks.substructure import SubstructureTask

__all__ = ["TASKS", "Classifier", "DiffusionTask", "InversionTask", "LensTask", "PhysicsTask", "Reader", "get"]

TASKS: dict[str, type[LensTask]] = {
    "substructure": SubstructureTask,
    "finder": FinderTask,
    "lens-equation": LensEquationTask,
    "diffusion": DiffusionTask,
    "inversion": InversionTask,
    "physics": PhysicsTask,
}


def get(name: str) -> type[LensTask]:
    """The task of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TASKS:
        raise ConfigError(f"there is no task {name!r}; {did_you_mean(name, TASKS)}")
    return TASKS[name]
