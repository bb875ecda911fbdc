"""lenstronomy and caustics as a user of theirs would have them make many images: the scenes of a simulator's group.

simulate.py times them; it sets the number of threads before this is imported.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from caustics.lenses import func
from caustics.light.func import brightness_sersic, k_lenstronomy
from lenstronomy.Data.pixel_grid import PixelGrid
from lenstronomy.Data.psf import PSF
from lenstronomy.ImSim.image_model import ImageModel
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel
from lenstronomy.LightModel.Profiles.sersic import Sersic
from lenstronomy.Util.data_util import magnitude2cps
from torch import Tensor

from deeplense.lensing.cosmology import angular_diameter_distances, mass_of_unit_theta_E
from deeplense.lensing.observe import FWHM_TO_SIGMA
from deeplense.simulate.generate import Simulator
from deeplense.simulate.substructure import Columns

Kwargs = dict[str, Any]
POINTS_ON_STRING = 100
BATCHES = (1, 2, 4, 8, 16)
# An array of haloes with more numbers than this would take gigabytes.
LARGEST = 2e7


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def line_of_points(c: Columns) -> dict[str, np.ndarray]:
    """A vortex as equal point masses from one end to the other: Einstein radii and places, shape (B, 100)."""
    t = np.linspace(0, 1, POINTS_ON_STRING)
    x, y = (c[f"vortex_{a}1"][:, None] * (1 - t) + c[f"vortex_{a}2"][:, None] * t for a in "xy")
    return {"theta_E": np.broadcast_to(c["vortex_theta_E"][:, None] / POINTS_ON_STRING**0.5, x.shape), "x": x, "y": y}


def haloes_of(c: Columns, kind: int) -> tuple[str, dict[str, np.ndarray]]:
    """lenstronomy's name of the substructure, and its parameters, shape (B, N) each."""
    if kind == 2:
        return "POINT_MASS", line_of_points(c)
    places = {"x": c["sub_x"], "y": c["sub_y"]}
    if c.get("sub_alpha_Rs", np.zeros((1, 0))).shape[1]:
        return "TNFW", {"alpha_Rs": c["sub_alpha_Rs"], "Rs": c["sub_Rs"], "r_trunc": c["sub_r_trunc"]} | places
    return "POINT_MASS", {"theta_E": c["sub_theta_E"]} | places


def sersic(c: Columns, i: Any, prefix: str, magnitude: float, zero_point: float, center: tuple[str, str]) -> Kwargs:
    """lenstronomy's arguments of a Sersic galaxy, row ``i`` of the columns that begin with ``prefix``."""
    shape = {k: c[k if k in c else f"{prefix}_{k}"][i] for k in ("R_sersic", "n_sersic")}
    shape |= {"e1": c[f"{prefix}_e1"][i], "e2": c[f"{prefix}_e2"][i]}
    amplitude = magnitude2cps(magnitude, zero_point) / Sersic().total_flux(amp=1.0, **shape)
    return shape | {"amp": amplitude, "center_x": c[center[0]][i], "center_y": c[center[1]][i]}


def macro(c: Columns, i: int, theta_E: str) -> list[Kwargs]:
    """lenstronomy's arguments of the SIE and the shear of image ``i``."""
    sie = {k: c[k][i] for k in ("e1", "e2", "center_x", "center_y")} | {"theta_E": c[theta_E][i]}
    return [sie, {"gamma1": c["gamma1"][i], "gamma2": c["gamma2"][i]}]


class StringLens(LensModel):
    """lenstronomy's lens model and the limit of infinitely many points on a string, in complex numbers."""

    def __init__(self, names: list[str], theta_E: float, z1: complex, z2: complex) -> None:
        super().__init__(names)
        self.theta_E, self.z1, self.z2 = theta_E, z1, z2

    def ray_shooting(self, x: np.ndarray, y: np.ndarray, kwargs: list[Kwargs], k: Any = None) -> Any:
        beta_x, beta_y = super().ray_shooting(x, y, kwargs, k)
        z = x + 1j * y
        pull = self.theta_E**2 / (self.z2 - self.z1) * np.log((z - self.z1) / (z - self.z2))
        return beta_x - pull.real, beta_y + pull.imag


class Telescope:
    """lenstronomy's grid, PSFs and numerics for a simulator, and numpy's noise."""

    def __init__(self, simulator: Simulator) -> None:
        self.preset, self.exposure = simulator.preset, simulator.exposure
        size, scale = self.preset.num_pix, self.preset.pixel_scale
        corner = -(size - 1) / 2 * scale
        self.grid = PixelGrid(size, size, np.eye(2) * scale, corner, corner)
        self.psf = [self._psf(fwhm.mean) for fwhm in self.exposure.psf_fwhm]
        self.time = [t.mean * n for t, n in zip(self.exposure.time, self.exposure.num_exposures, strict=True)]
        self.rng = np.random.default_rng(0)

    def _psf(self, fwhm: float) -> PSF:
        scale, radius, beta = self.preset.pixel_scale, self.exposure.psf_radius, self.exposure.psf_beta
        if beta is None:
            truncation = radius * scale / (fwhm * FWHM_TO_SIGMA)
            return PSF("GAUSSIAN", fwhm=fwhm, truncation=truncation, pixel_size=scale)
        y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1] * scale
        kernel = (1 + (x**2 + y**2) * 4 * (2 ** (1 / beta) - 1) / fwhm**2) ** -beta
        return PSF("PIXEL", kernel_point_source=kernel)

    def model(self, band: int, lens: LensModel, source: list[str], field: list[str]) -> ImageModel:
        """lenstronomy's renderer of one band."""
        numerics = {"supersampling_factor": self.exposure.supersampling}
        light = LightModel(source), LightModel(field)
        return ImageModel(self.grid, self.psf[band], lens, *light, kwargs_numerics=numerics)

    def expose(self, clean: np.ndarray, band: int) -> np.ndarray:
        """Poisson and read noise, and the scale of [0, 1]."""
        electrons = self.rng.poisson((clean + self.exposure.sky[band]) * self.time[band]).astype(float)
        if self.exposure.read_variance[band]:
            electrons += self.rng.normal(0, self.exposure.read_variance[band] ** 0.5, clean.shape)
        low, high = electrons.min(), electrons.max()
        return (electrons - low) / (high - low)


class Lenstronomy:
    """Lensed Sersic galaxies by lenstronomy: one ImageModel, built once, for all scenes."""

    def __init__(self, simulator: Simulator, columns: Columns, kind: int) -> None:
        self.telescope, self.columns, self.kind = Telescope(simulator), columns, kind
        name, self.haloes = haloes_of(columns, kind)
        lens = LensModel(["SIE", "SHEAR"] + [name] * self.haloes["x"].shape[1])
        self.model = self.telescope.model(0, lens, ["SERSIC_ELLIPSE"], [])
        self.scenes = [self._scene(i) for i in range(len(columns["theta_E"]))]

    def _scene(self, i: int) -> tuple[list[Kwargs], list[Kwargs]]:
        names, number = {"x": "center_x", "y": "center_y"}, self.haloes["x"].shape[1]
        haloes = [{names.get(k, k): values[i, n] for k, values in self.haloes.items()} for n in range(number)]
        magnitude, zero_point = self.columns["magnitude"][i], self.telescope.exposure.zero_point[0]
        source = sersic(self.columns, i, "source", magnitude, zero_point, ("source_x", "source_y"))
        return macro(self.columns, i, "theta_E_macro") + haloes, [source]

    def images(self, num: int) -> list[np.ndarray]:
        """Exposed images of the first ``num`` scenes, each scaled to [0, 1]."""
        return [self.telescope.expose(self.model.image(*kwargs), 0) for kwargs in self.scenes[:num]]

    def clean(self, num: int) -> np.ndarray:
        """Noiseless images as they are timed, shape (num, 1, H, W)."""
        return np.stack([self.model.image(*kwargs) for kwargs in self.scenes[:num]])[:, None]

    def exact(self, num: int) -> np.ndarray:
        """Noiseless images, the vortex as the limit of many points, which ours is."""
        return np.stack([self._exact(i) for i in range(num)])[:, None] if self.kind == 2 else self.clean(num)

    def _exact(self, i: int) -> np.ndarray:
        c, (lenses, source) = self.columns, self.scenes[i]
        ends = (complex(c[f"vortex_x{k}"][i], c[f"vortex_y{k}"][i]) for k in (1, 2))
        lens = StringLens(["SIE", "SHEAR"], c["vortex_theta_E"][i], *ends)
        return self.telescope.model(0, lens, ["SERSIC_ELLIPSE"], []).image(lenses[:2], source)


class LenstronomySurvey:
    """Survey scenes in each band by lenstronomy: SIE and shear, the lens's and the source's Sersic light, neighbours.

    Left out, as lenstronomy has no profile for them: arms, rings and clumps of discs, flaws of the detector; and stars.
    """

    def __init__(self, simulator: Simulator, columns: Columns) -> None:
        self.telescope, self.columns = Telescope(simulator), columns
        self.model = cache(self._model)  # one for each number of lenses, sources and other galaxies
        numbers = range(len(columns["theta_E"]))
        self.scenes = [[self._scene(i, band) for band in range(len(self.telescope.psf))] for i in numbers]

    def _model(self, band: int, is_lens: bool, sources: int, field: int) -> ImageModel:
        lens = LensModel(["SIE", "SHEAR"] if is_lens else [])
        return self.telescope.model(band, lens, ["SERSIC_ELLIPSE"] * sources, ["SERSIC_ELLIPSE"] * field)

    def _scene(self, i: int, band: int) -> tuple[list[Kwargs], list[Kwargs], list[Kwargs]]:
        c, there = self.columns, partial(self._galaxy, band=band)
        field = there("lens", i, ("center_x", "center_y"))
        for k in range(c["neighbour_x"].shape[1]):
            field += there("neighbour", (i, k), ("neighbour_x", "neighbour_y"))
        source = there("source", i, ("source_x", "source_y"))
        return macro(c, i, "theta_E") if c["theta_E"][i] else [], source, field

    def _galaxy(self, prefix: str, i: Any, center: tuple[str, str], band: int) -> list[Kwargs]:
        """The galaxy, or nothing where its magnitude is infinite."""
        magnitude, zero_point = self.columns[f"{prefix}_magnitude"][i][band], self.telescope.exposure.zero_point[band]
        return [sersic(self.columns, i, prefix, magnitude, zero_point, center)] if np.isfinite(magnitude) else []

    def _image(self, i: int, band: int) -> np.ndarray:
        lens, source, field = self.scenes[i][band]
        return self.model(band, bool(lens), len(source), len(field)).image(lens or None, source, field)

    def images(self, num: int) -> list[list[np.ndarray]]:
        """Exposed images of the first ``num`` scenes, each band scaled to [0, 1]."""
        return [[self.telescope.expose(self._image(i, b), b) for b in range(len(self.scenes[i]))] for i in range(num)]

    def exact(self, num: int) -> np.ndarray:
        """Noiseless images, shape (num, C, H, W)."""
        return np.array([[self._image(i, b) for b in range(len(self.scenes[i]))] for i in range(num)])


class Caustics:
    """The same images by caustics: its functions for one image, torch.func.vmap over images, PSF and noise by torch.

    The batch, and whether haloes are summed one by one or as an array, are what is fastest here.
    """

    def __init__(self, simulator: Simulator, columns: Columns, kind: int) -> None:
        preset, exposure = simulator.preset, simulator.exposure
        axis = (torch.arange(preset.num_pix) - (preset.num_pix - 1) / 2) * preset.pixel_scale
        self.y, self.x = (a.contiguous() for a in torch.meshgrid(axis, axis, indexing="ij"))
        self.radius, self.distances = exposure.psf_radius, angular_diameter_distances(preset.z_lens, preset.z_source)
        offset = torch.arange(-self.radius, self.radius + 1) * preset.pixel_scale
        weight = torch.exp(-0.5 * (offset / (exposure.psf_fwhm[0].mean * FWHM_TO_SIGMA)) ** 2)
        self.kernel = (weight / weight.sum())[None, None]
        self.time, self.sky = exposure.time[0].mean * exposure.num_exposures[0], exposure.sky[0]
        self.name, haloes = haloes_of(columns, kind)
        smooth = _smooth(columns, exposure.zero_point[0], preset.pixel_scale)
        self.parameters = [torch.from_numpy(p).float() for p in (smooth, self._haloes(haloes))]
        self.batch, self.is_loop = self._fastest()

    def _haloes(self, h: dict[str, np.ndarray]) -> np.ndarray:
        """caustics' parameters of the haloes, shape (B, N, 3 or 5)."""
        if self.name == "POINT_MASS":
            return np.stack([h["x"], h["y"], h["theta_E"]], -1)
        unit = mass_of_unit_theta_E(self.distances) / (1 - np.log(2))
        return np.stack([h["x"], h["y"], h["Rs"], h["r_trunc"] / h["Rs"], h["alpha_Rs"] * h["Rs"] * unit], -1)

    def _halo(self, p: Tensor) -> tuple[Tensor, Tensor]:
        if self.name == "POINT_MASS":
            return func.reduced_deflection_angle_point(p[0], p[1], p[2], self.x, self.y)
        d = self.distances
        ax, ay = func.physical_deflection_angle_tnfw(p[0], p[1], p[2], p[3], self.x, self.y, p[4], d.lens)
        return ax * (d.lens_source / d.source), ay * (d.lens_source / d.source)

    def _brightness(self, p: Tensor, haloes: Tensor, is_loop: bool) -> Tensor:
        """One image without PSF, from the parameters (14,) of lens and source and (N, ...) of haloes."""
        sie = func.reduced_deflection_angle_sie(*p[:5], self.x, self.y)
        shear = func.reduced_deflection_angle_external_shear(0.0, 0.0, p[5], p[6], self.x, self.y)
        beta = [t - a - b for t, a, b in zip((self.x, self.y), sie, shear, strict=True)]
        if is_loop:
            for halo in haloes.unbind(0):
                beta = [b - a for b, a in zip(beta, self._halo(halo), strict=True)]
        elif len(haloes):
            beta = [b - a.sum(0) for b, a in zip(beta, torch.func.vmap(self._halo)(haloes), strict=True)]
        return brightness_sersic(*p[7:14], *beta, k_lenstronomy(p[11]))

    def _clean(self, rows: slice, is_loop: bool) -> Tensor:
        one = partial(self._brightness, is_loop=is_loop)
        image = torch.func.vmap(one)(*(p[rows] for p in self.parameters))[:, None]
        padded = F.pad(image, (self.radius,) * 4, "replicate")
        return F.conv2d(F.conv2d(padded, self.kernel[..., None]), self.kernel[:, :, None])

    def _images(self, rows: slice, is_loop: bool) -> np.ndarray:
        electrons = torch.poisson((self._clean(rows, is_loop) + self.sky) * self.time)
        low, high = electrons.amin((2, 3), keepdim=True), electrons.amax((2, 3), keepdim=True)
        return ((electrons - low) / (high - low)).numpy()

    def _fastest(self) -> tuple[int, bool]:
        number = self.parameters[1].shape[1]

        def cost(choice: tuple[int, bool]) -> float:
            batch, is_loop = choice
            if not is_loop and batch * number * self.x.numel() > LARGEST:
                return float("inf")
            return min(seconds(partial(self._images, slice(0, batch), is_loop)) for _ in range(3)) / batch

        return min(((batch, is_loop) for batch in BATCHES for is_loop in (False, True)[: 1 + bool(number)]), key=cost)

    def images(self, num: int) -> list[np.ndarray]:
        """Exposed images of the first ``num`` scenes, each scaled to [0, 1]."""
        return [self._images(slice(i, min(i + self.batch, num)), self.is_loop) for i in range(0, num, self.batch)]

    def clean(self, num: int) -> np.ndarray:
        """Noiseless images, shape (num, 1, H, W)."""
        return self._clean(slice(0, num), self.is_loop).numpy()


def _smooth(c: Columns, zero_point: float, pixel_scale: float) -> np.ndarray:
    """caustics' parameters of SIE, shear and source, shape (B, 14): q and phi for e1 and e2, flux per pixel."""
    place = "source_x", "source_y"
    galaxies = [sersic(c, i, "source", magnitude, zero_point, place) for i, magnitude in enumerate(c["magnitude"])]
    brightness = np.array([galaxy["amp"] for galaxy in galaxies]) * pixel_scale**2
    lens = (c["center_x"], c["center_y"], *_axis_ratio(c["e1"], c["e2"]), c["theta_E_macro"], c["gamma1"], c["gamma2"])
    q, phi = _axis_ratio(c["source_e1"], c["source_e2"])
    # Its half-light radius is along the major axis.
    source = (c["source_x"], c["source_y"], q, phi, c["n_sersic"], c["R_sersic"] / np.sqrt(q))
    return np.stack([*lens, *source, brightness], 1)


def _axis_ratio(e1: np.ndarray, e2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    e = np.hypot(e1, e2)
    return (1 - e) / (1 + e), np.arctan2(e2, e1) / 2
