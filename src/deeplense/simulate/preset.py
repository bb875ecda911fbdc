"""What a preset file says: one image geometry, and a world of priors for each fidelity."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from deeplense.errors import ConfigError, did_you_mean
from deeplense.simulate.priors import PriorField


class Table(BaseModel):
    """A table of a preset file; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LensPriors(Table):
    """A singular isothermal ellipsoid at the origin with external shear; radii in arcsec, angles in radian."""

    theta_E: PriorField
    q: PriorField
    phi: PriorField
    gamma: PriorField
    phi_gamma: PriorField
    center_x: PriorField
    center_y: PriorField


class SourcePriors(Table):
    """A Sersic galaxy at distance ``offset`` (arcsec) and direction ``offset_angle`` from the line of sight."""

    magnitude: PriorField
    R_sersic: PriorField
    n_sersic: PriorField
    q: PriorField
    phi: PriorField
    offset: PriorField
    offset_angle: PriorField


class Sphere(Table):
    """Subhaloes as point masses.

    Attributes:
        number: how many.
        mass: of each; Msun, or any relative unit if ``f_sub`` is given.
        f_sub: their summed share of the lens's mass; the masses are scaled to it.
        radius: distance from the lens centre, arcsec.
    """

    number: PriorField
    mass: PriorField
    f_sub: PriorField
    radius: PriorField


class Vortex(Table):
    """A vortex of a superfluid halo as a straight string of mass.

    Attributes:
        f_sub: its share of the lens's mass.
        length: arcsec.
        phi: direction of the string, radian.
        offset, offset_angle: where its middle lies from the lens centre, arcsec and radian.
    """

    f_sub: PriorField
    length: PriorField
    phi: PriorField
    offset: PriorField
    offset_angle: PriorField


class Observation(Table):
    """The telescope and its exposure.

    Attributes:
        psf_fwhm: arcsec, Gaussian.
        psf_radius: pixels at which the PSF is cut off.
        exposure_time: of one exposure, s.
        num_exposures: how many are added.
        sky_brightness: mag/arcsec^2.
        magnitude_zero_point: magnitude of one electron per second.
        read_noise: electrons, of one exposure.
        supersampling: rays per pixel and axis.
        scaling: "minmax" maps each image to [0, 1]; "electrons" keeps electrons above the mean sky.
    """

    psf_fwhm: PriorField
    psf_radius: int
    exposure_time: float
    num_exposures: int = 1
    sky_brightness: float
    magnitude_zero_point: float
    read_noise: float = 0.0
    supersampling: int = 1
    scaling: Literal["minmax", "electrons"]


class World(Table):
    """All priors of one fidelity.

    Attributes:
        about: one line on what this fidelity is for.
        is_mass_matched: lower the macro lens so that the mass inside theta_E is the same with and without substructure.
    """

    about: str
    is_mass_matched: bool
    lens: LensPriors
    source: SourcePriors
    sphere: Sphere
    vort: Vortex
    observation: Observation


class Preset(Table):
    """A preset file: the image geometry and one :class:`World` for each fidelity.

    Attributes:
        classes: names in the order none, sphere, vort; image k is of class k modulo their number.
    """

    name: str
    title: str
    classes: tuple[str, str, str]
    num_pix: int
    pixel_scale: float
    z_lens: float
    z_source: float
    fidelities: dict[str, World]

    def world(self, fidelity: str) -> World:
        """The priors of a fidelity.

        Raises:
            ConfigError: the preset has no such fidelity.
        """
        if fidelity not in self.fidelities:
            raise ConfigError(f"{self.name} has no fidelity {fidelity!r}; {did_you_mean(fidelity, self.fidelities)}")
        return self.fidelities[fidelity]


def names() -> list[str]:
    """The presets that come with the package."""
    return sorted(p.name.removesuffix(".toml") for p in _folder().iterdir() if p.name.endswith(".toml"))


def load(name: str) -> Preset:
    """Read a preset by name.

    Raises:
        ConfigError: there is no such preset, or its file is faulty.
    """
    if name not in names():
        raise ConfigError(f"there is no preset {name!r}; {did_you_mean(name, names())}")
    try:
        return Preset.model_validate(tomllib.loads((_folder() / f"{name}.toml").read_text()))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"preset {name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _folder() -> resources.abc.Traversable:
    return resources.files("deeplense.simulate") / "presets"
