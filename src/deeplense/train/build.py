"""From settings and images to a task that can be trained."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from deeplense.config import Config
from deeplense.data.module import LensDataModule
from deeplense.data.split import class_weights
from deeplense.data.transform import Preprocess
from deeplense.tasks import LensTask, get
from deeplense.train.start import ALONE, Place, start_from, stored_architecture

logger = logging.getLogger(__name__)


def build_task(config: Config, data: LensDataModule, place: Place = ALONE) -> LensTask:
    """The task before training, from random weights or those that ``model.init`` names.

    Raises:
        ConfigError, DataError, ModelError: the settings, images and weights do not suit one another.
    """
    task = new_task(config, data, stored_architecture(config))
    if config.model.init is not None:
        start_from(task.network, config.model.init, place)
    if config.train.channels_last:
        task.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return task


def new_task(config: Config, data: LensDataModule, architecture: dict[str, Any] | None = None) -> LensTask:
    """The task with random weights: it knows the statistics of the training images and how often each class is met."""
    channels, height, width = data.image_shape
    model = config.model
    preprocess = Preprocess((height, width), model.crop, model.size, model.stretch).fit(data.train.images)
    task = get(config.task)(config, data.classes, channels, preprocess, architecture)
    task.know_mixture(*_mixture(config, data))
    return task


def _mixture(config: Config, data: LensDataModule) -> tuple[np.ndarray, np.ndarray]:
    """How often training draws each class, and how much its images count in the loss, (K,) each."""
    num, label = len(data.classes), np.asarray(data.train.label)
    if config.data.balanced and config.loss.class_weights:
        logger.warning("data.balanced and loss.class_weights both favour rare classes: together they count twice")
    drawn = np.full(num, 1 / num) if config.data.balanced else np.bincount(label, minlength=num) / len(label)
    return drawn, class_weights(label, num) if config.loss.class_weights else np.ones(num)
