"""Which images show a lens: the lens finding test."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_average_precision

from deeplense.data.module import Batch
from deeplense.errors import ConfigError, DataError
from deeplense.evaluate.calibrate import binary_log_odds, fit_binary
from deeplense.models import backbone
from deeplense.tasks.base import Columns
from deeplense.tasks.classifier import Classifier

logger = logging.getLogger(__name__)

LENS_NAMES = {"lens", "lenses"}


class FinderTask(Classifier):
    """Lenses (label 1) among what is none, learnt by binary cross-entropy; outputs are one logit an image, (B, 1).

    The checkpoint is selected by the average precision at the validation images' own prevalence: the area under the ROC
    curve weighs mistakes that no survey has time to look at, and saturates near one.
    """

    score_name = "average precision"
    prevalence: float | None = None  # share of lenses that predictions are for; that of the validation images if None

    def build(self, architecture: dict[str, Any] | None) -> nn.Module:
        if len(self.classes) != 2:
            raise DataError(
                f"a finder tells two classes apart, and these are {len(self.classes)}: {', '.join(self.classes)}; give "
                "non-lenses and lenses, or train substructure"
            )
        if self.classes[0].lower() in LENS_NAMES:
            raise DataError(f"the lenses come before {self.classes[1]!r}: call that class 'nonlens', the other 'lens'")
        return backbone.build(self.config.model, self.in_channels, 1, architecture)

    def know_mixture(self, drawn: np.ndarray, weights: np.ndarray) -> None:
        super().know_mixture(drawn, weights)
        if self.classes[1].lower() not in {*LENS_NAMES, "1"}:
            logger.warning("the images of class %r count as lenses, those of %r do not", *self.classes[::-1])

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        smoothing = self.config.loss.label_smoothing if self.training else 0.0
        logit, label = output[:, 0].float(), batch["label"]
        target = label * (1 - smoothing) + smoothing / 2
        losses = F.binary_cross_entropy_with_logits(logit, target.float(), reduction="none")
        return self.weigh(losses, F.logsigmoid(torch.where(label == 1, logit, -logit)), label)

    def score(self, validated: Columns) -> float:
        """Average precision: the mean, over the lenses, of the purity down to each of them; 0 where there is none."""
        if not validated["label"].any():
            return 0.0
        # Ranks in place of logits, of which torchmetrics would take a sigmoid, equal to one for all sure lenses.
        rank = torch.unique(validated["output"][:, 0], return_inverse=True)[1]
        return binary_average_precision(rank.double() / max(len(rank), 1), validated["label"]).item()

    def calibrate(self, validated: Columns) -> dict[str, Any]:
        """What undoes the mixture of training, and the most likely temperature and bias at that of validation."""
        logits, label = validated["output"][:, 0].numpy(), validated["label"].numpy()
        return fit_binary(logits, label, float(self.train_shares[1]))

    def retarget(self, prevalence: float) -> None:
        """Have predictions speak of images of which this share are lenses.

        Raises:
            ConfigError: it does not lie between 0 and 1.
        """
        if not 0 < prevalence < 1:
            raise ConfigError(f"prevalence={prevalence:g}: give the share of lenses, above 0 and below 1: 0.001, say")
        self.prevalence = prevalence

    def log_odds(self, output: Tensor, prevalence: float | None = None) -> Tensor:
        """Calibrated log-odds of a lens, (N,), from outputs (N, 1).

        Args:
            prevalence: share of lenses among the images; as set by :meth:`retarget`, or that of validation, if None.
        """
        return binary_log_odds(output[:, 0], self.calibration, self.prevalence if prevalence is None else prevalence)

    def columns(self, output: Tensor) -> Columns:
        """Probability of a lens; its log-odds ``score``, which tell sure from surer; the more likely class."""
        log_odds = self.log_odds(output)
        return {
            f"p_{self.classes[1]}": log_odds.sigmoid(),
            "score": log_odds,
            "label_pred": (log_odds > 0).long(),
        }
