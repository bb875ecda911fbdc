"""The small network of the lens finding test: two convolutional layers, two dense ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GRID = 16  # what two poolings leave of the 64 pixels that the network was drawn for


class FinderCNN(nn.Module):
    """Convolution, ReLU and max pooling twice, then dense layers; 2.1 million parameters, most in the first of these.

    Images of any size: what the poolings leave is averaged, or repeated, on a grid of 16x16, which leaves those of 64
    pixels as they are. The sigmoid that makes a probability of the output belongs to the loss and the task.
    """

    def __init__(self, in_channels: int, num_outputs: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.grid = nn.AdaptiveAvgPool2d(GRID)
        self.dense = nn.Linear(64 * GRID**2, 128)
        self.head = nn.Linear(128, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, num_outputs)."""
        return self.head(torch.relu(self.dense(self.grid(self.features(x)).flatten(1))))
