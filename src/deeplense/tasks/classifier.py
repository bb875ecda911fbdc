"""What tasks share that say something of an image: prepare, answer, average over symmetries, calibrate."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deeplense.config import Config
from deeplense.data.module import Batch, LensDataModule, LensDataset
from deeplense.data.schema import LensSet
from deeplense.data.transform import SYMMETRIES, Preprocess, d4
from deeplense.errors import ConfigError, DataError
from deeplense.models import backbone
from deeplense.tasks.base import Columns, Reader

logger = logging.getLogger(__name__)


class Classifier(Reader):
    """A network that tells classes; it defines :meth:`build`, :meth:`loss`, :meth:`score` and :meth:`columns`.

    Attributes:
        network: prepared images -> outputs.
        calibration: used by :meth:`columns`.
        class_weights: how much an image of each class counts in the loss, (K,).
        train_shares: how often the network met each class in training, weights included, (K,).
    """

    prepares_ahead = True
    class_weights: Tensor

    def __init__(
        self,
        config: Config,
        classes: tuple[str, ...],
        in_channels: int,
        preprocess: Preprocess,
        architecture: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(config, classes, in_channels, preprocess, architecture)
        self.train_shares = np.full(len(classes), 1 / len(classes))
        self.register_buffer("class_weights", torch.ones(len(classes)), persistent=False)
        self._learning: list[nn.Parameter] = []

    # What a task defines.

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """The loss of each image, shape (B,)."""
        raise NotImplementedError

    def truth(self, output: Tensor, batch: Batch) -> Columns:
        """What of a validation batch is kept for :meth:`score` and :meth:`calibrate`; first axis B."""
        return {"output": output.float(), "label": batch["label"]}

    def calibrate(self, validated: Columns) -> dict[str, Any]:
        """Numbers in plain JSON values that turn outputs into probabilities, found on all validation images."""
        return {}

    # What they share.

    def know(self, data: LensDataModule) -> None:
        if self.config.data.balanced and self.config.loss.class_weights:
            logger.warning("data.balanced and loss.class_weights both favour rare classes: together they count twice")
        weights = data.class_weights if self.config.loss.class_weights else np.ones(len(self.classes))
        self.know_mixture(data.train_prevalence, weights)

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

    def step(self, batch: Batch, images: Tensor) -> Columns:
        output = self.network(self._layout(self.prepared(images)))
        return {"loss": self.loss(output, batch), **self.truth(output, batch)}

    def finish_on(self, data: LensDataModule) -> None:
        self.calibration = self.calibrate(self.validated_on(data.val, data.batch_size))

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
        """What :meth:`averaged` says of raw images."""
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
