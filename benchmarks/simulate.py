"""Simulation rate side by side with lenstronomy: the same scenes, in one process, round about.

Every image has a SIE, an external shear, 25 point masses, a lensed Sersic galaxy, a Gaussian PSF and photon noise on
150x150 pixels. Both are given ready-made scenes; lenstronomy renders and exposes them on one thread, ours on several
(``--threads``), along the whole path of ``deeplense simulate`` with the truth table of each image.

    python benchmarks/simulate.py --num 192 --rounds 7
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
from functools import cache
from importlib.metadata import version
from pathlib import Path
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

from deeplense.lensing.observe import FWHM_TO_SIGMA
from deeplense.simulate import scene
from deeplense.simulate.generate import BLOCK, Simulator
from deeplense.simulate.render import render, sky_counts
from deeplense.simulate.substructure import Truth

SPHERE = 1


class Spheres(Simulator):
    """The package's simulator, except that every image has subhaloes, not only every third."""

    def __init__(self) -> None:
        super().__init__("common-test", "published", seed=1, compile=True)
        engine = self._photograph
        self._photograph = lambda scenes, preset, observation, kind, noise: engine(
            scenes, preset, observation, SPHERE, noise
        )
        self._render = torch.compile(render, dynamic=False)

    @cache  # noqa: B019 - one simulator lives as long as the process
    def truth(self, index: int) -> Truth:
        rng = scene.generator(self.seed, index, scene.SCENE)
        return scene.draw(self.preset, self.world, SPHERE, self.strength, rng)

    def clean(self, truths: list[Truth]) -> np.ndarray:
        """Noiseless images, electrons per second, by the compiled engine."""
        return self._render(self._stack(truths), self.preset, self.world.observation, SPHERE).numpy()


class Lenstronomy:
    """The same images by lenstronomy: one ImageModel, built once, for all scenes."""

    def __init__(self, simulator: Simulator, num_haloes: int) -> None:
        preset, observation = simulator.preset, simulator.world.observation
        corner = -(preset.num_pix - 1) / 2 * preset.pixel_scale
        grid = PixelGrid(preset.num_pix, preset.num_pix, np.eye(2) * preset.pixel_scale, corner, corner)
        fwhm = observation.psf_fwhm.mean
        truncation = observation.psf_radius * preset.pixel_scale / (fwhm * FWHM_TO_SIGMA)
        psf = PSF("GAUSSIAN", fwhm=fwhm, truncation=truncation, pixel_size=preset.pixel_scale)
        lens = LensModel(["SIE", "SHEAR"] + ["POINT_MASS"] * num_haloes)
        numerics = {"supersampling_factor": observation.supersampling}
        self.model = ImageModel(grid, psf, lens, LightModel(["SERSIC_ELLIPSE"]), kwargs_numerics=numerics)
        self.exposure = observation.exposure_time * observation.num_exposures
        self.sky = sky_counts(preset, observation) * self.exposure
        self.zero_point = observation.magnitude_zero_point
        self.rng = np.random.default_rng(0)

    def scene(self, truth: Truth) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Keyword arguments of the lenses and of the source."""
        macro = {k: truth[k] for k in ("e1", "e2", "center_x", "center_y")} | {"theta_E": truth["theta_E_macro"]}
        haloes = zip(truth["sub_theta_E"], truth["sub_x"], truth["sub_y"], strict=True)
        points = [{"theta_E": e, "center_x": x, "center_y": y} for e, x, y in haloes]
        shape = {"R_sersic": truth["R_sersic"], "n_sersic": truth["n_sersic"]}
        shape |= {"e1": truth["source_e1"], "e2": truth["source_e2"]}
        flux = magnitude2cps(truth["magnitude"], self.zero_point)
        source = shape | {"amp": flux / Sersic().total_flux(amp=1.0, **shape)}
        source |= {"center_x": truth["source_x"], "center_y": truth["source_y"]}
        return [macro, {"gamma1": truth["gamma1"], "gamma2": truth["gamma2"]}, *points], [source]

    def clean(self, kwargs: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> np.ndarray:
        """Noiseless image, electrons per second."""
        return self.model.image(*kwargs)

    def image(self, kwargs: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> np.ndarray:
        """Exposed image, scaled to [0, 1]."""
        electrons = self.rng.poisson(self.clean(kwargs) * self.exposure + self.sky)
        low, high = electrons.min(), electrons.max()
        return (electrons - low) / (high - low)


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def largest_difference(simulator: Spheres, peer: Lenstronomy, truths: list[Truth]) -> float:
    """Largest noiseless pixel difference of any image, over that image's peak."""
    ours = np.concatenate([simulator.clean(truths[i : i + BLOCK // 3]) for i in range(0, len(truths), BLOCK // 3)])
    theirs = np.stack([peer.clean(peer.scene(t)) for t in truths])
    return float((np.abs(ours - theirs).max((1, 2)) / theirs.max((1, 2))).max())


def spread(values: list[float]) -> dict[str, float]:
    """Smallest, middle and largest of some measurements."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def measure(num: int, rounds: int, threads: int) -> dict[str, Any]:
    """All figures of the comparison, over ``num`` images a round."""
    torch.set_num_threads(threads)
    simulator = Spheres()
    truths = [simulator.truth(i) for i in range(num)]
    peer = Lenstronomy(simulator, len(truths[0]["sub_x"]))
    scenes = [peer.scene(t) for t in truths]
    first = seconds(lambda: simulator.block(0))
    peer.image(scenes[0])
    again = seconds(lambda: simulator.block(0))
    theirs, ours = [], []
    for _ in range(rounds):
        theirs.append(num / seconds(lambda: [peer.image(kwargs) for kwargs in scenes]))
        ours.append(num / seconds(lambda: sum(len(part) for part in simulator.stream(0, num))))
    return {
        "images": num,
        "rounds": rounds,
        "compile_seconds": first - again,
        "lenstronomy_images_per_second": spread(theirs),
        "deeplense_images_per_second": spread(ours),
        "ratio": spread([o / t for o, t in zip(ours, theirs, strict=True)]),
        "largest_pixel_difference_over_peak": largest_difference(simulator, peer, truths),
        "threads": {"lenstronomy": 1, "deeplense": threads},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("deeplense", "lenstronomy", "torch", "numpy")},
    }


def report(figures: dict[str, Any]) -> str:
    """The figures in a few lines."""

    def line(name: str) -> str:
        return "  ".join(f"{key} {value:.1f}" for key, value in figures[name].items())

    threads = figures["threads"]["deeplense"]
    return "\n".join(
        [
            f"{figures['images']} images of 150x150 with 25 point masses, {figures['rounds']} alternating rounds",
            f"compile time              {figures['compile_seconds']:.1f} s",
            f"lenstronomy, images/s     {line('lenstronomy_images_per_second')}  (1 thread)",
            f"deeplense, images/s       {line('deeplense_images_per_second')}  ({threads} threads)",
            f"ratio                     {line('ratio')}",
            f"largest pixel difference  {figures['largest_pixel_difference_over_peak']:.1e} of the peak, without noise",
        ]
    )


def main() -> None:
    """Measure, print, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--num", type=int, default=4 * BLOCK, help=f"images a round, a multiple of {BLOCK}")
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds, 5 or more for a figure to quote")
    parser.add_argument("--threads", type=int, default=2, help="torch threads of ours; lenstronomy has one")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    if args.num < BLOCK or args.num % BLOCK or args.rounds < 1:
        parser.error(f"--num is a multiple of {BLOCK}, --rounds 1 or more")
    figures = measure(args.num, args.rounds, args.threads)
    print(report(figures))
    temporary = args.out.with_suffix(".tmp")
    temporary.write_text(json.dumps(figures, indent=2) + "\n")
    temporary.replace(args.out)


if __name__ == "__main__":
    main()
