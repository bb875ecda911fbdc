"""Draw the pictures of the presets, and simulated beside observed lenses, into docs/pictures.

    python benchmarks/previews.py [--only NAME ...] [--observed FOLDER]

One picture for each preset and fidelity; and instruments-real.png, if FOLDER holds euclid-lens, hst-lenses and
cfhtls-lenses with observed images. Pictures are small: an adaptive palette in place of true colour.
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from matplotlib.figure import Figure
from PIL import Image

from deeplense.simulate import preset as presets
from deeplense.simulate.generate import Simulator
from deeplense.simulate.preset import World
from deeplense.simulate.preview import draw_preview, to_colour

OUT = Path(__file__).parent.parent / "docs" / "pictures"
OBSERVED = Path(__file__).parents[2] / "shared" / "data"
COLUMNS, SHOWN = 6, 6
SEED = 3
# Values that make HST's camera of the preset for Euclid: its one band has another name, its magnitudes stay.
HST: dict[str, Any] = {
    "num_pix": 120,
    "pixel_scale": 0.04,
    "observation.instrument": "hst-f814w",
    "observation.bands": ["F814W"],
    **{f"{track}.colours": {"F814W": [0.0]} for track in ("red", "blue", "star.track")},
    **{f"{track}.dust": {"F814W": 0.0} for track in ("red", "blue", "star.track")},
}
CFHT: dict[str, Any] = {"num_pix": 58, "pixel_scale": 0.186, "observation.scaling": "electrons"}


def save(figure: Figure, path: Path, dpi: int = 80, colours: int = 128) -> None:
    """A PNG with few colours: noise does not compress, and true colour takes three times the room."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    picture = Image.open(buffer).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def draw_presets(only: list[str]) -> None:
    """``preset-<name>.png`` of the physical world, and ``preset-<name>-<fidelity>.png`` of the others."""
    for name in only or presets.names():
        for fidelity, world in presets.load(name).fidelities.items():
            ending = "" if fidelity == "physical" else f"-{fidelity}"
            simulator = Simulator(name, fidelity)
            if isinstance(world, World):
                dpi, colours, columns = 80, 64, COLUMNS
            else:
                dpi, colours, columns = 62, 144 if simulator.shape[0] == 3 else 48, COLUMNS - 1
            save(draw_preview(simulator, columns), OUT / f"preset-{name}{ending}.png", dpi, colours)


def simulated(preset: str, number: int, settings: dict[str, Any] | None = None) -> list[np.ndarray]:
    """Lenses of a survey, each (H, W, 3) for the eye."""
    only_lenses = {"positive_fraction": 1.0, "nuisances.off_fraction": 0.0, "nuisances.artefact_fraction": 0.0}
    simulator = Simulator(preset, seed=SEED, settings=only_lenses | (settings or {}))
    return [to_colour(image) for image in simulator.images(range(number)).images]


def observed_euclid(folder: Path) -> list[np.ndarray]:
    """VIS images of lens candidates, as they were published."""
    paths = sorted((folder / "euclid-lens").glob("*/*_NEG*.fits")) or sorted((folder / "euclid-lens").glob("*/1*.fits"))
    return [to_colour(fits.getdata(path, "VIS_BGSUB").astype(np.float64)[None]) for path in paths]


def observed_hst(folder: Path) -> list[np.ndarray]:
    """HST images of two lenses (a galaxy in F390W, a quasar in F814W)."""
    import h5py

    images = []
    for path in sorted((folder / "hst-lenses").glob("*/image_*.h5")):
        with h5py.File(path) as file:
            images.append(to_colour(file["image_data"][()].astype(np.float64)[None]))
    return images


def observed_cfht(folder: Path) -> list[np.ndarray]:
    """Colour pictures of the CFHT Legacy Survey, with the stretch of their authors; the middle 58 pixels, 10.8"."""
    paths = sorted((folder / "cfhtls-lenses" / "lens").glob("*.png"))[3::7][:SHOWN]
    pictures = [np.asarray(Image.open(path).convert("RGB"))[::-1] for path in paths]
    return [picture[35:93, 35:93] for picture in pictures]


def draw_observed(folder: Path) -> Figure:
    """A row of observed and a row of simulated lenses for each telescope."""
    rows = {
        "Euclid VIS,\nobserved": observed_euclid(folder),
        "euclid-vis": simulated("euclid-vis", SHOWN),
        "HST,\nobserved": observed_hst(folder),
        "euclid-vis with\nhst-f814w": simulated("euclid-vis", SHOWN, HST),
        "CFHT gri,\nobserved": observed_cfht(folder),
        'hsc-gri with\n0.186" pixels': simulated("hsc-gri", SHOWN, CFHT),
    }
    figure = Figure(figsize=(1.5 * SHOWN + 1.0, 1.52 * len(rows)), layout="constrained")
    for line, (name, images) in zip(figure.subplots(len(rows), SHOWN), rows.items(), strict=True):
        for axes in line:
            axes.axis("off")
        for axes, image in zip(line, images, strict=False):
            axes.imshow(image, origin="lower", interpolation="nearest")
        line[0].text(-0.08, 0.5, name, transform=line[0].transAxes, rotation=90, ha="right", va="center", fontsize=9)
    return figure


def main() -> None:
    """Draw what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="presets, or `observed`; all if not given")
    parser.add_argument("--observed", type=Path, default=OBSERVED, help="folder of observed images")
    args = parser.parse_args()
    names = [name for name in args.only if name != "observed"]
    if names or not args.only:
        draw_presets(names)
    if args.observed.is_dir() and (not args.only or "observed" in args.only):
        save(draw_observed(args.observed), OUT / "instruments-real.png", dpi=80, colours=224)


if __name__ == "__main__":
    main()
