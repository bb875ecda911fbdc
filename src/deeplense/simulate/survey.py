"""Survey scenes for lens finding: lenses and what is taken for them, as they stand in the sky before the telescope.

A non-lens is a lens of ``theta_E = 0``: its disc, ring or tail stands where a lens has its source, and all images of a
block take the same graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deeplense.lensing import deflection, discs, light, raytrace
from deeplense.lensing.compiled import hold
from deeplense.simulate.artefacts import spoil
from deeplense.simulate.galaxies import Columns
from deeplense.simulate.population import draw, truth_columns
from deeplense.simulate.survey_priors import CLUMPS, KINDS, NEIGHBOURS, SurveyWorld

if TYPE_CHECKING:
    from deeplense.simulate.observation import Exposure
    from deeplense.simulate.preset import Preset
    from deeplense.simulate.scene import Scenes

__all__ = [
    "CLUMPS",
    "KINDS",
    "NEIGHBOURS",
    "Columns",
    "SurveyWorld",
    "draw",
    "render",
    "spoil",
    "truth_columns",
]


# A neighbour's cusp is flattened inside this share of a pixel, so that one ray a pixel gives its flux (to a few %).
CUSP = 0.4


def render(scenes: Scenes, preset: Preset, exposure: Exposure) -> Tensor:
    """Mean electrons per second and pixel in front of the PSF, shape (B, C, H, W).

    Lens and source are evaluated on ``exposure.supersampling`` squared rays a pixel, what merely stands beside them on
    one: that is half of the cost.

    Args:
        scenes: the numeric columns of :func:`draw` as tensors.
    """
    s, rays, size = scenes, exposure.supersampling, (preset.num_pix, preset.pixel_scale)
    dtype, device = s["theta_E"].dtype, s["theta_E"].device
    zero_point = torch.tensor(exposure.zero_point, dtype=dtype, device=device)
    fine = raytrace.make_grid(*size, rays, dtype, device)
    # A component has one shape in all bands: rays are gathered into pixels before there are channels.
    layers = [(raytrace.bin_pixels(shape, rays), magnitude) for shape, magnitude in _lens_and_source(s, *fine)]
    layers += _field(s, *raytrace.make_grid(*size, 1, dtype, device), preset.pixel_scale)
    image: Tensor | None = None
    for shape, magnitude in layers:
        (counts,) = deflection._image(preset.pixel_scale**2 * 10 ** (-0.4 * (magnitude - zero_point)))
        # Held, or compiled code would work out each shape once more for each band.
        layer = hold(shape)[:, None] * counts
        image = layer if image is None else image + layer
    assert image is not None
    return image


def _lens_and_source(s: Scenes, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Brightness of flux 1 on the rays, shape (B, S, S), and magnitudes, shape (B, C): lens, source, its knots."""
    alpha = deflection.deflect_sie(x, y, s["theta_E"], s["e1"], s["e2"], s["center_x"], s["center_y"])
    beta = raytrace.trace(x, y, alpha, deflection.deflect_shear(x, y, s["gamma1"], s["gamma2"]))
    unit = 1 / light.sersic_flux(torch.ones_like(s["lens_R_sersic"]), s["lens_R_sersic"], s["lens_n_sersic"])
    lens = light.sersic(x, y, unit, *_shape(s, "lens"), s["center_x"], s["center_y"])
    if "lens_image" in s.values:
        has_image = s["lens_number"][:, None, None] >= 0
        lens = torch.where(has_image, galaxy(s, x, y, torch.ones_like(unit), "lens", "center"), lens)
    arms = discs.Arms(*(s[f"arms_{name}"] for name in discs.Arms._fields))
    ring = discs.Ring(*(s[f"ring_{name}"] for name in discs.Ring._fields))
    source = discs.disc(*beta, *_shape(s, "source"), s["source_x"], s["source_y"], arms, ring)
    if "source_image" in s.values:
        # What lies behind a lens is an observed galaxy, knots and all; the discs of non-lenses stay.
        is_lens = s["label"][:, None, None] > 0
        source = torch.where(is_lens, galaxy(s, *beta, torch.ones_like(s["source_x"])), source)
    knots = discs.clumps(*beta, s["clump_share"], s["clump_radius"], s["clump_x"], s["clump_y"])
    if "source_image" in s.values:
        knots = torch.where(is_lens, torch.zeros_like(knots), knots)
    return [(lens, s["lens_magnitude"]), (source, s["source_magnitude"]), (knots, s["clump_magnitude"])]


def galaxy(s: Scenes, x: Tensor, y: Tensor, flux: Tensor, prefix: str = "source", center: str = "source") -> Tensor:
    """Surface brightness of an observed galaxy in the unit of ``flux`` per arcsec^2, shape (B, S, S).

    Args:
        x, y: where rays meet it, arcsec: the source plane, or the sky for the light of a lens.
        prefix, center: of the columns that say what it looks like, and where it is.
    """
    place = s[f"{prefix}_pixel_scale"], s[f"{prefix}_angle"], s[f"{center}_x"], s[f"{center}_y"]
    index = torch.arange(len(flux), device=flux.device)
    return light.interpolate(x, y, s[f"{prefix}_image"], index, *place, flux)


def _field(s: Scenes, x: Tensor, y: Tensor, pixel_scale: float) -> list[tuple[Tensor, Tensor]]:
    """The same of neighbours and of the star, on one ray a pixel."""
    star = discs.point(x, y, pixel_scale, s["star_x"], s["star_y"])
    layers = [(star, s["star_magnitude"])]
    for k in range(NEIGHBOURS):
        place = (s["neighbour_x"][:, k], s["neighbour_y"][:, k])
        R_sersic, n_sersic, e1, e2 = (column[:, k] for column in _shape(s, "neighbour"))
        shape = discs.soft_sersic(x, y, R_sersic, n_sersic, e1, e2, *place, CUSP * pixel_scale)
        layers.append((shape, s["neighbour_magnitude"][:, k]))
    return layers


def _shape(s: Scenes, prefix: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return s[f"{prefix}_R_sersic"], s[f"{prefix}_n_sersic"], s[f"{prefix}_e1"], s[f"{prefix}_e2"]
