"""Figures that set generated images beside held-out ones, in equal colours, bins and stretch throughout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, FormatStrFormatter, MaxNLocator, NullLocator
from sklearn.decomposition import PCA

from deeplense.evaluate import plots
from deeplense.evaluate.fidelity_parts import BAND
from deeplense.evaluate.fidelity_sets import Measured
from deeplense.evaluate.morphology import Curves, pixel_sample
from deeplense.evaluate.pictures import Display, to_rgb
from deeplense.evaluate.plots import COLOURS, MUTED, SIZE, SQUARE, line_style, styled

NAMES = ("held out", "generated")
LIKE = 0.1  # of the ratio of power spectra, what is drawn as agreement
POINTS = 1000  # of each set, in a scatter plot


def mosaic(rows: Sequence[Any]) -> np.ndarray:
    """Images in one, the first row at the top where row 0 of an image is at its bottom, shape (C, H', W').

    Args:
        rows: images of shape (C, H, W), equally many in each row; thin lines of NaN divide them.
    """
    lines = [np.concatenate([_framed(image) for image in row], axis=2) for row in rows]
    return np.concatenate(lines[::-1], axis=1)


def _framed(image: np.ndarray) -> np.ndarray:
    return np.pad(np.asarray(image, np.float64), ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)


def image_grids(
    generated: Measured, held_out: Measured, classes: Sequence[str], display: Display, columns: int = 4
) -> tuple[Figure, Figure]:
    """Held-out images and generated ones, a row for each class, all with one stretch.

    The images are the first of each class; nobody chose them.
    """
    is_by_class = bool(classes) and generated.label is not None and held_out.label is not None
    names = classes if is_by_class else [""] * 3
    parts = [_rows(part, len(names), columns, is_by_class) for part in (held_out, generated)]
    halves = np.split(to_rgb(np.concatenate([mosaic(part) for part in parts], axis=2), display=display), 2, axis=1)
    left, right = (_labelled(half, names, [""] * columns) for half in halves)
    return left, right


@styled
def _labelled(rgb: np.ndarray, rows: Sequence[str], columns: Sequence[str], fontsize: float = 9) -> Figure:
    """A mosaic of equal images with the names of its rows and columns."""
    height, width = (length / len(names) for length, names in zip(rgb.shape, (rows, columns), strict=False))
    figure = Figure(figsize=(SIZE[0], 0.35 + 4.9 * len(rgb) / rgb.shape[1]), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(rgb, origin="lower", interpolation="nearest")
    axes.set_yticks([len(rgb) - (k + 0.5) * height for k in range(len(rows))], rows, rotation=90, va="center")
    axes.set_xticks([(k + 0.5) * width for k in range(len(columns))], columns)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=fontsize)
    axes.spines[:].set_visible(False)
    return figure


def _rows(images: Measured, number: int, columns: int, is_by_class: bool) -> list[list[np.ndarray]]:
    """Rows of equally many images, the first of each class, or the first of all; blank where there are none."""
    blank = np.full(images.images.shape[1:], np.nan)
    every = np.arange(len(images))
    index = [every[images.label == k] if is_by_class else every[k * columns :] for k in range(number)]
    shown = [list(images.images[row[:columns]]) for row in index]
    return [row + [blank] * (columns - len(row)) for row in shown]


@styled
def power_spectra(row: Mapping[str, Any], generated: Curves, held_out: Curves) -> Figure:
    """Mean power with the scatter of the images, above the ratio of the means with the floor that it has.

    Args:
        row: what `fidelity_parts.curve_rows` says of them.
    """
    figure = Figure(figsize=(SIZE[0], 5.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_curves(upper, (held_out, generated), held_out.x)
    upper.set(xscale="log", yscale="log", ylabel="Power (brightness²)")
    lower.fill_between(row["x"], row["floor_low"], row["floor_high"], color=COLOURS[0], alpha=0.25, lw=0, label="floor")
    lower.plot(row["x"], row["ratio"], **line_style(1), label="generated / held out")
    _mark_band(lower, row)
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200) if tick <= row["x"][-1]]
    lower.xaxis.set_major_locator(FixedLocator(ticks))
    lower.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    lower.xaxis.set_minor_locator(NullLocator())
    lower.set(xlabel="Frequency (cycles per image)", ylabel="Ratio")
    lower.legend(ncols=2, loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.2)
    return figure


def _draw_curves(axes: Axes, sets: Sequence[Curves], x: np.ndarray) -> None:
    """Means, and the central 68 % of the images: a band for the first set, thin lines for the second."""
    for k, (curves, name) in enumerate(zip(sets, NAMES, strict=True)):
        axes.plot(x, curves.mean, **line_style(k), label=name)
    axes.fill_between(x, *sets[0].scatter, color=COLOURS[0], alpha=0.18, lw=0)
    for edge in sets[1].scatter:
        axes.plot(x, edge, **line_style(1) | {"lw": 0.8})
    axes.grid(True)
    axes.legend()


def _mark_band(axes: Axes, row: Mapping[str, Any]) -> None:
    """The range in which spectra are to agree within ten per cent."""
    last = min(BAND[1], row["x"][-1])
    for edge in (1 - LIKE, 1 + LIKE):
        axes.hlines(edge, BAND[0], last, color=MUTED, lw=1.1, ls=":")
    axes.vlines([BAND[0], last], 1 - LIKE, 1 + LIKE, color=MUTED, lw=1.1, ls=":")
    axes.axhline(1, color=MUTED, lw=0.8)
    reach = max(0.25, 1.15 * float(np.abs(np.asarray(row["ratio"]) - 1).max()))
    axes.set_ylim(max(0.0, 1 - reach), 1 + min(reach, 4.0))
    axes.grid(True)


@styled
def radial_profiles(generated: Curves, held_out: Curves, pixel_scale: float | None = None) -> Figure:
    """Mean brightness against the distance from the image centre, with the scatter of the images."""
    figure = Figure(figsize=(SIZE[0], 3.6), layout="constrained")
    unit = "arcsec" if pixel_scale else "pixels"
    axes = figure.add_subplot(xlabel=f"Distance from the image centre ({unit})", ylabel="Brightness")
    _draw_curves(axes, (held_out, generated), held_out.x * (pixel_scale or 1.0))
    return figure


@styled
def pixel_values(generated: np.ndarray, held_out: np.ndarray) -> Figure:
    """How often each pixel value occurs, on a logarithmic axis; images of shape (N, C, H, W)."""
    figure = Figure(figsize=(SIZE[0], 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel="Pixel value (brightness)", ylabel="Share of pixels", yscale="log")
    _draw_steps(axes, [pixel_sample(held_out), pixel_sample(generated)], 80)
    axes.grid(True)
    axes.legend()
    return figure


def _draw_steps(axes: Axes, values: Sequence[np.ndarray], bins: int) -> None:
    """Histograms of shares in bins that both sets share."""
    edges = np.histogram_bin_edges(np.concatenate(values), bins)
    for k, (part, name) in enumerate(zip(values, NAMES, strict=True)):
        shares = np.histogram(part, edges)[0] / len(part)
        axes.stairs(shares, edges, **line_style(k), lw=1.6, label=name)


@styled
def number_histograms(generated: Mapping[str, np.ndarray], held_out: Mapping[str, np.ndarray], unit: str) -> Figure:
    """Ring radius, ellipticity, flux and noise of both sets.

    Args:
        generated, held_out: as `morphology.morphology` gives them.
        unit: of the ring radius.
    """
    labels = {
        "ring_radius": f"Ring radius ({unit})",
        "ellipticity": "Ellipticity |χ|",
        "flux": "Flux above the sky (brightness)",
        "noise": "Noise (brightness)",
    }
    figure = Figure(figsize=(SIZE[0], 4.8), layout="constrained")
    bins = int(np.clip(np.sqrt(len(generated["flux"])), 8, 40))
    for axes, (name, label) in zip(figure.subplots(2, 2).ravel(), labels.items(), strict=True):
        _draw_steps(axes, [_inner(held_out[name], held_out[name]), _inner(generated[name], held_out[name])], bins)
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        if np.abs(held_out[name]).max() >= 1e4:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 2M: there is no room for 2,000,000
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(True)
    figure.supylabel("Share of images", fontsize=10)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def _inner(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Values brought into the reference's range and half of it on either side, so that no outlier squeezes the rest."""
    low, high = reference.min(), reference.max()
    return np.clip(values, low - (high - low) / 2, high + (high - low) / 2)


def neighbours(rows: Mapping[str, np.ndarray], titles: Sequence[str], display: Display) -> Figure:
    """Rows of images under one another, all with one stretch.

    Args:
        rows: by what they are, images of shape (C, H, W), one a column.
        titles: of the columns.
    """
    return _labelled(to_rgb(mosaic(list(rows.values())), display=display), list(rows), titles, fontsize=8)


def class_matrix(confusion: Any, classes: Sequence[str]) -> Figure:
    """Classes asked for against those that the classifier sees in the generated images, shape (K, K)."""
    figure = plots.confusion_matrix(confusion, classes)
    figure.axes[0].set(xlabel="Class seen by the classifier", ylabel="Class asked for")
    return figure


@styled
def projection(generated: np.ndarray, held_out: np.ndarray) -> Figure:
    """Features of both sets on the two directions in which those of the held-out set vary most, shape (N, D) each."""
    figure = Figure(figsize=SQUARE, layout="constrained")
    fitted = PCA(2, random_state=0).fit(held_out)
    one, two = (f"{share:.0%}".replace("%", " %") for share in fitted.explained_variance_ratio_)
    axes = figure.add_subplot(xlabel=f"First component ({one} of variance)", ylabel=f"Second component ({two})")
    for k, (points, name) in enumerate(zip((held_out, generated), NAMES, strict=True)):
        x, y = fitted.transform(points[:POINTS]).T
        axes.scatter(x, y, s=11, c=COLOURS[k], marker="ox"[k], lw=0.7 * k, alpha=0.55, label=name, rasterized=True)
    axes.grid(True)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.2)
    return figure
