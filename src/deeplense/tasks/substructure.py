"""Which kind of dark-matter substructure a lens has: the Common Test."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_auroc

from deeplense.data.module import Batch
from deeplense.evaluate.calibrate import fit_temperature
from deeplense.models import backbone
from deeplense.tasks.base import Columns
from deeplense.tasks.classifier import Classifier


class SubstructureTask(Classifier):
    """Classes that exclude one another, learnt by cross-entropy; outputs are logits (B, K)."""

    score_name = "macro AUC"

    def build(self, architecture: dict[str, Any] | None) -> nn.Module:
        return backbone.build(self.config.model, self.in_channels, len(self.classes), architecture)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        smoothing = self.config.loss.label_smoothing if self.training else 0.0
        label = batch["label"]
        losses = F.cross_entropy(output.float(), label, label_smoothing=smoothing, reduction="none")
        log_p = output.float().log_softmax(dim=1).gather(1, label[:, None])[:, 0]
        return self.weigh(losses, log_p, label)

    def score(self, validated: Columns) -> float:
        """One-vs-rest AUC, the mean over classes."""
        probs = validated["output"].softmax(dim=1)
        return multiclass_auroc(probs, validated["label"], num_classes=len(self.classes), average="macro").item()

    def calibrate(self, validated: Columns) -> dict[str, Any]:
        """The temperature that makes the probabilities of the validation images most likely."""
        return {"temperature": fit_temperature(validated["output"].numpy(), validated["label"].numpy())}

    def columns(self, output: Tensor) -> Columns:
        """Calibrated probabilities p_<class> and the number of the most likely class."""
        probs = torch.softmax(output / self.calibration.get("temperature", 1.0), dim=1)
        named = {f"p_{name}": probs[:, i] for i, name in enumerate(self.classes)}
        return {**named, "label_pred": probs.argmax(dim=1)}
