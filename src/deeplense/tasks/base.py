"""What all tasks share: one step for training and validation, score, optimise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from deeplense.config import Config
from deeplense.data.module import Batch, LensDataModule
from deeplense.data.transform import Augment, Preprocess
from deeplense.errors import ConfigError
from deeplense.models.ensemble import Ensemble
from deeplense.tasks.schedule import configure

Columns = dict[str, Tensor]


class LensTask(L.LightningModule):
    """A network with its purpose. A task defines :meth:`build`, :meth:`step` and :meth:`score`.

    Attributes:
        network: the only part that has weights.
        preprocess: what happens to raw images before it, in training and afterwards alike.
        calibration: numbers found on the validation images after training.
    """

    score_name = "score"  # what the validation score is, for people; larger is better
    needs_labels = True  # whether training makes no sense without classes
    prepares_ahead = False  # whether :meth:`step` sees images through :meth:`prepared` alone
    half_precision = True  # whether ``train.precision = "auto"`` may choose it
    is_prepared = False  # whether the images of batches have been through ``preprocess``
    # Other trained tasks that it works with: the folder inside of the run folder, which is also the attribute's name.
    parts: ClassVar[Mapping[str, type[LensTask]]] = {}

    def __init__(
        self,
        config: Config,
        classes: tuple[str, ...],
        in_channels: int,
        preprocess: Preprocess,
        architecture: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.classes, self.in_channels, self.preprocess = config, classes, in_channels, preprocess
        self.augment = Augment(config.augment)
        members = [self.build(architecture) for _ in range(config.train.ensemble)]
        self.network = members[0] if len(members) == 1 else Ensemble(members)
        self.calibration: dict[str, Any] = {}
        self._validated: list[Columns] = []

    # What a task defines.

    def build(self, architecture: dict[str, Any] | None) -> nn.Module:
        """The network, or a member of an ensemble; ``architecture`` is what a stored run knows of it."""
        raise NotImplementedError

    def step(self, batch: Batch, images: Tensor) -> Columns:
        """The ``loss`` of each image (B,), and what else of a batch :meth:`score` wants to know; first axis B.

        Args:
            images: those of the batch, in training with their random changes, (B, C, H, W) as read.
        """
        raise NotImplementedError

    def score(self, validated: Columns) -> float:
        """How good the network is by what all steps of a validation said; larger is better; selects the checkpoint."""
        raise NotImplementedError

    @classmethod
    def wanted(cls, config: Config) -> tuple[str, ...]:
        """Columns of the truth table that batches hold as ``params``."""
        return ()

    @classmethod
    def prepare(cls, config: Config, data: LensDataModule) -> Preprocess:
        """What happens to images before the network, fitted to the training images."""
        _, height, width = data.image_shape
        model = config.model
        framing = (model.crop, model.size, model.stretch, model.clip, model.clip_by, model.scale)
        return Preprocess((height, width), *framing).fit(data.train.images)

    def know(self, data: LensDataModule) -> None:
        """Learn what must be known of the training images before training begins."""

    def finish_on(self, data: LensDataModule) -> None:
        """Set ``calibration`` by the validation images, after training."""

    # What they share.

    @property
    def may_prepare_ahead(self) -> bool:
        """Whether all images may be prepared once, before training, since mirroring and turning commute with it."""
        if not (self.prepares_ahead and self.augment.only_turns and self.preprocess.is_symmetric):
            return False
        height, width = self.preprocess.input_size
        return height == width or not self.config.augment.quarter_turns

    def prepared(self, images: Tensor) -> Tensor:
        """Images of a batch as the network wants them."""
        return images if self.is_prepared else self.preprocess(images)

    def _layout(self, images: Tensor) -> Tensor:
        last = self.config.train.channels_last
        return images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        loss = self.step(batch, self.augment(batch["image"]))["loss"].mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["image"]), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        kept = {"index": batch["index"], **self.step(batch, batch["image"])}
        # Copies, for a compiled network may write its next answer over this one.
        self._validated.append({name: column.detach().clone() for name, column in kept.items()})

    def on_validation_epoch_end(self) -> None:
        validated = self._gathered()
        self.log("val_loss", validated["loss"].mean())
        for part in [name for name in validated if name.endswith("_loss")]:
            self.log(f"val_{part}", validated[part].nanmean())  # NaN where an image has no such loss
        self.log("val_score", self.score(validated))

    def _gathered(self) -> Columns:
        """What all devices kept of the epoch, every validation image once, in the order of the set."""
        kept, self._validated = self._validated, []
        columns: Columns = {name: torch.cat([part[name] for part in kept]) for name in kept[0]}
        if self.trainer.world_size > 1:
            columns = {name: torch.as_tensor(self.all_gather(c)).flatten(0, 1) for name, c in columns.items()}
        place = np.unique(columns["index"].cpu().numpy(), return_index=True)[1]
        return {name: column[torch.from_numpy(place).to(column.device)] for name, column in columns.items()}

    def configure_optimizers(self) -> Any:
        train = self.config.train
        # Lightning does not clip for fused optimisers in mixed precision.
        is_fused = not train.clip and self.device.type in ("cpu", "cuda")
        return configure(self.config.optim, self.network, int(self.trainer.estimated_stepping_batches), is_fused)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        # Lightning would move the plateau schedule after the checkpoint is written: on_train_epoch_end does it before.
        if self.config.optim.schedule != "plateau":
            scheduler.step()

    def on_train_epoch_end(self) -> None:
        if self.config.optim.schedule == "plateau":
            plateau: Any = self.lr_schedulers()
            plateau.step(self.trainer.callback_metrics["val_score"])


class Reader(LensTask):
    """A task that says something of images that it is given: a row of a table for each."""

    def outputs(self, images: np.ndarray, batch_size: int) -> Iterator[Tensor]:
        """What is said of raw images (N, C, H, W), batch by batch, float32 on the CPU, (B, ...).

        Raises:
            DataError: the images have another number of channels.
        """
        raise NotImplementedError

    def columns(self, output: Tensor) -> Columns:
        """The columns of the table, by name, from outputs (B, ...)."""
        raise NotImplementedError

    def retarget(self, prevalence: float) -> None:
        """Have :meth:`columns` speak of images of which another share is positive.

        Raises:
            ConfigError: this kind of task has no such share, or it is out of range.
        """
        raise ConfigError(f"a {self.config.task} run has no prevalence that could be set: leave it out")
