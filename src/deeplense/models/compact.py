"""A small residual network for CPUs: about 0.4 million parameters at the default width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """relu(x + conv(relu(conv(x)))), each convolution followed by batch normalisation.

    References:
        Deep Residual Learning for Image Recognition, arXiv:1512.03385, figure 2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        conv, norm = _conv_norm(out_channels, out_channels, 3, 1)
        nn.init.zeros_(norm.weight)  # each block starts as the identity
        self.body = nn.Sequential(*_conv_norm(in_channels, out_channels, 3, stride), nn.ReLU(), conv, norm)
        same = stride == 1 and in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Sequential(*_conv_norm(in_channels, out_channels, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/stride, W/stride)."""
        return torch.relu(self.skip(x) + self.body(x))


class CompactNet(nn.Module):
    """A stride-2 stem, four stages of residual blocks, the mean over the image, a linear layer.

    Args:
        width: channels of the first stage; the others have 2, 3 and 4 times as many.
        depths: residual blocks of each stage.
    """

    def __init__(
        self, in_channels: int, num_outputs: int, width: int = 24, depths: Sequence[int] = (1, 1, 2, 1)
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_norm(in_channels, width, 5, 2), nn.ReLU())
        blocks, channels = [], width
        for stage, depth in enumerate(depths):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(ResidualBlock(channels, width * (stage + 1), stride))
                channels = width * (stage + 1)
        self.stages = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, num_outputs)."""
        return self.head(self.stages(self.stem(x)).mean(dim=(2, 3)))


def _conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(out_channels)
