"""Are the simulated `published` images the genuine Common Test? Statistics and residuals of a smooth fit, side by side.

    python benchmarks/common_test_fidelity.py GENUINE_FOLDER [--beside PNG]

GENUINE_FOLDER holds no/, sphere/ and vort/ with genuine images. Those at hand were recovered from published 8-bit
figures, so simulated images go through the same 256 grey levels before they are compared. Writes
common_test_fidelity.json beside this file and docs/pictures/common-test-fidelity.png, which shows simulated images
and, of the genuine ones, only mean and scatter of the statistics: they are not ours to publish. ``--beside`` draws
genuine and simulated images in turn, for one's own eyes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from PIL import Image

from deeplense.data.read import read
from deeplense.evaluate.fidelity import describe
from deeplense.lensing import deflection, fit, light, observe, raytrace
from deeplense.simulate.stream import simulated_set

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "pictures" / "common-test-fidelity.png"
SEED, NUM, FITTED, SHOWN = 21, 960, 13, 9
COLUMNS = 4
# The source of the published set is always the same galaxy; its 7x7 PSF has a sigma of two pixels.
R_SERSIC, N_SERSIC, PSF_SIGMA, PSF_RADIUS, SCALE = 0.5, 1.5, 2.0, 3, 0.05
PEAK_ELECTRONS = 760.0


def grey_levels(images: np.ndarray) -> np.ndarray:
    """What a figure with a 256-colour map keeps of an image in [0, 1]."""
    return np.minimum(np.floor(images * 256), 255) / 255


def smooth(p: torch.Tensor) -> torch.Tensor:
    """A round lens with shear and a Sersic source; p = theta_E, gamma1, gamma2, x, y, e1, e2, amplitude, sky."""
    theta_x, theta_y = raytrace.make_grid(150, SCALE, dtype=p.dtype)
    zero, one = torch.zeros_like(p[:, 0]), torch.ones_like(p[:, 0])
    lens = deflection.deflect_sie(theta_x, theta_y, p[:, 0], zero, zero, zero, zero)
    shear = deflection.deflect_shear(theta_x, theta_y, p[:, 1], p[:, 2])
    beta_x, beta_y = raytrace.trace(theta_x, theta_y, lens, shear)
    shape = (R_SERSIC * one, N_SERSIC * one, p[:, 5], p[:, 6], p[:, 3], p[:, 4])
    image = light.sersic(beta_x, beta_y, p[:, 7], *shape)
    return observe.blur_gaussian(image, PSF_SIGMA * one, PSF_RADIUS) + p[:, 8, None, None]


def smooth_fit(images: np.ndarray) -> fit.Fit:
    """The best smooth lens: a few steps from eight starting points, then the best of them to the end."""
    data = torch.tensor(images, dtype=torch.float64)
    sigma = torch.tensor(noise_of(images), dtype=torch.float64)
    starts = [(t, x, y) for t in (1.15, 1.5) for x in (-0.2, 0.2) for y in (-0.2, 0.2)]
    rows = [torch.tensor([t, 0.15, 0.0, x, y, 0.2, 0.0, 0.13, 0.01], dtype=torch.float64) for t, x, y in starts]
    first = fit.best([fit.fit(smooth, data, sigma, row.expand(len(data), -1), steps=8) for row in rows])
    return fit.best([first, fit.fit(smooth, data, sigma, first.parameters, steps=25)])


def noise_of(images: np.ndarray) -> np.ndarray:
    """Standard deviation of each pixel, share of the peak."""
    return np.sqrt(np.clip(images + 0.001, 0.008, None) / PEAK_ELECTRONS + 2.5e-6)


@dataclass(frozen=True)
class Measured:
    """Images (N, H, W) of one class and origin, their statistics (N,), and what the smooth lens leaves of the first."""

    images: np.ndarray
    statistics: dict[str, np.ndarray]
    residual: np.ndarray

    @classmethod
    def of(cls, images: np.ndarray) -> Measured:
        few = images[:FITTED]
        found = smooth_fit(few)
        residual = -found.residual.numpy() * noise_of(few)
        left = {"smooth_fit_chi2": found.chi2.numpy(), "smooth_fit_rms": residual.std((1, 2))}
        return cls(images, describe(images) | left, residual)

    def summary(self) -> dict[str, Any]:
        """Mean and scatter of each statistic, and every chi^2."""
        rows: dict[str, Any] = {k: [float(v.mean()), float(v.std())] for k, v in self.statistics.items()}
        rows["smooth_fit_chi2"] = np.sort(self.statistics["smooth_fit_chi2"]).round(3).tolist()
        return rows | {"n": len(self.images)}


def draw_bands(axis: Axes, simulated: Sequence[np.ndarray], genuine: Sequence[tuple[float, float]]) -> None:
    """A violin of each simulated distribution over mean and scatter of the genuine one, side by side."""
    for place, (mean, scatter) in enumerate(genuine):
        axis.add_patch(
            Rectangle((place - 0.42, mean - scatter), 0.84, 2 * scatter, color="tab:orange", alpha=0.35, lw=0)
        )
        axis.plot([place - 0.42, place + 0.42], [mean, mean], color="tab:orange", lw=2)
    for place, values in enumerate(simulated):
        axis.plot([place - 0.2, place + 0.2], [values.mean(), values.mean()], color="tab:blue", lw=2)
        # Of many images one in a hundred lies so far out that it would set the scale.
        low, high = np.quantile(values, (0.01, 0.99)) if len(values) > 100 else (values.min(), values.max())
        shown = values[(values >= low) & (values <= high)]
        axis.violinplot([shown], positions=[place], widths=0.7, showextrema=False)["bodies"][0].set_color("tab:blue")
    axis.margins(x=0.05)


def draw_statistics(figure: SubFigure, names: Sequence[str], sets: dict[str, Measured]) -> None:
    """A panel for each statistic, in it a violin for each class."""
    statistics = list(sets[f"{names[0]} simulated"].statistics)
    axes = figure.subplots(-(-len(statistics) // COLUMNS), COLUMNS)
    for axis, statistic in zip(axes.flat, statistics, strict=True):
        genuine = [sets[f"{name} genuine"].statistics[statistic] for name in names]
        simulated = [sets[f"{name} simulated"].statistics[statistic] for name in names]
        draw_bands(axis, simulated, [(float(v.mean()), float(v.std())) for v in genuine])
        axis.set_title(statistic.replace("_", " "), fontsize=10)
        axis.set_xticks(range(len(names)), names)
        axis.tick_params(labelsize=8)
    figure.suptitle("blue: simulated, and its mean; orange: mean and scatter of the genuine images", fontsize=10)


def draw_images(figure: Figure | SubFigure, sets: dict[str, Measured]) -> None:
    """Rows of images and of their residuals, for each of the named sets."""
    axes = figure.subplots(2 * len(sets), SHOWN)
    for row, (name, measured) in enumerate(sets.items()):
        for column in range(SHOWN):
            top, below = axes[2 * row, column], axes[2 * row + 1, column]
            top.imshow(measured.images[column], origin="lower", cmap="inferno", vmin=0, vmax=1)
            shown = below.imshow(measured.residual[column], origin="lower", cmap="RdBu_r", vmin=-0.06, vmax=0.06)
        axes[2 * row, 0].set_ylabel(name.replace(" ", "\n"))
        axes[2 * row + 1, 0].set_ylabel("residual")
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(shown, ax=axes, label="image − smooth lens, share of the peak", shrink=0.6, aspect=40)


def picture(names: Sequence[str], sets: dict[str, Measured]) -> Figure:
    """Simulated images, and statistics of simulated and genuine ones."""
    figure = Figure(figsize=(10.5, 13.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.0, 1.05])
    draw_images(above, {name: measured for name, measured in sets.items() if name.endswith("simulated")})
    draw_statistics(below, names, sets)
    return figure


def beside(sets: dict[str, Measured]) -> Figure:
    """Genuine and simulated images in turn."""
    figure = Figure(figsize=(1.15 * SHOWN + 1.2, 2.3 * len(sets)), layout="constrained")
    draw_images(figure, sets)
    return figure


def save(figure: Figure, path: Path) -> None:
    """A small PNG. The palette is an octree's: one by frequency has no blue left for the few pixels of a residual."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=72)
    picture = Image.open(buffer).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(128, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("genuine", type=Path)
    parser.add_argument("--beside", type=Path, metavar="PNG", help="draw genuine images beside simulated ones there")
    args = parser.parse_args()
    genuine, simulated = read(args.genuine), simulated_set("common-test", "published", SEED, NUM)
    sets = {}
    for number, name in enumerate(genuine.classes):
        sets[f"{name} genuine"] = Measured.of(genuine.images[genuine.label == number, 0])
        sets[f"{name} simulated"] = Measured.of(grey_levels(simulated.images[simulated.label == number, 0]))
    report = {name: measured.summary() for name, measured in sets.items()}
    (HERE / "common_test_fidelity.json").write_text(json.dumps(report, indent=1) + "\n")
    save(picture(genuine.classes, sets), PICTURE)
    if args.beside:
        beside(sets).savefig(args.beside, dpi=80)
    for name, row in report.items():
        print(name, {k: v for k, v in row.items() if k.startswith("smooth")})


if __name__ == "__main__":
    main()
