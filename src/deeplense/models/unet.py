"""The noise predictor of a diffusion model: diffusers' UNet, told the class of an image and what else is known of it.

This file needs torch and diffusers alone: exported models carry a copy of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

# The time of a noise level and what is known of the image are added up in a vector of at least this length.
EMBEDDING = 256


class LensUNet(ModelMixin, ConfigMixin):
    """What a noisy image says of its noise, given the time, and as much of class and parameters as is known.

    Args:
        channels: of an image.
        size: pixels along each side of an image, a multiple of ``unshuffle * 2 ** (len(widths) - 1)``.
        widths: channels of the UNet's levels, multiples of 8; each level has half of the resolution of the one before.
        layers: residual blocks a level.
        unshuffle: this many pixels along x and y become channels first, undone at the end; noise keeps its law.
        num_classes: 0 where the classes are not told.
        num_params: further numbers that may be told, standardised by ``param_mean`` and ``param_std``, (P,).
    """

    param_mean: Tensor
    param_std: Tensor

    @register_to_config
    def __init__(
        self,
        channels: int = 1,
        size: int = 64,
        widths: Sequence[int] = (32, 64, 96, 128),
        layers: int = 1,
        unshuffle: int = 1,
        num_classes: int = 0,
        num_params: int = 0,
    ) -> None:
        super().__init__()
        self.factor, self.num_classes, self.num_params = unshuffle, num_classes, num_params
        is_told = num_classes + num_params > 0
        dim = max(EMBEDDING, 4 * widths[0])
        self.unet = UNet2DModel(
            sample_size=size // unshuffle,
            in_channels=channels * unshuffle**2,
            out_channels=channels * unshuffle**2,
            time_embedding_dim=dim,
            down_block_types=("DownBlock2D",) * len(widths),
            up_block_types=("UpBlock2D",) * len(widths),
            block_out_channels=tuple(widths),
            layers_per_block=layers,
            norm_num_groups=math.gcd(8, *widths),
            attention_head_dim=None,  # one head, in the middle block alone
            class_embed_type="identity" if is_told else None,
        )
        # One class more stands for "not told".
        self.label = nn.Embedding(num_classes + 1, dim) if num_classes else None
        # Of each parameter its value and whether it is told.
        self.params = (
            nn.Sequential(nn.Linear(2 * num_params, dim), nn.SiLU(), nn.Linear(dim, dim)) if num_params else None
        )
        self.register_buffer("param_mean", torch.zeros(num_params))
        self.register_buffer("param_std", torch.ones(num_params))

    def forward(self, noisy: Tensor, time: Tensor, label: Tensor | None = None, params: Tensor | None = None) -> Tensor:
        """Noisy images (B, C, H, W) -> what the model predicts of each pixel, (B, C, H, W).

        Args:
            time: numbers of the noise levels, int64, (B,) or ().
            label: class numbers, int64, (B,); ``num_classes`` or None where the class is not told.
            params: values in their own units, (B, P); NaN, or None, where one is not told.
        """
        told = self._told(len(noisy), label, params)
        x = F.pixel_unshuffle(noisy, self.factor) if self.factor > 1 else noisy
        x = self.unet(x, time, class_labels=told).sample
        return F.pixel_shuffle(x, self.factor) if self.factor > 1 else x

    def _told(self, number: int, label: Tensor | None, params: Tensor | None) -> Tensor | None:
        """The sum of the embeddings of all that is told, (B, D)."""
        parts = []
        if self.label is not None:
            nothing = torch.full((number,), self.num_classes, device=self.device)
            parts.append(self.label(nothing if label is None else label))
        if self.params is not None:
            given = params if params is not None else self.param_mean.new_full((number, self.num_params), torch.nan)
            is_known = given.isfinite()
            values = torch.where(is_known, (given - self.param_mean) / self.param_std, 0.0)
            parts.append(self.params(torch.cat([values, is_known.to(values)], dim=1)))
        return torch.stack(parts).sum(dim=0) if parts else None
