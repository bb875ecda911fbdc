"""What a forward model has to know of the telescope: from the preset that made the images, or from the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from deeplense.config import PhysicsConfig
from deeplense.data.schema import LensSet
from deeplense.errors import ConfigError, DataError
from deeplense.lensing.noise import Noise
from deeplense.simulate import preset as presets
from deeplense.simulate.observation import Exposure


@dataclass(frozen=True)
class Telescope:
    """Pixels, PSF and noise that all images of a set share; the width of the PSF is a parameter of each image.

    Attributes:
        pixel_scale: arcsec.
        supersampling: rays per pixel and axis.
        psf_radius: pixels at which the Gaussian PSF is cut off.
        background_variance, is_electrons: as of ``lensing.noise.Noise``.
    """

    pixel_scale: float
    supersampling: int
    psf_radius: int
    background_variance: float
    is_electrons: bool

    @property
    def noise(self) -> Noise:
        return Noise(self.background_variance, self.is_electrons)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def telescope_of(lens_set: LensSet, config: PhysicsConfig) -> Telescope:
    """That of a set of images: simulated ones say with which preset they were made.

    Raises:
        DataError: the pixel scale is not known.
        ConfigError: the preset's PSF is not Gaussian, or it has several bands.
    """
    if lens_set.pixel_scale is None:
        raise DataError("the images do not say how large their pixels are: a fit needs a set with a pixel scale")
    exposure = _exposure(lens_set.provenance)
    if exposure is None:
        return Telescope(
            lens_set.pixel_scale, config.supersampling, config.psf_radius, config.background_variance, False
        )
    if exposure.psf_beta is not None or exposure.psf_kernel is not None or len(exposure.bands) > 1:
        raise ConfigError("lenses are measured in one band with a Gaussian PSF: choose another preset")
    time = exposure.time[0]
    seconds = exposure.num_exposures[0] * (time.low + time.high) / 2
    variance = exposure.sky[0] * seconds + exposure.read_variance[0]
    is_electrons = exposure.scaling == "electrons"
    return Telescope(lens_set.pixel_scale, exposure.supersampling, exposure.psf_radius, variance, is_electrons)


def is_known(lens_set: LensSet) -> bool:
    """Whether a set says by itself with which telescope it was made."""
    return lens_set.pixel_scale is not None and _exposure(lens_set.provenance) is not None


def _exposure(provenance: Mapping[str, Any]) -> Exposure | None:
    """Of the preset that made a set, with its settings; None where there was none, or it is not there any more."""
    name, fidelity = provenance.get("preset"), provenance.get("fidelity")
    if name is None or fidelity is None:
        return None
    try:
        preset = presets.load(name)
        changed = preset.changed(fidelity, provenance["settings"]) if provenance.get("settings") else preset
        return changed.world(fidelity).observation.exposure(preset.pixel_scale)
    except ConfigError:
        return None
