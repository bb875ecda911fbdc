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
from deeplense.models.pipeline import LensPipeline, noise_levels
from deeplense.models.unet import LensUNet
from deeplense.tasks.base import Columns, LensTask

# Validation draws the same noise in every epoch, so that its losses can be compared.
VALIDATION_SEED = 20240401


class DiffusionTask(LensTask):
    """A network that takes noise off images; outputs are the noise, or the velocity v, of each pixel, (B, C, H, W).

    With signal a and noise s of a level, a^2 + s^2 = 1: x_t = a x_0 + s noise, v = a noise - s x_0.

    Attributes:
        levels: the noise of training, as diffusers describes it.
        share: of signal in the power of each level, a^2, (T,).

    References:
        Denoising Diffusion Probabilistic Models, arXiv:2006.11239; v: arXiv:2202.00512, section 4; min-SNR weights:
        arXiv:2303.09556, section 3.4.
    """

    score_name = "minus the validation loss"
    needs_labels = False
    network: LensUNet
    share: Tensor

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
        self.levels = noise_levels(diffusion.steps, diffusion.schedule, diffusion.objective)
        self.register_buffer("share", self.levels.alphas_cumprod, persistent=False)

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
        clean = self.preprocess(images)
        time, noise = self._drawn(clean)
        told = self._told(batch, len(clean))
        output = self.network(self.noisy(clean, noise, time), time, *told).float()
        return {"loss": self.loss(output, clean, noise, time)}

    def noisy(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """x_t of clean images and noise (B, C, H, W) at levels (B,)."""
        a, s = self._signal_and_noise(time)
        return self._layout(a * clean + s * noise)

    def loss(self, output: Tensor, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Weighted square error of noise or v, plus weight * (1 - SSIM), shape (B,).

        Args:
            output: what the network said of :meth:`noisy`, (B, C, H, W).
            time: numbers of the levels, (B,).
        """
        a, s = self._signal_and_noise(time)
        is_v = self.config.diffusion.objective == "v"
        target = a * noise - s * clean if is_v else noise
        loss = self._weight(time) * (output - target).square().mean(dim=(1, 2, 3))
        if self.config.ssim.weight == 0:
            return loss
        if self.config.ssim.on == "noise":
            x_t = a * clean + s * noise
            pair = (s * x_t + a * output if is_v else output), noise
        else:
            pair = self.implied(output, a * clean + s * noise, time), clean
        return loss + self.config.ssim.weight * (1 - _ssim(*pair))

    def implied(self, output: Tensor, x_t: Tensor, time: Tensor) -> Tensor:
        """The clean image that an output implies, cut off at -1 and 1 as in sampling, (B, C, H, W)."""
        a, s = self._signal_and_noise(time)
        clean = a * x_t - s * output if self.config.diffusion.objective == "v" else (x_t - s * output) / a
        return clean.clamp(-1, 1)

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
            self.network, self.levels, self.in_channels, size, known, given, **stretch, pixel_scale=scale
        )

    def finish_on(self, data: LensDataModule) -> None:
        scale = data.train.pixel_scale
        self.calibration = {"pixel_scale": None if scale is None else scale * self.preprocess.zoom}

    def _drawn(self, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Levels (B,) and noise (B, C, H, W): at random in training, even and always the same in validation."""
        number = len(clean)
        if self.training:
            return torch.randint(len(self.share), (number,), device=clean.device), torch.randn_like(clean)
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        place = (torch.arange(number) + torch.rand(number, generator=generator)) / number
        time = (place * len(self.share)).long().to(clean.device)
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

    def _signal_and_noise(self, time: Tensor) -> tuple[Tensor, Tensor]:
        share = self.share[time][:, None, None, None]
        return share.sqrt(), (1 - share).sqrt()

    def _weight(self, time: Tensor) -> Tensor:
        """min(SNR, gamma), in the error of the clean image, as a factor on that of noise or v; (B,)."""
        most = self.config.diffusion.min_snr
        if not most:
            return torch.ones_like(self.share[time])
        snr = self.share[time] / (1 - self.share[time])
        return snr.clamp(max=most) / (snr + 1 if self.config.diffusion.objective == "v" else snr)


def _ssim(images: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each image, of values between -1 and 1, shape (B,)."""
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
