"""A labelled grid of a preset's images: to be looked at before a set is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deeplense.data.files import replacing
from deeplense.data.schema import LensSet
from deeplense.errors import ConfigError
from deeplense.simulate.generate import BLOCK, Simulator, concatenate
from deeplense.simulate.preset import World

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patheffects import AbstractPathEffect

COLUMNS = 8
# Enough that the rarest kind of non-lens fills its row.
BLOCKS = {"lenses": 1, "survey": 12}
# Where nothing outshines the arcs, the stretch is nearly linear up to this share of their peak.
BARE = 0.25


def write_preview(simulator: Simulator, path: Path | str) -> Path:
    """Draw one row of images for each class of a preset, or each kind of a survey, and save it.

    Raises:
        ConfigError: the path does not end in .png, .pdf or .svg.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ConfigError(f"{path}: a preview is a picture; give a path that ends in .png, .pdf or .svg")
    if path.exists():
        raise ConfigError(f"{path} exists and is never overwritten: choose another path")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path.parent} cannot be a folder: {error.strerror}; choose another path") from error
    figure = draw_preview(simulator)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=110)
    return path


def draw_preview(simulator: Simulator, columns: int = COLUMNS) -> Figure:
    """The grid of :func:`write_preview`, ``columns`` images in a row."""
    is_lenses = isinstance(simulator.world, World)
    blocks = BLOCKS["lenses" if is_lenses else "survey"]
    images = concatenate(list(simulator.stream(0, blocks * BLOCK)))
    rows = _by_class(images) if is_lenses else _by_kind(images, columns)
    figure, grid = _grid(list(rows), columns)
    for line, places in zip(grid, rows.values(), strict=True):
        for axes, place in zip(line, places, strict=False):
            _show(axes, images, int(place), BARE if is_lenses else 0.0)
    _scale_bar(grid[0, 0], simulator)
    bands = " ".join(simulator.exposure.bands)
    what = f"{simulator.preset.title} ({simulator.fidelity}, seed {simulator.seed})"
    size = f'{simulator.preset.num_pix} pixels of {simulator.preset.pixel_scale:g}"'
    figure.suptitle(f"{what}: {size}{', ' + bands if bands else ''}", fontsize=11)
    return figure


def write_grid(images: Sequence[np.ndarray], rows: Sequence[str], path: Path, title: str) -> None:
    """Draw a row of images (N, C, H, W) for each of these names and write them as .png, replacing what is there."""
    figure, grid = _grid(rows, max(map(len, images)))
    for line, row in zip(grid, images, strict=True):
        for axes, image in zip(line, row, strict=False):
            axes.imshow(to_colour(image, BARE), origin="lower", interpolation="nearest")
    figure.suptitle(title, fontsize=11)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _grid(rows: Sequence[str], columns: int) -> tuple[Figure, np.ndarray]:
    """A figure with a row of empty axes, (R, columns), for each name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.45 * columns + 0.9, 1.5 * len(rows) + 0.9), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, name in zip(grid, rows, strict=True):
        for axes in line:
            axes.axis("off")
        line[0].text(-0.08, 0.5, name, transform=line[0].transAxes, rotation=90, ha="right", va="center", fontsize=11)
    return figure, grid


def to_colour(image: np.ndarray, linear: float = 0.0) -> np.ndarray:
    """An image (C, H, W) for the eye: the three reddest bands as red, green, blue, or one in grey, shape (H, W, 3).

    The stretch is asinh: linear up to three times the noise or ``linear`` times the peak, logarithmic in bright
    galaxies. All bands have the same, so that colours are those of the light, once each band is brought to the same
    noise; without noise, to the same peak.

    References: Lupton et al. 2004 (astro-ph/0312483).
    """
    sky = np.median(image, axis=(1, 2), keepdims=True)
    noise = 1.4826 * np.median(np.abs(image - sky), axis=(1, 2), keepdims=True)
    peak = image.max((1, 2), keepdims=True) - sky
    # The outskirts of an image without noise have a scatter, too, of no meaning.
    signal = (image - sky) / np.maximum(noise, np.maximum(peak, 1e-30) / 1e4)
    intensity = signal.mean(0)
    top = max(float(np.percentile(intensity, 99.95)), 6.0)
    knee = max(3.0, linear * top)
    stretch = np.arcsinh(np.maximum(intensity, 0) / knee) / np.arcsinh(top / knee)
    # The brightest band is 1, so that no core loses its colour; below the noise a ratio of bands is none.
    colour = np.maximum(signal + 2, 0) if len(image) >= 3 else np.ones_like(signal)
    rgb = (colour / np.maximum(colour.max(0), 1))[::-1][:3] * (0.06 + 0.94 * np.minimum(stretch, 1))
    return np.moveaxis(np.broadcast_to(rgb, (3, *intensity.shape)), 0, -1)


def _by_class(images: LensSet) -> dict[str, np.ndarray]:
    assert images.label is not None
    return {name: np.flatnonzero(images.label == number) for number, name in enumerate(images.classes)}


def _by_kind(images: LensSet, columns: int) -> dict[str, np.ndarray]:
    """Two rows of lenses, then one for each kind of non-lens that occurs."""
    assert images.params is not None
    kind = np.array(images.params["kind"].to_pylist())
    lenses = np.flatnonzero(kind == "lens")
    rows = {"lens": lenses[:columns], "lens ": lenses[columns:]}
    others = sorted(set(kind) - {"lens"})
    return {name: places for name, places in rows.items() if len(places)} | {
        name.replace("_", " "): np.flatnonzero(kind == name) for name in others
    }


def _show(axes: Axes, images: LensSet, place: int, linear: float) -> None:
    axes.imshow(to_colour(images.images[place], linear), origin="lower", interpolation="nearest")
    if images.params is not None and (theta_E := images.params["theta_E"][place].as_py() or 0) > 0:
        axes.set_title(rf'$\theta_E$ = {theta_E:.2f}"', fontsize=8, pad=2)


def _scale_bar(axes: Axes, simulator: Simulator) -> None:
    """One arcsec, in the first image; the dark rim keeps it readable on noise."""
    from matplotlib.patheffects import withStroke

    length, start = 1 / simulator.preset.pixel_scale, 0.06 * simulator.preset.num_pix
    rim: list[AbstractPathEffect] = [withStroke(linewidth=3.5, foreground="black")]
    axes.plot([start, start + length], [start, start], color="white", linewidth=1.8, path_effects=rim)
    text = axes.text(start + length / 2, 1.4 * start, '1"', color="white", ha="center", va="bottom", fontsize=8)
    text.set_path_effects(rim)
