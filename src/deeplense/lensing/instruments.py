"""Telescopes and cameras: one card for each, and every number on it with its source.

A card is a TOML file: a name, a title, and a table ``[bands.X]`` for each filter. Those in ``cards/`` come with the
package; your own is read by its path and needs no ``sources``. See docs/instruments.md.
"""

from __future__ import annotations

import math
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from deeplense.errors import ConfigError, did_you_mean
from deeplense.lensing import observe
from deeplense.lensing.psf_file import read_psf

Positive = Annotated[float, Field(gt=0)]
# A Gaussian kernel ends at two FWHM, with 2e-5 of the flux beyond. The wings of a Moffat profile never end: its kernel
# is as large as the circle with this part of the flux, and the rest is spread over it.
GAUSSIAN_RADIUS = 2.0
MOFFAT_FLUX = 0.98
PSF_KEYS = {"gaussian": {"psf_fwhm"}, "moffat": {"psf_fwhm", "moffat_beta"}}


class Card(BaseModel):
    """A table of a card; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Band(Card):
    """One filter of one camera: the detector, the exposure, the sky and the PSF.

    Attributes:
        pixel_scale: arcsec.
        exposure_time: of one exposure, s.
        num_exposures: how many are added.
        sky_brightness: mag/arcsec^2.
        magnitude_zero_point: AB magnitude of one electron per second.
        read_noise: electrons, of one exposure and pixel.
        ccd_gain: electrons per count.
        psf: "gaussian", "moffat", or a FITS file beside the card, "psf.fits" or "psf.fits[VIS_PSF]".
        psf_fwhm: arcsec, before the image's pixels; not for a file.
        moffat_beta: slope of the Moffat profile's wings.
        psf_pixel_scale: arcsec, of the PSF file, where the file has no keyword PIXSCALE.
        depth: published magnitude of a point source at five sigma.
        depth_aperture: diameter in arcsec of the circle in which ``depth`` was measured (the magnitude is the star's
            whole flux); by default it is that of a fit of the PSF.
        sources: where each of these numbers is from.
    """

    pixel_scale: Positive
    exposure_time: Positive
    num_exposures: Annotated[int, Field(ge=1)] = 1
    sky_brightness: float
    magnitude_zero_point: float
    read_noise: Annotated[float, Field(ge=0)] = 0.0
    ccd_gain: Positive = 1.0
    psf: str = "gaussian"
    psf_fwhm: Positive | None = None
    moffat_beta: Annotated[float, Field(gt=1)] | None = None
    psf_pixel_scale: Positive | None = None
    depth: float | None = None
    depth_aperture: Positive | None = None
    sources: dict[str, str] = {}

    @model_validator(mode="after")
    def _psf_is_complete(self) -> Band:
        name = Path(self.psf).name
        if not self.has_model_psf and ".fit" not in name.lower():
            raise ValueError(f"psf = {name!r} is no FITS file and no formula; {did_you_mean(name, PSF_KEYS)}")
        wanted = PSF_KEYS.get(self.psf, set())
        given = {key for key in ("psf_fwhm", "moffat_beta", "psf_pixel_scale") if getattr(self, key) is not None}
        if missing := sorted(wanted - given):
            raise ValueError(f"psf = {name!r} needs {' and '.join(missing)}")
        if unused := sorted(given - (wanted or {"psf_pixel_scale"})):
            raise ValueError(f"psf = {name!r} has no {' and no '.join(unused)}; leave it out")
        return self

    @model_validator(mode="after")
    def _sources_are_of_fields(self) -> Band:
        for field in self.sources:
            if field not in type(self).model_fields:
                raise ValueError(f"there is no number {field!r}; {did_you_mean(field, type(self).model_fields)}")
        return self

    @property
    def has_model_psf(self) -> bool:
        """Whether the PSF is a formula, not a file."""
        return self.psf in PSF_KEYS

    @property
    def total_exposure(self) -> float:
        """All exposures together, s."""
        return self.exposure_time * self.num_exposures

    @property
    def sky_counts(self) -> float:
        """Mean sky electrons per second and pixel."""
        return self.counts(self.sky_brightness) * self.pixel_scale**2

    @property
    def read_variance(self) -> float:
        """Variance of the read noise of all exposures together, electrons^2 per pixel."""
        return self.num_exposures * self.read_noise**2

    @property
    def noise_variance(self) -> float:
        """Variance of a pixel of empty sky in the whole exposure, electrons^2."""
        return self.sky_counts * self.total_exposure + self.read_variance

    @property
    def psf_radius(self) -> int:
        """Pixels at which a model PSF is cut off: two FWHM of a Gaussian, 98 % of the flux of a Moffat profile."""
        width = (self.psf_fwhm or 0.0) / self.pixel_scale
        if self.moffat_beta is None:
            return math.ceil(GAUSSIAN_RADIUS * width)
        # The inverse of observe.moffat_flux.
        beta = self.moffat_beta
        squared = ((1 - MOFFAT_FLUX) ** (1 / (1 - beta)) - 1) / (2 ** (1 / beta) - 1)
        return math.ceil(width / 2 * math.sqrt(squared))

    def counts(self, magnitude: float) -> float:
        """Electrons per second of a source of this AB magnitude."""
        return 10 ** (-0.4 * (magnitude - self.magnitude_zero_point))

    def magnitude(self, counts: float) -> float:
        """AB magnitude of a source of this many electrons per second."""
        return self.magnitude_zero_point - 2.5 * math.log10(counts)

    def kernel(self, fwhm: Tensor | None = None, radius: int | None = None) -> Tensor:
        """The PSF as pixels of sum 1, for :func:`deeplense.lensing.observe.blur`.

        Args:
            fwhm: arcsec, shape (B,), where each image has its own seeing; by default the card's, float64.
            radius: pixels at which the kernel is cut off, by default ``psf_radius``; a file is taken whole.

        Returns:
            shape (B, K, K); B is 1 without ``fwhm``.

        Raises:
            ConfigError: the file cannot be used, or ``fwhm`` is given and the PSF is a file.
        """
        if not self.has_model_psf:
            if fwhm is not None or radius is not None:
                raise ConfigError(f"the PSF is the file {self.psf}: it takes no FWHM and no radius; leave them out")
            return torch.from_numpy(read_psf(self.psf, self.pixel_scale, self.psf_pixel_scale))[None]
        if fwhm is None:
            fwhm = torch.tensor([self.psf_fwhm], dtype=torch.float64)
        width, radius = fwhm / self.pixel_scale, self.psf_radius if radius is None else radius
        if self.moffat_beta is not None:
            return observe.moffat_kernel(width, self.moffat_beta, radius)
        row = observe.gaussian_kernel(width * observe.FWHM_TO_SIGMA, radius)
        return row[:, :, None] * row[:, None, :]


class Instrument(Card):
    """A telescope and its camera: the bands in which it takes images."""

    name: str
    title: str
    bands: Annotated[dict[str, Band], Field(min_length=1)]

    def band(self, name: str) -> Band:
        """One band by its name.

        Raises:
            ConfigError: the instrument has no such band.
        """
        if name not in self.bands:
            raise ConfigError(f"{self.name} has no band {name!r}; {did_you_mean(name, self.bands)}")
        return self.bands[name]


def point_source_depth(band: Band, sigma: float = 5.0) -> float:
    """AB magnitude of the star that stands out by ``sigma``, from the card's numbers: sky, read noise, its own photons.

    The star is measured in a circle of ``depth_aperture``, or else by a fit of the PSF, for which the noise of 1 / sum
    p^2 pixels counts.

    References: King, PASP 95 (1983) 163, for the noise-equivalent area of a PSF.
    """
    kernel = band.kernel()[0]
    fraction, pixels = 1.0, 1 / float((kernel**2).sum())
    if band.depth_aperture is not None:
        fraction = _flux_in_circle(band, kernel, band.depth_aperture / 2)
        pixels = math.pi * (band.depth_aperture / 2 / band.pixel_scale) ** 2
    # sigma = n / sqrt(n + noise), solved for the electrons n.
    noise = pixels * band.noise_variance
    electrons = (sigma**2 + sigma * math.sqrt(sigma**2 + 4 * noise)) / 2
    return band.magnitude(electrons / fraction / band.total_exposure)


def _flux_in_circle(band: Band, kernel: Tensor, radius: float) -> float:
    """The part of a star's flux within a circle, radius in arcsec."""
    fwhm = torch.tensor([band.psf_fwhm or 0.0], dtype=torch.float64)
    if band.psf == "gaussian":
        return float(observe.gaussian_flux(fwhm, radius))
    if band.moffat_beta is not None:
        return float(observe.moffat_flux(fwhm, band.moffat_beta, radius))
    offset = (torch.arange(len(kernel)) - len(kernel) // 2) * band.pixel_scale
    return float(kernel[torch.hypot(offset, offset[:, None]) <= radius].sum())


def names() -> list[str]:
    """The cards that come with the package."""
    return sorted(p.name.removesuffix(".toml") for p in _folder().iterdir() if p.name.endswith(".toml"))


def load(name: str | Path) -> Instrument:
    """Read a card: one of :func:`names`, or the path of your own TOML file.

    Raises:
        ConfigError: there is no such card, or it is faulty; the message names the key.
    """
    if str(name) in names():
        return _parse((_folder() / f"{name}.toml").read_text("utf-8"), str(name), Path())
    path = Path(name).expanduser()
    if path.suffix != ".toml" and len(path.parts) == 1:
        raise ConfigError(f"there is no instrument {str(name)!r}; {did_you_mean(str(name), names())}, or a .toml file")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the instrument {path}: {getattr(error, 'strerror', error)}") from error
    return _parse(text, str(path), path.parent)


def _parse(text: str, name: str, folder: Path) -> Instrument:
    """The card in a TOML text; PSF files are looked for from ``folder`` on."""
    try:
        instrument = Instrument.model_validate(_with_paths(tomllib.loads(text), folder))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"instrument {name} is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"instrument {name}: {_key(first['loc'])}{_reason(first)}") from error
    _read_files(instrument, name)
    return instrument


def _read_files(instrument: Instrument, name: str) -> None:
    """Read the PSF files once, so that a faulty one is known now and not after an hour of simulation."""
    for key, band in instrument.bands.items():
        try:
            _ = None if band.has_model_psf else band.kernel()
        except ConfigError as error:
            raise ConfigError(f"instrument {name}: bands.{key}.psf: {error}") from error


def _with_paths(card: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The card with the paths of PSF files taken from the card's own folder."""
    bands = card.get("bands")
    for band in bands.values() if isinstance(bands, dict) else []:
        psf = band.get("psf") if isinstance(band, dict) else None
        if isinstance(psf, str) and psf not in PSF_KEYS and ".fit" in psf.lower():
            band["psf"] = str(folder / psf)
    return card


def _key(place: tuple[int | str, ...]) -> str:
    return ".".join(map(str, place)) + ": " if place else ""


def _reason(fault: Any) -> str:
    """What is wrong, in words; an unknown key gets the nearest one that exists."""
    if fault["type"] != "extra_forbidden":
        return str(fault["msg"]).removeprefix("Value error, ")
    fields = Band.model_fields if fault["loc"][0] == "bands" else Instrument.model_fields
    return f"no such key; {did_you_mean(str(fault['loc'][-1]), fields)}"


def _folder() -> resources.abc.Traversable:
    return resources.files("deeplense.lensing") / "cards"
