"""One backbone with two answers: the class of an image, and a deflection."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deeplense.config import ModelConfig
from deeplense.errors import ModelError
from deeplense.models import backbone

HIDDEN = 512
DROPOUT = 0.5  # in the classification head


class TwoHeads(nn.Module):
    """The pooled features of a backbone, read by a classification head and by a physics head.

    Attributes:
        backbone: a network of :func:`backbone.build` without its last layer, (B, C, H, W) -> (B, F).
        physics: F -> 512 -> 2, ReLU between, tanh at the end.
        classify: F -> 512 -> K, ReLU and dropout between; it comes last, so that its last layer is the network's.
        architecture: of a transformers backbone, what builds it again without a hub.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.architecture: dict[str, Any] | None = getattr(network, "architecture", None)
        features = _take_last_layer(network)
        self.backbone = network
        self.physics = nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2), nn.Tanh())
        self.classify = nn.Sequential(
            nn.Linear(features, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> K logits, then x and y of a vector in [-1, 1], shape (B, K + 2)."""
        features = self.backbone(x)
        return torch.cat([self.classify(features), self.physics(features)], dim=1)


def build(
    model: ModelConfig, in_channels: int, num_classes: int, architecture: dict[str, Any] | None = None
) -> TwoHeads:
    """Two heads on the backbone that ``model`` names.

    Args:
        architecture: what a run has stored of a transformers network; then nothing is looked up.

    Raises:
        ModelError: no such network, or its weights cannot be had.
    """
    return TwoHeads(backbone.build(model, in_channels, num_classes, architecture), num_classes)


def _take_last_layer(network: nn.Module) -> int:
    """Take the linear layer that gives the outputs off a network; returns how many features it was given."""
    name = backbone.last_layer(network)
    if name is None:
        raise ModelError(f"{type(network).__name__} ends in no linear layer: two heads find no features to read")
    features = network.get_submodule(name).in_features
    network.set_submodule(name, nn.Identity())
    assert isinstance(features, int)
    return features
