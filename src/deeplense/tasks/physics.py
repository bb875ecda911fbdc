"""Substructure in what a smooth lens leaves of an image: fit the lens, look at the residual."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from deeplense.config import Config
from deeplense.data.module import LensDataModule
from deeplense.data.transform import Preprocess
from deeplense.errors import ConfigError, DataError
from deeplense.lensing.invert import Inversion
from deeplense.tasks.base import Columns, LensTask
from deeplense.tasks.inversion import InversionTask
from deeplense.tasks.substructure import SubstructureTask

# Beyond these, a pixel says no more: the residual in standard deviations, kappa near the centre, where it is infinite.
MOST_SIGMA, MOST_KAPPA = 10.0, 3.0


class PhysicsTask(SubstructureTask):
    """A classifier that sees, of each image, the channels that ``physics.see`` names.

    In training these are there already (``train.physics``); of raw images, :meth:`outputs` makes them.

    Attributes:
        inverter: measures lenses; trained before and left as it is.
    """

    parts: ClassVar[Mapping[str, type[LensTask]]] = {"inverter": InversionTask}
    inverter: InversionTask

    @classmethod
    def wanted(cls, config: Config) -> tuple[str, ...]:
        return () if config.physics.inverter else InversionTask.wanted(config)

    @classmethod
    def prepare(cls, config: Config, data: LensDataModule) -> Preprocess:
        """Crop and stretch are done with when the channels are made."""
        _, height, width = data.image_shape
        return Preprocess((height, width)).fit(data.train.images)

    def build(self, architecture: dict[str, Any] | None) -> Any:
        _check(self.config)
        return super().build(architecture)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.parts:  # a part is no module of this one: its weights are neither trained nor stored here
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def outputs(self, images: np.ndarray, batch_size: int) -> Iterator[Tensor]:
        """Logits, then what the inverter says, of raw images (N, 1, H, W): (B, K + 3 P + 1)."""
        self.inverter.to(self.device).eval()
        self.eval()
        for start in range(0, len(images), batch_size):
            seen, found = see(self.inverter, images[start : start + batch_size], self.config)
            with torch.inference_mode():
                logits = self.averaged(torch.from_numpy(seen).to(self.device)).cpu()
            yield torch.cat([logits, self.inverter.told(found)], 1)

    def columns(self, output: Tensor) -> Columns:
        """Those of a classifier, and those of the measurement where it is there."""
        number = len(self.classes)
        named = super().columns(output[:, :number])
        return named | self.inverter.columns(output[:, number:]) if output.shape[1] > number else named


def see(
    inverter: InversionTask, images: np.ndarray, config: Config, on_chunk: Callable[[int], object] = int
) -> tuple[np.ndarray, Inversion]:
    """What the classifier sees of raw images (N, 1, H, W): float32 (N, channels, H', W'), and what was measured.

    With ``physics.control = "shuffled"`` all but the image itself is that of another image of the set.

    Raises:
        DataError: the images have another size than those that the inverter was trained on.
    """
    wanted = (1, *inverter.preprocess.input_size)
    if images.shape[1:] != wanted:
        raise DataError(
            f"the images have the shape {images.shape[1:]}; lenses are measured in images of {wanted}, as in training"
        )
    physics = config.physics
    inverter.has_lens = physics.control != "no-lensing"
    found = inverter.measure(images, physics.steps, on_chunk)
    channels = {name: channel(inverter, name, images, found, config) for name in physics.see}
    if physics.control == "shuffled":
        # At random: where classes take turns in a set, a neighbour's class tells one's own.
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(config.seed))
        channels = {name: maps if name == "image" else maps[order] for name, maps in channels.items()}
    return torch.stack(list(channels.values()), 1).numpy(), found


def channel(inverter: InversionTask, name: str, images: np.ndarray, found: Inversion, config: Config) -> Tensor:
    """One map of each image, float32, (N, H', W')."""
    if name == "residual":
        return found.residual.clamp(-MOST_SIGMA, MOST_SIGMA)
    if name == "kappa":
        lens = inverter.lens((found.model.shape[1], found.model.shape[2]))
        return lens.converge(found.parameters, *lens.camera.grid(1)).clamp(max=MOST_KAPPA)
    shown = inverter.framed(torch.from_numpy(images)) if name == "image" else found.model
    return shown.sign() * shown.abs().sqrt() if config.model.stretch == "sqrt" else shown


def _check(config: Config) -> None:
    """Raises ConfigError for settings that this task has no use for."""
    if config.train.ensemble > 1 or config.train.freeze or config.model.init:
        raise ConfigError("train.ensemble, train.freeze and init are not for task=physics: it has physics.inverter=RUN")
    if config.model.clip is not None or config.model.stretch == "asinh":
        raise ConfigError("task=physics compares pixels with their noise: leave model.clip out, model.stretch=sqrt")
    if config.physics.control == "no-lensing" and "kappa" in config.physics.see:
        raise ConfigError(
            'physics.control=no-lensing: without a lens there is no kappa; physics.see=["image","residual"]'
        )
    if len(set(config.physics.see)) != len(config.physics.see) or not config.physics.see:
        raise ConfigError(f"physics.see={config.physics.see}: name one or more of image, residual, model, kappa, once")
