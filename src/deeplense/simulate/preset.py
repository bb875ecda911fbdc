"""What a preset file says: one image geometry, and a world of priors for each fidelity."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, model_validator

from deeplense.errors import ConfigError, did_you_mean
from deeplense.simulate.observation import Observation, Table
from deeplense.simulate.priors import NotNegativePrior, PositivePrior, Prior, PriorField, SharePrior
from deeplense.simulate.survey import SurveyWorld

ZERO = Prior(value=0.0)


class LensPriors(Table):
    """A singular isothermal ellipsoid at the origin with external shear; radii in arcsec, angles in radian.

    Attributes:
        a_3, phi_3, a_4, phi_4: strength and direction of its third- and fourth-order multipoles, as lenstronomy's
            MULTIPOLE for a lens of ``theta_E = 1``: the strength is a share of theta_E.
    """

    theta_E: PositivePrior
    q: SharePrior
    phi: PriorField
    gamma: SharePrior
    phi_gamma: PriorField
    center_x: PriorField
    center_y: PriorField
    a_3: PriorField = ZERO
    phi_3: PriorField = ZERO
    a_4: PriorField = ZERO
    phi_4: PriorField = ZERO


class SourcePriors(Table):
    """A Sersic galaxy ``offset`` (arcsec, in the direction ``offset_angle``) from (``center_x``, ``center_y``)."""

    magnitude: PriorField
    R_sersic: PositivePrior
    n_sersic: PositivePrior
    q: SharePrior
    phi: PriorField
    offset: NotNegativePrior = ZERO
    offset_angle: PriorField = ZERO
    center_x: PriorField = ZERO
    center_y: PriorField = ZERO


class Sphere(Table):
    """Subhaloes.

    Attributes:
        profile: "point" masses, "nfw", or "tnfw" (truncated NFW).
        number: how many; or
        sigma_sub: normalisation of the mass function at 1e8 Msun, 1/kpc^2, for a ``power_law`` of masses.
        mass: of each, Msun; any unit if ``f_sub`` is given.
        f_sub: their summed share of the lens's mass inside theta_E; the masses are scaled to it.
        lens_mass: Msun inside theta_E that masses are compared with; the real one if not given.
        half_mode_mass: of warm dark matter, Msun; 0 is cold.
        concentration_scatter: of NFW haloes, dex.
        tau: truncation radius of ``tnfw`` over scale radius.
        radius: distance from the lens centre, arcsec.
    """

    profile: Literal["point", "nfw", "tnfw"] = "point"
    number: NotNegativePrior | None = None
    sigma_sub: NotNegativePrior | None = None
    mass: PositivePrior
    f_sub: SharePrior | None = None
    lens_mass: Annotated[float, Field(gt=0)] | None = None
    half_mode_mass: NotNegativePrior = ZERO
    concentration_scatter: Annotated[float, Field(ge=0)] = 0.0
    tau: PositivePrior = Prior(value=10.0)
    radius: NotNegativePrior

    @model_validator(mode="after")
    def _consistent(self) -> Sphere:
        if (self.number is None) == (self.sigma_sub is None):
            raise ValueError("give either number or sigma_sub")
        if self.sigma_sub is not None and (self.mass.power_law is None or self.radius.disc is None):
            raise ValueError("sigma_sub needs a mass = { power_law = ... } and a radius = { disc = ... }")
        return self


class Vortex(Table):
    """A vortex of a superfluid halo as a straight string of mass.

    Attributes:
        f_sub: its share of the lens's mass.
        length: arcsec; or
        log10_m_axion: of the axion, in eV, whose de Broglie wavelength makes the length.
        phi: direction of the string, radian.
        offset, offset_angle: where its middle lies from the lens centre, arcsec and radian.
    """

    f_sub: SharePrior
    length: PositivePrior | None = None
    log10_m_axion: PriorField | None = None
    phi: PriorField
    offset: PriorField = ZERO
    offset_angle: PriorField = ZERO

    @model_validator(mode="after")
    def _one_length(self) -> Vortex:
        if (self.length is None) == (self.log10_m_axion is None):
            raise ValueError("give either length or log10_m_axion")
        return self


def _shape(given: Any) -> str:
    """Subhaloes or a vortex: what more of the given keys belong to."""
    if not isinstance(given, dict):
        return "Sphere" if isinstance(given, Sphere) else "Vortex"
    tables: list[type[Table]] = [Vortex, Sphere]
    return max(tables, key=lambda table: len(given.keys() & table.model_fields.keys())).__name__


Substructure = Annotated[Annotated[Vortex, Tag("Vortex")] | Annotated[Sphere, Tag("Sphere")], Discriminator(_shape)]


class LineOfSight(Table):
    """Haloes between observer and source that do not belong to the lens, cold or as warm as its subhaloes.

    Attributes:
        delta: how many there are over how many Sheth & Tormen's mass function has; 0 is none.
        mass: of each, Msun, a ``power_law``; its slope should be near -1.9, for which the number is known.
        planes: to which they are moved, that of the lens among them, evenly spread in comoving distance.
        radius: of the cone that holds them, arcsec; behind the lens it narrows with the rays.
        profile: "nfw", or "tnfw" (truncated NFW).
        r_trunc: truncation radius of ``tnfw`` over r200; 1.75 is about the radius of 50 critical densities.
        concentration_scatter: dex.
        is_in_all_classes: also, as cold dark matter, in lenses without subhaloes: haloes in the way, not a signal.
    """

    delta: NotNegativePrior
    mass: PositivePrior
    planes: Annotated[int, Field(ge=1, le=50)] = 5
    radius: Annotated[float, Field(gt=0)]
    profile: Literal["nfw", "tnfw"] = "tnfw"
    r_trunc: Annotated[float, Field(gt=0)] = 1.75
    concentration_scatter: Annotated[float, Field(ge=0)] = 0.0
    is_in_all_classes: bool = False

    @model_validator(mode="after")
    def _countable(self) -> LineOfSight:
        if self.mass.power_law is None or self.mass.low == self.mass.high:
            raise ValueError("mass = { power_law = [slope, lowest, highest] } is what haloes are counted with")
        if not np.isfinite(self.delta.high):
            raise ValueError("delta has no upper end: give it a range, or cut a normal one off by within")
        return self


class World(Table):
    """All priors of one fidelity.

    Attributes:
        about: one line on what this fidelity is for.
        is_mass_matched: lower the macro lens so that the mass inside theta_E is the same with and without substructure.
        sphere, vort: the substructure of the second and of the third class.
        line_of_sight: haloes in front of the lens and behind it.
    """

    about: str
    is_mass_matched: bool
    lens: LensPriors
    source: SourcePriors
    sphere: Sphere
    vort: Substructure
    line_of_sight: LineOfSight | None = None
    observation: Observation

    @property
    def has_line_of_sight(self) -> bool:
        """Whether there are haloes in front of lenses or behind them."""
        return self.line_of_sight is not None and self.line_of_sight.delta.high > 0


def _family(world: Any) -> str:
    is_survey = "kinds" in world if isinstance(world, dict) else isinstance(world, SurveyWorld)
    return "survey" if is_survey else "lenses"


AnyWorld = Annotated[Annotated[World, Tag("lenses")] | Annotated[SurveyWorld, Tag("survey")], Discriminator(_family)]


class Preset(Table):
    """A preset file: the image geometry and one world for each fidelity.

    Attributes:
        classes: names; none, sphere, vort, of which image k has number k modulo three; or non-lens, lens for a survey.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    num_pix: Annotated[int, Field(ge=2, le=4096, strict=True)]
    pixel_scale: Annotated[float, Field(gt=0)]
    z_lens: Annotated[float, Field(gt=0)] = 0.5
    z_source: Annotated[float, Field(gt=0)] = 1.0
    fidelities: dict[str, AnyWorld]

    @model_validator(mode="after")
    def _classes_fit(self) -> Preset:
        for name, world in self.fidelities.items():
            wanted = 3 if isinstance(world, World) else 2
            if len(set(self.classes)) != wanted or len(self.classes) != wanted:
                raise ValueError(f"classes = {list(self.classes)}: {name} needs {wanted} different names")
        if not self.fidelities or any("/" in c or not c for c in self.classes):
            raise ValueError("give one fidelity or more, and class names without a slash: they become folders")
        return self

    def world(self, fidelity: str) -> World | SurveyWorld:
        """The priors of a fidelity.

        Raises:
            ConfigError: the preset has no such fidelity.
        """
        if fidelity not in self.fidelities:
            raise ConfigError(f"{self.name} has no fidelity {fidelity!r}; {did_you_mean(fidelity, self.fidelities)}")
        return self.fidelities[fidelity]

    def changed(self, fidelity: str, settings: Mapping[str, Any]) -> Preset:
        """The same preset with other values, by dotted names inside of the fidelity (``lens.q``, ``kinds.star``).

        ``num_pix`` and ``pixel_scale`` are the image's own.

        Raises:
            ConfigError: a name or a value that the preset does not take.
        """
        values = self.model_dump(exclude_unset=True)
        world = self.world(fidelity).model_dump(exclude_unset=True)
        for key, value in settings.items():
            _set(values if key in ("num_pix", "pixel_scale") else world, key, value)
        values["fidelities"] = values["fidelities"] | {fidelity: world}
        return _validate(values, f"{self.name} with {', '.join(settings)}")


def _set(table: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        if not isinstance(table.get(part), dict):
            raise ConfigError(f"{key}: there is no table {part!r}; {did_you_mean(part, _tables(table))}")
        table = table[part]
    table[last] = value


def _tables(table: dict[str, Any]) -> list[str]:
    return [name for name, value in table.items() if isinstance(value, dict)]


def names() -> list[str]:
    """The presets that come with the package."""
    return sorted(p.name.removesuffix(".toml") for p in _folder().iterdir() if p.name.endswith(".toml"))


def load(name: str | Path) -> Preset:
    """Read a preset by its name, or a file of one's own by its path (ending in .toml).

    Raises:
        ConfigError: there is no such preset, or its file is faulty.
    """
    name = str(name)
    if name.endswith(".toml"):
        return _parse(Path(name).expanduser(), name)
    if name not in names():
        raise ConfigError(f"there is no preset {name!r}; {did_you_mean(name, names())}, or the path of a .toml file")
    return _parse(_folder() / f"{name}.toml", f"preset {name}")


def _parse(path: Path | resources.abc.Traversable, name: str) -> Preset:
    try:
        return _validate(tomllib.loads(path.read_text()), name)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{name} cannot be read as a preset: {error}") from error


def _validate(values: dict[str, Any], name: str) -> Preset:
    try:
        return Preset.model_validate(values)
    except ValidationError as error:
        # What is there by mistake tells more than what is missing for it.
        first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        raise ConfigError(f"{name}: {'.'.join(_location(first['loc']))}: {_reason(first)}") from error


def _reason(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        *path, last = fault["loc"]
        return f"there is no such key; {did_you_mean(str(last), _keys(path))}"
    return str(fault["msg"]).removeprefix("Value error, ")


def _keys(path: list[Any]) -> list[str]:
    """The keys of the table of a preset that stands at a path of keys."""
    tables: list[type[BaseModel]] = [Preset]
    for part in path:
        fields = [table.model_fields[part] for table in tables if part in table.model_fields]
        # A tag, or the name of an entry, is no field: it picks one of the tables, or leaves them as they are.
        chosen = [table for table in tables if table.__name__ == _TABLES.get(part, part)]
        tables = [table for field in fields for table in _tables_in(field.annotation)] or chosen or tables
    return sorted({key for table in tables for key in table.model_fields})


def _tables_in(annotation: Any) -> list[type[BaseModel]]:
    """The tables that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [table for part in get_args(annotation) for table in _tables_in(part)]


def _location(parts: Iterable[Any]) -> list[str]:
    """The keys of the file; without the names by which pydantic tells alternatives apart."""
    return [str(part) for part in parts if part not in _ALTERNATIVES and "[" not in str(part)]


# Tags of alternatives, and the tables that they mean.
_TABLES = {"lenses": "World", "survey": "SurveyWorld"}
_ALTERNATIVES = (*_TABLES, "Vortex", "Sphere")


def _folder() -> resources.abc.Traversable:
    return resources.files("deeplense.simulate") / "presets"
