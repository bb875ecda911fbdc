"""Draw docs/pictures/classes.png: simulated lenses of each class, and what the substructure changes in them.

python benchmarks/pictures.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from deeplense.simulate.generate import BLOCK, Simulator
from deeplense.simulate.render import render
from deeplense.simulate.scene import Scenes, select

OUT = Path(__file__).parent.parent / "docs" / "pictures" / "classes.png"
# Two images of each class with rings that fill the frame; class = index modulo 3.
SHOWN = (0, 9, 1, 16, 2, 11)
TITLES = ("no substructure", "subhaloes (sphere)", "vortex (vort)")


def change(simulator: Simulator, index: int) -> np.ndarray:
    """What the substructure changes, as a share of the peak: the lens with it less the same lens without, no noise."""
    kind, place = index % BLOCK % len(simulator.classes), index % BLOCK // len(simulator.classes)
    columns = select(simulator.groups(index // BLOCK)[kind], slice(place, place + 1))
    smooth = Scenes.of(columns | {"theta_E_macro": columns["theta_E"]})
    without = render(smooth, simulator.preset, simulator.world, simulator.exposure, 0)[0, 0].numpy()
    return (simulator.noiseless([index])[0, 0] - without) / without.max()


def main() -> None:
    """Draw and save."""
    simulator = Simulator("common-test", "physical", seed=8)
    images = simulator.images(np.array(SHOWN)).images[:, 0]
    half = simulator.preset.num_pix * simulator.preset.pixel_scale / 2
    extent = (-half, half, -half, half)
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    axes = figure.subplots(2, len(SHOWN), sharex=True, sharey=True)
    for column, (index, image) in enumerate(zip(SHOWN, images, strict=True)):
        top, below = axes[:, column]
        shown = np.arcsinh(image / 30) / np.arcsinh(image.max() / 30)
        top.imshow(shown, origin="lower", cmap="inferno", vmin=0, vmax=1, extent=extent)
        map_ = below.imshow(change(simulator, index), origin="lower", cmap="RdBu_r", vmin=-0.1, vmax=0.1, extent=extent)
        top.set_title(TITLES[index % 3], fontsize=11)
        below.set_xlabel("x [arcsec]")
    axes[0, 0].set_ylabel("y [arcsec]")
    axes[1, 0].set_ylabel("what it changes\ny [arcsec]")
    figure.colorbar(map_, ax=axes[1, :], label="share of the peak", shrink=0.9, pad=0.01)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUT, dpi=90)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
