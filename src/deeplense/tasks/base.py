"""What all tasks share: prepare, forward, one step for training and validation, score, optimise."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from deeplense.config import Config
from deeplense.data.module import Batch, LensDataset
from deeplense.data.schema import LensSet
from deeplense.data.transform import SYMMETRIES, Augment, Preprocess, d4
from deeplense.errors import ConfigError, DataError
from deeplense.models import backbone
from deeplense.models.ensemble import Ensemble
from deeplense.tasks.schedule import configure

logger = logging.getLogger(__name__)

Columns = dict[str, Tensor]


class LensTask(L.LightningModule):
    """A network with its purpose. A task defines :meth:`build`, :meth:`loss`, :meth:`score` and :meth:`columns`.

    Attributes:
        network: prepared images -> outputs; the only part that has weights.
        preprocess: what happens to raw images before it, in training and in prediction alike.
        calibration: numbers found on the validation images after training, used by :meth:`columns`.
        class_weights: how much an image of each class counts in the loss, (K,).
        train_shares: how often the network met each class in training, weights included, (K,).
    """

    class_weights: Tensor

    score_name = "score"  # what the validation score is, for people; larger is better

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
        self.train_shares = np.full(len(classes), 1 / len(classes))
        self.register_buffer("class_weights", torch.ones(len(classes)), persistent=False)
        self._validated: list[Columns] = []
        self._learning: list[nn.Parameter] = []

    # What a task defines.

    def build(self, architecture: dict[str, Any] | None) -> nn.Module:
        """The network, or a member of an ensemble; ``architecture`` is what a stored run knows of it."""
        raise NotImplementedError

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """The loss of each image, shape (B,)."""
        raise NotImplementedError

    def truth(self, output: Tensor, batch: Batch) -> Columns:
        """What of a validation batch is kept for :meth:`score` and :meth:`calibrate`; first axis B."""
        return {"output": output.float(), "label": batch["label"]}

    def score(self, validated: Columns) -> float:
        """How good the outputs on all validation images are; larger is better; it selects the checkpoint."""
        raise NotImplementedError

    def calibrate(self, validated: Columns) -> dict[str, Any]:
        """Numbers in plain JSON values that turn outputs into probabilities, found on all validation images."""
        return {}

    def columns(self, output: Tensor) -> Columns:
        """The columns of the table of predictions, by name, from outputs (B, ...)."""
        raise NotImplementedError

    def retarget(self, prevalence: float) -> None:
        """Have :meth:`columns` speak of images of which another share is positive.

        Raises:
            ConfigError: this kind of task has no such share, or it is out of range.
        """
        raise ConfigError(f"a {self.config.task} run has no prevalence that could be set: leave it out")

    # What they share.

    def know_mixture(self, drawn: np.ndarray, weights: np.ndarray) -> None:
        """Say how often training draws each class, and how much its images count in the loss, (K,) each."""
        self.train_shares = drawn * weights / (drawn * weights).sum()
        self.class_weights = torch.as_tensor(weights, dtype=torch.float32)

    def weigh(self, losses: Tensor, log_p: Tensor, label: Tensor) -> Tensor:
        """Losses (B,) times their class weights; in training the focal factor lowers those of images that are right.

        Args:
            log_p: log-probability that the network gives to the truth, (B,).
            label: class numbers, (B,).

        References:
            Focal Loss for Dense Object Detection, arXiv:1708.02002, eq. 4 and 5.
        """
        if self.training and self.config.loss.focal:
            # Not quite 0, where an exponent below 1 has no gradient.
            losses = losses * (-torch.expm1(log_p)).clamp(min=1e-12) ** self.config.loss.focal
        return losses * self.class_weights[label]

    def forward(self, images: Tensor) -> Tensor:
        """Raw images (B, C, H, W) -> outputs of the network."""
        return self.network(self._layout(self.preprocess(images)))

    def on_fit_start(self) -> None:
        self._learning = [p for p in self.network.parameters() if p.requires_grad]

    def on_train_epoch_start(self) -> None:
        if self.config.train.freeze:
            self._set_frozen(self.current_epoch < self.config.train.freeze)

    def _set_frozen(self, is_frozen: bool) -> None:
        """Let only the last layer learn, all else as in prediction, so that batch statistics stay; or all of it."""
        last = backbone.last_layer(self.network)
        if last is None:
            raise ConfigError(f"model.name={self.config.model.name} ends in no linear layer: train.freeze=0 is needed")
        for parameter in self._learning:
            parameter.requires_grad_(not is_frozen)
        self.network.train(not is_frozen)
        self.network.get_submodule(last).requires_grad_(True).train()

    def _layout(self, images: Tensor) -> Tensor:
        last = self.config.train.channels_last
        return images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def _shared_step(self, batch: Batch, images: Tensor) -> tuple[Tensor, Tensor]:
        output = self(images)
        return output, self.loss(output, batch)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        loss = self._shared_step(batch, self.augment(batch["image"]))[1].mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["image"]), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        output, loss = self._shared_step(batch, batch["image"])
        kept = {"loss": loss, "index": batch["index"], **self.truth(output, batch)}
        self._validated.append({name: column.detach() for name, column in kept.items()})

    def on_validation_epoch_end(self) -> None:
        validated = self._gathered()
        self.log("val_loss", validated["loss"].mean())
        self.log("val_score", self.score(validated))

    def _gathered(self) -> Columns:
        """What all devices kept of the epoch, every validation image once, in the order of the set."""
        kept, self._validated = self._validated, []
        columns: Columns = {name: torch.cat([part[name] for part in kept]) for name in kept[0]}
        if self.trainer.world_size > 1:
            columns = {name: torch.as_tensor(self.all_gather(c)).flatten(0, 1) for name, c in columns.items()}
        place = np.unique(columns["index"].cpu().numpy(), return_index=True)[1]
        return {name: column[torch.from_numpy(place).to(column.device)] for name, column in columns.items()}

    @torch.inference_mode()
    def validated_on(self, lens_set: LensSet, batch_size: int) -> Columns:
        """:meth:`truth` for all images of a set, on the CPU: what :meth:`calibrate` wants; and their ``loss``."""
        self.eval()
        dataset, parts = LensDataset(lens_set), []
        for start in range(0, len(dataset), batch_size):
            batch = dataset.__getitems__(range(start, min(start + batch_size, len(dataset))))
            batch = {name: column.to(self.device) for name, column in batch.items()}
            output = self.averaged(batch["image"])
            parts.append({"loss": self.loss(output, batch), **self.truth(output, batch)})
        return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}

    @torch.inference_mode()
    def outputs(self, images: np.ndarray, batch_size: int) -> Iterator[Tensor]:
        """What :meth:`averaged` says of raw images (N, C, H, W), batch by batch, float32 on the CPU.

        Raises:
            DataError: the images have another number of channels.
        """
        self._check(images)
        self.eval()
        for start in range(0, len(images), batch_size):
            yield self.averaged(torch.from_numpy(np.array(images[start : start + batch_size])).to(self.device)).cpu()

    def _check(self, images: np.ndarray) -> None:
        channels, height, width = images.shape[1:]
        if channels != self.in_channels:
            raise DataError(f"the images have {channels} channels; this network was trained on {self.in_channels}")
        wanted = self.preprocess.input_size
        if (height, width) != wanted:
            logger.warning("images of %dx%d pixels are resized to the %dx%d of training", height, width, *wanted)

    def averaged(self, images: Tensor) -> Tensor:
        """Raw images (B, C, H, W) -> float32 outputs, the mean over the symmetries that ``model.average`` names."""
        prepared = self.preprocess(images)
        turned = [self.network(self._layout(d4(prepared, e))).float() for e in SYMMETRIES[self.config.model.average]]
        return torch.stack(turned).mean(dim=0)

    def configure_optimizers(self) -> Any:
        return configure(self.config.optim, self.network, int(self.trainer.estimated_stepping_batches))

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        # Lightning would move the plateau schedule after the checkpoint is written: on_train_epoch_end does it before.
        if self.config.optim.schedule != "plateau":
            scheduler.step()

    def on_train_epoch_end(self) -> None:
        if self.config.optim.schedule == "plateau":
            plateau: Any = self.lr_schedulers()
            plateau.step(self.trainer.callback_metrics["val_score"])
