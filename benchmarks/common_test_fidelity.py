"""Are the simulated `published` images the genuine Common Test? Statistics and residuals of a smooth fit, side by side.

    python benchmarks/common_test_fidelity.py GENUINE_FOLDER

GENUINE_FOLDER holds no/, sphere/ and vort/ with genuine images. Those at hand were recovered from published 8-bit
figures, so simulated images go through the same 256 grey levels before they are compared. Writes
common_test_fidelity.json beside this file and docs/pictures/common-test-fidelity.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from deeplense.data.read import read
from deeplense.evaluate.fidelity import describe
from deeplense.lensing import deflection, fit, light, observe, raytrace
from deeplense.simulate.stream import simulated_set

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "pictures" / "common-test-fidelity.png"
SEED, SHOWN = 21, 11
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
    """The best smooth lens from eight starting points."""
    data = torch.tensor(images, dtype=torch.float64)
    sigma = torch.sqrt((data + 0.001).clamp_min(0.008) / PEAK_ELECTRONS + 2.5e-6)
    starts = [(t, x, y) for t in (1.15, 1.5) for x in (-0.2, 0.2) for y in (-0.2, 0.2)]
    rows = [torch.tensor([t, 0.15, 0.0, x, y, 0.2, 0.0, 0.13, 0.01], dtype=torch.float64) for t, x, y in starts]
    return fit.best([fit.fit(smooth, data, sigma, row.expand(len(data), -1), steps=25) for row in rows])


def pictures(sets: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Rows of images and of their residuals, for each of the named sets."""
    figure = Figure(figsize=(1.15 * SHOWN + 1.2, 2.3 * len(sets)), layout="constrained")
    axes = figure.subplots(2 * len(sets), SHOWN)
    for row, (name, (images, residuals)) in enumerate(sets.items()):
        for column in range(SHOWN):
            top, below = axes[2 * row, column], axes[2 * row + 1, column]
            top.imshow(images[column], origin="lower", cmap="inferno", vmin=0, vmax=1)
            shown = below.imshow(residuals[column], origin="lower", cmap="RdBu_r", vmin=-0.06, vmax=0.06)
        axes[2 * row, 0].set_ylabel(name)
        axes[2 * row + 1, 0].set_ylabel("residual")
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(shown, ax=axes, label="image − smooth lens, share of the peak", shrink=0.4, aspect=40)
    return figure


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("genuine", type=Path)
    genuine = read(parser.parse_args().genuine)
    simulated = simulated_set("common-test", "published", SEED, 960)
    report, shown = {}, {}
    for number, name in enumerate(genuine.classes):
        pair = {
            "genuine": genuine.images[genuine.label == number, 0],
            "simulated": grey_levels(simulated.images[simulated.label == number, 0]),
        }
        for origin, images in pair.items():
            few = images[:13]
            found = smooth_fit(few)
            sigma = np.sqrt(np.clip(few + 0.001, 0.008, None) / PEAK_ELECTRONS + 2.5e-6)
            residual = -found.residual.numpy() * sigma
            statistics = {k: [float(v.mean()), float(v.std())] for k, v in describe(images).items()}
            rms = residual.std((1, 2))
            report[f"{name} {origin}"] = statistics | {
                "n": len(images),
                "smooth_fit_chi2": np.sort(found.chi2.numpy()).round(3).tolist(),
                "smooth_fit_rms": [float(rms.mean()), float(rms.std())],
            }
            shown[f"{name}\n{origin}"] = (few[:SHOWN], residual[:SHOWN])
    (HERE / "common_test_fidelity.json").write_text(json.dumps(report, indent=1) + "\n")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    pictures(shown).savefig(PICTURE, dpi=80)
    for name, row in report.items():
        print(name, {k: v for k, v in row.items() if k.startswith("smooth")})


if __name__ == "__main__":
    main()
