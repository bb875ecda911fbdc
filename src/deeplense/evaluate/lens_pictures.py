"""Measured lenses as pictures: data, model, what is left, source, and convergence with critical curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure

Curves = Sequence[np.ndarray]
Extent = tuple[float, float, float, float]
MOST = 5.0  # standard deviations at which the colours of a residual end
MASKED = "0.75"


def measured_lens(
    data: np.ndarray,
    model: np.ndarray,
    residual: np.ndarray,
    source: np.ndarray,
    kappa: np.ndarray,
    *,
    pixel_scale: float,
    source_extent: Extent,
    critical: Curves,
    caustics: Curves,
    title: str,
) -> Figure:
    """Five panels of one lens.

    Args:
        data, model: in one unit, shape (H, W); pixels that do not count are NaN in ``residual``.
        residual: (data - model) / noise, shape (H, W).
        source: surface brightness in the source plane, shape (S, S), whose outermost pixel centres lie at
            ``source_extent`` (left, right, bottom, top), arcsec.
        kappa: convergence, shape (H, W).
        critical, caustics: curves, (M, 2) each, arcsec.
    """
    figure = Figure(figsize=(16.5, 3.9), layout="constrained")
    axes = figure.subplots(1, 5)
    extent = _extent(data.shape, pixel_scale)
    seen = model[np.isfinite(residual)] if np.isfinite(residual).any() else model
    norm = AsinhNorm(linear_width=max(float(np.ptp(seen)) / 15, 1e-30), vmin=float(seen.min()), vmax=float(seen.max()))
    is_lost = ~np.isfinite(residual)
    _show(axes[0], data, extent, "data (asinh scale)", "flux / pixel", cmap="inferno", norm=norm)
    _show(axes[1], model, extent, "model", "flux / pixel", cmap="inferno", norm=norm)
    _show(axes[2], residual, extent, "residual", "(data − model) / noise", cmap="RdBu_r", vmin=-MOST, vmax=MOST)
    axes[0].contour(is_lost, [0.5], extent=extent, origin="lower", colors="w", linewidths=0.8, linestyles=":")
    faint = AsinhNorm(linear_width=max(float(source.max()) / 15, 1e-30), vmin=0, vmax=max(float(source.max()), 1e-30))
    _show(axes[3], source, _widened(source_extent, len(source)), "source", "flux / pixel", cmap="inferno", norm=faint)
    _show(axes[4], np.log10(np.clip(kappa, 1e-3, None)), extent, "convergence", "log10 κ", cmap="viridis")
    _draw(axes[3], caustics, "caustics")
    _draw(axes[4], critical, "critical curves")
    for axis in axes:
        axis.set_xlabel("x [arcsec]")
    axes[0].set_ylabel("y [arcsec]")
    left, right, bottom, top = _widened(source_extent, len(source))
    axes[3].set(xlim=(left, right), ylim=(bottom, top))
    figure.suptitle(title)
    return figure


def gallery(
    images: np.ndarray, model: np.ndarray, residual: np.ndarray, names: Sequence[str], pixel_scale: float, title: str
) -> Figure:
    """Rows of data, model and residual, a column for each image; images (N, H, W), residual in units of noise."""
    number = len(images)
    figure = Figure(figsize=(max(1.35, 8 / number) * number + 1.2, max(4.5, 24 / number)), layout="constrained")
    axes = figure.subplots(3, number, squeeze=False)
    extent = _extent(images.shape[1:], pixel_scale)
    for column in range(number):
        top = float(np.quantile(images[column], 0.999))
        for row, maps in enumerate((images, model)):
            axes[row, column].imshow(maps[column], extent=extent, origin="lower", cmap="inferno", vmin=0, vmax=top)
        shown = axes[2, column].imshow(
            residual[column], extent=extent, origin="lower", cmap="RdBu_r", vmin=-MOST, vmax=MOST
        )
        axes[0, column].set_title(names[column], fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for row, name in enumerate(("data", "model", "residual")):
        axes[row, 0].set_ylabel(name)
    axes[2, 0].set(xticks=[-2, 0, 2], yticks=[-2, 0, 2], xlabel="arcsec")
    figure.colorbar(shown, ax=axes[2], label="(data − model)\n/ noise", aspect=12)
    figure.suptitle(title)
    return figure


def _show(axis: Axes, image: np.ndarray, extent: Extent, title: str, unit: str, **how: Any) -> None:
    axis.set_facecolor(MASKED)
    shown = axis.imshow(image, extent=extent, origin="lower", interpolation="nearest", **how)
    bar = axis.figure.colorbar(shown, ax=axis, location="bottom", shrink=0.9, aspect=25)
    bar.set_label(unit)
    bar.ax.tick_params(labelsize=7)
    if isinstance(how.get("norm"), AsinhNorm):  # its own ticks stand on top of one another near 0
        bar.set_ticks([how["norm"].vmax * f for f in (0, 0.1, 0.3, 1)])
        bar.ax.xaxis.set_major_formatter("{x:.2g}")
        bar.ax.minorticks_off()
    axis.set_title(title)


def _draw(axis: Axes, curves: Curves, label: str) -> None:
    for number, curve in enumerate(curves):
        axis.plot(*curve.T, color="w", lw=1.2, label=None if number else label)
    if curves:
        axis.legend(loc="upper right", fontsize=8, facecolor="0.25", labelcolor="w", framealpha=0.8)


def _extent(shape: Sequence[int], pixel_scale: float) -> Extent:
    half = [n * pixel_scale / 2 for n in shape]
    return (-half[1], half[1], -half[0], half[0])


def _widened(extent: Extent, number: int) -> Extent:
    """From the outermost pixels' centres to their edges."""
    step = (extent[1] - extent[0]) / (number - 1) / 2
    return extent[0] - step, extent[1] + step, extent[2] - step, extent[3] + step
