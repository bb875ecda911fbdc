"""What tasks share that say something of an image: prepare, answer, average over symmetries, calibrate."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
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
        average: a name of SYMMETRIES, over which predictions are averaged; ``model.average`` at first.
        engine: what says in prediction what :meth:`averaged` says, only faster; None for that itself.
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
        self.average: str = config.model.average
        self.engine: Callable[[Tensor], Tensor] | None = None
        self._learning: list[nn.Parameter] = []
        self._resized: tuple[int, int] | None = None

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
        dataset, parts, step = LensDataset(lens_set), [], self.step_of(batch_size)
        for start in range(0, len(dataset), step):
            batch = dataset.__getitems__(range(start, min(start + step, len(dataset))))
            batch = {name: column.to(self.device) for name, column in batch.items()}
            output = self.averaged(batch["image"])
            parts.append({"loss": self.loss(output, batch), **self.truth(output, batch)})
        return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}

    @torch.inference_mode()
    def outputs(self, images: np.ndarray, batch_size: int) -> Iterator[Tensor]:
        """What :meth:`averaged`, or the engine, says of raw images; a turned image counts as one of the batch."""
        self._check(images)
        self.eval()
        answer, step = self.engine or self.averaged, self.step_of(batch_size)
        for start in range(0, len(images), step):
            yield answer(torch.from_numpy(np.array(images[start : start + step])).to(self.device)).cpu()

    def step_of(self, batch_size: int) -> int:
        """How many images the network sees ``batch_size`` versions of."""
        return max(batch_size // len(SYMMETRIES[self.average]), 1)

    def _check(self, images: np.ndarray) -> None:
        channels, height, width = images.shape[1:]
        if channels != self.in_channels:
            raise DataError(f"the images have {channels} channels; this network was trained on {self.in_channels}")
        wanted = self.preprocess.input_size
        if (height, width) not in (wanted, self._resized):  # once, not with every part of a set
            self._resized = height, width
            logger.warning("images of %dx%d pixels are resized to the %dx%d of training", height, width, *wanted)

    def averaged(self, images: Tensor) -> Tensor:
        """Raw images (B, C, H, W) -> float32 outputs, the mean over the symmetries that :attr:`average` names."""
        return self.mean_answer(self.preprocess(images))

    def mean_answer(self, prepared: Tensor) -> Tensor:
        """What :meth:`averaged` says of images that are prepared already."""
        elements = SYMMETRIES[self.average]
        # All in one batch; a quarter turn of images that are not square gives a batch of another shape.
        is_square = prepared.shape[-2] == prepared.shape[-1]
        batches = [elements] if is_square else [[e for e in elements if e & 1 == odd] for odd in (0, 1)]
        answers = [self._answers(prepared, batch) for batch in batches if batch]
        return torch.cat(answers).mean(dim=0)

    def _answers(self, prepared: Tensor, elements: Sequence[int]) -> Tensor:
        """What the network says of prepared images, turned in each of these ways, (len(elements), B, ...)."""
        turned = torch.cat([d4(prepared, element) for element in elements])
        return self.network(self._layout(turned)).float().unflatten(0, (len(elements), -1))
