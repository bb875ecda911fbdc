"""Figures of measured lenses: truth against fit, uncertainties at their word, chi^2, and images beside their models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy import stats

from deeplense.errors import DataError
from deeplense.evaluate.measurements import Measured, coverage
from deeplense.evaluate.pictures import HEAT
from deeplense.evaluate.plots import COLOURS, INK, MUTED, SIZE, line_style, styled

FEW_POINTS = 1500  # up to here each lens is a point; of more, the density is drawn
CELLS = 60  # of the density, along each axis
REACH = 5.0  # robust standard deviations, or units of noise, at which axes and colours end
PER_BIN, MOST_BINS = 40, 10  # lenses in a bin of the running median; bins
LEVELS = np.linspace(0, 1, 101)[1:-1]  # of the coverage curve
# Points and density are pixels, which keep their colour on any page: a blue for light and for dark ones, and opacity.
CLOUD = "#2a8fcf"
DENSITY = ListedColormap([(*to_rgb(CLOUD), opacity) for opacity in np.linspace(0.2, 1, 256)])


@styled
def truth_and_fit(part: Measured) -> Figure:
    """Fitted values against true ones, above the errors with their running median and central 68 %.

    What lies beyond the axes is drawn at their ends.
    """
    figure = Figure(figsize=(SIZE[0], 5.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    truth, error = part.truth, part.error
    ends = _ends(truth)
    upper.plot(ends, ends, color=INK, lw=1.0, ls=":", label="fit = truth", zorder=3)
    _draw_cloud(upper, truth, part.estimate, (ends, ends))
    upper.set(xlim=ends, ylim=ends, ylabel=f"{part.title}, fit{_unit(part.unit)}")
    upper.legend(loc="upper left")
    middle, scatter = np.median(error), stats.median_abs_deviation(error, scale="normal")
    # Without scatter there is still an axis.
    reach = (REACH * scatter + abs(middle)) or 1.05 * np.abs(error).max() or 1.0
    lower.axhline(0, color=INK, lw=1.0, ls=":", zorder=3)
    _draw_cloud(lower, truth, error, (ends, (-reach, reach)))
    _draw_running(lower, truth, error)
    lower.set(ylim=(-reach, reach), xlabel=f"{part.title}, truth{_unit(part.unit)}")
    lower.set_ylabel(f"Fit − truth{_unit('% of the truth' if part.is_relative else part.unit)}")
    for axes in (upper, lower):
        axes.grid(True)
    return figure


def _unit(unit: str) -> str:
    return f" ({unit})" if unit else ""


def _ends(values: np.ndarray) -> tuple[float, float]:
    """The range of values with a margin."""
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low) or 0.5 * abs(low) or 0.5
    return low - margin, high + margin


def _draw_cloud(axes: Axes, x: np.ndarray, y: np.ndarray, limits: tuple[tuple[float, float], ...]) -> None:
    """Points, or where there are many their density; those beyond the limits at the edge."""
    x, y = (np.clip(values, *ends) for values, ends in zip((x, y), limits, strict=True))
    if len(x) <= FEW_POINTS:
        size = float(np.clip(4000 / len(x), 5, 22))
        axes.scatter(x, y, s=size, color=CLOUD, alpha=0.55, lw=0, rasterized=True, clip_on=False)
        return
    counts, edges_x, edges_y = np.histogram2d(x, y, bins=CELLS, range=limits)
    shown = np.ma.masked_equal(counts.T, 0)
    # The square root lets single lenses be seen beside the crowd.
    axes.pcolormesh(edges_x, edges_y, np.sqrt(shown), cmap=DENSITY, vmin=1, rasterized=True, lw=0)


def _draw_running(axes: Axes, truth: np.ndarray, error: np.ndarray) -> None:
    """Median and central 68 % of the errors in bins of equally many lenses; nothing if there are too few for two."""
    number = min(MOST_BINS, len(truth) // PER_BIN)
    if number < 2:
        return
    bins = np.array_split(np.argsort(truth, kind="stable"), number)
    x = [np.median(truth[index]) for index in bins]
    low, middle, high = np.transpose([np.quantile(error[index], (0.16, 0.5, 0.84)) for index in bins])
    axes.plot(x, middle, color=COLOURS[1], marker="o", ms=3.5, lw=1.4, zorder=4, label="median")
    for edge, label in ((low, "central 68 %"), (high, None)):
        axes.plot(x, edge, color=COLOURS[1], lw=1.1, ls="--", zorder=4, label=label)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.1)


@styled
def pull_histograms(parts: Sequence[Measured]) -> Figure:
    """(fit - truth) / sigma of each parameter, against the unit Gaussian that it is where the uncertainties are right.

    Pulls beyond +-5 are counted in the outermost bins.
    """
    columns = min(3, len(parts))
    rows = -(-len(parts) // columns)
    figure = Figure(figsize=(SIZE[0], 0.8 + 1.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    edges = np.linspace(-REACH, REACH, int(np.clip(np.sqrt(len(parts[0].truth)), 12, 40)) + 1)
    for axes, part in zip(grid, parts, strict=False):
        _draw_pulls(axes, part, edges)
    for axes in grid[len(parts) :]:
        axes.set_visible(False)
    figure.supxlabel("(fit − truth) / σ", fontsize=10)
    figure.supylabel("Density", fontsize=10)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def _draw_pulls(axes: Axes, part: Measured, edges: np.ndarray) -> None:
    x, pull = np.linspace(-REACH, REACH, 201), part.pull
    density = np.histogram(np.clip(pull, -REACH, REACH), edges)[0] / len(pull) / np.diff(edges)
    axes.stairs(density, edges, color=COLOURS[0], fill=True, alpha=0.3, lw=0)
    axes.stairs(density, edges, color=COLOURS[0], lw=1.3, label="measured")
    axes.plot(x, stats.norm.pdf(x), color=COLOURS[1], lw=1.3, ls="--", label="unit Gaussian")
    # Adding zero turns a rounded -0.00 into 0.00.
    numbers = f"mean {round(pull.mean(), 2) + 0:.2f}, scatter {pull.std():.2f}".replace("-", "−")
    axes.set_title(f"{part.title}\n{numbers}", fontsize=7.5)
    axes.tick_params(labelsize=8)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(True)


@styled
def coverage_curves(parts: Sequence[Measured], main: Sequence[str]) -> Figure:
    """Share of lenses whose central interval holds the truth, against the share that should; below, the difference.

    Args:
        parts: all parameters.
        main: names of those that have a colour and a name, six at most; the others are thin lines.
    """
    figure = Figure(figsize=(SIZE[0], 6.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    number = min(len(part.truth) for part in parts)
    chance = 1.96 * np.sqrt(LEVELS * (1 - LEVELS) / number)
    upper.plot([0, 1], [0, 1], color=INK, lw=1.2, ls=":")
    lower.axhline(0, color=INK, lw=1.2, ls=":")
    lower.fill_between(LEVELS, -chance, chance, color=MUTED, alpha=0.25, lw=0, label="right, by chance (95 %)")
    named = [part for part in parts if part.name in main][: len(COLOURS)]
    others = [part for part in parts if part not in named]
    for k, part in enumerate(others):
        _draw_coverage((upper, lower), part, {"color": MUTED, "lw": 0.7, "label": None if k else "other parameters"})
    for k, part in enumerate(named):
        _draw_coverage((upper, lower), part, {**line_style(k), "label": part.title})
    percent = PercentFormatter(1, decimals=0, symbol=" %")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="Truth inside the interval")
    lower.set(xlabel="Share that the interval should hold", ylabel="Difference")
    reach = 1.1 * max(0.05, *(np.abs(coverage(part.pull, LEVELS) - LEVELS).max() for part in parts))
    lower.set_ylim(-reach, reach)
    for axis in (lower.xaxis, upper.yaxis, lower.yaxis):
        axis.set_major_formatter(percent)
    for axes in (upper, lower):
        axes.grid(True)
    upper.legend(loc="upper left")
    lower.legend(*(items[:1] for items in lower.get_legend_handles_labels()), loc="lower left")
    return figure


def _draw_coverage(both: tuple[Axes, Axes], part: Measured, style: Mapping[str, Any]) -> None:
    measured = coverage(part.pull, LEVELS)
    both[0].plot(LEVELS, measured, **style)
    both[1].plot(LEVELS, measured - LEVELS, **style)


@styled
def chi2_histograms(chi2: np.ndarray, label: np.ndarray, classes: Sequence[str], pixels: int | None = None) -> Figure:
    """chi^2 per pixel of each class, with what noise alone would give.

    Args:
        chi2: chi^2 over the number of pixels, shape (N,); the largest 1 % are counted in the last bin.
        label: class numbers, shape (N,).
        classes: K names.
        pixels: of an image; without it there is no curve of noise alone.
    """
    figure = Figure(figsize=(SIZE[0], 3.8), layout="constrained")
    axes = figure.add_subplot(xlabel="χ² / number of pixels", ylabel="Share of images")
    high = max(float(np.quantile(chi2, 0.99)), 1.02)
    edges = np.histogram_bin_edges(np.clip(chi2, None, high), int(np.clip(np.sqrt(len(chi2)), 12, 60)))
    for k in np.unique(label):
        shares = np.histogram(np.clip(chi2[label == k], None, edges[-1]), edges)[0] / np.sum(label == k)
        axes.stairs(shares, edges, **line_style(int(k)), lw=1.6, label=classes[k])
    if pixels:
        noise = np.diff(stats.chi2.cdf(edges * pixels, pixels))
        axes.stairs(noise, edges, color=MUTED, lw=1.2, ls=":", label="noise alone")
    axes.axvline(1, color=MUTED, lw=0.9)
    axes.grid(True)
    axes.legend()
    return figure


@styled
def fit_gallery(
    images: np.ndarray,
    titles: Sequence[str],
    model: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    pixel_scale: float | None = None,
) -> Figure:
    """Images in rows, each as data, model and residual, as far as they are given; row 0 of an image at its bottom.

    Data and model of a row have one stretch; residuals have the colours of -5 to +5 units of noise.

    Args:
        images, model: in the same unit, shape (M, H, W).
        titles: a line or two for each row.
        residual: (data - model) / noise, shape (M, H, W).
        pixel_scale: arcsec; without it axes are in pixels.

    Raises:
        DataError: shapes that do not fit together.
    """
    columns = {"Data": images, "Model": model, "Residual / noise": residual}
    shown = {name: np.asarray(values) for name, values in columns.items() if values is not None}
    shapes = {name: values.shape for name, values in shown.items()}
    if len(set(shapes.values())) > 1 or np.ndim(images) != 3 or len(titles) != len(images):
        raise DataError(f"a gallery of {len(titles)} rows needs that many images (H, W) of one shape; got {shapes}")
    figure = Figure(figsize=(0.7 + 1.75 * len(shown), 0.7 + 1.5 * len(images)), layout="constrained")
    grid = figure.subplots(len(images), len(shown), sharex=True, sharey=True, squeeze=False)
    scale, unit = (pixel_scale, "arcsec") if pixel_scale else (1.0, "pixels")
    height, width = (length * scale / 2 for length in images.shape[1:])
    for k, title in enumerate(titles):
        row = {name: values[k] for name, values in shown.items()}
        _draw_row(grid[k], row, (-width, width, -height, height))
        grid[k, 0].set_ylabel(title, fontsize=8)
    for axes, name in zip(grid[0], shown, strict=True):
        axes.set_title(name, fontsize=9)
    figure.supxlabel(unit, fontsize=9)
    if residual is not None:
        bar = figure.colorbar(grid[0, -1].images[0], ax=list(grid[:, -1]), shrink=0.7, aspect=28, extend="both")
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _draw_row(grid: Sequence[Axes], row: Mapping[str, np.ndarray], extent: tuple[float, ...]) -> None:
    low, high = np.nanpercentile(row["Data"], (0.5, 99.8))
    for axes, (name, values) in zip(grid, row.items(), strict=True):
        is_residual = name.startswith("Residual")
        limits = (-REACH, REACH) if is_residual else (low, high)
        # Red and blue of different lightness are told apart by colour-blind eyes.
        colours = "RdBu_r" if is_residual else HEAT
        look: dict[str, Any] = {"vmin": limits[0], "vmax": limits[1], "cmap": colours, "extent": extent}
        axes.imshow(values, origin="lower", interpolation="nearest", **look)
        axes.tick_params(labelsize=7, length=2)
        axes.spines[:].set_visible(False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(3))
