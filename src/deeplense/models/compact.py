"""A small residual network for CPUs: about 0.45 million parameters at the default width."""

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
        self.body = nn.Sequential(
            *_conv_norm(in_channels, out_channels, 3, stride), nn.ReLU(), *_conv_norm(out_channels, out_channels, 3, 1)
        )
        same = stride == 1 and in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Sequential(*_conv_norm(in_channels, out_channels, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/stride, W/stride)."""
        return torch.relu(self.skip(x) + self.body(x))


class CompactNet(nn.Module):
    """A stem that quarters the image, three stages of residual blocks, the mean over the image, a linear layer.

    Lensing images are oversampled by their PSF, so that the fine grid holds little which the stem's two strided
    convolutions would lose; few channels on a fine grid are what a CPU is slowest at.

    Args:
        width: channels of the first stage; the stem has a third, the later stages twice and 8/3 times as many.
        depths: residual blocks of each stage.
    """

    def __init__(self, in_channels: int, num_outputs: int, width: int = 48, depths: Sequence[int] = (1, 1, 1)) -> None:
        super().__init__()
        thin = max(width // 3, 1)
        self.stem = nn.Sequential(
            *_conv_norm(in_channels, thin, 5, 2), nn.ReLU(), *_conv_norm(thin, width, 3, 2), nn.ReLU()
        )
        blocks, channels = [], width
        for stage, (wide, depth) in enumerate(zip((width, 2 * width, 8 * width // 3), depths, strict=True)):
            for block in range(depth):
                blocks.append(ResidualBlock(channels, wide, 2 if stage > 0 and block == 0 else 1))
                channels = wide
        self.stages = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, num_outputs)."""
        return self.head(self.stages(self.stem(x)).mean(dim=(2, 3)))


def _conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(out_channels)
