"""Observed galaxies in place of Sersic sources: which one each lens has, and how large and how turned it is."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from deeplense.data.galaxies import GalaxyBank
from deeplense.simulate.scene import Scenes
from deeplense.simulate.substructure import Columns


def draw(bank: GalaxyBank, R_sersic: np.ndarray, rng: np.random.Generator) -> Columns:
    """A galaxy for each lens, any of the bank alike, at any angle, resized so that half of its light is in R_sersic.

    Args:
        R_sersic: half-light radii that the preset drew, arcsec, shape (B,).

    Returns:
        ``source_galaxy`` (its name), ``source_number`` in the bank, ``source_angle`` (radian), ``source_pixel_scale``
        (arcsec that a pixel of the galaxy takes), shape (B,) each.
    """
    number = rng.integers(len(bank), size=len(R_sersic))
    return {
        "source_galaxy": np.array(bank.name)[number],
        "source_number": number,
        "source_angle": rng.uniform(0, 2 * math.pi, len(R_sersic)),
        "source_pixel_scale": bank.pixel_scale[number] * R_sersic / bank.half_light_radius[number],
    }


def add_images(scenes: Scenes, bank: GalaxyBank, columns: Columns) -> Scenes:
    """The scenes with the pixels of their galaxies as ``source_image``, shape (B, S, S)."""
    like = scenes["source_angle"]
    images = torch.from_numpy(bank.images[columns["source_number"]]).to(like)
    return replace(scenes, values=scenes.values | {"source_image": images})
