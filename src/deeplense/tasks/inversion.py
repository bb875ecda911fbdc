"""Measuring lenses: parameters with their covariance, by a network, and by a fit that starts from what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplense.config import Config
from deeplense.data.module import Batch, LensDataModule, param_values
from deeplense.data.transform import chunks, fill_missing
from deeplense.errors import ConfigError, DataError
from deeplense.evaluate.calibrate import fit_intervals, interval_factors
from deeplense.lensing.invert import Inversion, evaluate, invert
from deeplense.lensing.noise import corners
from deeplense.lensing.smooth import NAMES, Camera, SmoothLens
from deeplense.models import backbone
from deeplense.models.inverter import Inverter, num_outputs
from deeplense.simulate.generate import can_compile
from deeplense.tasks.base import Columns, Reader
from deeplense.tasks.telescope import Telescope, telescope_of

# What a truth table says of a lens; flux and sky are solved for.
PARAMS = NAMES[:-2]
# Pixels of the images that the forward model draws in training: a coarse one costs less than the network.
COARSE = 50
# So many images are worth the time that compiling takes.
MANY = 256


class InversionTask(Reader):
    """A network that says a Gaussian over the parameters of a smooth lens, trained on the truth of simulated images.

    Its loss is minus the log-likelihood of the truth plus ``physics.forward`` times ln(1 + chi^2 / N), where chi^2
    compares the image with the one that the mean parameters predict through lens equation, PSF and noise.

    Attributes:
        telescope: of the images to measure, where it is another one than in training.
        known: parameters that are the same in all images to measure, and known: ``{"psf_fwhm": 0.1}``.
        has_lens: False fits without deflection, alpha = 0: a control.
    """

    score_name = "log-likelihood of the true parameters"
    needs_labels = False
    half_precision = False  # lens equation and PSF take part in the loss
    network: Inverter
    telescope: Telescope | None = None
    known: Mapping[str, float] = MappingProxyType({})
    has_lens = True
    _compiles = False

    @classmethod
    def wanted(cls, config: Config) -> tuple[str, ...]:
        return PARAMS

    def build(self, architecture: dict[str, Any] | None) -> nn.Module:
        _check(self.config, self.in_channels)
        trunk = backbone.build(self.config.model, self.in_channels, num_outputs(len(PARAMS)), architecture)
        return Inverter(trunk, len(PARAMS))

    def know(self, data: LensDataModule) -> None:
        """Mean and scatter of the parameters, and the telescope."""
        values = torch.from_numpy(data.train_params()).double()
        if not values.isfinite().all():
            raise DataError("some training images come without parameters of a lens: leave them out")
        mean, std = values.mean(0), values.std(0)
        self.network.mean.copy_(mean)
        self.network.std.copy_(torch.where(std > 1e-5 * (1 + mean.abs()), std, 0.0))
        self.calibration = {"telescope": telescope_of(data.train, self.config.physics).to_dict()}

    def step(self, batch: Batch, images: Tensor) -> Columns:
        posterior = self.network.posterior(self.network(self._layout(self.preprocess(images))))
        truth = self.network.standardised(batch["params"])
        loss = -posterior.log_prob(truth)
        columns = {"likelihood": -loss}
        if self.config.physics.forward:
            chi2 = self.misfit(self.network.physical(posterior.mean), images)
            columns["chi2"], loss = chi2, loss + self.config.physics.forward * torch.log1p(chi2)
        return {"loss": loss, **columns}

    def score(self, validated: Columns) -> float:
        return validated["likelihood"].mean().item()

    def finish_on(self, data: LensDataModule) -> None:
        """How large errors really are: the validation images are measured and compared with their truth."""
        found = self.measure(data.val.images, self.config.physics.steps)
        names = self.lens((1, 1)).names[:-2]
        truth = torch.from_numpy(param_values(data.val, names))
        error = (found.parameters[:, :-2] - truth).abs() / _scatter(found)
        self.calibration["intervals"] = fit_intervals(found.chi2.numpy(), error.numpy())

    # What a trained network is for.

    def outputs(self, images: np.ndarray, batch_size: int) -> Iterator[Tensor]:
        """What :meth:`told` makes of a measurement with ``physics.steps``."""
        for start in range(0, len(images), batch_size):
            yield self.told(self.measure(images[start : start + batch_size], self.config.physics.steps))

    def columns(self, output: Tensor) -> Columns:
        """A column for each parameter, with half of its 68 % (``_std``) and 95 % (``_95``) interval, and ``chi2``."""
        parts = output[:, :-1].chunk(3, 1)
        named = {f"{n}{end}": p[:, i] for p, end in zip(parts, ("", "_std", "_95"), strict=True) for i, n in _PLACES}
        return named | {"chi2": output[:, -1]}

    def told(self, found: Inversion) -> Tensor:
        """Parameters, half of their 68 % and of their 95 % intervals, and chi^2 / N: (B, 3 P + 1).

        The covariance of a fit knows noise, not what a smooth lens cannot describe: the intervals are wider by what
        errors of validation images with a like chi^2 were. A parameter that never varied in training has one of 0.
        """
        values = self.network.mean.cpu().repeat(len(found.chi2), 1)
        halves = values.new_zeros(2, *values.shape)
        for name, value in self.known.items():
            values[:, PARAMS.index(name)] = value
        places = [PARAMS.index(name) for name in self.lens((1, 1)).names[:-2]]
        values[:, places] = found.parameters[:, :-2]
        factors = torch.from_numpy(interval_factors(found.chi2.numpy(), self.calibration["intervals"])).to(values)
        # There is a factor for each parameter that varied in training, whatever is known of these images.
        varied = self.network.varying.tolist()
        halves[:, :, places] = _scatter(found) * factors[:, :, [varied.index(place) for place in places]]
        return torch.cat([values, *halves, found.chi2[:, None]], 1)

    def guess(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Raw images (B, C, H, W) -> mean (B, P) and covariance (B, P, P) of PARAMS, in their own units."""
        posterior = self.network.posterior(self.network(self._layout(self.preprocess(images))))
        scale, keep = self.network.std[self.network.varying], self.network.varying
        covariance = torch.zeros(len(images), len(PARAMS), len(PARAMS), device=images.device)
        covariance[:, keep[:, None], keep] = posterior.covariance_matrix * scale[:, None] * scale
        return self.network.physical(posterior.mean), covariance

    @torch.inference_mode()
    def measure(self, images: np.ndarray, steps: int, on_chunk: Callable[[int], object] = int) -> Inversion:
        """Raw images (N, 1, H, W) -> what a smooth lens says of their centre crop, on the CPU; 0 steps: the network.

        With ``data.compile`` many images are fitted by compiled code, where that works.
        """
        self.eval()
        self._compiles = self._compiles or (self.config.data.compile and len(images) >= MANY and can_compile())
        parts = [self._measure(part.to(self.device), steps, on_chunk) for part in chunks(images)]
        return Inversion(*(torch.cat([getattr(p, n).cpu() for p in parts]) for n in Inversion.__dataclass_fields__))

    def lens(self, shape: tuple[int, int]) -> SmoothLens:
        """The forward model of images of this many pixels: what never varied in training has its only value."""
        only = {n: m for n, m, s in zip(PARAMS, self.network.mean.tolist(), self.network.std, strict=True) if s == 0}
        scope = self.scope
        camera = Camera(shape, scope.pixel_scale, scope.supersampling, scope.psf_radius)
        return SmoothLens(camera, only | dict(self.known), self.has_lens)

    def framed(self, images: Tensor) -> Tensor:
        """Raw images (B, 1, H, W) -> the crop that is fitted, at full resolution, (B, H', W')."""
        crop, (height, width) = self.preprocess.crop, self.preprocess.input_size
        side = (crop, crop) if crop else (height, width)
        top, left = ((a - b) // 2 for a, b in zip(images.shape[-2:], side, strict=True))
        return images[:, 0, top : top + side[0], left : left + side[1]]

    def misfit(self, p: Tensor, images: Tensor) -> Tensor:
        """chi^2 / N of raw images and the smooth lenses of PARAMS p, on coarse pixels, shape (B,); differentiable."""
        images = fill_missing(images)
        framed, scope = self.framed(images), self.scope
        step = max(1, framed.shape[-1] // COARSE)
        coarse = F.avg_pool2d(framed[:, None], step)[:, 0]
        camera = Camera((coarse.shape[-2], coarse.shape[-1]), scope.pixel_scale * step, 2, scope.psf_radius)
        lens = SmoothLens(camera)
        level, scatter = corners(images[:, 0])
        sigma = scope.noise.sigma(coarse - level[:, None, None], scatter) / step
        low, high = lens.bounds(p)
        full = torch.cat([p, torch.zeros_like(p[:, :2])], 1).clamp(low, high)
        model = lens.render(lens.light_up(full, coarse, sigma**-2))
        return ((coarse - model) / sigma).square().mean((1, 2))

    def _measure(self, images: Tensor, steps: int, on_chunk: Callable[[int], object]) -> Inversion:
        images = fill_missing(images)
        framed, (mean, covariance) = self.framed(images), self.guess(images)
        lens = self.lens((framed.shape[-2], framed.shape[-1]))
        places = [PARAMS.index(name) for name in lens.names[:-2]]
        start = F.pad(mean[:, places], (0, 2))
        noise, scatter = self.scope.noise, corners(images[:, 0])[1]
        if steps == 0:
            on_chunk(len(images))
            return evaluate(lens, framed, start, covariance[:, places][:, :, places], noise, scatter)
        return invert(lens, framed, start, noise, scatter, steps, on_chunk, self._compiles)

    @property
    def scope(self) -> Telescope:
        """The telescope of the images: that of training, unless another one was set."""
        return self.telescope or Telescope(**self.calibration["telescope"])


_PLACES = list(enumerate(PARAMS))


def _scatter(found: Inversion) -> Tensor:
    """Standard deviations of all parameters but flux and sky, float32, (B, P)."""
    return found.covariance.diagonal(dim1=1, dim2=2)[:, :-2].clamp_min(0).sqrt().float()


def _check(config: Config, in_channels: int) -> None:
    """Raises ConfigError or DataError for what a lens cannot be measured from."""
    if in_channels != 1:
        raise DataError(f"lenses are measured in one band, and these images have {in_channels}")
    augment = config.augment
    if augment != type(augment)(noise=augment.noise):
        raise ConfigError("augment: a change of the image changes the true lens too; for inversion leave all but noise")
    if config.train.ensemble > 1 or config.train.freeze or config.model.average != "none" or config.data.balanced:
        raise ConfigError(
            "train.ensemble, train.freeze, model.average and data.balanced are for tasks that tell classes"
        )
