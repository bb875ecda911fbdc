"""From settings and images to a task that can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from deeplense import weights
from deeplense.config import Config
from deeplense.data.module import LensDataModule
from deeplense.tasks import Classifier, LensTask, get
from deeplense.train.start import ALONE, Place, start_from, stored_architecture


def build_task(config: Config, data: LensDataModule, place: Place = ALONE) -> LensTask:
    """The task before training, from random weights or those that ``model.init`` names.

    Raises:
        ConfigError, DataError, ModelError: the settings, images and weights do not suit one another.
    """
    task = new_task(config, data, stored_architecture(config))
    if config.model.init is not None and isinstance(task, Classifier):
        start_from(task.network, config.model.init, place)
    elif config.model.init is not None:
        weights.load_into(task.network, Path(config.model.init))
    if config.train.channels_last:
        task.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return task


def new_task(config: Config, data: LensDataModule, architecture: dict[str, Any] | None = None) -> LensTask:
    """The task with random weights: it knows what must be known of the training images."""
    kind = get(config.task)
    task = kind(config, data.classes, data.image_shape[0], kind.prepare(config, data), architecture)
    task.know(data)
    return task
