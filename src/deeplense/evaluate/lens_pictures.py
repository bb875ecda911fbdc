"""Pictures of a fitted lens: data, model, what is left, the source, and the mass with its critical curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from contourpy import contour_generator
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.figure import Figure
from torch import Tensor

from deeplense.evaluate.pictures import HEAT
from deeplense.evaluate.plots import MUTED, styled
from deeplense.lensing.deflection import Deflection
from deeplense.lensing.raytrace import magnify, trace

Extent = tuple[float, float, float, float]
# Blue and red with white between: told apart by all eyes. Noise alone stays well inside of five sigma.
DIVERGING, MOST = "RdBu_r", 5.0
MASKED = "#b5b8bd"
CRITICAL, CAUSTIC = "#56b4e9", "#56b4e9"


@dataclass(frozen=True)
class Curves:
    """Where a lens magnifies without limit.

    Attributes:
        critical: lines in the image plane, each (N, 2), x and y in arcsec.
        caustics: the same points, traced to the source plane.
    """

    critical: list[np.ndarray]
    caustics: list[np.ndarray]


@dataclass(frozen=True)
class Panels:
    """What is drawn of one lens; rows of all images grow upward.

    Attributes:
        data, model, residual: shape (H, W); the residual is (data - model) / noise.
        mask: True where pixels did not count, shape (H, W).
        pixel_scale: arcsec.
        source: brightness in the source plane, shape (S, T), with its edges left, right, bottom, top in arcsec.
        source_extent: of it.
        kappa: convergence, shape (K, L), over the same field as the data.
        curves: critical lines and caustics.
        unit: of the data.
    """

    data: np.ndarray
    model: np.ndarray
    residual: np.ndarray
    mask: np.ndarray
    pixel_scale: float
    source: np.ndarray
    source_extent: Extent
    kappa: np.ndarray
    curves: Curves
    unit: str = "flux per pixel"

    @property
    def extent(self) -> Extent:
        """Edges of the image, arcsec."""
        half_y, half_x = (n * self.pixel_scale / 2 for n in self.data.shape)
        return -half_x, half_x, -half_y, half_y


def trace_curves(deflect: Callable[[Tensor, Tensor], Deflection], half_width: float, num_pix: int = 400) -> Curves:
    """Critical lines within a square about the origin, and their caustics.

    The lines are where 1 / mu changes its sign, between the points of a fine grid. A singular lens has no radial
    critical line, so that the cut around its caustic, where one image is lost, is not drawn.

    Args:
        deflect: alpha(theta_x, theta_y), arcsec, shape (1, H, W) of (H, W), each ray on its own.
        half_width: arcsec.
        num_pix: of the grid, a side.
    """
    axis = torch.linspace(-half_width, half_width, num_pix, dtype=torch.float64)
    theta_y, theta_x = torch.meshgrid(axis, axis, indexing="ij")
    inverse = (1 / magnify(deflect, theta_x, theta_y))[0].numpy()
    # A ray through the centre has no finite Jacobian; no line passes there.
    inverse = np.nan_to_num(inverse, nan=-1e3, posinf=1e3, neginf=-1e3)
    lines = [np.asarray(line) for line in contour_generator(axis.numpy(), axis.numpy(), inverse).lines(0.0)]
    return Curves(lines, [_traced(deflect, line) for line in lines])


def _traced(deflect: Callable[[Tensor, Tensor], Deflection], line: np.ndarray) -> np.ndarray:
    x, y = torch.from_numpy(line).T[:, None].contiguous()
    beta_x, beta_y = trace(x, y, deflect(x, y))
    return torch.stack([beta_x.reshape(-1), beta_y.reshape(-1)], 1).numpy()


@styled
def lens_figure(panels: Panels, title: str = "") -> Figure:
    """Data, model, residual in units of the noise, source with caustics, and convergence with critical lines."""
    figure = Figure(figsize=(16.5, 3.7), layout="constrained")
    data, model, residual, source, kappa = figure.subplots(1, 5)
    counts = _limits(panels.data[~panels.mask] if not panels.mask.all() else panels.data)
    hidden = np.ma.array(panels.data, mask=panels.mask)
    _panel(data, hidden, panels.extent, "Data", panels.unit, counts)
    _panel(model, panels.model, panels.extent, "Model", panels.unit, counts)
    left = np.ma.array(panels.residual, mask=panels.mask)
    label = "(data - model) / noise"
    _panel(residual, left, panels.extent, "Residual", label, Normalize(-MOST, MOST), DIVERGING)
    _panel(source, panels.source, panels.source_extent, "Source", panels.unit, _limits(panels.source))
    _panel(kappa, panels.kappa, panels.extent, "Convergence", r"$\kappa$", _kappa_limits(panels.kappa), "cividis")
    for axes, lines, colour in ((source, panels.curves.caustics, CAUSTIC), (kappa, panels.curves.critical, CRITICAL)):
        _draw(axes, lines, colour)
    _draw(data, panels.curves.critical, CRITICAL, linewidth=0.8, alpha=0.7)
    figure.suptitle(title, fontsize=11)
    return figure


@styled
def fit_gallery(
    data: np.ndarray, model: np.ndarray, residual: np.ndarray, titles: Sequence[str], columns: int = 7
) -> Figure:
    """Many lenses, each above its model and what the model leaves, in units of the noise from -5 to 5.

    Args:
        data, model, residual: shape (N, H, W); NaN are grey.
        titles: one for each.
        columns: images side by side.
    """
    blocks = max(1, -(-len(data) // columns))
    figure = Figure(figsize=(1.5 * columns + 1.1, 4.7 * blocks + 0.4), layout="constrained")
    grid = figure.subplots(3 * blocks, columns, squeeze=False)
    for axes in grid.ravel():
        axes.set(xticks=[], yticks=[])
        axes.axis("off")
    for i, (image, fitted, left) in enumerate(zip(data, model, residual, strict=True)):
        block, column = divmod(i, columns)
        three = grid[3 * block : 3 * block + 3, column]
        limits = _limits(image)
        for axes, values, norm, colours in zip(
            three, (image, fitted, left), (limits, limits, Normalize(-MOST, MOST)), (HEAT, HEAT, DIVERGING), strict=True
        ):
            axes.imshow(values, origin="lower", interpolation="nearest", norm=norm, cmap=_colours(colours))
        three[0].set_title(titles[i], fontsize=8)
    for row, name in enumerate(("data", "model", "residual") * blocks):
        place = {"transform": grid[row, 0].transAxes, "rotation": 90, "ha": "right", "va": "center"}
        grid[row, 0].text(-0.06, 0.5, name, **place)
    bar = ScalarMappable(Normalize(-MOST, MOST), matplotlib.colormaps[DIVERGING])
    figure.colorbar(bar, ax=list(grid[2::3].ravel()), label="(data - model) / noise", shrink=0.9, pad=0.01)
    return figure


def _panel(
    axes: Axes, image: Any, extent: Extent, title: str, label: str, norm: Normalize, colours: str = HEAT
) -> None:
    shown = axes.imshow(
        image, origin="lower", interpolation="nearest", extent=extent, norm=norm, cmap=_colours(colours)
    )
    axes.set(title=title, xlabel="x (arcsec)", xlim=extent[:2], ylim=extent[2:])
    if title in ("Data", "Source"):
        axes.set_ylabel("y (arcsec)")
    assert axes.figure is not None
    bar = axes.figure.colorbar(shown, ax=axes, location="bottom", shrink=0.9, pad=0.02, aspect=28)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_edgecolor(MUTED)  # type: ignore[operator]


def _draw(axes: Axes, lines: Sequence[np.ndarray], colour: str, **style: Any) -> None:
    for line in lines:
        axes.plot(*line.T, color=colour, **{"linewidth": 1.3, **style})


def _colours(name: str) -> Colormap:
    return matplotlib.colormaps[name].with_extremes(bad=MASKED)


def _limits(image: np.ndarray) -> Normalize:
    known = image[np.isfinite(image)]
    low, high = np.percentile(known, (0.5, 99.8)) if known.size else (0.0, 1.0)
    return Normalize(float(low), float(high if high > low else low + 1))


def _kappa_limits(kappa: np.ndarray) -> Normalize:
    """Logarithmic, since a singular lens has no top."""
    known = kappa[np.isfinite(kappa) & (kappa > 0)]
    if not known.size:
        return Normalize(0, 1)
    low, high = np.percentile(known, (0.5, 99.5))
    return LogNorm(float(low), float(max(high, 1.01 * low)))
