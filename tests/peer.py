"""lenstronomy as the independent witness: its deflections, and its picture of a scene from our truth table."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lenstronomy.Data.pixel_grid import PixelGrid
from lenstronomy.Data.psf import PSF
from lenstronomy.ImSim.image_model import ImageModel
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel
from lenstronomy.LightModel.Profiles.sersic import Sersic
from lenstronomy.Util.data_util import magnitude2cps
from torch import Tensor

Kwargs = dict[str, Any]


def deflect(names: list[str], kwargs: list[Kwargs], x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """lenstronomy's deflection at the positions x, y (any shape)."""
    alpha = LensModel(names).alpha(x.numpy().ravel(), y.numpy().ravel(), kwargs)
    return tuple(a.reshape(x.shape) for a in alpha)


def picture(
    num_pix: int,
    pixel_scale: float,
    lens: tuple[list[str], list[Kwargs]],
    source: Kwargs,
    fwhm: float | None,
    radius: int = 0,
    supersampling: int = 1,
) -> np.ndarray:
    """lenstronomy's noiseless image, flux per pixel; the Gaussian PSF is cut off at ``radius`` pixels."""
    sigma = fwhm / np.sqrt(8 * np.log(2)) / pixel_scale if fwhm else None
    psf = PSF("GAUSSIAN", fwhm=fwhm, truncation=radius / sigma, pixel_size=pixel_scale) if fwhm else PSF("NONE")
    corner = -(num_pix - 1) / 2 * pixel_scale
    grid = PixelGrid(num_pix, num_pix, np.eye(2) * pixel_scale, corner, corner)
    numerics = {"supersampling_factor": supersampling}
    model = ImageModel(grid, psf, LensModel(lens[0]), LightModel(["SERSIC_ELLIPSE"]), kwargs_numerics=numerics)
    return model.image(lens[1], [source])


def scene(truth: Kwargs, preset: Any, observation: Any, num_string: int = 4000) -> np.ndarray:
    """lenstronomy's noiseless image of a row of the truth table; a vortex is drawn as many point masses."""
    macro = {name: truth[name] for name in ("e1", "e2", "center_x", "center_y")} | {"theta_E": truth["theta_E_macro"]}
    halo_E, halo_x, halo_y = (np.asarray(truth[name]) for name in ("sub_theta_E", "sub_x", "sub_y"))
    if truth["vortex_theta_E"]:
        part = (np.arange(num_string) + 0.5) / num_string
        halo_E = np.full(num_string, truth["vortex_theta_E"] / np.sqrt(num_string))
        halo_x = truth["vortex_x1"] + part * (truth["vortex_x2"] - truth["vortex_x1"])
        halo_y = truth["vortex_y1"] + part * (truth["vortex_y2"] - truth["vortex_y1"])
    haloes = [
        {"theta_E": e, "center_x": x, "center_y": y} for e, x, y in zip(halo_E, halo_x, halo_y, strict=True)
    ]
    shear = {"gamma1": truth["gamma1"], "gamma2": truth["gamma2"]}
    lens = (["SIE", "SHEAR"] + ["POINT_MASS"] * len(haloes), [macro, shear, *haloes])
    shape = {name: truth[name] for name in ("R_sersic", "n_sersic")}
    shape |= {"e1": truth["source_e1"], "e2": truth["source_e2"]}
    flux = magnitude2cps(truth["magnitude"], observation.magnitude_zero_point)
    amplitude = flux / Sersic().total_flux(amp=1.0, **shape)
    source = shape | {"amp": amplitude, "center_x": truth["source_x"], "center_y": truth["source_y"]}
    rays = observation.supersampling
    size = preset.num_pix, preset.pixel_scale
    return picture(*size, lens, source, truth["psf_fwhm"], observation.psf_radius, rays)


def column(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """A parameter of shape (B,)."""
    return torch.tensor(values, dtype=dtype)


def largest_relative_error(ours: tuple[Tensor, Tensor], theirs: tuple[np.ndarray, np.ndarray]) -> float:
    """Largest length of the difference of two deflections over the length of the second."""
    difference = np.hypot(*(a.numpy() - b for a, b in zip(ours, theirs, strict=True)))
    return float((difference / np.hypot(*theirs)).max())
