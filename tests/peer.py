"""lenstronomy as the independent witness: its deflections, and its picture of a scene from our truth table."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from astropy.cosmology import FlatLambdaCDM
from astropy.modeling.functional_models import Moffat2D
from lenstronomy.Data.pixel_grid import PixelGrid
from lenstronomy.Data.psf import PSF
from lenstronomy.ImSim.image_model import ImageModel
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel
from lenstronomy.LightModel.Profiles.sersic import Sersic
from lenstronomy.Util.data_util import magnitude2cps
from scipy import ndimage
from torch import Tensor

Kwargs = dict[str, Any]


def deflect(names: list[str], kwargs: list[Kwargs], x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """lenstronomy's deflection at the positions x, y (any shape)."""
    alpha = LensModel(names).alpha(x.numpy().ravel(), y.numpy().ravel(), kwargs)
    return tuple(a.reshape(x.shape) for a in alpha)


class StringLens(LensModel):
    """lenstronomy's lens model and a uniform string of mass, which it does not have, in complex numbers."""

    def __init__(self, names: list[str], theta_E: float, z1: complex, z2: complex) -> None:
        super().__init__(names)
        self.theta_E, self.z1, self.z2 = theta_E, z1, z2

    def ray_shooting(self, x, y, kwargs, k=None):
        beta_x, beta_y = super().ray_shooting(x, y, kwargs, k)
        z = x + 1j * y
        conjugate = self.theta_E**2 / (self.z2 - self.z1) * np.log((z - self.z1) / (z - self.z2))
        return beta_x - conjugate.real, beta_y + conjugate.imag


def picture(
    num_pix: int,
    pixel_scale: float,
    lens: LensModel,
    kwargs_lens: list[Kwargs],
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
    model = ImageModel(grid, psf, lens, LightModel(["SERSIC_ELLIPSE"]), kwargs_numerics=numerics)
    return model.image(kwargs_lens, [source])


def scene(truth: Kwargs, simulator: Any) -> np.ndarray:
    """lenstronomy's noiseless image of a row of a simulator's truth table, electrons per second, shape (H, W)."""
    preset, exposure = simulator.preset, simulator.exposure
    names, kwargs_lens = lenses(truth, simulator.world)
    lens = LensModel(names)
    if truth.get("n_los"):
        lens, kwargs_lens = line_of_sight(truth, names, kwargs_lens)
    if truth["vortex_theta_E"]:
        z1, z2 = (complex(truth[f"vortex_x{i}"], truth[f"vortex_y{i}"]) for i in (1, 2))
        lens = StringLens(names, truth["vortex_theta_E"], z1, z2)
    shape = {name: truth[name] for name in ("R_sersic", "n_sersic")}
    shape |= {"e1": truth["source_e1"], "e2": truth["source_e2"]}
    flux = magnitude2cps(truth["magnitude"], exposure.zero_point[0])
    amplitude = flux / Sersic().total_flux(amp=1.0, **shape)
    source = shape | {"amp": amplitude, "center_x": truth["source_x"], "center_y": truth["source_y"]}
    size, fwhm = (preset.num_pix, preset.pixel_scale), truth["psf_fwhm"]
    # Brightness is per arcsec^2, an image per pixel: lenstronomy multiplies by the area.
    if exposure.psf_beta is None:
        return picture(*size, lens, kwargs_lens, source, fwhm, exposure.psf_radius, exposure.supersampling)
    sharp = picture(*size, lens, kwargs_lens, source, None, supersampling=exposure.supersampling)
    return ndimage.convolve(sharp, moffat(fwhm / size[1], exposure.psf_beta, exposure.psf_radius), mode="nearest")


def moffat(fwhm: float, beta: float, radius: int) -> np.ndarray:
    """astropy's Moffat profile at the centres of pixels, FWHM in pixels, of sum 1."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    kernel = Moffat2D(gamma=fwhm / 2 / np.sqrt(2 ** (1 / beta) - 1), alpha=beta)(x, y)
    return kernel / kernel.sum()


def lenses(truth: Kwargs, world: Any) -> tuple[list[str], list[Kwargs]]:
    """Names and keyword arguments of the macro lens and its subhaloes."""
    center = {name: truth[name] for name in ("center_x", "center_y")}
    macro = {"theta_E": truth["theta_E_macro"], "e1": truth["e1"], "e2": truth["e2"]} | center
    names = ["SIE", "SHEAR"]
    if truth["e1"] == truth["e2"] == 0:
        # Its SIE makes a round lens a little flat, by 1e-8.
        names, macro = ["SIS", "SHEAR"], {"theta_E": macro["theta_E"]} | center
    kwargs = [macro, {name: truth[name] for name in ("gamma1", "gamma2")}]
    for m in (3, 4):
        names.append("MULTIPOLE")
        kwargs.append({"m": m, "a_m": truth[f"a_{m}"] * truth["theta_E_macro"], "phi_m": truth[f"phi_{m}"]} | center)
        kwargs[-1]["r_E"] = 1.0
    places = [{"center_x": x, "center_y": y} for x, y in zip(truth["sub_x"], truth["sub_y"], strict=True)]
    if len(truth["sub_alpha_Rs"]):
        haloes = zip(truth["sub_alpha_Rs"], truth["sub_Rs"], truth["sub_r_trunc"], strict=True)
        profiles = [{"alpha_Rs": a, "Rs": r, "r_trunc": t} for a, r, t in haloes]
        return names + ["TNFW"] * len(places), kwargs + [p | q for p, q in zip(profiles, places, strict=True)]
    points = [{"theta_E": e} | p for e, p in zip(truth["sub_theta_E"], places, strict=True)]
    return names + ["POINT_MASS"] * len(places), kwargs + points


def line_of_sight(truth: Kwargs, names: list[str], kwargs: list[Kwargs]) -> tuple[LensModel, list[Kwargs]]:
    """The lens of ``names`` in its plane, and the haloes and sheets of the other planes."""
    names, kwargs, z = list(names), list(kwargs), [truth["z_lens"]] * len(names)
    is_truncated = len(truth["los_r_trunc"]) > 0
    keys = {"x": "center_x", "y": "center_y", "alpha_Rs": "alpha_Rs", "Rs": "Rs"}
    keys |= {"r_trunc": "r_trunc"} if is_truncated else {}
    for place in range(truth["n_los"]):
        names.append("TNFW" if is_truncated else "NFW")
        kwargs.append({theirs: truth[f"los_{ours}"][place] for ours, theirs in keys.items()})
        z.append(truth["los_z"][place])
    for kappa, redshift in zip(truth["los_kappa"], truth["los_kappa_z"], strict=True):
        names, kwargs, z = [*names, "CONVERGENCE"], [*kwargs, {"kappa": kappa}], [*z, redshift]
    options = {"multi_plane": True, "cosmo": FlatLambdaCDM(H0=70, Om0=0.3, Ob0=0.05), "distance_ratio_sampling": False}
    return LensModel(names, lens_redshift_list=z, z_source=truth["z_source"], **options), kwargs


def column(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """A parameter of shape (B,)."""
    return torch.tensor(values, dtype=dtype)


def largest_relative_error(ours: tuple[Tensor, Tensor], theirs: tuple[np.ndarray, np.ndarray]) -> float:
    """Largest length of the difference of two deflections over the length of the second."""
    difference = np.hypot(*(a.numpy() - b for a, b in zip(ours, theirs, strict=True)))
    return float((difference / np.hypot(*theirs)).max())
