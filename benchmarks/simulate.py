"""Simulation rates side by side: ours, lenstronomy's and caustics', the same scenes, in one process, round about.

Every image has a SIE, an external shear, the substructure of its row, a lensed Sersic galaxy, a Gaussian PSF and photon
noise. All are given ready-made scenes. lenstronomy renders and exposes them one after another on one thread; caustics'
functions, vectorised over images by torch.func.vmap, and ours run on several (``--threads``), ours along the whole path
of ``deeplense simulate`` with the truth table of each image. The vortex is 100 point masses on a line for the others,
as DeepLenseSim makes it, and the closed form for ours.

    python benchmarks/simulate.py --num 192 --rounds 5
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
import time
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from caustics.lenses import func
from caustics.light import func as light_func
from lenstronomy.Data.pixel_grid import PixelGrid
from lenstronomy.Data.psf import PSF
from lenstronomy.ImSim.image_model import ImageModel
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel
from lenstronomy.LightModel.Profiles.sersic import Sersic
from lenstronomy.Util.data_util import magnitude2cps
from rich.console import Console
from rich.table import Table

from deeplense.lensing.light import sersic_b
from deeplense.lensing.observe import FWHM_TO_SIGMA, blur_gaussian
from deeplense.lensing.raytrace import make_grid
from deeplense.simulate.generate import BLOCK, Simulator
from deeplense.simulate.scene import Scenes
from deeplense.simulate.substructure import Columns

KINDS = {"macro": 0, "points": 1, "tnfw": 1, "vortex": 2}
SIZES = {64: 0.117, 150: 0.05}
ROWS = [f"{kind}-{size}" for size in SIZES for kind in KINDS] + ["hsc-gri-64"]
STRING = 100  # point masses that stand for a vortex
CHECKED = 24  # scenes whose pixels are compared
Truth = dict[str, Any]


class Uniform(Simulator):
    """The package's simulator, except that every image is of one kind, and that its scenes are drawn only once."""

    def __init__(self, kind: str, size: int) -> None:
        settings: dict[str, Any] = {"num_pix": size, "pixel_scale": SIZES[size]}
        if kind == "tnfw":
            settings |= {
                "sphere.profile": "tnfw",
                "sphere.f_sub": 0.03,
                "sphere.mass": {"power_law": [-1.9, 1e7, 1e10]},
            }
        super().__init__("common-test", "published", seed=1, compile=True, settings=settings)
        self.kind = KINDS[kind]
        engine = self._photograph
        self._photograph = lambda scenes, preset, world, exposure, _, noise: engine(
            scenes, preset, world, exposure, self.kind, noise
        )
        self.groups = lru_cache(maxsize=None)(self.groups)  # type: ignore[method-assign]

    def groups(self, number: int) -> list[Columns]:
        return [self._lenses(self.world, 3 * number + part, self.kind) for part in range(3)]  # type: ignore[arg-type]


class Lenstronomy:
    """The same images by lenstronomy: one ImageModel, built once, for all scenes."""

    def __init__(self, simulator: Uniform, truth: Truth) -> None:
        preset, exposure = simulator.preset, simulator.exposure
        corner = -(preset.num_pix - 1) / 2 * preset.pixel_scale
        grid = PixelGrid(preset.num_pix, preset.num_pix, np.eye(2) * preset.pixel_scale, corner, corner)
        fwhm = exposure.psf_fwhm[0].mean
        truncation = exposure.psf_radius * preset.pixel_scale / (fwhm * FWHM_TO_SIGMA)
        psf = PSF("GAUSSIAN", fwhm=fwhm, truncation=truncation, pixel_size=preset.pixel_scale)
        self.profile = "TNFW" if len(truth["sub_alpha_Rs"]) else "POINT_MASS"
        number = STRING if truth["vortex_theta_E"] else truth["n_sub"]
        lens = LensModel(["SIE", "SHEAR"] + [self.profile] * number)
        numerics = {"supersampling_factor": exposure.supersampling}
        self.model = ImageModel(grid, psf, lens, LightModel(["SERSIC_ELLIPSE"]), kwargs_numerics=numerics)
        self.exposure, self.rng = exposure, np.random.default_rng(0)

    def scene(self, truth: Truth) -> tuple[list[Truth], list[Truth], float]:
        """Keyword arguments of the lenses and of the source, and the exposure time."""
        macro = {k: truth[k] for k in ("e1", "e2", "center_x", "center_y")} | {"theta_E": truth["theta_E_macro"]}
        shape = {"R_sersic": truth["R_sersic"], "n_sersic": truth["n_sersic"]}
        shape |= {"e1": truth["source_e1"], "e2": truth["source_e2"]}
        flux = magnitude2cps(truth["magnitude"], self.exposure.zero_point[0])
        source = shape | {"amp": flux / Sersic().total_flux(amp=1.0, **shape)}
        source |= {"center_x": truth["source_x"], "center_y": truth["source_y"]}
        lenses = [macro, {"gamma1": truth["gamma1"], "gamma2": truth["gamma2"]}, *self.haloes(truth)]
        return lenses, [source], truth["exposure_time"]

    def haloes(self, truth: Truth) -> list[Truth]:
        """Subhaloes, or the points of a string."""
        if truth["vortex_theta_E"]:
            x, y, theta_E = string_points(truth)
            return [{"theta_E": theta_E, "center_x": a, "center_y": b} for a, b in zip(x, y, strict=True)]
        names = {"alpha_Rs": "sub_alpha_Rs", "Rs": "sub_Rs", "r_trunc": "sub_r_trunc"}
        names = names if self.profile == "TNFW" else {"theta_E": "sub_theta_E"}
        names |= {"center_x": "sub_x", "center_y": "sub_y"}
        return [{key: truth[name][k] for key, name in names.items()} for k in range(truth["n_sub"])]

    def clean(self, scene: tuple[list[Truth], list[Truth], float]) -> np.ndarray:
        """Noiseless image, electrons per second."""
        return self.model.image(scene[0], scene[1])

    def image(self, scene: tuple[list[Truth], list[Truth], float]) -> np.ndarray:
        """Exposed image, scaled to [0, 1]."""
        electrons = self.rng.poisson((self.clean(scene) + self.exposure.sky[0]) * scene[2])
        low, high = electrons.min(), electrons.max()
        return (electrons - low) / (high - low)


class Caustics:
    """The same images by caustics' functions, a batch at a time by torch.func.vmap; blur and noise are torch's."""

    def __init__(self, simulator: Uniform, batch: int) -> None:
        self.simulator, self.batch, preset = simulator, batch, simulator.preset
        self.x, self.y = make_grid(preset.num_pix, preset.pixel_scale)
        self.one = torch.func.vmap(self.brightness)

    def brightness(self, s: dict[str, torch.Tensor]) -> torch.Tensor:
        """Surface brightness of one scene, shape (H, W)."""
        macro = (s["center_x"], s["center_y"], s["q"], s["phi"], s["theta_E_macro"])
        fields = [
            func.reduced_deflection_angle_sie(*macro, self.x, self.y),
            func.reduced_deflection_angle_external_shear(0.0, 0.0, s["gamma1"], s["gamma2"], self.x, self.y),
        ]
        if s["halo_x"].shape[0]:
            alpha = torch.func.vmap(self.halo, in_dims=0)({k: v for k, v in s.items() if k.startswith("halo_")})
            fields.append((alpha[0].sum(0), alpha[1].sum(0)))
        beta_x, beta_y = (self.x - sum(f[0] for f in fields), self.y - sum(f[1] for f in fields))
        place = (s["source_x"], s["source_y"], s["source_q"], s["source_phi"])
        shape = (s["n_sersic"], s["R_sersic"], s["amplitude"])
        return light_func.brightness_sersic(*place, *shape, beta_x, beta_y, sersic_b(s["n_sersic"]))

    def halo(self, h: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Deflection of one halo, shape (H, W)."""
        if "halo_theta_E" in h:
            return func.reduced_deflection_angle_point(h["halo_x"], h["halo_y"], h["halo_theta_E"], self.x, self.y)
        shape = (h["halo_x"], h["halo_y"], h["halo_Rs"], h["halo_tau"], self.x, self.y)
        return func.physical_deflection_angle_tnfw(*shape, h["halo_mass"], 1.0, 1e-6)

    def scenes(self, columns: Columns) -> dict[str, torch.Tensor]:
        """A group's columns in caustics' parameters, shape (B,) or (B, N)."""
        c = {name: torch.from_numpy(v).float() for name, v in columns.items() if v.dtype.kind == "f"}
        for prefix in ("", "source_"):
            e = torch.complex(c[f"{prefix}e1"], c[f"{prefix}e2"] + 1e-6)
            c |= {f"{prefix}q": (1 - e.abs()) / (1 + e.abs()), f"{prefix}phi": e.angle() / 2}
        flux = magnitude2cps(columns["magnitude"], self.simulator.exposure.zero_point[0])
        unit = [Sersic().total_flux(1.0, R, n, 0.0, 0.0) for R, n in zip(c["R_sersic"], c["n_sersic"], strict=True)]
        c["amplitude"] = torch.tensor(flux / np.array(unit) * self.simulator.preset.pixel_scale**2).float()
        c |= {name: c[name][:, 0] for name in ("exposure_time", "psf_fwhm")}
        return {name: v for name, v in c.items() if v.ndim == 1} | self.haloes(columns)

    def haloes(self, columns: Columns) -> dict[str, torch.Tensor]:
        """Subhaloes, or the points of a string, shape (B, N)."""
        if columns["vortex_theta_E"].any():
            rows = [string_points({k: v[i] for k, v in columns.items()}) for i in range(len(columns["theta_E"]))]
            x, y, theta_E = (np.array(v) for v in zip(*rows, strict=True))
            values = {"x": x, "y": y, "theta_E": np.repeat(theta_E[:, None], STRING, 1)}
        elif columns["sub_alpha_Rs"].shape[1]:
            Rs = columns["sub_Rs"]
            values = {"x": columns["sub_x"], "y": columns["sub_y"], "Rs": Rs, "tau": columns["sub_r_trunc"] / Rs}
            # The deflection is linear in the mass: 1 at the scale radius of a halo without an edge.
            one = (torch.tensor(v, dtype=torch.float64) for v in (0.0, 0.0, 1.0, 1e4, 1.0, 0.0, 1.0))
            values["mass"] = columns["sub_alpha_Rs"] * Rs / func.physical_deflection_angle_tnfw(*one, 1.0)[0].item()
        else:
            values = {name: columns[f"sub_{name}"] for name in ("x", "y", "theta_E")}
        return {f"halo_{name}": torch.from_numpy(v).float() for name, v in values.items()}

    def clean(self, scenes: dict[str, torch.Tensor]) -> torch.Tensor:
        """Noiseless images, electrons per second, shape (B, H, W)."""
        sigma = scenes["psf_fwhm"] * (FWHM_TO_SIGMA / self.simulator.preset.pixel_scale)
        return blur_gaussian(self.one(scenes), sigma, self.simulator.exposure.psf_radius)

    def images(self, scenes: dict[str, torch.Tensor]) -> torch.Tensor:
        """Exposed images, scaled to [0, 1]."""
        time = scenes["exposure_time"][:, None, None]
        electrons = torch.poisson((self.clean(scenes) + self.simulator.exposure.sky[0]).clamp_min(0) * time)
        low, high = electrons.amin((1, 2), keepdim=True), electrons.amax((1, 2), keepdim=True)
        return (electrons - low) / (high - low)


def string_points(truth: Truth) -> tuple[np.ndarray, np.ndarray, float]:
    """Places of the points that stand for a string, and the Einstein radius of each."""
    part = (np.arange(STRING) + 0.5) / STRING
    x, y = (truth[f"vortex_{a}1"] + part * (truth[f"vortex_{a}2"] - truth[f"vortex_{a}1"]) for a in "xy")
    return x, y, truth["vortex_theta_E"] / STRING**0.5


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def spread(values: list[float]) -> dict[str, float]:
    """Smallest, middle and largest of some measurements."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def measure(row: str, num: int, rounds: int, batch: int) -> dict[str, Any]:
    """The figures of one row: rates over ``num`` images a round, their ratios, pixels that differ."""
    kind, size = row.rsplit("-", 1)
    if kind == "hsc-gri":
        return measure_survey(num, rounds)
    ours = Uniform(kind, int(size))
    truths = [ours.truth(i) for i in range(num)]
    theirs = Lenstronomy(ours, truths[0])
    scenes = [theirs.scene(t) for t in truths]
    third = Caustics(ours, batch)
    batches = [third.scenes(group) for number in range(num // BLOCK) for group in ours.groups(number)]
    first = seconds(lambda: ours.block(0))
    theirs.image(scenes[0])
    third.images(batches[0])
    again = seconds(lambda: ours.block(0))
    clean = ours_clean(ours, CHECKED)
    rates: dict[str, list[float]] = {"lenstronomy": [], "caustics": [], "deeplense": []}
    # lenstronomy's rate needs no more than some tens of its slow images a round.
    some = scenes[: max(8, num // 8)]
    for _ in range(rounds):
        rates["lenstronomy"].append(len(some) / seconds(lambda: [theirs.image(s) for s in some]))
        part = batches[: max(1, len(batches) // 4)]
        rates["caustics"].append(len(part) * BLOCK // 3 / seconds(lambda b=part: [third.images(s) for s in b]))
        rates["deeplense"].append(num / seconds(lambda: sum(len(p) for p in ours.stream(0, num))))
    peers = {
        "lenstronomy": np.stack([theirs.clean(theirs.scene(ours.truth(i))) for i in range(CHECKED)]),
        "caustics": caustics_clean(third, ours, CHECKED),
    }
    return {
        "compile_seconds": first - again,
        "images_per_second": {name: spread(values) for name, values in rates.items()},
        "ratio": {
            name: spread([o / t for o, t in zip(rates["deeplense"], rates[name], strict=True)]) for name in peers
        },
        "largest_pixel_difference_over_peak": {name: difference(clean, images) for name, images in peers.items()},
    }


def ours_clean(simulator: Uniform, num: int) -> np.ndarray:
    """Noiseless images by the ordinary engine, electrons per second, shape (N, H, W)."""
    from deeplense.simulate.render import render

    images = np.empty((BLOCK, *simulator.shape[1:]), dtype=np.float32)
    for part, columns in enumerate(simulator.groups(0)):
        setting = (simulator.preset, simulator.world, simulator.exposure, simulator.kind)
        images[part::3] = render(Scenes.of(columns), *setting)[:, 0].numpy()
    return images[:num]


def caustics_clean(third: Caustics, simulator: Uniform, num: int) -> np.ndarray:
    """The same by caustics."""
    images = np.empty((BLOCK, *simulator.shape[1:]), dtype=np.float32)
    for part, columns in enumerate(simulator.groups(0)):
        images[part::3] = third.clean(third.scenes(columns)).numpy()
    return images[:num]


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest pixel difference of any image, over that image's peak."""
    return float((np.abs(ours - theirs).max((1, 2)) / theirs.max((1, 2))).max())


def measure_survey(num: int, rounds: int) -> dict[str, Any]:
    """hsc-gri: whole scenes of ours; lenstronomy with a lens, its light and a source in three bands, no neighbours."""
    ours = Simulator("hsc-gri", seed=1, compile=True, settings={"positive_fraction": 1.0})
    theirs = SurveyPeer(ours)
    scenes = [theirs.scene(ours.truth(i)) for i in range(max(8, num // 8))]
    first, again = (seconds(lambda: ours.block(0)) for _ in range(2))
    rates: dict[str, list[float]] = {"lenstronomy": [], "deeplense": []}
    for _ in range(rounds):
        rates["lenstronomy"].append(len(scenes) / seconds(lambda: [theirs.image(s) for s in scenes]))
        rates["deeplense"].append(num / seconds(lambda: sum(len(p) for p in ours.stream(0, num))))
    ratio = spread([o / t for o, t in zip(rates["deeplense"], rates["lenstronomy"], strict=True)])
    return {
        "compile_seconds": first - again,
        "images_per_second": {name: spread(values) for name, values in rates.items()},
        "ratio": {"lenstronomy": ratio},
    }


class SurveyPeer:
    """Lens, its light and one Sersic source in the three bands of hsc-gri by lenstronomy."""

    def __init__(self, simulator: Simulator) -> None:
        preset, self.exposure = simulator.preset, simulator.exposure
        corner = -(preset.num_pix - 1) / 2 * preset.pixel_scale
        grid = PixelGrid(preset.num_pix, preset.num_pix, np.eye(2) * preset.pixel_scale, corner, corner)
        kernel = simulator.world.observation.exposure(preset.pixel_scale)
        fwhm = [prior.mean for prior in kernel.psf_fwhm]
        light = LightModel(["SERSIC_ELLIPSE"])
        numerics = {"supersampling_factor": self.exposure.supersampling}
        self.models = [
            ImageModel(
                grid,
                PSF("PIXEL", kernel_point_source=self.moffat(width / preset.pixel_scale)),
                LensModel(["SIE", "SHEAR"]),
                light,
                light,
                kwargs_numerics=numerics,
            )
            for width in fwhm
        ]
        self.rng = np.random.default_rng(0)

    def moffat(self, fwhm: float) -> np.ndarray:
        """The band's PSF as pixels."""
        from deeplense.lensing.observe import moffat_kernel

        width = torch.tensor([fwhm], dtype=torch.float64)
        return moffat_kernel(width, self.exposure.psf_beta or 3.0, self.exposure.psf_radius)[0].numpy()

    def scene(self, truth: Truth) -> Truth:
        """Keyword arguments for each band."""
        lens = [
            {name: truth[name] for name in ("theta_E", "e1", "e2", "center_x", "center_y")},
            {name: truth[name] for name in ("gamma1", "gamma2")},
        ]
        return {"lens": lens, "source": self.galaxies(truth, "source"), "light": self.galaxies(truth, "lens")} | {
            "time": truth["exposure_time"]
        }

    def galaxies(self, truth: Truth, name: str) -> list[Truth]:
        """The Sersic profile of lens or source, one for each band."""
        center = ("source_x", "source_y") if name == "source" else ("center_x", "center_y")
        shape = {key: truth[f"{name}_{key}"] for key in ("R_sersic", "n_sersic", "e1", "e2")}
        unit = Sersic().total_flux(amp=1.0, **shape)
        shape |= {"center_x": truth[center[0]], "center_y": truth[center[1]]}
        flux = magnitude2cps(truth[f"{name}_magnitude"], np.array(self.exposure.zero_point))
        return [shape | {"amp": f / unit} for f in flux]

    def image(self, scene: Truth) -> np.ndarray:
        """Exposed and scaled, shape (3, H, W)."""
        return np.stack([self.band(number, scene) for number in range(len(self.models))])

    def band(self, number: int, scene: Truth) -> np.ndarray:
        """One band of it."""
        clean = self.models[number].image(scene["lens"], [scene["source"][number]], [scene["light"][number]])
        mean = np.maximum(clean + self.exposure.sky[number], 0) * scene["time"][number]
        electrons = self.rng.poisson(mean) + self.rng.normal(0, self.exposure.read_variance[number] ** 0.5, mean.shape)
        low, high = electrons.min(), electrons.max()
        return (electrons - low) / (high - low)


def show(rows: dict[str, Any]) -> None:
    """The figures as a table."""
    table = Table("row", "lenstronomy", "caustics", "deeplense", "ratio", "to caustics", "compile", "difference")
    for name, row in rows.items():
        rate = {who: f"{values['median']:,.0f}/s" for who, values in row["images_per_second"].items()}
        ratio = {who: "{median:.1f} ({min:.1f} to {max:.1f})".format(**v) for who, v in row["ratio"].items()}
        largest = row.get("largest_pixel_difference_over_peak", {}).get("lenstronomy")
        columns = [rate["lenstronomy"], rate.get("caustics", ""), rate["deeplense"], ratio["lenstronomy"]]
        columns += [ratio.get("caustics", ""), f"{row['compile_seconds']:.0f} s", f"{largest:.0e}" if largest else ""]
        table.add_row(name, *columns)
    Console(width=140).print(table)


def main() -> None:
    """Measure, show, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--num", type=int, default=4 * BLOCK, help=f"images a round, a multiple of {BLOCK}")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds, 5 or more for a figure to quote")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="which comparisons")
    parser.add_argument("--threads", type=int, default=2, help="torch threads of ours and caustics'")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    if args.num < BLOCK or args.num % BLOCK or args.rounds < 1:
        parser.error(f"--num is a multiple of {BLOCK}, --rounds 1 or more")
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        rows = {row: measure(row, args.num, args.rounds, BLOCK // 3) for row in args.rows}
    show(rows)
    figures = {
        "rows": rows,
        "images": args.num,
        "rounds": args.rounds,
        "threads": {"lenstronomy": 1, "caustics": args.threads, "deeplense": args.threads},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("deeplense", "lenstronomy", "caustics", "torch", "numpy")},
    }
    temporary = args.out.with_suffix(".tmp")
    temporary.write_text(json.dumps(figures, indent=2) + "\n")
    temporary.replace(args.out)


if __name__ == "__main__":
    main()
