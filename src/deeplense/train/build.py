"""From settings and images to a task that can be trained."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from deeplense.config import Config
from deeplense.data.module import LensDataModule
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
    framing = (model.crop, model.size, model.stretch, model.clip, model.clip_by)
    preprocess = Preprocess((height, width), *framing).fit(data.train.images)
    task = get(config.task)(config, data.classes, channels, preprocess, architecture)
    task.know_mixture(data.train_prevalence, _class_weights(config, data))
    return task


def _class_weights(config: Config, data: LensDataModule) -> np.ndarray:
    """How much the images of each class count in the loss, shape (K,)."""
    if config.data.balanced and config.loss.class_weights:
        logger.warning("data.balanced and loss.class_weights both favour rare classes: together they count twice")
    return data.class_weights if config.loss.class_weights else np.ones(len(data.classes))
