"""New images of lenses, drawn from noise: the diffusion test."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from deeplense.config import Config
from deeplense.data.module import Batch, LensDataModule
from deeplense.data.transform import Preprocess
from deeplense.errors import ConfigError, DataError
from deeplense.models.levels import NoiseLevels
from deeplense.models.pipeline import LensPipeline
from deeplense.models.unet import LensUNet
from deeplense.tasks.base import Columns, LensTask

# Validation draws the same noise in every epoch, so that its losses can be compared.
VALIDATION_SEED = 20240401


class DiffusionTask(LensTask):
    """A network that takes noise off images: of an image at one of the ``levels`` it says the noise, or v."""

    score_name = "minus the validation loss"
    needs_labels = False
    prepares_ahead = True
    network: LensUNet

    def __init__(
        self,
        config: Config,
        classes: tuple[str, ...],
        in_channels: int,
        preprocess: Preprocess,
        architecture: dict[str, Any] | None = None,
    ) -> None:
        _check(config, preprocess)
        diffusion = config.diffusion
        super().__init__(config, classes, in_channels, preprocess, architecture)
        self.levels = NoiseLevels(diffusion.steps, diffusion.schedule, diffusion.objective)

    @classmethod
    def wanted(cls, config: Config) -> tuple[str, ...]:
        return tuple(config.diffusion.given)

    @property
    def known_classes(self) -> tuple[str, ...]:
        """Those that the network is told."""
        return self.classes if self.config.diffusion.conditional else ()

    def build(self, architecture: dict[str, Any] | None) -> nn.Module:
        diffusion, size = self.config.diffusion, self.preprocess.frame[0]
        shape = (diffusion.channels, diffusion.layers, diffusion.unshuffle)
        return LensUNet(self.in_channels, size, *shape, len(self.known_classes), len(diffusion.given))

    def know(self, data: LensDataModule) -> None:
        """Mean and scatter of the parameters that the network is told."""
        if not self.config.diffusion.given:
            return
        values = torch.from_numpy(data.train_params())
        self.network.param_mean.copy_(values.nanmean(dim=0))
        scatter = (values - self.network.param_mean).square().nanmean(dim=0).sqrt()
        if constant := [name for name, s in zip(self.config.diffusion.given, scatter, strict=True) if not s > 0]:
            raise DataError(f"diffusion.given: {constant[0]!r} is the same for all training images: leave it out")
        self.network.param_std.copy_(scatter)

    def step(self, batch: Batch, images: Tensor) -> Columns:
        clean = self.prepared(images)
        time, noise = self._drawn(clean)
        x_t = self._layout(self.levels.noisy(clean, noise, time))
        answer = self.network(x_t, time, *self._told(batch, len(clean))).float()
        return {"loss": self.loss(answer, clean, noise, time)}

    def loss(self, answer: Tensor, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Weighted square error of the answer, plus weight * (1 - SSIM) of what ``ssim.on`` names, shape (B,).

        Args:
            answer: what the network said of the noisy images, (B, C, H, W).
            time: numbers of the levels, (B,).
        """
        levels, ssim = self.levels, self.config.ssim
        error = (answer - levels.target(clean, noise, time)).square().mean(dim=(1, 2, 3))
        loss = levels.weight(time, self.config.diffusion.min_snr) * error
        if ssim.weight == 0:
            return loss
        x_t, is_noise = levels.noisy(clean, noise, time), ssim.on == "noise"
        implied = (levels.implied_noise if is_noise else levels.implied_clean)(answer, x_t, time)
        return loss + ssim.weight * (1 - _ssim(implied, noise if is_noise else clean))

    def score(self, validated: Columns) -> float:
        return -validated["loss"].mean().item()

    def pipeline(self) -> LensPipeline:
        """What draws images with the weights of now, as a diffusers pipeline that needs nothing else of us."""
        prepared = self.preprocess.to_dict()
        stretch = {name: prepared[name] for name in ("stretch", "mean", "std", "softening")}
        size, known = self.preprocess.frame[0], self.known_classes
        given = self.config.diffusion.given
        scale = self.calibration.get("pixel_scale")
        return LensPipeline(
            self.network, self.levels.scheduler, self.in_channels, size, known, given, **stretch, pixel_scale=scale
        )

    def finish_on(self, data: LensDataModule) -> None:
        scale = data.train.pixel_scale
        self.calibration = {"pixel_scale": None if scale is None else scale * self.preprocess.zoom}

    def _drawn(self, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Levels (B,) and noise (B, C, H, W): at random in training, even and always the same in validation."""
        number = len(clean)
        if self.training:
            return torch.randint(len(self.levels), (number,), device=clean.device), torch.randn_like(clean)
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        place = (torch.arange(number) + torch.rand(number, generator=generator)) / number
        time = (place * len(self.levels)).long().to(clean.device)
        return time, torch.randn(clean.shape, generator=generator).to(clean)

    def _told(self, batch: Batch, number: int) -> tuple[Tensor | None, Tensor | None]:
        """Class and parameters that the network is told; in training, nothing of a share of the images.

        Of the others any part of the parameters may be missing, so that any part may be given in sampling.
        """
        label = batch["label"] if self.known_classes else None
        params = batch["params"] if self.config.diffusion.given else None
        if not self.training:
            return label, params
        is_dropped = torch.rand(number).to(self.device) < self.config.diffusion.drop
        if label is not None:
            label = torch.where(is_dropped, len(self.known_classes), label)
        if params is not None:
            is_hidden = (torch.rand(params.shape) < torch.rand(number, 1)).to(self.device) | is_dropped[:, None]
            params = params.masked_fill(is_hidden, torch.nan)
        return label, params


def _ssim(images: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each image, of values between -1 and 1, shape (B,)."""
    with torch.autocast(images.device.type, enabled=False):  # variances are small differences of large sums
        similarity = structural_similarity_index_measure(images, target, data_range=2.0, reduction="none")
    assert isinstance(similarity, Tensor)
    return similarity


def _check(config: Config, preprocess: Preprocess) -> None:
    """Raises ConfigError for settings that a diffusion model cannot have."""
    model, diffusion, (height, width) = config.model, config.diffusion, preprocess.frame
    multiple = diffusion.unshuffle * 2 ** (len(diffusion.channels) - 1)
    if model.name != "unet":
        raise ConfigError(
            f"model.name={model.name}: a diffusion model is model.name=unet, shaped by diffusion.channels"
        )
    if model.clip is not None or model.scale != "range":
        raise ConfigError(f"model.clip={model.clip}, model.scale={model.scale}: images made in [-1, 1] can be brought "
                          "back to their own values only with model.scale=range and without model.clip")  # fmt: skip
    if height != width or height % multiple:
        raise ConfigError(
            f"images of {height}x{width} pixels do not suit the UNet: set model.size to a multiple of {multiple}, such "
            f"as {max(multiple, height // multiple * multiple)}"
        )
    if any(width % 8 for width in diffusion.channels):
        raise ConfigError(f"diffusion.channels={diffusion.channels}: give multiples of 8")
    if config.train.ensemble > 1 or config.train.freeze or config.data.balanced or config.model.average != "none":
        raise ConfigError(
            "train.ensemble, train.freeze, data.balanced and model.average are for tasks that tell classes"
        )
