"""The telescope and its exposure: what a preset says of them, and the numbers that a renderer needs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from deeplense.errors import ConfigError
from deeplense.lensing import instruments
from deeplense.lensing.instruments import Band
from deeplense.lensing.light import magnitude_to_counts
from deeplense.simulate.priors import NotNegativePrior, PositivePrior, Prior

# What a card says, too; given in a preset, it replaces the number of the card in all bands.
NUMBERS = ("exposure_time", "num_exposures", "sky_brightness", "magnitude_zero_point", "read_noise", "psf_fwhm")


NotNegative = Annotated[float, Field(ge=0)]
_DEFAULT = {"num_exposures": 1, "read_noise": 0.0}


class Table(BaseModel):
    """A table of a preset file; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Observation(Table):
    """One telescope: a card, or numbers of one's own, or a card of which some numbers are replaced.

    Attributes:
        instrument: name of a card, or path of one's own (docs/instruments.md); empty if all numbers stand here.
        bands: which bands of the card, one channel each; all of them if empty.
        psf_fwhm: arcsec.
        seeing: factor on the FWHM, drawn for each image and band.
        psf_radius: pixels at which the PSF is cut off; what the card says if 0. A PSF file is taken whole.
        exposure_time: of one exposure, s.
        num_exposures: how many are added.
        sky_brightness: mag/arcsec^2.
        magnitude_zero_point: magnitude of one electron per second.
        read_noise: electrons, of one exposure.
        background_rms: electrons per second and pixel, of noise that grows with the exposure time.
        supersampling: rays per pixel and axis.
        noise: "photons" is one Poisson draw and read noise; "none" leaves mean electrons per second; "twice" is
            DeepLenseSim's: Poisson counts of a mean that has the noise of photons and of read-out already.
        scaling: "minmax" maps each channel to [0, 1]; "electrons" keeps electrons above the mean sky.
    """

    instrument: str = ""
    bands: tuple[str, ...] = ()
    psf_fwhm: NotNegativePrior | None = None
    seeing: PositivePrior = Prior(value=1.0)
    psf_radius: Annotated[int, Field(ge=0, le=200)] = 0
    exposure_time: PositivePrior | None = None
    num_exposures: Annotated[int, Field(ge=1)] | None = None
    sky_brightness: Annotated[float, Field(allow_inf_nan=True)] | None = None
    magnitude_zero_point: float | None = None
    read_noise: NotNegative | None = None
    background_rms: NotNegative = 0.0
    supersampling: Annotated[int, Field(ge=1, le=16)] = 1
    noise: Literal["photons", "none", "twice"] = "photons"
    scaling: Literal["minmax", "electrons"] = "electrons"

    @model_validator(mode="after")
    def _complete(self) -> Observation:
        needed = [name for name in NUMBERS if name not in _DEFAULT] + ["psf_radius"]
        missing = [name for name in needed if getattr(self, name) in (None, 0)]
        if missing and not self.instrument:
            raise ValueError(f"give an instrument, or {', '.join(missing)}")
        if len(set(self.bands)) < len(self.bands):
            raise ValueError(f"bands = {list(self.bands)}: name each band once")
        return self

    def exposure(self, pixel_scale: float) -> Exposure:
        """The numbers of each band, on pixels of ``pixel_scale`` arcsec.

        Raises:
            ConfigError: there is no such instrument or band.
        """
        bands = self._bands()
        zero_point, sky, read_noise, number = (
            np.array([self._number(name, band) for band in bands.values()])
            for name in ("magnitude_zero_point", "sky_brightness", "read_noise", "num_exposures")
        )
        return Exposure(
            bands=tuple(bands),
            psf_fwhm=tuple(_prior(self._number("psf_fwhm", band) or 0.0) for band in bands.values()),
            psf_beta=None if self.psf_fwhm else _one({band.moffat_beta for band in bands.values() if band}),
            psf_radius=self.psf_radius or max(band.psf_radius for band in bands.values() if band),
            psf_kernel=None if self.psf_fwhm else _kernels(bands, pixel_scale),
            seeing=self.seeing,
            time=tuple(_prior(self._number("exposure_time", band)) for band in bands.values()),
            num_exposures=tuple(number.tolist()),
            sky=tuple((magnitude_to_counts(sky - zero_point, 0.0) * pixel_scale**2).tolist()),
            zero_point=tuple(zero_point.tolist()),
            read_variance=tuple((number * read_noise**2).tolist()),
            background_rms=self.background_rms,
            supersampling=self.supersampling,
            noise=self.noise,
            scaling=self.scaling,
        )

    def _bands(self) -> dict[str, Band | None]:
        """The bands by name; one without a card or a name where the numbers stand in the preset."""
        if not self.instrument:
            return {"": None}
        card = instruments.load(self.instrument)
        return {band: card.band(band) for band in self.bands or card.bands}

    def _number(self, name: str, band: Band | None) -> Any:
        given = getattr(self, name)
        if given is None and band is not None:
            given = getattr(band, name)
        return _DEFAULT[name] if given is None and name in _DEFAULT else given


@dataclass(frozen=True)
class Exposure:
    """What is constant in an observation, a tuple for each band; the rest is drawn for each image.

    Attributes:
        bands: names, one channel each.
        psf_fwhm: arcsec; the PSF is Gaussian, or Moffat with ``psf_beta``, or ``psf_kernel`` (C, K, K) if given.
        psf_radius: pixels at which it is cut off.
        seeing: factor on the FWHM.
        time: s, of one exposure.
        num_exposures: how many are added.
        sky: electrons per second and pixel.
        zero_point: magnitude of one electron per second.
        read_variance: electrons^2 of all exposures.
        background_rms, supersampling, noise, scaling: as in :class:`Observation`.
    """

    bands: tuple[str, ...]
    psf_fwhm: tuple[Prior, ...]
    psf_beta: float | None
    psf_radius: int
    psf_kernel: Tensor | None
    seeing: Prior
    time: tuple[Prior, ...]
    num_exposures: tuple[int, ...]
    sky: tuple[float, ...]
    zero_point: tuple[float, ...]
    read_variance: tuple[float, ...]
    background_rms: float
    supersampling: int
    noise: str
    scaling: str

    def fingerprint(self) -> str:
        """A hash of all numbers and of the PSF's pixels: a card or a PSF file that has changed is another one."""
        digest = hashlib.sha256(repr(replace(self, psf_kernel=None)).encode())
        if self.psf_kernel is not None:
            digest.update(self.psf_kernel.numpy().tobytes())
        return digest.hexdigest()[:12]

    def draw(self, num: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """FWHM (arcsec) and whole exposure time (s) of ``num`` images, shape (num, bands)."""
        fwhm = [prior.sample(rng, num) * self.seeing.sample(rng, num) for prior in self.psf_fwhm]
        time = [prior.sample(rng, num) * n for prior, n in zip(self.time, self.num_exposures, strict=True)]
        return {"psf_fwhm": np.stack(fwhm, 1), "exposure_time": np.stack(time, 1)}

    @property
    def num_layers(self) -> int:
        """Standard normal deviates that a pixel takes: for photons, and for read-out where there is some."""
        return {"none": 0, "photons": 1 + (any(self.read_variance) or self.background_rms > 0), "twice": 2}[self.noise]

    @property
    def least_sky(self) -> float:
        """Electrons per pixel below which no mean is, in any band or image."""
        shortest = (max(prior.low, 0.0) * n for prior, n in zip(self.time, self.num_exposures, strict=True))
        return min(sky * time for sky, time in zip(self.sky, shortest, strict=True))


def _prior(given: Any) -> Prior:
    return given if isinstance(given, Prior) else Prior(value=given)


def _one(values: set[float | None]) -> float | None:
    """The shape that all bands of an image share: one convolution serves them all."""
    if len(values) > 1:
        raise ConfigError(f"the bands have different PSF shapes ({values}): simulate them one by one")
    return next(iter(values), None)


def _kernels(bands: dict[str, Band | None], pixel_scale: float) -> Tensor | None:
    """The PSFs of bands that have them in files, shape (C, K, K), or None.

    Raises:
        ConfigError: only some of the bands have one, or their sizes differ.
    """
    files = {name: band for name, band in bands.items() if band and not band.has_model_psf}
    if not files:
        return None
    kernels = [band.model_copy(update={"pixel_scale": pixel_scale}).kernel()[0] for band in files.values()]
    if len(files) < len(bands) or len({kernel.shape for kernel in kernels}) > 1:
        raise ConfigError(f"PSF files of {', '.join(files)}: all bands of an image need one, of the same size")
    return torch.stack(kernels)
