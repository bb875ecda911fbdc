"""Are the simulated `hsc-gri` images the genuine lens-finding set? Levels, scatter and noise, and a look at both.

    python benchmarks/hsc_fidelity.py GENUINE_FOLDER

GENUINE_FOLDER holds train_lenses/ and train_nonlenses/ with genuine images, each channel min-max scaled. Those at hand
were recovered from 8-bit figures, so simulated images go through 256 levels too. The published levels are those of the
whole set. Writes hsc_fidelity.json beside this file and docs/pictures/hsc-gri-fidelity.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from deeplense.simulate.stream import simulated_set

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "pictures" / "hsc-gri-fidelity.png"
SEED, NUM, SHOWN = 31, 1920, 19
FOLDERS = {1: "train_lenses", 0: "train_nonlenses"}
NAMES = {1: "lenses", 0: "others"}
# Mean and scatter of the channel means over the whole published set, channels g, r, i.
PUBLISHED = {1: ([0.146, 0.083, 0.048], [0.126, 0.101, 0.088]), 0: ([0.281, 0.200, 0.110], [0.172, 0.156, 0.112])}


def describe(images: np.ndarray) -> dict[str, list[float]]:
    """Levels of images (N, C, H, W) in [0, 1], one number a channel."""
    images = images.astype(np.float64)
    level = images.mean((2, 3))
    middle = np.median(images, (2, 3), keepdims=True)
    return {
        "mean": level.mean(0).round(3).tolist(),
        "scatter of means": level.std(0).round(3).tolist(),
        "standard deviation": images.std((2, 3)).mean(0).round(3).tolist(),
        "MAD of pixels": (1.4826 * np.median(np.abs(images - middle), (2, 3))).mean(0).round(3).tolist(),
    }


def picture(rows: dict[str, np.ndarray]) -> Figure:
    """Images in colour (i, r, g as red, green, blue), square-root stretch, a row for each of the named sets."""
    figure = Figure(figsize=(SHOWN * 0.95 + 1, len(rows) * 1.0), layout="constrained")
    axes = figure.subplots(len(rows), SHOWN)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_frame_on(False)
        for axis, image in zip(line, images, strict=False):
            axis.imshow(np.sqrt(image[::-1].transpose(1, 2, 0)), origin="lower")
        line[0].set_ylabel(name, fontsize=8)
    return figure


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("genuine", type=Path)
    folder = parser.parse_args().genuine
    simulated = simulated_set("hsc-gri", "physical", SEED, NUM)
    kind = np.array(simulated.params["kind"].to_pylist())
    coarse = np.floor(simulated.images * 255 + 0.5) / 255
    report, rows = {}, {}
    for label, name in NAMES.items():
        genuine = np.stack([np.load(path) for path in sorted((folder / FOLDERS[label]).glob("*.npy"))])
        mine = coarse[simulated.label == label]
        report[f"{name} published"] = dict(zip(("mean", "scatter of means"), PUBLISHED[label], strict=True))
        report[f"{name} genuine ({len(genuine)})"] = describe(genuine)
        report[f"{name} simulated ({len(mine)})"] = describe(mine)
        rows[f"{name}\ngenuine"] = genuine[:SHOWN]
        rows[f"{name}\nsimulated"] = mine[: 2 * SHOWN : 2]
    for name in sorted(set(kind) - {"lens"}):
        rows[name] = coarse[kind == name][:SHOWN]
    (HERE / "hsc_fidelity.json").write_text(json.dumps(report, indent=1) + "\n")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    picture(rows).savefig(PICTURE, dpi=70)
    for name, line in report.items():
        print(f"{name:24}", *(f"{key} {values}" for key, values in line.items()), sep="  ")


if __name__ == "__main__":
    main()
