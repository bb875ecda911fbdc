"""What a diffusion model draws after some epochs, as pictures in the run folder: to be looked at while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback

from deeplense.simulate.preview import write_grid
from deeplense.tasks.diffusion import DiffusionTask
from deeplense.tasks.draw import silent

FOLDER = "samples"
COLUMNS = 8


class SampleGrid(Callback):
    """A row of samples for each class after every few epochs, always from the same noise.

    It comes before the averaging of the weights among the callbacks: at the end of a validation these are still in use.
    """

    def __init__(self, run: Path, every: int, seed: int) -> None:
        self.run, self.every, self.seed = run, every, seed

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        epoch = trainer.current_epoch + 1
        if trainer.is_global_zero and (epoch % self.every == 0 or epoch == trainer.max_epochs):
            self.draw(pl_module, self.run / FOLDER / f"epoch-{epoch:04d}.png", f"after {epoch} epochs")

    def draw(self, task: DiffusionTask, path: Path, title: str) -> None:
        rows = task.known_classes or ("any", "any ")
        labels = [name if task.known_classes else None for name in rows for _ in range(COLUMNS)]
        diffusion = task.config.diffusion
        # A glance: the samplers that need hundreds of steps would hold up the training.
        images = task.pipeline()(len(labels), labels, steps=min(20, diffusion.steps), seed=self.seed, on_step=silent)
        path.parent.mkdir(exist_ok=True)
        write_grid(np.split(images, len(rows)), rows, path, title)
