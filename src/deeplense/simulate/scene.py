"""Scenes: every number that makes an image, drawn from the priors of a preset, many images at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ellipk
from torch import Tensor

from deeplense.errors import ConfigError
from deeplense.simulate import line_of_sight, substructure
from deeplense.simulate.galaxies import polar
from deeplense.simulate.observation import Exposure
from deeplense.simulate.preset import Preset, World
from deeplense.simulate.substructure import Columns

# Each kind of draw has a stream of its own, so that the noise does not depend on how many numbers a scene took.
SCENE, NOISE, FLAWS, GALAXIES, LENS_GALAXIES = range(5)


def generator(seed: int, *key: int) -> np.random.Generator:
    """The random numbers of a group of images: a function of the seed and of what they are for, and of nothing else."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, *key])))


def draw(
    preset: Preset, world: World, exposure: Exposure, kind: int, num: int, strength: float, rng: np.random.Generator
) -> Columns:
    """The parameters of ``num`` images of a class by their names in CONVENTIONS (arcsec, mag), shape (num,) or more.

    ``theta_E`` is that of the whole lens, ``theta_E_macro`` that of the smooth ellipsoid which is rendered: less where
    the world asks for equal mass inside theta_E, since the substructure has its share of it.

    Raises:
        ConfigError: the substructure would have more mass than the lens.
    """
    columns = _lens(world, num, rng) | _source(world, num, rng)
    columns |= exposure.draw(num, rng)
    columns |= substructure.draw(kind, preset, world, columns["theta_E"], strength, rng)
    columns["theta_E_macro"] = _macro(columns) if world.is_mass_matched else columns["theta_E"]
    if (columns["theta_E_macro"] <= 0).any():
        raise ConfigError(f"substructure has all of a lens's mass (strength={strength:g}): make f_sub or masses less")
    if world.has_line_of_sight:
        columns |= line_of_sight.draw(kind, preset, world, columns, strength, rng)
    redshifts = {"z_lens": preset.z_lens, "z_source": preset.z_source}
    return columns | {name: np.full(num, z) for name, z in redshifts.items()}


def _lens(world: World, num: int, rng: np.random.Generator) -> Columns:
    priors, columns = world.lens, {}
    columns["theta_E"] = priors.theta_E.sample(rng, num)
    columns["e1"], columns["e2"] = _ellipticity(priors.q.sample(rng, num), priors.phi.sample(rng, num))
    shear, angle = priors.gamma.sample(rng, num), priors.phi_gamma.sample(rng, num)
    columns["gamma1"], columns["gamma2"] = polar(shear, 2 * angle)
    columns["center_x"], columns["center_y"] = priors.center_x.sample(rng, num), priors.center_y.sample(rng, num)
    for m in (3, 4):
        columns[f"a_{m}"] = getattr(priors, f"a_{m}").sample(rng, num)
        columns[f"phi_{m}"] = getattr(priors, f"phi_{m}").sample(rng, num)
    return columns


def _source(world: World, num: int, rng: np.random.Generator) -> Columns:
    priors, columns = world.source, {}
    offset = polar(priors.offset.sample(rng, num), priors.offset_angle.sample(rng, num))
    columns["source_x"] = offset[0] + priors.center_x.sample(rng, num)
    columns["source_y"] = offset[1] + priors.center_y.sample(rng, num)
    q, phi = priors.q.sample(rng, num), priors.phi.sample(rng, num)
    columns["source_e1"], columns["source_e2"] = _ellipticity(q, phi)
    for name in ("R_sersic", "n_sersic", "magnitude"):
        columns[name] = getattr(priors, name).sample(rng, num)
    return columns


def _macro(columns: Columns) -> np.ndarray:
    """The SIE's Einstein radius that leaves the projected mass inside theta_E as it would be without substructure.

    Inside a circle of radius theta an isothermal ellipsoid has c theta_E theta (in units of pi Sigma_crit). c is the
    mean of sqrt(q) / sqrt(q^2 cos^2 + sin^2) over the circle, a complete elliptic integral; it is 1 for a round lens.
    """
    theta_E, e = columns["theta_E"], np.hypot(columns["e1"], columns["e2"])
    q = (1 - e) / (1 + e)
    c = 2 / math.pi * np.sqrt(q) * ellipk(1 - q**2)
    inside = substructure.mass_inside(columns, theta_E, columns["center_x"], columns["center_y"])
    return theta_E - inside / (theta_E * c)


def _ellipticity(q: np.ndarray, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return polar((1 - q) / (1 + q), 2 * phi)


def select(columns: Columns, rows: np.ndarray | slice) -> Columns:
    """Some of the images."""
    return {name: values[rows] for name, values in columns.items()}


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes as tensors: the numeric columns of a draw, one row an image.

    Attributes:
        values: the columns by name, shape (B,) or (B, ...).
        los_room: how many haloes, padding included, each plane of the line of sight has, front to back; empty for none.
        los_main: which of these planes is the lens's.
    """

    values: dict[str, Tensor]
    los_room: tuple[int, ...] = ()
    los_main: int = 0

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    @classmethod
    def of(cls, columns: Columns, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Scenes:
        """The columns that are numbers, on the device."""
        numbers = {name: values for name, values in columns.items() if values.dtype.kind in "fiub"}
        scalars = [name for name, values in numbers.items() if values.ndim == 1]
        # One transfer for all scalars: a tensor made for each costs more than drawing the scenes.
        stacked = torch.from_numpy(np.stack([numbers[name].astype(np.float64) for name in scalars])).to(device, dtype)
        arrays = {
            n: torch.from_numpy(np.ascontiguousarray(v)).to(device, dtype) for n, v in numbers.items() if v.ndim > 1
        }
        values = dict(zip(scalars, stacked, strict=True)) | arrays
        if "los_room" not in columns:
            return cls(values)
        # The same for all images; plain numbers, since they decide what code is compiled.
        return cls(values, tuple(columns["los_room"][0].astype(int).tolist()), int(columns["los_main"][0]))
