"""Images for the eye: bands as colours, faint arcs beside bright galaxies, heat maps over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from deeplense.evaluate.plots import styled

PICTURES = (".png", ".jpg", ".jpeg")  # files whose values were chosen for a screen
# Bands from blue to red, as the surveys call them; of a name such as "hsc-g" or "LSST_y" the last letter counts.
SPECTRUM = ("u", "b", "g", "v", "vis", "r", "i", "z", "y", "j", "h", "k")
HEAT = "inferno"


@dataclass(frozen=True)
class Display:
    """How the images of a set are shown.

    Attributes:
        red: which channel is the reddest: "first" for red, green, blue; "last" for g, r, i and the like.
        stretch: "linear", or "asinh", which shows arcs and the galaxy that outshines them at once.
    """

    red: Literal["first", "last"] = "first"
    stretch: Literal["linear", "asinh"] = "linear"


def display_of(names: Sequence[str], provenance: Mapping[str, Any] | None = None) -> Display:
    """How a survey's images are best shown, from the names of their bands; without these, as g, r, i.

    Args:
        names: of the images; pictures (.png, .jpg) are shown as they are.
        provenance: of the set; its "bands" are the channels in their order.
    """
    if len(names) and str(names[0]).lower().endswith(PICTURES):
        return Display()
    bands = [str(band).lower() for band in (provenance or {}).get("bands") or ()]
    places = [SPECTRUM.index(band if band in SPECTRUM else band[-1:]) for band in bands if _is_known(band)]
    is_reversed = len(places) == len(bands) and len(places) > 1 and places[0] > places[-1]
    return Display("first" if is_reversed else "last", "asinh")


def _is_known(band: str) -> bool:
    return band in SPECTRUM or band[-1:] in SPECTRUM


@styled
def gallery(images: Any, titles: Sequence[str], columns: int = 4) -> Figure:
    """Images in a grid, row 0 at the bottom of each.

    Args:
        images: shape (N, C, H, W) or (N, H, W).
        titles: a line or two for each.
    """
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(1.75 * columns, 2.1 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, image, title in zip(grid, images, titles, strict=False):
        axes.imshow(to_rgb(image), origin="lower", interpolation="nearest")
        axes.set_title(title, fontsize=8)
    for axes in grid:
        axes.axis("off")
    return figure


def to_rgb(image: Any, percentiles: tuple[float, float] = (0.5, 99.7), display: Display = Display()) -> np.ndarray:
    """An image for the eye, uint8, shape (H, W, 3): three bands as red, green, blue, or the first in false colour.

    Args:
        image: shape (C, H, W) or (H, W); or uint8 (H, W, 3), which is returned as it is.
        percentiles: where a linear stretch begins and ends; values outside are clipped.
        display: which band is red, and the stretch; with "asinh" an image of one or two bands is grey.
    """
    values = np.asarray(image)
    if values.dtype == np.uint8 and values.ndim == 3 and values.shape[-1] == 3:
        return values
    bands = (values[None] if values.ndim == 2 else values).astype(np.float64)
    if display.stretch == "asinh":
        return _asinh(bands if display.red == "last" else bands[:3][::-1])
    if len(bands) >= 3 and display.red == "last":
        bands = bands[::-1]
    bands = bands[:3] if len(bands) >= 3 else bands[:1]
    finite = bands[np.isfinite(bands)]
    low, high = np.percentile(finite, percentiles) if finite.size else (0.0, 1.0)
    unit = np.nan_to_num(np.clip((bands - low) / ((high - low) or 1.0), 0, 1))
    rgb = matplotlib.colormaps["inferno"](unit[0])[..., :3] if len(unit) == 1 else np.moveaxis(unit, 0, -1)
    return np.round(255 * rgb).astype(np.uint8)


def _asinh(bands: np.ndarray) -> np.ndarray:
    """Bands from blue to red, (C, H, W), with the simulator's stretch for previews; missing pixels are sky."""
    from deeplense.simulate.preview import to_colour

    known = [band[np.isfinite(band)] for band in bands]
    sky = np.array([np.median(values) if len(values) else 0.0 for values in known])
    filled = np.where(np.isfinite(bands), bands, sky[:, None, None])
    shown = filled if len(filled) >= 3 else filled.mean(axis=0, keepdims=True)
    return np.round(255 * np.clip(to_colour(shown), 0, 1)).astype(np.uint8)


def overlay(rgb: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A heat map over the picture in grey, uint8, shape (H, W, 3).

    Args:
        rgb: uint8, shape (H, W, 3).
        heat: in [0, 1], shape (H, W).
    """
    grey = (rgb @ np.array([0.3, 0.59, 0.11]))[..., None]
    opacity = 0.75 * np.clip(heat, 0, 1)[..., None]
    return np.round((1 - opacity) * grey + opacity * 255 * matplotlib.colormaps[HEAT](heat)[..., :3]).astype(np.uint8)


def beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two pictures, uint8 (H, W, 3), in one, with a thin white line between them."""
    line = np.full((len(left), max(1, left.shape[1] // 32), 3), 255, np.uint8)
    return np.concatenate([left, line, right], axis=1)
