"""Simulation rates side by side: deeplense, lenstronomy and caustics on the same scenes, in one process, in turns.

Rows are a number of pixels and what is in the lens: nothing but a SIE and shear (macro), 25 point masses, 25 truncated
NFW haloes, or a vortex (ours in closed form; for the others 100 point masses on its line, as DeepLenseSim makes it);
all with a Sersic source, a Gaussian PSF and photon noise. ``hsc-gri`` is a whole survey scene in three bands. Ours is
the path of ``deeplense simulate``, draws and truth table included, every image with the row's kind of substructure; the
others get ready-made scenes: lenstronomy one core and one ImageModel, caustics its functions under torch.func.vmap, all
threads, and whichever batch and order of the sum over haloes is fastest. ``write-*`` rows are those of write.py.

    python benchmarks/simulate.py --rows points-150 --num 192 --rounds 5
"""

# ruff: noqa: E402
from __future__ import annotations

import os
import tempfile

# Set before numpy and torch are imported: lenstronomy has one thread, torch asks for its own below, idle threads do not
# spin in the other's turn, and the compiler starts without a cache, so that its time is that of a first run.
os.environ.update(
    {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}, OMP_WAIT_POLICY="passive"
)
CACHE = tempfile.TemporaryDirectory(prefix="deeplense-benchmark-")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = CACHE.name

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

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
from rich.console import Console
from rich.table import Table
from torch import Tensor

from deeplense.lensing.cosmology import angular_diameter_distances, mass_of_unit_theta_E
from deeplense.lensing.observe import FWHM_TO_SIGMA
from deeplense.simulate import scene
from deeplense.simulate.generate import BLOCK, Simulator
from deeplense.simulate.render import render
from deeplense.simulate.substructure import Columns

Kwargs = dict[str, Any]
Scene = tuple[list[str], list[Kwargs], Kwargs]
POINTS_ON_STRING = 100
BATCHES = (1, 2, 4, 8, 16, 48)


@dataclass(frozen=True)
class Row:
    """One comparison: a preset with some settings, and the class of substructure that all its images have."""

    preset: str
    fidelity: str
    kind: int
    settings: Kwargs


PIXELS = {"64": {"num_pix": 64, "pixel_scale": 0.1}, "150": {"num_pix": 150}}
CONTENTS = {"macro": (0, {}), "points": (1, {}), "tnfw": (1, {"sphere.profile": "tnfw"}), "vortex": (2, {})}
ROWS = {
    f"{content}-{size}": Row("common-test", "published", kind, pixels | settings)
    for size, pixels in PIXELS.items()
    for content, (kind, settings) in CONTENTS.items()
}
# One seeing, so that lenstronomy, too, can keep its PSF.
ROWS["hsc-gri"] = Row("hsc-gri", "physical", 0, {"observation.seeing": 1.0})
WRITE_ROWS = {"write-common-test": ("common-test", "published"), "write-hsc-gri": ("hsc-gri", "physical")}


class OneKind(Simulator):
    """The package's simulator, except that every image is of one class, not only every third."""

    def __init__(self, row: Row) -> None:
        super().__init__(row.preset, row.fidelity, seed=1, compile=True, settings=row.settings)
        self.kind, engine = row.kind, self._photograph
        self._photograph = lambda scenes, preset, world, exposure, _, noise: engine(
            scenes, preset, world, exposure, self.kind, noise
        )
        self._render = torch.compile(render, dynamic=False)

    def _lenses(self, number: int, kind: int) -> Columns:
        """As in the package, ``kind`` is only the group's number and names its random numbers."""
        rng, size = scene.generator(self.seed, number, kind, scene.SCENE), BLOCK // len(self.classes)
        return scene.draw(self.preset, self.world, self.kind, size, self.strength, rng)

    def clean(self, columns: Columns) -> np.ndarray:
        """Noiseless images of a whole group, electrons per second, by the compiled engine, shape (B, C, H, W)."""
        return self._render(self._scenes(columns), self.preset, self.world, self.exposure, self.kind).numpy()


class Peer(Protocol):
    """A library that renders ready-made scenes."""

    def images(self, num: int) -> object:
        """Exposed images of the first ``num`` scenes, each scaled to [0, 1]."""


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
        self.time = np.array([t.mean * n for t, n in zip(self.exposure.time, self.exposure.num_exposures, strict=True)])
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

    def __init__(self, simulator: OneKind, columns: Columns) -> None:
        self.telescope, self.columns, self.kind = Telescope(simulator), columns, simulator.kind
        name, self.haloes = haloes_of(columns, simulator.kind)
        lens = LensModel(["SIE", "SHEAR"] + [name] * self.haloes["x"].shape[1])
        self.model = self.telescope.model(0, lens, ["SERSIC_ELLIPSE"], [])
        self.scenes = [self._scene(i) for i in range(len(columns["theta_E"]))]

    def _scene(self, i: int) -> tuple[list[Kwargs], list[Kwargs]]:
        names = {"x": "center_x", "y": "center_y"}
        haloes = [
            {names.get(k, k): values[i, n] for k, values in self.haloes.items()}
            for n in range(self.haloes["x"].shape[1])
        ]
        zero_point = self.telescope.exposure.zero_point[0]
        magnitude, center = self.columns["magnitude"][i], ("source_x", "source_y")
        source = sersic(self.columns, i, "source", magnitude, zero_point, center)
        return macro(self.columns, i, "theta_E_macro") + haloes, [source]

    def images(self, num: int) -> list[np.ndarray]:
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

    Left out, as lenstronomy has no profile for it: arms, ring and clumps of discs, and flaws of the detector; stars too.
    """

    def __init__(self, simulator: OneKind, columns: Columns) -> None:
        self.telescope, self.columns = Telescope(simulator), columns
        self.model = cache(self._model)  # one for each number of lenses, sources and other galaxies
        numbers = range(len(columns["theta_E"]))
        self.scenes = [[self._scene(i, band) for band in range(len(self.telescope.psf))] for i in numbers]

    def _model(self, band: int, is_lens: bool, sources: int, field: int) -> ImageModel:
        lens = LensModel(["SIE", "SHEAR"] if is_lens else [])
        return self.telescope.model(band, lens, ["SERSIC_ELLIPSE"] * sources, ["SERSIC_ELLIPSE"] * field)

    def _scene(self, i: int, band: int) -> tuple[list[Kwargs], list[Kwargs], list[Kwargs]]:
        c, zero_point = self.columns, self.telescope.exposure.zero_point[band]
        # Infinite magnitudes are galaxies that are not there.
        there = partial(self._galaxy, band=band, zero_point=zero_point)
        field = there("lens", i, ("center_x", "center_y"))
        for k in range(c["neighbour_x"].shape[1]):
            field += there("neighbour", (i, k), ("neighbour_x", "neighbour_y"))
        source = there("source", i, ("source_x", "source_y"))
        return macro(c, i, "theta_E") if c["theta_E"][i] else [], source, field

    def _galaxy(self, prefix: str, i: Any, center: tuple[str, str], band: int, zero_point: float) -> list[Kwargs]:
        magnitude = self.columns[f"{prefix}_magnitude"][i][band]
        return [sersic(self.columns, i, prefix, magnitude, zero_point, center)] if np.isfinite(magnitude) else []

    def _image(self, i: int, band: int) -> np.ndarray:
        lens, source, field = self.scenes[i][band]
        return self.model(band, bool(lens), len(source), len(field)).image(lens or None, source, field)

    def images(self, num: int) -> list[list[np.ndarray]]:
        return [[self.telescope.expose(self._image(i, b), b) for b in range(len(self.scenes[i]))] for i in range(num)]

    def exact(self, num: int) -> np.ndarray:
        """Noiseless images, shape (num, C, H, W)."""
        return np.array([[self._image(i, b) for b in range(len(self.scenes[i]))] for i in range(num)])


class Caustics:
    """The same images by caustics: its functions for one image, and torch.func.vmap over images."""

    def __init__(self, simulator: OneKind, columns: Columns) -> None:
        preset, exposure = simulator.preset, simulator.exposure
        axis = (torch.arange(preset.num_pix) - (preset.num_pix - 1) / 2) * preset.pixel_scale
        self.y, self.x = (a.contiguous() for a in torch.meshgrid(axis, axis, indexing="ij"))
        self.radius, self.distances = exposure.psf_radius, angular_diameter_distances(preset.z_lens, preset.z_source)
        offset = torch.arange(-self.radius, self.radius + 1) * preset.pixel_scale
        weight = torch.exp(-0.5 * (offset / (exposure.psf_fwhm[0].mean * FWHM_TO_SIGMA)) ** 2)
        self.kernel = (weight / weight.sum())[None, None]
        self.time, self.sky = exposure.time[0].mean * exposure.num_exposures[0], exposure.sky[0]
        self.name, haloes = haloes_of(columns, simulator.kind)
        self.parameters = self._parameters(columns, haloes, exposure.zero_point[0], preset.pixel_scale)
        self.batch, self.is_loop = self._fastest()

    def _parameters(self, c: Columns, haloes: dict[str, np.ndarray], zero_point: float, scale: float) -> list[Tensor]:
        """Of the SIE, shear and source (18, B), and of the haloes (B, N) each; caustics has q and phi."""
        galaxies = [
            sersic(c, i, "source", m, zero_point, ("source_x", "source_y")) for i, m in enumerate(c["magnitude"])
        ]
        brightness = np.array([g["amp"] for g in galaxies]) * scale**2
        lens = (
            c["center_x"],
            c["center_y"],
            *_axis_ratio(c["e1"], c["e2"]),
            c["theta_E_macro"],
            c["gamma1"],
            c["gamma2"],
        )
        shape = (*_axis_ratio(c["source_e1"], c["source_e2"]), c["n_sersic"], c["R_sersic"], brightness)
        smooth = np.stack([*lens, c["source_x"], c["source_y"], *shape], 1)
        if self.name == "TNFW":
            unit = mass_of_unit_theta_E(self.distances) / (1 - np.log(2))
            tau, M0 = haloes["r_trunc"] / haloes["Rs"], haloes["alpha_Rs"] * haloes["Rs"] * unit
            each = (haloes["x"], haloes["y"], haloes["Rs"], tau, M0)
        else:
            each = (haloes["x"], haloes["y"], haloes["theta_E"])
        return [torch.from_numpy(np.ascontiguousarray(p)).float() for p in (smooth, np.stack(each, -1))]

    def _halo(self, p: Tensor) -> tuple[Tensor, Tensor]:
        if self.name == "POINT_MASS":
            return func.reduced_deflection_angle_point(p[0], p[1], p[2], self.x, self.y)
        d = self.distances
        alpha = func.physical_deflection_angle_tnfw(p[0], p[1], p[2], p[3], self.x, self.y, p[4], d.lens)
        return tuple(a * (d.lens_source / d.source) for a in alpha)

    def _brightness(self, p: Tensor, haloes: Tensor, is_loop: bool) -> Tensor:
        """One image without PSF, from parameters (14,) and (N, ...)."""
        sie = func.reduced_deflection_angle_sie(*p[:5], self.x, self.y)
        shear = func.reduced_deflection_angle_external_shear(0.0, 0.0, p[5], p[6], self.x, self.y)
        beta = [t - a - b for t, a, b in zip((self.x, self.y), sie, shear, strict=True)]
        if is_loop:
            for n in range(len(haloes)):
                beta = [b - a for b, a in zip(beta, self._halo(haloes[n]), strict=True)]
        elif len(haloes):
            beta = [b - a.sum(0) for b, a in zip(beta, torch.func.vmap(self._halo)(haloes), strict=True)]
        return brightness_sersic(*p[7:14], *beta, k_lenstronomy(p[11]))

    def _clean(self, rows: slice, is_loop: bool) -> Tensor:
        one = partial(self._brightness, is_loop=is_loop)
        image = F.pad(
            torch.func.vmap(one)(*(p[rows] for p in self.parameters))[:, None], (self.radius,) * 4, "replicate"
        )
        return F.conv2d(F.conv2d(image, self.kernel[..., None]), self.kernel[:, :, None])

    def _images(self, rows: slice, is_loop: bool) -> np.ndarray:
        electrons = torch.poisson((self._clean(rows, is_loop) + self.sky) * self.time)
        low, high = electrons.amin((2, 3), keepdim=True), electrons.amax((2, 3), keepdim=True)
        return ((electrons - low) / (high - low)).numpy()

    def _fastest(self) -> tuple[int, bool]:
        loops = (False, True) if self.parameters[1].shape[1] else (False,)

        def cost(choice: tuple[int, bool]) -> float:
            # 100 haloes at once for many images would take gigabytes.
            if not choice[1] and choice[0] * self.parameters[1].shape[1] * self.x.numel() > 2e7:
                return float("inf")
            work = partial(self._images, slice(0, choice[0]), choice[1])
            return min(seconds(work) for _ in range(3)) / choice[0]

        return min(((batch, is_loop) for batch in BATCHES for is_loop in loops), key=cost)

    def images(self, num: int) -> list[np.ndarray]:
        return [self._images(slice(i, min(i + self.batch, num)), self.is_loop) for i in range(0, num, self.batch)]

    def clean(self, num: int) -> np.ndarray:
        """Noiseless images, shape (num, 1, H, W)."""
        return self._clean(slice(0, num), self.is_loop).numpy()


def _axis_ratio(e1: np.ndarray, e2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    e = np.hypot(e1, e2)
    return (1 - e) / (1 + e), np.arctan2(e2, e1) / 2


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def spread(values: list[float]) -> dict[str, float]:
    """Smallest, middle and largest of some measurements."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference of a pixel in any image and band, over the peak there."""
    return float((np.abs(ours - theirs).max((2, 3)) / theirs.max((2, 3))).max())


def only_shared(columns: Columns) -> Columns:
    """Survey scenes without what lenstronomy has not: arms, rings, clumps, stars, and the soft cusps of neighbours."""
    gone = {name: np.full_like(columns[name], np.inf) for name in columns if name.endswith("_magnitude")}
    kept = {name: columns[name] for name in ("lens_magnitude", "source_magnitude")}
    return columns | gone | kept | {name: np.zeros(BLOCK) for name in ("arms_contrast", "ring_share")}


def agreement(simulator: OneKind, columns: Columns, peers: dict[str, Peer], num: int) -> dict[str, float]:
    """Largest noiseless differences over the peak, for the first ``num`` scenes of a group."""
    lenstronomy, inside = peers["lenstronomy"], slice(None)
    if isinstance(lenstronomy, LenstronomySurvey):
        columns = only_shared(columns)
        lenstronomy = LenstronomySurvey(simulator, columns)
        # Beyond the border the sky is dark for lenstronomy, and as at the edge for us.
        inside = slice(simulator.exposure.psf_radius, -simulator.exposure.psf_radius)
    ours, theirs = simulator.clean(columns)[:num], lenstronomy.exact(num)
    found = {"lenstronomy": difference(ours[..., inside, inside], theirs[..., inside, inside])}
    if "caustics" in peers:
        found["caustics"] = difference(peers["caustics"].clean(num), lenstronomy.clean(num))
    return found


def compare(row: Row, num: int, rounds: int) -> dict[str, Any]:
    """All figures of a row; the peers render one group of scenes again and again."""
    simulator = OneKind(row)
    columns = simulator.groups(0)[0]
    size = len(columns["theta_E"])
    peers: dict[str, Peer]
    if row.preset == "hsc-gri":
        peers = {"lenstronomy": LenstronomySurvey(simulator, columns)}
    else:
        peers = {"lenstronomy": Lenstronomy(simulator, columns), "caustics": Caustics(simulator, columns)}
    first, again = (seconds(lambda: simulator.block(0)) for _ in range(2))
    rates: dict[str, list[float]] = {name: [] for name in (*peers, "deeplense")}
    for _ in range(rounds):
        for name, peer in peers.items():
            rates[name].append(size / seconds(partial(peer.images, size)))
        rates["deeplense"].append(num / seconds(lambda: [len(part) for part in simulator.stream(0, num)]))
    figures: dict[str, Any] = {"images": num, "images_of_peers": size, "rounds": rounds, "settings": row.settings}
    figures |= {"compile_seconds": first - again, "images_per_second": {k: spread(v) for k, v in rates.items()}}
    ratios = {name: [o / p for o, p in zip(rates["deeplense"], rates[name], strict=True)] for name in peers}
    figures["ratio"] = {name: spread(values) for name, values in ratios.items()}
    figures["largest_pixel_difference_over_peak"] = agreement(simulator, columns, peers, min(size, 16))
    if isinstance(caustics := peers.get("caustics"), Caustics):
        figures["caustics"] = {"batch": caustics.batch, "haloes": "one by one" if caustics.is_loop else "vmap"}
    return figures


def compare_writing(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of write.py, which runs by itself: its workers import the script that started them."""
    with tempfile.TemporaryDirectory(prefix="deeplense-benchmark-") as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, str(Path(__file__).with_name("write.py")), *WRITE_ROWS[name], "--out", str(out)]
        numbers = {"--rounds": min(args.rounds, 3), "--threads": args.threads, "--shards": 2 if args.quick else 8}
        subprocess.run([*command, *(str(word) for pair in numbers.items() for word in pair)], check=True)
        return json.loads(out.read_text())


def environment(threads: int) -> dict[str, Any]:
    """What the figures hold for."""
    return {
        "threads": {"lenstronomy": 1, "caustics": threads, "deeplense": threads},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {k: version(k) for k in ("deeplense", "lenstronomy", "caustics", "torch", "numpy")},
    }


def tables(rows: dict[str, Any]) -> list[Table]:
    """The figures, median and in brackets smallest and largest, comparisons first and writing after them."""
    compared = Table("row", "compile s", "images/s", "lenstronomy", "caustics", "x lenstronomy", "x caustics", "off by")
    written = Table("row", *(measure.replace("_", " ") for measure in ("generate", "write", "workers_1", "workers_2")))
    for name, row in rows.items():
        rates, ratio = row["images_per_second"], row.get("ratio", {})
        if name in WRITE_ROWS:
            written.add_row(name, *(_range(rates[measure]) for measure in rates))
            continue
        cells = [_range(rates.get(who)) for who in ("deeplense", "lenstronomy", "caustics")]
        cells += [_range(ratio.get(who)) for who in ("lenstronomy", "caustics")]
        off = ", ".join(f"{value:.0e}" for value in row["largest_pixel_difference_over_peak"].values())
        compared.add_row(name, f"{row['compile_seconds']:.1f}", *cells, off)
    return [table for table in (compared, written) if table.row_count]


def _range(values: dict[str, float] | None) -> str:
    if values is None:
        return "-"
    digits = 1 if values["median"] < 100 else 0
    return "{median:.{d}f} ({min:.{d}f}-{max:.{d}f})".format(d=digits, **values)


def save(path: Path, rows: dict[str, Any], threads: int) -> None:
    """Write the rows, and keep those that stand there already for the same machine and versions."""
    here, there = environment(threads), json.loads(path.read_text()) if path.exists() else {}
    kept = there["rows"] if there.get("environment") == here else {}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"environment": here, "rows": kept | rows}, indent=2) + "\n")
    temporary.replace(path)


def main() -> None:
    """Measure row by row, save after each, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", nargs="+", default=[*ROWS, *WRITE_ROWS], choices=[*ROWS, *WRITE_ROWS])
    parser.add_argument("--num", type=int, default=4 * BLOCK, help=f"images of ours a round, a multiple of {BLOCK}")
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds, 5 or more for a figure to quote")
    parser.add_argument("--threads", type=int, default=2, help="torch threads; lenstronomy has one")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--quick", action="store_true", help="one small round, to see that it runs")
    args = parser.parse_args()
    if args.quick:
        args.num, args.rounds = BLOCK, 1
    if args.num < BLOCK or args.num % BLOCK or args.rounds < 1:
        parser.error(f"--num is a multiple of {BLOCK}, --rounds 1 or more")
    torch.set_num_threads(args.threads)
    rows = {}
    for name in args.rows:
        rows[name] = compare_writing(name, args) if name in WRITE_ROWS else compare(ROWS[name], args.num, args.rounds)
        save(args.out, rows, args.threads)
    for table in tables(rows):
        Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main()
