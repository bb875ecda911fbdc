"""Observed galaxies in place of Sersic profiles: which one an image has, and how large and how turned it is."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from deeplense.data.galaxies import GalaxyBank
from deeplense.simulate.scene import Scenes
from deeplense.simulate.substructure import Columns

# Kinds of survey images in whose middle there is an early-type galaxy as lenses are. With observed galaxies, all of
# them have one: lenses alone would be known by it.
EARLY = ("lens", "elliptical", "group", "artefact")
# Mass is no flatter than this in either component, as in population.py.
FLATTEST = 0.45


def draw(bank: GalaxyBank, R_sersic: np.ndarray, rng: np.random.Generator, prefix: str = "source") -> Columns:
    """A galaxy for each image, any of the bank alike, at any angle, resized so that half of its light is in R_sersic.

    Args:
        R_sersic: half-light radii that the preset drew, arcsec, shape (B,).
        prefix: of the columns.

    Returns:
        ``source_galaxy`` (its name), ``source_number`` in the bank, ``source_angle`` (radian), ``source_pixel_scale``
        (arcsec that a pixel of the galaxy takes), shape (B,) each.
    """
    number = rng.integers(len(bank), size=len(R_sersic))
    return {
        f"{prefix}_galaxy": np.array(bank.name)[number],
        f"{prefix}_number": number,
        f"{prefix}_angle": rng.uniform(0, 2 * math.pi, len(R_sersic)),
        f"{prefix}_pixel_scale": bank.pixel_scale[number] * R_sersic / bank.half_light_radius[number],
    }


def draw_lenses(bank: GalaxyBank, columns: Columns, rng: np.random.Generator) -> Columns:
    """The light of early-type galaxies in the middle of survey images, lenses or not.

    Returns:
        The columns of :func:`draw` with ``lens`` in place of ``source``, "" and -1 where there is no such galaxy;
        ``lens_e1``, ``lens_e2``, the shape of its light; and ``e1``, ``e2``: mass follows this light as it followed the
        Sersic profile's.
    """
    drawn = draw(bank, columns["lens_R_sersic"], rng, "lens")
    is_early, number = np.isin(columns["kind"], EARLY), drawn["lens_number"]
    turn = np.exp(2j * drawn["lens_angle"])
    shape = (bank.ellipticity[0] + 1j * bank.ellipticity[1])[number] * turn
    for name, value in (("e1", shape.real), ("e2", shape.imag)):
        mass = np.clip(columns[name] + value - columns[f"lens_{name}"], -FLATTEST, FLATTEST)
        drawn[name] = np.where(columns["label"] == 1, mass, columns[name])
        drawn[f"lens_{name}"] = np.where(is_early, value, columns[f"lens_{name}"])
    drawn["lens_galaxy"] = np.where(is_early, drawn["lens_galaxy"], "")
    return drawn | {"lens_number": np.where(is_early, number, -1)}


def add_images(
    scenes: Scenes, bank: GalaxyBank, columns: Columns, prefix: str = "source", spacing: float = 0.0
) -> Scenes:
    """The scenes with the pixels of their galaxies as ``source_image``, shape (B, S, S).

    Args:
        spacing: arcsec between rays that are not lensed; pixels of a galaxy that lie closer are added up until they
            do not, and ``source_pixel_scale`` grows with them: otherwise rays would miss some of the light.
    """
    pixel_scale = columns[f"{prefix}_pixel_scale"]
    # Odd, so that the middle stays the middle.
    times = 2 * np.ceil((spacing / pixel_scale - 1) / 2).clip(min=0).astype(int) + 1
    chosen = zip(columns[f"{prefix}_number"], times, strict=True)
    images = torch.from_numpy(np.stack([_added_up(bank.images[number], n) for number, n in chosen]))
    like = scenes[f"{prefix}_angle"]
    added = {
        f"{prefix}_image": images.to(like),
        f"{prefix}_pixel_scale": torch.from_numpy(pixel_scale * times).to(like),
    }
    return replace(scenes, values=scenes.values | added)


def _added_up(image: np.ndarray, times: int) -> np.ndarray:
    """Squares of an odd number of pixels as one, in the middle of a frame (S, S) of odd S as before."""
    if times == 1:
        return image
    size = len(image)
    few = -(-size // times) | 1
    wide = np.pad(image, (few * times - size) // 2)
    coarse = wide.reshape(few, times, few, times).sum((1, 3))
    return np.pad(coarse, (size - few) // 2)
