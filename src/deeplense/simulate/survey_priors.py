"""What a preset says of a survey: lenses, everything that is taken for one, and their surroundings.

Magnitudes are AB in the reference band, the last of ``observation.bands``; other bands follow from colour tracks.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from deeplense.simulate.observation import Observation, Table
from deeplense.simulate.priors import Prior, PriorField

KINDS = ("elliptical", "spiral", "ring", "merger", "group", "star", "edge_on", "artefact")
# Room in every image: knots of the source or of a disc; companions, group members and chance neighbours together.
CLUMPS, NEIGHBOURS = 4, 6
ARTEFACTS = ("cosmic_ray", "trail", "column", "edge", "bleed", "smear")


def _frequencies(given: dict[str, float]) -> dict[str, float]:
    if not given or not all(0 <= value < math.inf for value in given.values()) or sum(given.values()) <= 0:
        raise ValueError("give a relative frequency of 0 or more for each, and one above 0")
    return given


Share = Annotated[float, Field(ge=0, le=1)]
Frequencies = Annotated[dict[str, float], AfterValidator(_frequencies)]


def _check_room(name: str, number: Prior, room: int) -> None:
    """A Poisson number is cut off at the room there is, which must be rare; all others have to fit.

    Raises:
        ValueError: more things are asked for than an image has room for.
    """
    most, what = (1.5 * number.poisson, "1.5 times its mean") if number.poisson is not None else (number.high, "up to")
    if most > room:
        given = number.model_dump(exclude_unset=True)
        raise ValueError(f"{name} = {given}: {what} {most:g}, and an image has room for {room}: make it less")


class Track(Table):
    """Colours along a sequence: of galaxies against redshift, of stars against their place on the main sequence.

    Attributes:
        z: redshifts, rising; places from 0 to 1 for stars.
        colours: magnitude in a band less that in the reference band, one number for each ``z``.
        reddening: mag that dust, age or metals add to a band whose ``dust`` is 1; one draw for all bands of a galaxy.
        dust: how much of it a band takes.
        scatter: mag, of each band on its own.
    """

    z: tuple[float, ...]
    colours: dict[str, tuple[float, ...]]
    reddening: PriorField
    dust: dict[str, float]
    scatter: float

    @model_validator(mode="after")
    def _complete(self) -> Track:
        if any(len(track) != len(self.z) for track in self.colours.values()) or set(self.colours) != set(self.dust):
            raise ValueError("give as many colours for each band as there are z, and dust for the same bands")
        if list(self.z) != sorted(self.z):
            raise ValueError(f"z={self.z} must rise")
        return self

    def sample(self, magnitude: np.ndarray, z: np.ndarray, bands: tuple[str, ...], rng: np.random.Generator) -> Any:
        """Magnitudes in all bands from that in the reference band; any shape -> (..., bands)."""
        reddening = self.reddening.sample(rng, magnitude.size).reshape(magnitude.shape)
        scatter = rng.normal(0, 1, (*magnitude.shape, len(bands))) * self.scatter
        return np.stack(
            [
                magnitude + np.interp(z, self.z, self.colours[band]) + reddening * self.dust[band] + scatter[..., k]
                for k, band in enumerate(bands)
            ],
            -1,
        )


class Shapes(Table):
    """Sizes and shapes of one type of galaxy.

    Attributes:
        R_kpc: median half-light radius at absolute magnitude -22, kpc.
        R_slope: dex per mag that brighter galaxies are larger.
        R_scatter: dex.
        n_sersic, q: Sersic index and axis ratio.
    """

    R_kpc: float
    R_slope: float
    R_scatter: float
    n_sersic: PriorField
    q: PriorField


class Lens(Table):
    """Early-type galaxies that lens something.

    Attributes:
        z, z_source: redshifts.
        theta_E: arcsec.
        magnitude_200: absolute magnitude of a galaxy whose velocity dispersion is 200 km/s.
        magnitude_slope: mag per dex of velocity dispersion (Faber & Jackson).
        magnitude_scatter: mag.
        e_scatter: of each ellipticity component of the mass about that of the light.
        gamma: external shear, at any angle.
    """

    z: PriorField
    z_source: PriorField
    theta_E: PriorField
    magnitude_200: float
    magnitude_slope: float
    magnitude_scatter: float
    e_scatter: float
    gamma: PriorField


class Arm(Table):
    """Spiral arms: number, pitch (radian), contrast and sharpness as in :class:`deeplense.lensing.discs.Arms`."""

    number: PriorField
    pitch: PriorField
    contrast: PriorField
    sharpness: PriorField


class Clumps(Table):
    """Knots of young stars: ``number`` (CLUMPS at most), their summed ``share`` of light, ``radius`` in R_sersic."""

    number: PriorField
    share: PriorField
    radius: PriorField


class Source(Table):
    """Lensed galaxies; ``offset`` from the lens in units of theta_E, ``R_sersic`` in arcsec, magnitude unlensed."""

    magnitude: PriorField
    R_sersic: PriorField
    n_sersic: PriorField
    q: PriorField
    offset: PriorField
    arms: Arm
    clumps: Clumps


class Visibility(Table):
    """Which lenses a survey finds. Candidates that fail are replaced, ``tries`` times; the best is kept in the end.

    Attributes:
        faintest: magnitude of all lensed images together in the first (bluest) band.
        contrast: mag that they may be fainter than the lens in that band.
        sigma_v: km/s, highest velocity dispersion.
        tries: candidates for each lens.
    """

    faintest: float
    contrast: float
    sigma_v: float
    tries: Annotated[int, Field(ge=1, le=1000)]


class Population(Table):
    """Redshift and magnitude of the central object."""

    z: PriorField
    magnitude: PriorField


class Elliptical(Population):
    """Early types that lens nothing.

    Attributes:
        twin_fraction: share of them that are the very galaxies that lenses are, selection and all, without a source.
    """

    twin_fraction: Share


class Spiral(Population):
    """Bulge and disc; ``bulge`` is the bulge's share of the light."""

    bulge: PriorField
    arms: Arm
    clumps: Clumps


class EdgeOn(Population):
    """A disc seen from the side, ``q`` its axis ratio."""

    bulge: PriorField
    q: PriorField


class RingGalaxy(Population):
    """A core and a ring: ``share`` of the light in the ring, its ``radius`` in arcsec, ``width`` in radii, axis ratio.

    Attributes:
        red_fraction: share of the rings that are as red as their core.
    """

    share: PriorField
    radius: PriorField
    width: PriorField
    q: PriorField
    red_fraction: Share
    arms: Arm


class Merger(Population):
    """Two galaxies and a tail.

    Attributes:
        difference: mag that the companion is fainter.
        distance: arcsec between the two.
        tail: share of the light of both in the tail.
        tail_radius: arcsec, of the circle of which the tail is a piece; ``tail_width`` in radii.
        tail_sharpness: how short a piece.
        late_fraction: share of star-forming galaxies.
    """

    difference: PriorField
    distance: PriorField
    tail: PriorField
    tail_radius: PriorField
    tail_width: PriorField
    tail_sharpness: PriorField
    late_fraction: Share


class Group(Population):
    """Early types: ``number`` (rounded up) beside the central one, ``difference`` in mag, ``distance`` in arcsec."""

    number: PriorField
    difference: PriorField
    distance: PriorField


class Stars(Table):
    """A star in the centre, or, in a ``field_fraction`` of all images, somewhere in the field."""

    magnitude: PriorField
    field_fraction: Share
    field_magnitude: PriorField
    track: Track


class Neighbours(Table):
    """Galaxies that happen to stand in the field, ``number`` of them (as many as the companions leave of NEIGHBOURS).

    ``distance`` and ``R_sersic`` are arcsec.
    """

    number: PriorField
    magnitude: PriorField
    distance: PriorField
    z: PriorField
    R_sersic: PriorField
    red_fraction: Share


class Nuisances(Table):
    """What happens to images of all kinds.

    Attributes:
        shift: arcsec along each axis, of the whole scene.
        off_fraction, off_shift: few images are far off: how many, and by how much.
        artefact_fraction: share of images with one of ``artefacts``, a relative frequency for each.
    """

    shift: PriorField
    off_fraction: Share
    off_shift: PriorField
    artefact_fraction: Share
    artefacts: Frequencies


class SurveyWorld(Table):
    """All priors of a survey.

    Attributes:
        about: one line on what this fidelity is for.
        positive_fraction: share of lenses.
        kinds: relative frequency of each kind of non-lens.
        red, blue: colours of passive and star-forming galaxies.
        early, late: their sizes and shapes.
    """

    about: str
    positive_fraction: float
    kinds: Frequencies
    red: Track
    blue: Track
    early: Shapes
    late: Shapes
    lens: Lens
    source: Source
    visibility: Visibility
    elliptical: Elliptical
    spiral: Spiral
    edge_on: EdgeOn
    ring: RingGalaxy
    merger: Merger
    group: Group
    star: Stars
    neighbours: Neighbours
    nuisances: Nuisances
    observation: Observation

    @property
    def bands(self) -> tuple[str, ...]:
        """Band names, from blue to red; the last one is the reference."""
        return self.observation.bands

    @model_validator(mode="after")
    def _fits(self) -> SurveyWorld:
        if not 0 <= self.positive_fraction <= 1:
            raise ValueError(f"positive_fraction={self.positive_fraction}: give a share from 0 to 1")
        for given, known in ((self.kinds, KINDS), (self.nuisances.artefacts, ARTEFACTS)):
            if unknown := set(given) - set(known):
                raise ValueError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        clumps = {"source": self.source.clumps, "spiral": self.spiral.clumps}
        numbers = {f"{name}.clumps.number": (given.number, CLUMPS) for name, given in clumps.items()}
        numbers |= {f"{name}.number": (getattr(self, name).number, NEIGHBOURS) for name in ("group", "neighbours")}
        for name, (number, room) in numbers.items():
            _check_room(name, number, room)
        tracks = (self.red, self.blue, self.star.track)
        if not self.bands or any(set(self.bands) - set(track.colours) for track in tracks):
            raise ValueError(f"observation.bands={self.bands}: name the bands, and give each track a colour for each")
        return self
