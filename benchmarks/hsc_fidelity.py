"""Are the simulated `hsc-gri` images the genuine lens-finding set? Levels, scatter and noise, and a look.

    python benchmarks/hsc_fidelity.py GENUINE_FOLDER [--beside PNG]

GENUINE_FOLDER holds train_lenses/ and train_nonlenses/ with genuine images, each channel min-max scaled. Those at hand
were recovered from 8-bit figures, so simulated images go through 256 levels too. The published levels are those of the
whole set. Writes hsc_fidelity.json beside this file and docs/pictures/hsc-gri-fidelity.png, which shows simulated
images and, of the genuine ones, only mean and scatter of the statistics: they are not ours to publish. ``--beside``
draws genuine images above simulated ones, for one's own eyes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure, SubFigure

from common_test_fidelity import draw_bands
from deeplense.simulate.stream import simulated_set
from previews import save

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "pictures" / "hsc-gri-fidelity.png"
SEED, NUM, SHOWN, BESIDE = 31, 1920, 7, 19
BANDS = "gri"
FOLDERS = {1: "train_lenses", 0: "train_nonlenses"}
NAMES = {1: "lenses", 0: "others"}
# Mean and scatter of the channel means over the whole published set, channels g, r, i.
PUBLISHED_LEVELS = {
    "lenses": ([0.146, 0.083, 0.048], [0.126, 0.101, 0.088]),
    "others": ([0.281, 0.200, 0.110], [0.172, 0.156, 0.112]),
}


def measure(images: np.ndarray) -> dict[str, np.ndarray]:
    """Level, standard deviation and noise of images (N, C, H, W) in [0, 1], shape (N, C) each."""
    images = images.astype(np.float64)
    middle = np.median(images, (2, 3), keepdims=True)
    return {
        "mean": images.mean((2, 3)),
        "standard deviation": images.std((2, 3)),
        "MAD of pixels": 1.4826 * np.median(np.abs(images - middle), (2, 3)),
    }


def summary(measured: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """The averages, and the scatter of the levels, one number a channel."""
    rows = {name: values.mean(0) for name, values in measured.items()} | {"scatter of means": measured["mean"].std(0)}
    return {name: values.round(3).tolist() for name, values in rows.items()}


def draw_images(figure: Figure | SubFigure, rows: dict[str, np.ndarray], columns: int) -> None:
    """Images in colour (i, r, g as red, green, blue), square-root stretch, a row for each of the named sets."""
    axes = figure.subplots(len(rows), columns)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_frame_on(False)
        for axis, image in zip(line, images, strict=False):
            axis.imshow(np.sqrt(image[::-1].transpose(1, 2, 0)), origin="lower")
        line[0].set_ylabel(name, fontsize=8)


def draw_statistics(
    figure: SubFigure, simulated: dict[str, dict[str, np.ndarray]], genuine: dict[str, dict[str, np.ndarray]]
) -> None:
    """A row of panels for each statistic, a column for each class, in each panel a violin for each channel."""
    statistics = list(next(iter(simulated.values())))
    axes = figure.subplots(len(statistics), len(simulated), sharey="row")
    for line, statistic in zip(axes, statistics, strict=True):
        for axis, name in zip(line, simulated, strict=True):
            values = genuine[name][statistic]
            bands = list(zip(values.mean(0).tolist(), values.std(0).tolist(), strict=True))
            draw_bands(axis, list(simulated[name][statistic].T), bands)
            axis.set_title(f"{name}: {statistic}", fontsize=9)
            axis.set_xticks(range(len(BANDS)), BANDS)
            axis.tick_params(labelsize=8)
    for axis, name in zip(axes[0], simulated, strict=True):
        mean, scatter = PUBLISHED_LEVELS[name]
        axis.errorbar(np.arange(len(BANDS)) + 0.3, mean, scatter, fmt="ks", ms=3, lw=1)
    title = "blue: simulated, and its mean; orange: mean and scatter of 19 + 19 genuine images;\nblack: published"
    figure.suptitle(title, fontsize=9)


def picture(
    rows: dict[str, np.ndarray],
    simulated: dict[str, dict[str, np.ndarray]],
    genuine: dict[str, dict[str, np.ndarray]],
) -> Figure:
    """Simulated images, and statistics of simulated and genuine ones."""
    figure = Figure(figsize=(14, 7.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.1])
    draw_images(left, rows, SHOWN)
    draw_statistics(right, simulated, genuine)
    return figure


def beside(genuine: dict[str, np.ndarray], simulated: dict[str, np.ndarray]) -> Figure:
    """Genuine images above simulated ones of the same class."""
    rows = {}
    for name in genuine:
        rows |= {f"{name}\ngenuine": genuine[name], f"{name}\nsimulated": simulated[name]}
    figure = Figure(figsize=(BESIDE * 0.95 + 1, len(rows) * 1.0), layout="constrained")
    draw_images(figure, rows, BESIDE)
    return figure


def read_genuine(folder: Path) -> dict[str, np.ndarray]:
    """The genuine images of each class, shape (N, 3, H, W)."""
    paths = {NAMES[label]: sorted((folder / name).glob("*.npy")) for label, name in FOLDERS.items()}
    return {name: np.stack([np.load(path) for path in found]) for name, found in paths.items()}


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("genuine", type=Path)
    parser.add_argument("--beside", type=Path, metavar="PNG", help="draw genuine images above simulated ones there")
    args = parser.parse_args()
    made, genuine = simulated_set("hsc-gri", "physical", SEED, NUM), read_genuine(args.genuine)
    kind = np.array(made.params["kind"].to_pylist())
    coarse = np.floor(made.images * 255 + 0.5) / 255
    simulated = {name: coarse[made.label == label] for label, name in NAMES.items()}
    theirs, mine = ({k: measure(v) for k, v in images.items()} for images in (genuine, simulated))
    report = {}
    for name in genuine:
        report[f"{name} published"] = dict(zip(("mean", "scatter of means"), PUBLISHED_LEVELS[name], strict=True))
        report[f"{name} genuine ({len(genuine[name])})"] = summary(theirs[name])
        report[f"{name} simulated ({len(simulated[name])})"] = summary(mine[name])
    (HERE / "hsc_fidelity.json").write_text(json.dumps(report, indent=1) + "\n")
    rows = {name: coarse[kind == name] for name in ("lens", *sorted(set(kind) - {"lens"}))}
    save(picture(rows, mine, theirs), PICTURE, dpi=70, colours=128)
    if args.beside:
        beside(genuine, simulated).savefig(args.beside, dpi=70)
    for name, line in report.items():
        print(f"{name:24}", *(f"{key} {values}" for key, values in line.items()), sep="  ")


if __name__ == "__main__":
    main()
